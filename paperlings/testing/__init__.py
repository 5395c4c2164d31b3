"""What a paper's tests are written with."""

from paperlings.outcomes import unverified
from paperlings.testing.close import Mismatch, assert_at_most, assert_close, rejects
from paperlings.testing.conformance import Example
from paperlings.testing.driver import driver
from paperlings.testing.gradient import gradients
from paperlings.testing.meter import Measurement, assert_avoids, growth, measure
from paperlings.testing.rounding import assert_as_exact_as_torch
from paperlings.testing.seeding import drawn, seeded
from paperlings.testing.strategies import (
    distinct,
    fill,
    indices,
    logits,
    masks,
    sizes,
    tensors,
)

__all__ = [
    "Example",
    "Measurement",
    "Mismatch",
    "assert_as_exact_as_torch",
    "assert_at_most",
    "assert_avoids",
    "assert_close",
    "distinct",
    "drawn",
    "driver",
    "fill",
    "gradients",
    "growth",
    "indices",
    "logits",
    "masks",
    "measure",
    "rejects",
    "seeded",
    "sizes",
    "tensors",
    "unverified",
]
