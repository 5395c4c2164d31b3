"""The one comparison: what is wrong is refused at the right rung,
what is right up to rounding is accepted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paperlings.testing import Mismatch, assert_at_most, assert_close, gradients, rejects

NAN, INF = float("nan"), float("inf")


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


WRONG = [
    (None, double(1), "expected a Tensor, got None"),
    (np.ones(1), double(1), "got a ndarray"),
    (1.0, double(1), "got a float"),
    (double(1, 2), double(1), "expected the shape (1,), got (2,)"),
    (double(1)[0], double(1), "expected the shape (1,), got ()"),
    (torch.ones(2), double(1, 1), "expected the dtype float64, got float32"),
    (torch.tensor([1, 1]), double(1, 1), "dtype float64, got int64"),
    (double(1, NAN), double(1, 2), "not finite"),
    (double(1, INF), double(1, 2), "not finite"),
    (double(1, -INF), double(1, INF), "not finite"),
    (double(1, 2), double(1, INF), "expected inf"),
    (double(1, 2), double(1, NAN), "expected nan"),
    (double(1, 2.001), double(1, 2), "actual 2.001, expected 2 at [1] (1 of 2 values wrong)"),
    (double(0, 0, 0), double(0, 1e-9, 0), "expected 1e-09"),
    (double(1e-12), double(0), "expected 0"),
    (torch.tensor([True]), torch.tensor([False]), "actual True, expected False"),
    (torch.tensor([1, 5]), torch.tensor([1, 4]), "actual 5, expected 4 at [1]"),
    (True, 1, "Python number"),
    (1, True, "expected True"),
    (1.0, 1, "expected the integer 1"),
    ("a", "b", "expected 'b'"),
    ([1], (1, 2), "expected 2 values"),
    ({"a": 1}, {"b": 1}, "expected the keys ['b']"),
    ({"a": double(1)}, {"a": double(2)}, "in 'a'"),
    ([double(1), double(3)], [double(1), double(4)], "in item 1"),
    (double(1).to_sparse(), double(1), "dense"),
    (torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), "(1+3j)"),
]


@pytest.mark.parametrize(("actual", "expected", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_answer_is_refused_and_described(actual, expected, words: str) -> None:
    """The message says what differs, and where."""
    with pytest.raises(Mismatch) as error:
        assert_close(actual, expected, "why?")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (double(1, 2 + 1e-12), double(1, 2)),
        (double(NAN, INF, -INF), double(NAN, INF, -INF)),
        (double(), double()),
        (double(0, 0), double(0, 0)),
        (double(1e6, 1e-7), double(1e6, 0)),
        (1.0 + 1e-12, 1.0),
        (2, 2.0),
        ((1, [double(2)]), [1, (double(2),)]),
        (double(2), np.array([2.0])),
        (torch.tensor(2.0, dtype=torch.float64), np.float64(2)),
        (torch.nn.Parameter(double(2)), double(2)),
        (None, None),
    ],
)
def test_a_right_answer_is_accepted(actual, expected) -> None:
    """Rounding, the kind of sequence and the kind of expectation do not matter."""
    assert_close(actual, expected, "why?")


def test_small_rows_are_not_hidden_by_large_ones() -> None:
    """A tolerance is relative to the row: an error of a part in a thousand shows beside a row 1e6
    times as large.
    """
    expected = torch.tensor([[1e6, 2e6], [1.0, 2.0]], dtype=torch.float64)
    wrong = expected.clone()
    wrong[1, 0] = 1.001
    with pytest.raises(Mismatch, match=r"\[1, 0\]"):
        assert_close(wrong, expected, "why?")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_allowed_its_rounding_and_no_more(dtype: torch.dtype) -> None:
    """One rounding of the dtype passes; five per cent do not."""
    expected = torch.linspace(1, 2, 50, dtype=torch.float64)
    assert_close(expected.to(dtype), expected, "why?", dtype=dtype)
    with pytest.raises(Mismatch):
        assert_close((expected * 1.05).to(dtype), expected, "why?", dtype=dtype)


def test_a_subclass_of_tensor_is_refused() -> None:
    """A type that could answer anything when it is compared is no Tensor."""

    class Liar(torch.Tensor):
        pass

    with pytest.raises(Mismatch, match="got a Liar"):
        assert_close(double(1).as_subclass(Liar), double(1), "why?")


def test_rejects_wants_the_error_and_the_names() -> None:
    """No error, another error and an error that does not name the value are all refused."""
    with rejects("-3", "width"):
        raise ValueError("the width is -3")
    with pytest.raises(Mismatch, match="none was raised"), rejects("width"):
        pass
    with pytest.raises(Mismatch, match="should name -3"), rejects("-3"):
        raise ValueError("bad width")
    with pytest.raises(TypeError), rejects("width"):
        raise TypeError("width")


def test_an_upper_bound_says_what_was_counted() -> None:
    """At the limit passes, above it and NaN do not, and the message holds both numbers."""
    assert_at_most(3, 3, "why?")
    for wrong in (4, NAN):
        with pytest.raises(Mismatch, match=r"the largest tensor is (4|nan), more than 3"):
            assert_at_most(wrong, 3, "why?", "the largest tensor")


def test_a_gradient_that_does_not_flow_is_zero() -> None:
    """A constant answer and an unused input have the gradient 0, as numbers."""
    x, y = double(2, 3).requires_grad_(True), double(1).requires_grad_(True)
    assert [g.tolist() for g in gradients((x * x).sum(), [x, y])] == [[4.0, 6.0], [0.0]]
    assert [g.tolist() for g in gradients(double(5).sum(), [x, y])] == [[0.0, 0.0], [0.0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (0.0, "entry 2 is 0"),
        (0.0, "entry 2 is tensor(0.)"),
        (-1.5, "clip: -1.5000"),
        (1e-7, "eps=1e-07"),
        (2, "rank 2.0 is too large"),
        (4, "outside 1-4"),
        (NAN, "beta is nan"),
        (INF, "beta is inf"),
        ((), "t has the shape torch.Size([])"),
        ((3,), "got [3]"),
        ("(2, 3)", "x: torch.Size([2, 3])"),
        ("Shape", "shapes differ"),
    ],
)
def test_a_refusal_may_name_its_reason_in_its_own_spelling(name, message: str) -> None:
    """A number as a number, a shape as a tuple, a list or torch's Size."""
    with rejects(name):
        raise ValueError(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [(0.0, "entry 20 is 10"), (2, "rank 12, 0.2"), ((3,), "shape (3, 3)"), ("(2, 3)", "(3, 2)")],
)
def test_a_refusal_that_names_something_else_is_not_enough(name, message: str) -> None:
    """Digits inside another number, and sizes of another shape, are no name."""
    with pytest.raises(Mismatch, match="should name"), rejects(name):
        raise ValueError(message)
