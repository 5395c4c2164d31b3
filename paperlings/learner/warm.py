"""A process that has imported everything once and computes nothing: it forks a run for every save.

The watcher talks to it through a pipe; a request that arrives while a run goes on cancels that run.
Where forking is unsafe every run starts cold.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing import connection

import pytest

from paperlings import runner


@dataclass(frozen=True)
class Request:
    """What is to be judged. number: which answer belongs to it."""

    number: int
    job: runner.Job


class Warm:
    """The process, as the watcher sees it."""

    def __init__(self) -> None:
        self.number = 0
        self._start()

    def _start(self) -> None:
        # spawned: it must have one thread, whatever the watcher has
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def ask(self, job: runner.Job) -> int:
        """Judge this next, whatever is being judged now; returns the number of the answer."""
        self.number += 1
        try:
            self.pipe.send(Request(self.number, job))
        except OSError:  # it was killed
            self.close()
            self._start()
            self.pipe.send(Request(self.number, job))
        return self.number

    def answer(self) -> tuple[int, runner.Run] | None:
        """What has arrived; None where the process has died."""
        try:
            number, run = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return number, run

    def close(self) -> None:
        """End the process and whatever it runs."""
        self.pipe.close()  # it ends by itself when it sees that nobody is there
        self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: connection.Connection) -> None:
    """In the process: answer requests until nobody is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the watcher, which then ends this
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    runner.warm()
    with contextlib.suppress(EOFError, OSError):
        request: Request = pipe.recv()
        while True:
            request = _serve_paper(request, pipe)


def _serve_paper(request: Request, pipe: connection.Connection) -> Request:
    """Answer requests about one paper; returns the first one about another."""
    key = request.job.key
    following: list[Request] = []

    def loop(session: pytest.Session | None) -> None:
        following.append(request)
        while following[-1].job.key == key:
            run = runner.run_shared(following[-1].job, session, pipe)
            if run is not None:
                pipe.send((following[-1].number, run))
            following.append(pipe.recv())

    if not runner.forks():
        loop(None)
        return following[-1]
    said = io.StringIO()
    gone: list[BaseException] = []

    def guarded(session: pytest.Session) -> None:
        try:
            loop(session)
        except (EOFError, OSError) as error:  # pytest would take it for an error of its own
            gone.append(error)

    with contextlib.redirect_stdout(said):
        options = ["-s", "--impl", str(request.job.root)]
        runner.collect([key], options, guarded)
    if gone:
        raise gone[0]
    if not following:
        trouble = f"its tests cannot be collected:\n{_last_lines(said.getvalue())}"
        pipe.send((request.number, runner.Run(request.job, trouble=trouble)))
        following.append(pipe.recv())
    return following[-1]


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])
