"""Starting candidates: one clean process is started, and forks one for every paper."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from paperlings import UsageError, layout, loading
from paperlings.sealed import proxy, sandbox
from paperlings.sealed.wire import Channel

START = 120.0  # seconds that the import of torch may take
TEXT = 1 << 20  # bytes of a submission
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

    def __init__(self, contained: bool = True):
        self.level = ""
        for command in ([sandbox.container()] if contained else []) + [[]]:
            if command or not self.level:
                self._start(command)
                if self.level != sandbox.NONE or not command:
                    break
                self.close()
                self.level = ""

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
            raise RuntimeError("the process for sealed grading does not start")
        atexit.register(self.close)

    def link(self, path: Path) -> proxy.Link:
        """A new candidate, for the submission at `path`."""
        near, far = socket.socketpair()
        line, end = socket.socketpair()
        socket.send_fds(self.control, [b"candidate"], [far.fileno(), end.fileno()])
        far.close()
        end.close()
        return proxy.Link(Channel(near), lambda ended: _ended(line, ended), path)

    def close(self) -> None:
        """End it, and so all its candidates."""
        if self.owner == os.getpid():
            atexit.unregister(self.close)
            self.control.close()
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _ended(line: socket.socket, wait: bool) -> str:
    """How a candidate ended by itself, in words; "" where it had to be ended. It has now."""
    words = ""
    line.settimeout(0.2 if wait else 0.0)
    with contextlib.suppress(OSError, ValueError):
        status = int(line.recv(16) or b"0")
        if status < 0:
            words = f"it was ended by {signal.Signals(-status).name}"
        else:
            words = f"it ended by itself (exit status {status})"
    line.close()
    return words


_nursery: Nursery | None = None


def shared() -> Nursery:
    """The nursery of this process, or of the one it was forked from. Raises UsageError."""
    global _nursery
    if sys.platform != "linux":
        raise UsageError("--sealed works on Linux only")
    if _nursery is None:
        _nursery = Nursery()
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
            return proxy.load(link, path, name, text)

        try:
            loading.load_candidate(root, key, there)
        except BaseException:
            link.close("it was stopped")
            raise
        return link

    return proxy.Impl(start, path, name)


def source(root: Path, key: str) -> str:
    """The text of a submission: one regular file, no link, in the root itself. Raises
    Unloadable.
    """
    path = layout.source(root, key)
    shown = layout.shown(path)
    for part in (path, *path.parents):
        if part == root:
            break
        if part.is_symlink():
            raise loading.Unloadable(f"{shown} is reached by a link; only files are graded")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise loading.Unloadable(f"{shown} cannot be read: {error.strerror}") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise loading.Unloadable(f"{shown} is no file of its own; only such are graded")
    with open(handle, "rb") as file:
        data = file.read(TEXT + 1)
    if len(data) > TEXT:
        raise loading.Unloadable(f"{shown} is larger than {TEXT >> 10} KiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise loading.Unloadable(f"{shown} is no UTF-8 text") from None
