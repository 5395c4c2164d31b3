"""Where a submission may start tools: compilers that write files, and the driver of a GPU.

The lock of other candidates leaves no room for them, so this one is looser inside and has walls
around it: a container of bubblewrap, without a network, in which the system's and Python's
libraries are all there is to read and a /tmp of its own, bounded, is all there is to write.
Whoever works in it is nobody, has no privilege, and is gone with all he started when it ends.

Memory is not bounded: drivers reserve terabytes of addresses. Where it runs out, the kernel ends
these processes before others. With a GPU none of this has been tried: what CUDA opens
(/dev/nvidia*, /proc/driver/nvidia, /sys) is what other containers show it.

Whether the walls hold is tried, as a submission would: `python -m paperlings.sealed.workshop`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from paperlings.sealed import sandbox

WHY_NOT = "the gate is sealed in a container of bubblewrap, which does not work here"
ROOM, SHARED, FILE = 4 << 30, 256 << 20, 1 << 30  # bytes of /tmp, of /dev/shm, and of one file
# what of the judge's environment tells programs where things are, and nothing else
KEPT = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
OWN = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "USER": "nobody",
}
HOUSE = Path(__file__).resolve().parents[2]
DUMPABLE = 4  # prctl
_CLOSED = ["--remount-ro", "/", "--remount-ro", "/dev"]


def command(gpu: bool, file: Path, path: Path) -> list[str]:
    """The command that runs another in a workshop, in which `file` is what lies at `path`.

    gpu: whether the GPUs are there, too.  Raises Unlockable where it would not hold.
    """
    prefix = _prefix(gpu)
    if not prefix:
        raise sandbox.Unlockable(WHY_NOT)
    names = {**OWN, **{name: os.environ[name] for name in KEPT if name in os.environ}}
    settings = [part for name in names for part in ("--setenv", name, names[name])]
    place = [*_folders(str(path)), "--ro-bind", str(file), str(path)]
    return [*prefix, *settings, *place, *_CLOSED]


@functools.cache
def _prefix(gpu: bool) -> list[str]:
    """What every workshop begins with; nothing where none holds."""
    rooms = [*_tmpfs("/tmp", ROOM), *_tmpfs("/dev/shm", SHARED)]
    folders = _folders(*sandbox.readable(), sandbox.PROCESSORS)
    prefix = sandbox.container(*rooms, *folders, *_shown(gpu))
    trial = [*prefix, *_CLOSED, sys.executable, "-m", "paperlings.sealed.workshop"]
    try:
        subprocess.run(
            trial if prefix else ["false"],
            cwd=HOUSE,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return prefix


def _folders(*paths: str) -> list[str]:
    """What they lie in, which everybody may go through; by itself bubblewrap lets root alone."""
    above = {str(folder) for path in paths for folder in Path(path).parents[:-1]}
    return [word for f in sorted(above - {"/dev"}) for word in ("--perms", "0755", "--dir", f)]


def _tmpfs(path: str, size: int) -> list[str]:
    return ["--size", str(size), "--perms", "1777", "--tmpfs", path]


def _shown(gpu: bool) -> list[str]:
    """What tools look at beside the libraries: names of programs, and for CUDA its devices."""
    shown = [("--ro-bind-try", "/etc/alternatives")]
    if gpu:
        shown += [("--dev-bind", str(device)) for device in sorted(Path("/dev").glob("nvidia*"))]
        shown += [("--ro-bind", f"/sys/{part}") for part in ("bus", "class", "devices", "module")]
    binds = [word for how, path in shown for word in (how, path, path)]
    return [*_folders(*(path for _, path in shown)), *binds]


def enter() -> None:
    """Give up what the container has left this process, for good. Raises Unlockable, OSError."""
    sandbox.bound(FILE)
    sandbox.give_up()
    ctypes.CDLL(None).prctl(DUMPABLE, 1, 0, 0, 0)  # drivers read of themselves in /proc
    sandbox.put_on(sandbox.lenient())


def escapes() -> list[str]:
    """What this process still can do that nobody in a workshop must, in words."""
    attempts: dict[str, Callable[[], object]] = {
        "read /etc/passwd": lambda: open("/etc/passwd").close(),
        "read the tests": lambda: os.listdir(HOUSE / "tests"),
        "write outside of /tmp": lambda: open("/.paperlings-escape", "w").close(),
        "write into the house": lambda: open(HOUSE / "paperlings/.escape", "w").close(),
        "change the system": lambda: os.close(os.open("/proc/sys/kernel/domainname", os.O_WRONLY)),
        "reach a network": _connect,
        "have a namespace of its own": _unshare,
    }
    found = []
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        found.append(what)
    return found


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.connect(("192.0.2.1", 9))


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):  # CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), "unshare")


def main() -> int:
    """Whether a way out was found, or no way to start a tool."""
    enter()
    return (
        bool(escapes()) or subprocess.run([sys.executable, "-S", "-c", ""], check=False).returncode
    )


if __name__ == "__main__":
    sys.exit(main())
