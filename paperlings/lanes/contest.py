"""What the gate measures of one task: its inputs, its truth, and who runs against the candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

# fresh random arguments: a tuple of tensors and plain values, on the device of the generator.
# every call makes the same shapes, dtypes and plain values; only the tensors' values differ.
Inputs = Callable[[torch.Generator, torch.device], tuple[Any, ...]]
# what a contender answers: a tensor or a tuple of tensors
Call = Callable[..., Any]


@dataclass(frozen=True)
class Contest:
    """One task at one size, the list of which is CONTESTS in `gate_<kernel>.py`.

    name: unique in its kernel; the bars of the kit's own kernel are at `[gate."<name>"]` in its
    .toml.
    task: the public host function of the kernel's file that is judged, called as
    `impl.<task>(*inputs(generator, device), **kwargs)`.
    inputs: the timed size; half a millisecond or more, on an H200, so that noise is small.
    truth: `truth(*inputs, **kwargs)` is the answer in float64, one tensor or a tuple of them as the
    task answers, from the same rounded inputs, in chunks that fit the GPU.
    It is compared on the device, and may round to float32 what float64 would not fit.
    eager: the same in plain torch and the inputs' own dtype: the ruler of errors, a contender, and
    what torch.compile gets.
    peers: other people's answers by name, called as the task; who raises, or whose first tensor is
    another, is left out and said.
    families: other inputs by name, of any shapes, on which only values are checked.
    bytes, flops: what the timed size must move and compute at least, for the share of the roof.
    roof: which of the two measured roofs bounds it.
    torch_may: operators of torch ("mm", "cat") that the task may run beside its kernels;
    making and viewing tensors is always allowed.
    """

    name: str
    task: str
    inputs: Inputs
    truth: Call
    eager: Call
    peers: Mapping[str, Call] = field(default_factory=dict)
    families: Mapping[str, Inputs] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
    roof: Literal["copy", "matmul"] = "copy"
    torch_may: tuple[str, ...] = ()
