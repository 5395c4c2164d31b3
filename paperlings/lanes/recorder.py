"""Launches that compile: what a host function launches is specialised and compiled as on a given
chip, and not run. For a process of its own, since triton is changed for good.
"""

from __future__ import annotations

import ast
import contextlib
import re
import signal
import time
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError, CompileTimeAssertionFailure
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources, PTXASError
from triton.runtime.jit import JITFunction

from paperlings.lanes import cubin
from paperlings.lanes.cubin import Chip, Launched

UNFIT = (OutOfResources, CompileTimeAssertionFailure, PTXASError)  # why a tuner skips a config


class Failure(BaseException):
    """What is wrong with the code under test: kind is "host", "compile" or "stuck".
    No `except Exception` of that code can swallow it.
    """

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


class StandIn:
    """Answers for triton's driver, on a machine whose one GPU is `chip`."""

    def __init__(self, chip: Chip):
        self.chip = chip
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip.sm, 32)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.chip.block,
            "max_num_regs": self.chip.registers,
            "multiprocessor_count": self.chip.multiprocessors,
            "warpSize": 32,
        }


class Recorder:
    """Turns every launch in this process into a compilation for `chip`.

    kernels: what was compiled, each specialisation once, with its name and the seconds it took.
    """

    def __init__(self, chip: Chip):
        self.chip = chip
        self.kernels: dict[int, tuple[str, Any, float]] = {}
        self.tuning = False

    def install(self) -> None:
        launch = JITFunction.run

        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            name = function.fn.__name__
            _check_devices(name, {**dict(zip(function.arg_names, args, strict=False)), **kwargs})
            start = time.perf_counter()
            try:
                kernel = launch(function, *args, grid=grid, warmup=True, **kwargs)
            except Exception as error:
                if self.tuning and isinstance(error, UNFIT):
                    raise
                raise _refusal(name, error, self.chip) from error
            if self.tuning and not self._fits(kernel):
                raise OutOfResources(kernel.metadata.shared, self.chip.block, "shared memory")
            self.kernels.setdefault(id(kernel), (name, kernel, time.perf_counter() - start))
            return kernel

        triton.runtime.driver.set_active(StandIn(self.chip))
        JITFunction.run = run
        Autotuner.run = lambda tuner, *args, **kwargs: self._tuned(tuner, args, kwargs)

    def _tuned(self, tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compile the first config that the chip takes. On a GPU the tuner times all of them, and
        passes over those that the chip does not take.
        """
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        configs = tuner.prune_configs(kwargs)
        self.tuning = True
        try:
            for config in configs:
                with contextlib.suppress(*UNFIT):
                    return _run(tuner, config, args, kwargs)
        finally:
            self.tuning = False
        return _run(tuner, configs[0], args, kwargs)

    def _fits(self, kernel: Any) -> bool:
        shared, columns = _memory(kernel)
        return shared <= self.chip.block and columns <= self.chip.columns

    def seen(self) -> list[tuple[Launched, bytes]]:
        """What triton knows of every kernel, and its machine code."""
        return [
            (self._launched(name, kernel, seconds), kernel.asm["cubin"])
            for name, kernel, seconds in self.kernels.values()
        ]

    def _launched(self, name: str, kernel: Any, seconds: float) -> Launched:
        shared, columns = _memory(kernel)
        dots = "tt.dot" in kernel.asm["ttir"]
        warps = int(kernel.metadata.num_warps)
        return Launched(name, warps, shared, columns, dots, round(seconds, 3))


def tools() -> Path:
    """The folder of cuobjdump and nvdisasm. Raises Unreadable."""
    try:
        return Path(triton.knobs.nvidia.cuobjdump.path).parent
    except RuntimeError as error:
        raise cubin.Unreadable(str(error)) from None


def _run(tuner: Any, config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tuner.best_config = config
    options = {**kwargs, **config.all_kwargs()}
    if config.pre_hook is not None:
        config.pre_hook({**tuner.nargs, **options})
    return tuner.fn.run(*args, **options)


def _memory(kernel: Any) -> tuple[int, int]:
    """Bytes of shared memory and columns of tensor memory."""
    return int(kernel.metadata.shared), int(getattr(kernel.metadata, "tmem_size", None) or 0)


def _check_devices(kernel: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            raise Failure(
                "host",
                f"{kernel} is given a tensor on the {value.device.type} as {name}; "
                "its device should be that of the arguments",
            )


def _refusal(kernel: str, error: Exception, chip: Chip) -> BaseException:
    """What the compiler says of a kernel: its last word, and the line it is about."""
    if not isinstance(error, (CompilationError, PTXASError)):
        what = f"{type(error).__name__}: {error}".replace("dynamic_func()", kernel)
        return Failure("compile", f"launching {kernel} fails: {what}")
    place, text = "", str(error)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, CompilationError):
            if name := _named(link.node):
                return NotImplementedError(name)
            place, text = _line(link), str(link)
        link = link.__cause__
    if isinstance(error, PTXASError) and f"error code {-signal.SIGXCPU}" in text:
        return Failure("stuck", "")
    said = re.search(r"(?:; error|fatal)\s*: (.*)", text) if isinstance(error, PTXASError) else None
    last = said[1] if said else text.strip().splitlines()[-1]
    return Failure("compile", f"{kernel} does not compile for {chip.name}: {last}{place}")


def _line(error: CompilationError) -> str:
    line = getattr(error.node, "lineno", 0)
    return f"\n{error.src.splitlines()[line - 1].strip()}" if error.src and line else ""


def _named(node: Any) -> str:
    """The name in a stub's `raise NotImplementedError("name")`; "" for any other node."""
    if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
        return ""
    is_stub = isinstance(node.exc.func, ast.Name) and node.exc.func.id == "NotImplementedError"
    return str(getattr(node.exc.args[0], "value", "")) if is_stub and node.exc.args else ""
