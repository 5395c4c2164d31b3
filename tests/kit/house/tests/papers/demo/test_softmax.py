"""Judges demo/softmax."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlings.testing import Example, assert_close, rejects, sizes, tensors

P = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)

EXAMPLES = {
    "softmax": Example((P.log(),), {"temperature": 2.0}, gradient=(0,), batch=(0,)),
    "entropy": Example((P,), gradient=(0,), batch=(0,)),
}


@st.composite
def cases(draw):
    """Scores and a temperature that is not one."""
    x = draw(tensors(draw(sizes(2)), ("plain", "rows", "large")))
    return {"x": x, "temperature": draw(st.sampled_from([0.5, 2.0, 3.0]))}


@given(case=cases())
def test_values_agree_with_the_definition(impl, reference, case):
    """Softmax is the exponential of each score over the sum of its row."""
    assert_close(impl.softmax(**case), reference.softmax(**case), "Over which axis is the sum?")


def test_rows_far_apart_are_all_right(impl):
    """Every row is normalised by itself, however far below the others it lies."""
    x = torch.tensor([[0.0, 0.0], [-2000.0, -2000.0], [2000.0, 2000.0]], dtype=torch.float64)
    assert_close(impl.softmax(x), torch.full_like(x, 0.5), "Which maximum is subtracted?")


@pytest.mark.parametrize("temperature", [0.0, -1.5])
def test_temperature_is_positive(impl, temperature):
    """A temperature that is not positive is refused."""
    with rejects(temperature):
        impl.softmax(torch.ones(2, 3), temperature=temperature)


@given(p=tensors((2, 3)))
def test_entropy_is_the_expected_surprise(impl, reference, p):
    """Entropy is minus the sum of p log p, and zero times log zero is zero."""
    p = p.abs()
    assert_close(impl.entropy(p), reference.entropy(p), "What is 0 log 0?", scale=10.0)


@pytest.mark.claim(seconds=5)
def test_entropy_grows_with_temperature(impl, figure):
    """The claim: the hotter, the more uniform, up to log n."""
    x = torch.tensor([0.0, 1.0, 3.0, -2.0], dtype=torch.float64)
    heat = [0.1, 1.0, 10.0, 1000.0]
    entropies = [float(impl.entropy(impl.softmax(x, temperature=t))) for t in heat]
    figure("Entropy by temperature").subplots().semilogx(heat, entropies)
    assert entropies == sorted(entropies), "Does temperature divide the scores?"
    assert abs(entropies[-1] - math.log(4)) < 1e-4, "What is the entropy of a uniform distribution?"
