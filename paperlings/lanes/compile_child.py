"""Compiling what a host function launches, in a process where kernels are not interpreted:
`python -m paperlings.lanes.compile_child`, with a request on its standard input, both in JSON.

Tensors have shapes and no values (torch's meta device). Each chip has a process of its own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from paperlings import loading
from paperlings.lanes import cubin, recorder
from paperlings.lanes.cubin import CHIPS, Chip, Launched
from paperlings.lanes.recorder import Failure, Recorder

Answer = dict[str, Any]


def main() -> None:
    request = json.load(sys.stdin)
    _die_with(request["parent"])
    # of this process, and of each that it starts
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu"], request["cpu"] + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # the code under test may print
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    json.dump(answer(request), answers)
    answers.close()


def answer(request: Answer) -> Answer:
    """{"kernels": what was compiled}, {"todo": the name that a stub raised}, {"host": what is wrong
    with the host function or its file}, {"compile": with a kernel}, {"stuck": ""}, {"died": how},
    {"unreadable": why the machine code cannot be read} or {"fault": of the kit}.
    """
    try:
        module = load(request)
    except Failure as error:
        return {error.kind: str(error)}
    answers = _of_each_chip(module, request)
    odd = next((found for found in answers if "kernels" not in found), None)
    return odd or {"kernels": [kernel for found in answers for kernel in found["kernels"]]}


def load(request: Answer) -> ModuleType:
    """The module of a request. Raises Failure."""
    path = Path(request["path"])
    try:
        return loading.load(path, f"candidate.{path.parent.name}.{path.stem}", request["text"])
    except (Exception, SystemExit) as error:
        said = f"{path.name} cannot be imported: {type(error).__name__}: {error}"
        raise Failure("host", said) from None


def _of_each_chip(module: ModuleType, request: Answer) -> list[Answer]:
    """The answer for each chip, from processes that run side by side."""
    context = multiprocessing.get_context("fork")
    answers = []
    for sm in request["targets"]:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(os.getpid(), module, request, CHIPS[sm], send)
        )
        process.start()
        send.close()
        answers.append((receive, process))
    return [_received(receive, process) for receive, process in answers]


def _received(receive: Connection, process: Any) -> Answer:
    try:
        return dict(receive.recv())
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return {"stuck": ""}
        return {"died": f"the compiling process ends with status {process.exitcode}"}


def _work(parent: int, module: ModuleType, request: Answer, chip: Chip, send: Connection) -> None:
    _die_with(parent)
    try:
        found = launched(module, request, chip)
        send.send(_read(found["launched"], chip) if "launched" in found else found)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        send.send({"fault": said})


def _read(found: list[tuple[Launched, bytes]], chip: Chip) -> Answer:
    try:
        tools = recorder.tools()
        kernels = [
            cubin.combined(chip, kernel, cubin.counts(code, tools)) for kernel, code in found
        ]
    except cubin.Unreadable as error:
        return {"unreadable": str(error)}
    return {"kernels": [dataclasses.asdict(kernel) for kernel in kernels]}


def launched(module: ModuleType, request: Answer, chip: Chip) -> Answer:
    """{"launched": the kernels that the function of a request launches on a chip, each with its
    machine code}, or what is wrong. Triton is changed for good.
    """
    args, kwargs = _made(request["args"]), _made(request["kwargs"])
    recording = Recorder(chip)
    recording.install()
    try:
        getattr(module, request["function"])(*args, **kwargs)
    except Failure as error:
        return {error.kind: str(error)}
    except (Exception, SystemExit) as error:
        if name := _stub(error):
            return {"todo": name}
        return {"host": _host_error(error, request["path"])}
    if not recording.kernels:
        return {"host": f"{request['function']} launches no kernel"}
    return {"launched": recording.seen()}


def _die_with(parent: int) -> None:
    """Have Linux kill this process when its parent ends, in whatever way."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        sys.exit("the process that asked is gone")


def _made(tree: Any) -> Any:
    """What `compiled.tensor` and plain data stand for."""
    if isinstance(tree, list):
        return [_made(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return torch.empty(tree["shape"], dtype=getattr(torch, tree["tensor"]), device="meta")
    if "dtype" in tree:
        return getattr(torch, tree["dtype"])
    if "tuple" in tree:
        return tuple(_made(tree["tuple"]))
    return {name: _made(value) for name, value in tree.items()}


def _stub(error: BaseException) -> str:
    """The name that a stub raised; "" for any other error, such as torch's own."""
    said = str(error)
    is_name = said.replace(".", "_").isidentifier()
    return said if isinstance(error, NotImplementedError) and is_name else ""


def _host_error(error: BaseException, path: str) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(path)]
    place = ""
    if frames:
        place = f"\n{Path(path).name}:{frames[-1].lineno} in {frames[-1].name}\n{frames[-1].line}"
    if "expected device meta" in str(error):
        return f"the function mixes tensors of different devices{place}"
    if (
        type(error) in (RuntimeError, NotImplementedError, TypeError)
        and "meta" in str(error).lower()
    ):
        return f"the function needs values of a tensor before it can launch its kernels{place}"
    said = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{said[:300]}{place}"


if __name__ == "__main__":
    main()
