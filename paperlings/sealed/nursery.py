"""Starting candidates: one clean process is started, and forks one for every paper."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from paperlings import UsageError, files, layout, loading
from paperlings.loading import LARGEST
from paperlings.outcomes import KitFault
from paperlings.sealed import proxy, sandbox
from paperlings.sealed.wire import Channel
from paperlings.sealed.zygote import STOPPED

START = 120.0  # seconds that the import of torch may take
PACKAGE = Path(__file__).resolve().parents[1]
# without the folder that holds the package, in which tests and answers lie
BOOT = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "paperlings", {str(PACKAGE / "__init__.py")!r}, submodule_search_locations=[{str(PACKAGE)!r}])
sys.modules["paperlings"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from paperlings.sealed.zygote import main
main(int(sys.argv[1]))
"""


class Nursery:
    """The clean process. level: the sandbox that holds in it, one of sandbox.LEVELS.

    Processes that are forked from this one may ask it for candidates too.
    """

    def __init__(self) -> None:
        container = sandbox.container()
        self._start(container)
        if container and self.level == sandbox.NONE:
            self.close()
            self._start([])

    def _start(self, container: list[str]) -> None:
        self.control, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        handle = there.fileno()
        self.process = subprocess.Popen(
            [*container, sys.executable, "-I", "-B", "-c", BOOT, str(handle)],
            env=environment,
            cwd="/",
            pass_fds=[handle],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        there.close()
        self.owner = os.getpid()
        self.control.settimeout(START)
        try:
            self.level = self.control.recv(64).decode()
        except OSError:
            self.level = ""
        self.control.settimeout(None)
        if self.level not in sandbox.LEVELS:
            self.level = sandbox.NONE if container else ""
        if not self.level:
            self.close()
            raise KitFault("the process for sealed grading does not start")
        atexit.register(self.close)

    def link(self, path: Path) -> proxy.Link:
        """A new candidate, for the submission at `path`. Raises KitFault."""
        near, far = socket.socketpair()
        line, end = socket.socketpair()
        with far, end:
            try:
                socket.send_fds(self.control, [b"candidate"], [far.fileno(), end.fileno()])
            except OSError as error:
                near.close()
                line.close()
                raise KitFault(f"the process for sealed grading has ended ({error})") from None
        return proxy.Link(Channel(near, sends_far=True), lambda ended: _ended(line, ended), path)

    def is_alive(self) -> bool:
        """Whether the process is there, of whomever it is a child."""
        try:
            return bool(self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """End it, and so all its candidates."""
        if self.owner == os.getpid():
            atexit.unregister(self.close)
            self.control.close()
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _ended(line: socket.socket, wait: bool) -> str:
    """How a candidate ended by itself, in words; "" where it had to be ended. It has now.

    Raises KitFault where its keeper has ended, and so not the candidate's own doing ended it.
    """
    told = STOPPED
    with line:
        for seconds in (0.5, 10.0) if wait else (0.0,):
            line.settimeout(seconds)
            with contextlib.suppress(OSError):
                told = line.recv(16)
                break
            line.shutdown(socket.SHUT_WR)  # nothing is told: it lives, and its keeper ends it now
    if told == STOPPED:
        return ""
    if not told:
        raise KitFault("a process of sealed grading was ended from outside")
    status = int(told)
    if status >= 0:
        return f"it ended by itself (exit status {status})"
    known = {each.value: each.name for each in signal.Signals}
    return f"it was ended by {known.get(-status, f'signal {-status}')}"


_nursery: Nursery | None = None


def shared() -> Nursery:
    """The nursery of this process, or of the one it was forked from. Where one of this process has
    ended, another takes its place. Raises UsageError, KitFault.
    """
    global _nursery
    if sys.platform != "linux":
        raise UsageError("--sealed works on Linux only")
    if _nursery is None:
        _nursery = Nursery()
    elif _nursery.owner == os.getpid() and not _nursery.is_alive():
        _nursery.close()
        following = Nursery()
        if following.level != _nursery.level:  # which stands in the result already
            following.close()
            raise KitFault(f"{_nursery.level} no longer holds here")
        _nursery = following
    return _nursery


def load(root: Path, key: str) -> proxy.Impl:
    """The submission's module of paper `key` under `root`, sealed. Raises Unloadable."""
    text = source(root, key)
    path = layout.source(root, key)
    name = "candidate." + key.replace("/", ".")
    nursery = shared()

    def start() -> proxy.Link:
        link = nursery.link(path)

        def there(path: Path, name: str, source: str | None = None) -> ModuleType:
            return proxy.load(link, path, name, text, layout.is_kernel(key))

        try:
            loading.load_candidate(root, key, there)
        except BaseException:
            link.close("it was stopped")
            if link.fault:
                raise link.gone() from None
            raise
        return link

    return proxy.Impl(start, path, name, text, lambda: nursery.link(path))


def source(root: Path, key: str) -> str:
    """The text of a submission: one regular file, no link, in the root itself. Raises
    Unloadable.
    """
    path = layout.source(root, key)
    shown, root = layout.shown(path), path.parents[1]
    try:
        return files.read_own(root, f"{key}.py", LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise loading.Unloadable(f"{shown} is no UTF-8 text") from None
    except ValueError as why:
        raise loading.Unloadable(f"{shown} {why}") from None
