"""The process from which candidates are forked: it has imported torch, and knows nothing else.

It is started afresh, so no test, oracle, solution or secret was ever in its memory.
For every candidate that is asked for, it forks a keeper, which forks the candidate,
tells how that ended, and ends whatever it has left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys

from paperlings.sealed import sandbox

STOPPED = b"stopped"  # what a keeper tells that has ended its candidate itself
_SUBREAPER = 36  # prctl
_libc = ctypes.CDLL(None, use_errno=True)


def main(handle: int) -> None:
    """Fork a candidate for every pair of sockets that arrives at `handle`, until it is closed."""
    control = socket.socket(fileno=handle)
    level = sandbox.probe()  # before torch, whose threads a fork would lose
    _import()
    control.send(level.encode())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, handles, _, _ = socket.recv_fds(control, 64, 2)
        if not data:
            os._exit(0)
        me = os.getpid()
        with contextlib.suppress(OSError):  # one that cannot be forked is missed by who asked
            if len(handles) == 2 and not os.fork():
                control.close()
                with contextlib.suppress(BaseException):
                    _keep(handles[0], handles[1], level, me)
                os._exit(1)
        for received in handles:
            os.close(received)


def _import() -> None:
    """What a submission and a driver will want."""
    import hypothesis
    import numpy
    import torch
    import torch.fx.experimental.symbolic_shapes  # half a second, which autograd.grad would cost

    import paperlings.sealed.candidate
    import paperlings.testing
    from paperlings.spare import spare_the_compiler

    assert all((hypothesis, numpy, paperlings.sealed.candidate, paperlings.testing))
    torch.set_num_threads(1)
    spare_the_compiler()
    # what torch looks up about the processor at its first need, it could not look up later
    torch.ones(2, 2, dtype=torch.bfloat16).float() @ torch.ones(2, 2, dtype=torch.float16).float()
    gc.collect()
    gc.freeze()


def _keep(channel: int, lifeline: int, level: str, zygote: int) -> None:
    """Look after one candidate until it ends, or the judge lets go of the lifeline, or the zygote
    ends.
    """
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _libc.prctl(_SUBREAPER, 1, 0, 0, 0)  # who is left behind becomes a child of this process
    above = os.pidfd_open(zygote)
    if os.getppid() != zygote:
        return
    me = os.getpid()
    child = os.fork()
    if not child:
        os.close(lifeline)
        _be(channel, level, me)
    os.close(channel)
    line = socket.socket(fileno=lifeline)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([line.fileno(), ended, above], [], [])
    told = STOPPED if line.fileno() in ready else b""
    if ended in ready:
        told = str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode()
    _end(child)
    with contextlib.suppress(OSError):
        line.send(told)
    os._exit(0)


def _be(channel: int, level: str, keeper: int) -> None:
    """Be the candidate."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for handle in range(3):
            os.dup2(null, handle)
        os.dup2(channel, 3)
        os.closerange(4, 1 << 16)
        from paperlings.sealed import candidate, wire

        end = wire.Channel(socket.socket(fileno=3), takes_far=True)
        sandbox.lock(strict=level != sandbox.NONE)
        if os.getppid() != keeper:  # it ended before its end could be heard of
            os._exit(97)
        os.environ.clear()
        candidate.serve(end)
        os._exit(0)
    except sandbox.Unlockable:
        os._exit(99)
    except BaseException:
        os._exit(98)


def _end(child: int) -> None:
    """Kill the candidate, and all that it or its descendants have started."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(1000):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        me = f"/proc/self/task/{os.getpid()}/children"
        with contextlib.suppress(OSError), open(me) as file:
            for left in file.read().split():
                os.kill(int(left), signal.SIGKILL)
        select.select([], [], [], 0.005)


if __name__ == "__main__":
    main(int(sys.argv[1]))
