"""The compiled lane: what the compiler makes of a kernel, told without a GPU.

A host function of the candidate is called in a child process, which compiles what it launches for
three chips and reads the machine code; `assert_compiles` holds that to the kernel's budgets.
What was compiled once is not compiled again while neither the code, the call nor the tools change.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paperlings import files, lanes, layout
from paperlings.lanes import budgets
from paperlings.lanes.cubin import CHIPS, Compiled
from paperlings.outcomes import KitFault, Unverified
from paperlings.testing.close import Mismatch
from paperlings.testing.driver import name_of

CACHE = layout.HOME / ".cache" / "compiled"
KEPT = 86400.0  # seconds that what was compiled is kept
TARGETS = tuple(CHIPS)
SECONDS = 280.0  # after which the child is stopped
CORE_SECONDS = 60  # that it, or any process it starts, may compute
# by what the child's answer says is wrong
QUESTIONS = {
    "host": "What may a host function do before it launches? "
    "It sees shapes, dtypes and strides, and makes its tensors on the device of its arguments.",
    "compile": "What does the compiler refuse here? The interpreter takes more than a GPU does.",
    "stuck": "Which loop does not end? Or is a kernel too much for the compiler: a long loop that "
    "is unrolled, or large blocks for few warps?",
    "died": "Which call ends the whole process?",
}
# the modules that answers come from
SOURCES = [f"lanes/{name}.py" for name in ("compile_child", "recorder", "cubin", "toolless")]
SOURCES += ["sealed/compiling.py", "sealed/sandbox.py"]
TRANSIENT = {"stuck", "died", "fault", "unreadable"}  # might end in another way the next time


class TimedOut(Mismatch):
    """What did not come to an end."""

    timed_out = True


@dataclass(frozen=True)
class Argument:
    """A tensor that a host function is called with: its dtype and shape, and no values."""

    dtype: str
    shape: tuple[int, ...]


def tensor(dtype: str, *shape: int) -> Argument:
    """Describe a contiguous tensor without making it: tensor("bfloat16", 4, 32, 4096, 128)."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"{dtype!r} is no dtype of torch")
    return Argument(dtype, shape)


def launches(
    path: Path,
    function: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    targets: Sequence[int] = TARGETS,
    sealed: Any = None,
) -> list[Compiled]:
    """What `function` of the file at `path` launches, each kernel and specialisation once for each
    chip of `targets`, chip by chip.

    args, kwargs: tensors as `tensor` describes them, dtypes and plain data.
    sealed: the module, where the file may only be executed in a locked process.

    Raises Mismatch where the call or a compilation fails, NotImplementedError(name) where it
    reaches a stub, and Unverified where this machine cannot tell.
    """
    if reason := lanes.why_not_compiled():
        raise Unverified(reason)
    request = {
        "path": str(path),
        "text": path.read_text(encoding="utf-8"),
        "sealed": sealed is not None,
        "function": function,
        "args": _plain(list(args)),
        "kwargs": _plain(dict(kwargs or {})),
        "targets": list(targets),
    }
    kept = _cache() / "answers" / f"{_key(request)}.json"
    answer = _recalled(kept)
    if answer is None:
        answer = sealed.__compile__(request) if sealed else _ask(request)
        if not answer.keys() & TRANSIENT:
            files.write(kept, json.dumps(answer))
    if "todo" in answer:
        raise NotImplementedError(answer["todo"])
    if "unreadable" in answer:
        raise Unverified(answer["unreadable"])
    if "fault" in answer:
        raise KitFault(f"the compiled lane broke: {answer['fault']}")
    for kind, question in QUESTIONS.items():
        if kind in answer:
            raise (TimedOut if kind == "stuck" else Mismatch)(question, answer[kind])
    return [Compiled(**kernel) for kernel in answer["kernels"]]


def assert_compiles(
    impl: Any, function: str | Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """Check that every kernel which a call of the host function launches compiles for every chip,
    fits its memories, and keeps to the budgets under [compiled.<function>] in the kernel's .toml.

    function: as read off `impl`, or its name.  args, kwargs: as for `launches`.
    The budgets are explained in `budgets`. Raises what `launches` raises; a breach is a Mismatch.
    """
    name = function if isinstance(function, str) else name_of(impl, function)
    path = Path(impl.__file__)
    budget = budgets.of(f"{path.parent.name}/{path.stem}", name)
    sealed = impl if hasattr(type(impl), "__compile__") else None
    budgets.check(launches(path, name, args, kwargs, sealed=sealed), budget)


def _plain(tree: Any) -> Any:
    """Arguments as JSON, which the child reads back."""
    if isinstance(tree, Argument):
        return {"tensor": tree.dtype, "shape": list(tree.shape)}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree).removeprefix("torch.")}
    if isinstance(tree, tuple):
        return {"tuple": [_plain(value) for value in tree]}
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a {type(tree).__name__} cannot be described to the compiler's process")


# ---- the child


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The child's answer, or what became of it."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(_cache() / "triton")
    # what triton does anyway; 3.9 warns where it is not said
    env.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    env.setdefault("OMP_NUM_THREADS", "1")
    stuck = f"{request['function']} and the compilation of what it launches do not end within "
    try:
        child = subprocess.run(
            [sys.executable, "-m", "paperlings.lanes.compile_child"],
            input=json.dumps({**request, "parent": os.getpid(), "cpu": CORE_SECONDS}),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=env,
            cwd=layout.HOME,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"stuck": f"{stuck}{SECONDS:g} s"}
    finally:
        _forget_old()
    try:
        answer = dict(json.loads(child.stdout))
    except ValueError:
        last = child.stderr.strip().splitlines()[-1:] or [f"status {child.returncode}"]
        answer = {"died": f"the process that calls {request['function']} dies: {last[0]}"}
    if "stuck" in answer or child.returncode == -signal.SIGXCPU:
        return {"stuck": f"{stuck}{CORE_SECONDS} s of one core"}
    return answer


# ---- what was compiled before


def _key(request: dict[str, Any]) -> str:
    """Changes with whatever the answer depends on; the path of the file is not of that."""
    asked = {name: value for name, value in request.items() if name != "path"}
    kit = [(layout.HOME / "paperlings" / source).read_text() for source in SOURCES]
    tools = [sys.version, importlib.metadata.version("triton"), torch.__version__]
    return hashlib.sha256(json.dumps([asked, kit, tools]).encode()).hexdigest()


def _recalled(kept: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _cache() -> Path:
    return CACHE if _writable(CACHE) else Path(_temporary().name)


def _writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A cache for this process alone."""
    return tempfile.TemporaryDirectory(prefix="paperlings-")


def _forget_old() -> None:
    """Remove what is older than KEPT: one kernel on one chip leaves half a megabyte."""
    for entry in [*_cache().glob("answers/*"), *_cache().glob("triton/*")]:
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > KEPT:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
