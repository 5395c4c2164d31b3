"""The compiled lane of a sealed submission.

Its process compiles what it launches, which triton does in memory, as far as the assembler: that is
a program, and those it cannot start. So it sends the PTX, and what is told of the machine code is
told here, by programs that can do no more than read, compute, and write into one empty folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.errors import PTXASError

from paperlings.lanes import cubin, recorder
from paperlings.lanes.cubin import CHIPS, Chip, Launched
from paperlings.limits import TimeLimit
from paperlings.outcomes import KitFault
from paperlings.sealed import sandbox
from paperlings.sealed.proxy import Gone, Link
from paperlings.sealed.wire import WireError
from paperlings.words import printable

SECONDS = 90.0  # that compiling for one chip may take
TOOL_SECONDS = 60  # of CPU time that a program may take
MOST = 64  # machine codes that are asked for
PTX = 8 << 20  # bytes
SAID = 4000  # characters of what is wrong
LARGEST = 1 << 16  # characters of what is told of machine code; a pipe holds as much
NOTHING = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n"
KINDS = ("todo", "host", "compile", "stuck", "died", "unreadable")  # of answers without kernels

Answer = dict[str, Any]


def answer(request: Answer, link: Callable[[], Link]) -> Answer:
    """What compile_child answers to the request. link: starts a process for the submission."""
    try:
        tools = recorder.tools()
    except cubin.Unreadable as error:
        return {"unreadable": str(error)}
    kernels: list[Answer] = []
    for sm in request["targets"]:
        found = _for_chip(request, link, CHIPS[sm], tools)
        if "kernels" not in found:
            return found
        kernels += found["kernels"]
    return {"kernels": kernels}


def _for_chip(request: Answer, link: Callable[[], Link], chip: Chip, tools: Path) -> Answer:
    end = link()
    assembler = _Assembler(chip, tools)
    question = {name: request[name] for name in ("path", "text", "function", "args", "kwargs")}
    message = {"do": "compile", "sm": chip.sm, "cuda": _cuda(chip), "request": question}
    try:
        reply, tensors = end.request(message, lent=[assembler.assemble], seconds=SECONDS)
        if assembler.failed:
            raise assembler.failed
        with end.sense():
            return _checked(end.value(reply, tensors), assembler)
    except TimeLimit:
        return {"stuck": f"compiling for {chip.name} does not end within {SECONDS:g} s"}
    except cubin.Unreadable as error:
        return {"unreadable": str(error)}
    except Gone as gone:
        return {"died": str(gone)}
    finally:
        end.close("it is no longer needed")


def _checked(found: Any, assembler: _Assembler) -> Answer:
    """The answer of one chip. Raises WireError where it is none."""
    kind, value = found
    if kind in KINDS and isinstance(value, str):
        return {kind: value[:SAID]}
    if kind != "launched" or not isinstance(value, list) or not 0 < len(value) <= MOST:
        raise WireError("it says nothing about its kernels")
    kernels = [assembler.compiled(*kernel) for kernel in value]
    return {"kernels": [dataclasses.asdict(kernel) for kernel in kernels]}


@functools.cache
def _cuda(chip: Chip) -> str:
    """The version of the assembler for a chip."""
    import triton.backends.nvidia.compiler as nvidia

    return str(nvidia.get_ptxas(chip.sm).version)


class _Assembler:
    """Makes machine code for a chip, of which only the counts are kept.

    failed: what has gone wrong that is no fault of the submission's.
    """

    def __init__(self, chip: Chip, tools: Path):
        self.chip, self.tools = chip, tools
        self.counts: list[Answer] = []
        self.failed: Exception | None = None

    def assemble(self, ptx: Tensor, fused: bool) -> int | str:
        """The number of the machine code of a PTX, or what is wrong with it."""
        if not isinstance(ptx, Tensor) or ptx.nbytes > PTX or len(self.counts) >= MOST:
            raise WireError("it has too much assembled")
        text = bytes(ptx.flatten().tolist()).decode("utf-8", "replace")
        try:
            found = _apart(functools.partial(self._counts, text, fused is True))
            if "unreadable" in found:
                raise cubin.Unreadable(found["unreadable"])
        except Exception as error:
            self.failed = error
            raise
        if "wrong" in found:
            return str(found["wrong"])[:SAID]
        self.counts.append(found["counts"])
        return len(self.counts) - 1

    def compiled(self, number: Any, *fields: Any) -> cubin.Compiled:
        """A kernel, of which the submission's process tells the rest. Raises WireError."""
        if type(number) is not int or not 0 <= number < len(self.counts):
            raise WireError("it has not had this kernel assembled")
        launched = Launched(*fields)
        sizes = (launched.warps, launched.shared, launched.columns)
        plain = all(type(size) is int and 0 <= size < 1 << 31 for size in sizes)
        if not plain or not launched.warps or type(launched.kernel) is not str:
            raise WireError("it says what is no kernel")
        name = printable(launched.kernel)[:200]
        launched = dataclasses.replace(
            launched, kernel=name, dots=launched.dots is True, seconds=float(launched.seconds)
        )
        return cubin.combined(self.chip, launched, self.counts[number])

    def _counts(self, ptx: str, fused: bool) -> Answer:
        """What the machine code says; in a process of its own."""
        backend = make_backend(GPUTarget("cuda", self.chip.sm, 32))
        options = backend.parse_options({"enable_fp_fusion": fused})

        def assembled(text: str) -> bytes:
            code: bytes = backend.make_cubin(text, {}, options, self.chip.sm)
            return code

        try:
            return {"counts": cubin.counts(assembled(ptx), self.tools)}
        except PTXASError as error:
            assembled(NOTHING)  # who cannot assemble this fails by no fault of the submission's
            return {"wrong": str(error)}
        except cubin.Unreadable as error:
            return {"unreadable": str(error)}


def _apart(work: Callable[[], Answer]) -> Answer:
    """What `work` answers in a locked process, which ends with everything that it has started."""
    with tempfile.TemporaryDirectory(prefix="paperlings-", dir=_place()) as folder:
        os.chmod(folder, 0o777)  # for a user of its own
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                _work(work, folder, theirs)
            os._exit(1)
        os.close(theirs)
        try:
            with open(ours, encoding="utf-8") as answers:
                said = answers.read(LARGEST)
        finally:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    try:
        found: Answer = json.loads(said)
    except ValueError:
        raise KitFault("the process that reads machine code has failed") from None
    return found


def _place() -> str:
    """A folder for temporary files that others than root may enter. Raises KitFault."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        folders = (Path(place), *Path(place).parents)
        if all(folder.exists() and folder.stat().st_mode & 0o001 for folder in folders):
            return place
    raise KitFault("there is no folder for temporary files that others than root may enter")


def _work(work: Callable[[], Answer], folder: str, answers: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in range(3):  # triton prints what cannot be assembled
        os.dup2(nothing, handle)
    tempfile.tempdir = folder
    sandbox.lock_tools(folder, TOOL_SECONDS)
    os.write(answers, json.dumps(work()).encode())
    os._exit(0)
