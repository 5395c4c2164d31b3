"""Watching a candidate: what it asks, opens, starts and replaces, and what is none of its doing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paperlings import loading
from paperlings.lanes import watch
from paperlings.testing import close


@contextmanager
def candidate(folder: Path, text: str) -> Iterator[tuple[ModuleType, watch.Watch]]:
    """The module that consists of `text`, watched since before its import."""
    path = folder / "candidate.py"
    path.write_text(text, encoding="utf-8")
    with watch.held(path) as seen:
        yield loading.load(path, "candidate.watched"), seen


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("import os\nx = os.environ.get('HOME')", "reads $HOME"),
        ("import os\nx = 'HOME' in os.environ", "reads $HOME"),
        ("import torch\nx = torch.os.getenv('HOME')", "reads $HOME"),
        ("import os\nx = dict(os.environ)", "reads the environment"),
        ("import triton\nx = triton.knobs.runtime.interpret", "reads $TRITON_INTERPRET"),
        ("import torch\nx = torch.cuda.is_available()", "asks for a GPU"),
        ("from torch.cuda import is_available\nx = is_available()", "asks for a GPU"),
        ("import inspect\nx = inspect.stack()", "looks at who calls it"),
        ("import sys\nx = sys._getframe(1)", "looks at who calls it"),
        ("exec('import sys; x = sys._getframe()', {})", "looks at who calls it"),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    x = e.__traceback__.tb_frame",
            "looks at who calls it",
        ),
        ("import gc\nx = gc.get_objects()", "goes through all objects"),
        ("with open('README.md') as file:\n    pass", "opens README.md"),
        ("import pathlib\nx = pathlib.Path('README.md').read_text()", "opens README.md"),
        ("import paperlings.testing", "imports paperlings"),
        ("import importlib\nimportlib.import_module('paper' + 'lings.layout')", "imports paper"),
        ("import ctypes\nctypes.string_at(id(1))", "goes around Python to memory"),
    ],
)
def test_what_a_candidate_asks_is_noticed(tmp_path: Path, text: str, asked: str) -> None:
    """Settings, callers, objects, files and the judge's modules, however they are reached."""
    with candidate(tmp_path, text) as (_, seen):
        assert any(what.startswith(asked) for what in seen.asked), seen.asked


def test_what_libraries_ask_is_their_own_doing(tmp_path: Path) -> None:
    """Making a tensor, a kernel, a dataclass or a warning is no question, whatever it reads."""
    text = """
import collections, dataclasses, enum, functools, inspect, linecache, typing, warnings
import torch, triton, triton.language as tl
import triton.language.extra.libdevice, xml.dom.pulldom
@dataclasses.dataclass
class Config:
    block: int = 64
class Shape(typing.NamedTuple):
    rows: int
Pair = collections.namedtuple("Pair", "a b")
Mode = enum.Enum("Mode", "FAST SLOW")
T = typing.TypeVar("T")
linecache.getlines(__file__)
@triton.jit
def kernel(X):
    pass
@functools.cache
def block(n): return triton.next_power_of_2(n)
warnings.warn("slow", stacklevel=1)
x = torch.empty(block(3)).reshape(2, 2)
with torch.no_grad():
    y = torch.nn.functional.softmax(x, -1)
"""
    with pytest.warns(UserWarning, match="slow"), candidate(tmp_path, text) as (_, seen):
        assert (seen.asked, seen.opened, seen.started, seen.changed()) == ([], [], [], [])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("torch.cuda.Stream()", "a CUDA stream"),
        ("torch.cuda.stream(None)", "a CUDA stream"),
        ("torch.cuda.CUDAGraph()", "a CUDA graph"),
        ("torch.cuda.graph(None)", "a CUDA graph"),
    ],
)
def test_streams_and_graphs_are_not_opened(tmp_path: Path, text: str, what: str) -> None:
    """Whoever opens one is refused, and whoever catches that is found out."""
    text = f"import torch\ntry:\n    {text}\nexcept RuntimeError:\n    pass"
    with candidate(tmp_path, text) as (_, seen):
        assert seen.opened == [what]
    assert "__wrapped__" not in vars(torch.cuda.stream)


def test_threads_and_processes_are_noticed(tmp_path: Path) -> None:
    """What is started goes on after the call."""
    text = """
import os, threading
thread = threading.Thread(target=print, args=("",))
def work():
    thread.start()
    os.system(":")
"""
    with candidate(tmp_path, text) as (module, seen):
        module.work()
        module.thread.join()
        assert seen.started == ["a thread", "a process"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import time\ntime.perf_counter = lambda: 0.0", "time.perf_counter"),
        ("import torch\ntorch.allclose = None", "torch.allclose"),
        ("import torch\ndel torch.equal", "torch.equal"),
        ("import torch\ntorch.Tensor.__ne__ = lambda *_: False", "torch.Tensor.__ne__"),
        ("import torch\ntorch.Tensor.clone = lambda x: x", "torch.Tensor.clone"),
        ("import builtins\nbuiltins.abs = lambda x: 0", "builtins.abs"),
        ("import triton\ntriton.jit = None", "triton.jit"),
        ("close.assert_close = None", "paperlings.testing.close.assert_close"),
        ("close.abs = lambda x: 0", "paperlings.testing.close.abs"),
        ("close.CANCELLATION = 1e9", "paperlings.testing.close.CANCELLATION"),
        ("close.TOLERANCE.clear()", "paperlings.testing.close.TOLERANCE"),
        ("close.close.__code__ = (lambda *_: True).__code__", "paperlings.testing.close.close"),
        (
            "close.assert_close.__kwdefaults__['scale'] = 1e9",
            "paperlings.testing.close.assert_close",
        ),
        ("close.Mismatch.__init__ = None", "paperlings.testing.close.Mismatch.__init__"),
    ],
)
def test_what_is_replaced_is_named_and_put_back(tmp_path: Path, text: str, name: str) -> None:
    """The judge is what it was, and knows who was at it."""
    before = dict(vars(close)), dict(close.TOLERANCE), time.perf_counter, abs
    text = "import sys\nclose = sys.modules['paperlings.testing.close']\n" + text
    with candidate(tmp_path, text) as (_, seen):
        assert seen.changed() == [name]
        assert seen.changed() == [name], "it is remembered"
        after = dict(vars(close)), dict(close.TOLERANCE), time.perf_counter, abs
        assert before == after
        assert close.close(torch.ones(1), torch.ones(1))
        assert not close.close(torch.ones(1), torch.zeros(1))
        assert torch.equal(torch.ones(1), torch.ones(1))


def test_a_module_is_watched_once(tmp_path: Path) -> None:
    """Who looks after a module finds the watch that is held over it, and over another a new one."""
    with candidate(tmp_path, "import torch\ntorch.cuda.is_available()") as (module, seen):
        with watch.over(module) as found:
            assert found is seen
        with watch.over(close) as other:
            assert (other.path, other.asked) == (close.__file__, [])
