"""Watching a candidate while it is imported and called: what it changes of its judge, what it asks
about the process it runs in, and whether it works where nobody looks.

A kernel is given tensors and launches programs, and needs none of this. These are eyes and no
prison: a candidate in the same process can always hide from them, and whoever must not be fooled
keeps his clock and his answers in another process.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import triton.knobs
from torch.overrides import TorchFunctionMode

from paperlings.lanes.names import Names
from paperlings.testing import audit

# aten operators that make a tensor without values, or see one in another way
FREE = (
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
    *("alias", "detach", "view", "_unsafe_view", "_reshape_alias", "as_strided", "expand", "t"),
    *("permute", "transpose", "unsqueeze", "squeeze", "select", "slice", "unbind", "split"),
    *("split_with_sizes", "chunk", "unfold", "diagonal"),
)

# whoever imports one of these reads the answer, or the judge
HIDDEN = ("reference", "solutions", "kernels", "oracle", "paperlings", "tests", "pytest", "_pytest")

STREAMS = {
    "Stream": "a CUDA stream",
    "ExternalStream": "a CUDA stream",
    "stream": "a CUDA stream",
    "set_stream": "a CUDA stream",
    "StreamContext": "a CUDA stream",
    "CUDAGraph": "a CUDA graph",
    "graph": "a CUDA graph",
    "make_graphed_callables": "a CUDA graph",
}
CALLERS = "looks at who calls it"
OBJECTS = "goes through all objects"
PROCESS = "a process"
ASKED = {
    "sys._getframe": CALLERS,
    "sys._current_frames": CALLERS,
    "gc.get_objects": OBJECTS,
    "gc.get_referrers": OBJECTS,
    "gc.get_referents": OBJECTS,
}
STARTED = {
    "os.fork": PROCESS,
    "os.posix_spawn": PROCESS,
    "os.system": PROCESS,
    "subprocess.Popen": PROCESS,
}
FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
# modules that do what their caller asks: all those of the standard library, and a few more
PASSAGES = {*sys.stdlib_module_names, "triton.knobs", "torch.overrides", "torch._tensor"}
# and of these, those that show frames; others, such as typing, look at their caller for themselves
SHOWING_FRAMES = {"inspect", "traceback"}
# methods that show a tensor's values to the host without an operator of torch
SHOWN = ("numpy", "__array__", "__dlpack__", "tolist", "untyped_storage", "storage")


@dataclass
class Watch:
    """What the candidate in the file at `path` has been seen to do since before its import.

    asked: what it looked up.  opened: streams and graphs.  started: threads and processes.
    """

    path: str
    asked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    names: Names = field(init=False)

    def changed(self) -> list[str]:
        """What of the judge the candidate has replaced so far, by name. It is put back."""
        self.replaced += [name for name in self.names.put_back() if name not in self.replaced]
        return self.replaced

    def renew(self) -> None:
        """Take the judge as it is now: what has changed since was others' doing."""
        self.names = Names()

    def did(self, frame: FrameType | None, passages: set[str] = PASSAGES) -> bool:
        """Whether the candidate's code, itself or through one of `passages`, made a call."""
        while frame is not None:
            if self.path in (frame.f_code.co_filename, frame.f_globals.get("__file__")):
                return True
            name = str(frame.f_globals.get("__name__", ""))  # "" of text that is executed
            if name and not {name, name.partition(".")[0]} & passages:
                return False
            frame = frame.f_back
        return False

    @contextlib.contextmanager
    def reading(self) -> Iterator[list[str]]:
        """The methods by which the candidate takes values to the host in the block."""
        shown: list[str] = []
        with _Shown(self, shown):
            yield shown

    def hear(self, event: str, args: tuple[Any, ...], frame: FrameType) -> None:
        """Take note of an audit event."""
        what, passages = ASKED.get(event, ""), PASSAGES
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.fsdecode(args[0])
            what = "" if path == self.path or audit.is_library(path) else f"opens {path}"
        elif event.startswith("ctypes."):
            what = "goes around Python to memory"
        elif event == "object.__getattr__" and args[1] in FRAMES:
            what = CALLERS
        if what == CALLERS:
            passages = SHOWING_FRAMES
        if what and self.did(frame, passages):
            self.asked.append(what)
        elif event in STARTED and self.did(frame):
            self.started.append(STARTED[event])


class _Shown(TorchFunctionMode):
    def __init__(self, watch: Watch, shown: list[str]):
        super().__init__()
        self.watch, self.shown = watch, shown

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in SHOWN and self.watch.did(sys._getframe(1)):
            self.shown.append(name)
        return func(*args, **(kwargs or {}))


_watches: list[Watch] = []


@contextlib.contextmanager
def held(path: Path) -> Iterator[Watch]:
    """Watch the candidate in the file at `path`, which is imported and judged in the block.

    What it has replaced of the judge is put back at the end.
    """
    with contextlib.ExitStack() as stack:
        watch = Watch(str(path))
        _put_up(watch, stack)
        watch.renew()  # with the watchers in their places
        stack.callback(watch.changed)
        stack.enter_context(audit.listening(watch.hear))
        _watches.append(watch)
        stack.callback(_watches.remove, watch)
        yield watch


@contextlib.contextmanager
def over(impl: Any) -> Iterator[Watch]:
    """The watch that has been held over a module since before its import, or else a new one."""
    if _watches and _watches[-1].path == impl.__file__:
        yield _watches[-1]
    else:
        with held(Path(impl.__file__)) as watch:
            yield watch


def _put_up(watch: Watch, stack: contextlib.ExitStack) -> None:
    """Put watchers before what raises no audit event."""

    def before(owner: Any, name: str, tell: Callable[..., None]) -> None:
        original = vars(owner)[name]
        call = getattr(owner, name)

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if watch.did(sys._getframe(1)):
                tell(*args)
            return call(*args, **kwargs)

        setattr(owner, name, watched)
        stack.callback(setattr, owner, name, original)

    def imports(name: str = "", *_: Any) -> None:
        if name.partition(".")[0] in HIDDEN:
            watch.asked.append(f"imports {name}")

    before(builtins, "__import__", imports)
    before(importlib, "import_module", imports)
    environment = type(os.environ)
    before(environment, "__getitem__", lambda _, name: watch.asked.append(f"reads ${name}"))
    before(environment, "__iter__", lambda _: watch.asked.append("reads the environment"))
    for name in ("getenv", "getenv_bool"):
        before(triton.knobs, name, lambda name, *_: watch.asked.append(f"reads ${name}"))
    for owner, name in ((threading.Thread, "start"), (_thread, "start_new_thread")):
        before(owner, name, lambda *_: watch.started.append("a thread"))
    for name in ("is_available", "device_count"):
        before(torch.cuda, name, lambda: watch.asked.append("asks for a GPU"))
    for name, what in STREAMS.items():
        thing = getattr(torch.cuda, name)
        owner, method = thing, next((m for m in ("__new__", "__init__") if m in vars(thing)), "")
        if not isinstance(thing, type):
            owner, method = torch.cuda, name

        def opens(*_: Any, what: str = what) -> None:
            watch.opened.append(what)
            raise RuntimeError(f"there is {what} neither here nor needed")

        before(owner, method, opens)
