"""What a candidate may not do at the gate, found by what it does: beside what every kernel is
watched for (`lanes.watch`), it launches kernels of its own, computes nothing with torch, leaves
torch's settings alone and answers with plain tensors of its own memory.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paperlings.lanes.watch import FREE, Watch
from paperlings.testing.close import Mismatch

HONEST = "What is timed is the kernel's own work, in the stream and by the clock of the judge."
OWN = "Does every call compute its answer with kernels of this file, from the inputs it is given?"
PLAIN = "Does the answer come in plain tensors that the call has made for itself?"

# functions of torch whose answers, one setting each, change how others compute
SETTINGS: dict[str, Callable[[], Any]] = {
    "the default dtype": torch.get_default_dtype,
    "the gradient mode": torch.is_grad_enabled,
    "the precision of float32 products": torch.get_float32_matmul_precision,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "the number of threads": torch.get_num_threads,
    "autocast": torch.is_autocast_enabled,
    "cuDNN": lambda: (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
    "fused attention": lambda: [
        getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()
        for kind in ("flash", "mem_efficient", "cudnn", "math")
    ],
}


class Guard:
    """Looks after one candidate, which `watch` has been watching since before its import.

    launcher: triton's JITFunction, where kernels can be launched at all.
    """

    def __init__(self, watch: Watch, launcher: Any = None):
        self.watch, self.launcher = watch, launcher
        self.settings = {name: setting() for name, setting in SETTINGS.items()}
        importlib.import_module("torch._dynamo")  # torch would, later, and it replaces functions
        self.renew()

    def renew(self) -> None:
        """What has been replaced until now is not the candidate's doing: torch.compile does it."""
        self.watch.renew()

    def check(self) -> None:
        """Raise Mismatch if the judge, or what it relies on, is not what it was."""
        if self.watch.asked:
            raise Mismatch(HONEST, f"the candidate {self.watch.asked[0]}")
        if self.watch.opened:
            raise Mismatch(HONEST, f"the candidate opens {self.watch.opened[0]}")
        if self.watch.started:
            raise Mismatch(HONEST, f"the candidate starts {self.watch.started[0]}")
        if replaced := self.watch.changed():
            shown = ", ".join(sorted(replaced)[:3])
            raise Mismatch(HONEST, f"the candidate has replaced what measures it: {shown}")
        for name, setting in SETTINGS.items():
            if setting() != self.settings[name]:
                raise Mismatch(HONEST, f"the candidate has changed a setting of torch: {name}")

    @contextlib.contextmanager
    def audited(self, torch_may: tuple[str, ...]) -> Iterator[None]:
        """Raise Mismatch if the block computes with torch what it may not, or launches nothing."""
        audit = _Operators({*FREE, *torch_may})
        with audit, _launches(self.watch.path, self.launcher) as launched:
            yield
        if audit.computed:
            raise Mismatch(OWN, f"torch computes inside the call: {', '.join(audit.computed)}")
        if self.launcher is not None and not launched:
            raise Mismatch(OWN, "no kernel of the file was launched")


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operators that ran, except those of `free`."""

    def __init__(self, free: set[str]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.free = free
        self.computed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in self.free and name not in self.computed:
            self.computed.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _launches(path: str, launcher: Any) -> Iterator[list[str]]:
    """The kernels of the file at `path` that are launched in the block."""
    launched: list[str] = []
    if launcher is None:
        yield launched
        return
    run = launcher.run

    def counted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if kernel.fn.__code__.co_filename == path and not kwargs.get("warmup"):
            launched.append(kernel.fn.__name__)
        return run(kernel, *args, **kwargs)

    launcher.run = counted
    try:
        yield launched
    finally:
        launcher.run = run


def tensors(answer: Any) -> list[Tensor]:
    """The tensors of an answer. Raises Mismatch unless it is plain tensors, or a tuple of them."""
    parts = list(answer) if isinstance(answer, tuple | list) else [answer]
    for part in parts:
        if type(part) is not Tensor:
            raise Mismatch(PLAIN, f"expected exactly a Tensor, got a {type(part).__name__}")
        if vars(part) or part._backward_hooks:
            raise Mismatch(PLAIN, f"the answer carries more than values: {', '.join(vars(part))}")
    return parts


def memory(tree: Any) -> set[int]:
    """Where the tensors of `tree` keep their values."""
    found = (x.untyped_storage().data_ptr() for x in tree_leaves(tree) if isinstance(x, Tensor))
    return {pointer for pointer in found if pointer}


def refuse_shared(answer: Any, *others: Any) -> None:
    """Raise Mismatch where an answer lies in the memory of an input or of an earlier answer."""
    if memory(answer) & memory(others):
        raise Mismatch(PLAIN, "the answer shares memory with an input or with an earlier answer")
