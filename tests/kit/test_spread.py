"""Tensors lie far apart without taking the memory that is between."""

import gc
import resource
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped as on Linux")

STEP = 2**31 + 16


def test_values_lie_where_the_strides_say() -> None:
    """Every element is at its place, beyond 2^31 places too, and can be written."""
    from paperlings.testing.spread import spread

    x = torch.arange(24.0).reshape(2, 3, 4).bfloat16()
    y = spread(x, (STEP, 40, 3))
    assert y.stride() == (STEP, 40, 3)
    assert torch.equal(x, y)
    y += 1
    assert torch.equal(x + 1, y.clone())


def test_only_what_is_near_an_element_takes_memory() -> None:
    """Sixty-four gigabytes apart, a few hundred kilobytes are there, and none afterwards."""
    from paperlings.testing.spread import CHUNK, spread

    before = _mapped()
    y = spread(torch.ones(3), (8 * STEP,))
    assert y.untyped_storage().nbytes() > 2**35
    assert _mapped() - before <= 9 * CHUNK
    del y
    gc.collect()
    assert _mapped() <= before + CHUNK


def test_many_lie_side_by_side() -> None:
    """No two take the same addresses."""
    from paperlings.testing.spread import spread

    kept = [spread(torch.full((2,), float(i)), (STEP,)) for i in range(50)]
    assert [x.tolist() for x in kept] == [[float(i)] * 2 for i in range(50)]


def test_too_many_elements_are_refused() -> None:
    """It is meant for a few."""
    from paperlings.testing.spread import MOST, spread

    with pytest.raises(ValueError, match="too many to lie far apart"):
        spread(torch.zeros(MOST + 1), (STEP,))


def _mapped() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
