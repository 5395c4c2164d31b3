"""Conformance, meter and strategies: each promise has a planted fault that it finds,
and a right function it lets pass.
"""

from __future__ import annotations

import random
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st
from torch import nn

from paperlings.testing import (
    Example,
    Mismatch,
    assert_avoids,
    conformance,
    distinct,
    driver,
    fill,
    growth,
    indices,
    masks,
    measure,
    sizes,
    tensors,
)

X = torch.tensor([[1.1, -2.3], [0.7, 3.3], [2.9, 0.1]], dtype=torch.float64)
EXAMPLE = Example((X, X.cos()), gradient=(0, 1), batch=(0, 1))
RIGHT = {
    "plain": lambda x, y: x * y + x.square(),
    "einsum": lambda x, y: torch.einsum("ij,ij->ij", x, y) + x**2,
    "in place on its own": lambda x, y: (x * y).add_(x * x),
    "a loop": lambda x, y: torch.stack([a * b + a * a for a, b in zip(x, y, strict=True)]),
    "numbered": lambda x, y: {"out": x * y, "count": 3, "name": "a", "flags": x > 0},
}
STATE = {"calls": 0}


def counted(x, y):
    STATE["calls"] += 1
    return x * STATE["calls"] + y


def remembered(x, y):
    return STATE.setdefault("answer", x * y)


def in_place(x, y):
    return x.mul_(y)


def hidden_in_place(x, y):
    y[0, 0] = 0.0
    return x * y


def seeded(x, y):
    torch.manual_seed(0)
    return x * y


def opens(x, y):
    Path(__file__).read_text()
    return x * y


def imports(x, y):
    import reference

    return x * y + len(reference.__name__) * 0


WRONG = {
    "test_inputs_are_left_alone": [in_place, hidden_in_place],
    "test_the_same_call_gives_the_same_answer": [
        counted,
        remembered,
        lambda x, y: x * y + torch.rand(3, 2),
    ],
    "test_float32_stays_float32_and_agrees": [
        lambda x, y: x.double() * y,
        lambda x, y: (x.half() if x.dtype == torch.float32 else x) * y,
        lambda x, y: x * y + torch.zeros(3, 2, dtype=torch.float64),
    ],
    "test_views_are_accepted": [lambda x, y: x.view(-1).view(3, 2) * y if x.is_contiguous() else y],
    "test_a_batch_equals_its_members": [
        lambda x, y: x - x.mean(0),
        lambda x, y: x * y[:1],
        lambda x, y: x * y / x.shape[0],
    ],
    "test_gradients_are_finite_and_right": [
        lambda x, y: x.detach() * y,
        lambda x, y: x * y.data,
        lambda x, y: torch.tensor((x * y).tolist(), dtype=x.dtype),
        lambda x, y: x * y + (x - x.detach()),
    ],
    "test_global_state_is_left_alone": [
        seeded,
        lambda x, y: x * y + 0 * torch.rand(()),
        lambda x, y: x * y + 0 * random.random(),
        lambda x, y: x * y + 0 * float(np.random.rand()),
        lambda x, y: (torch.set_default_dtype(torch.float64), x * y)[1],
        lambda x, y: (torch.set_grad_enabled(False), x * y)[1],
    ],
    "test_nothing_is_looked_up": [opens, imports],
}
CASES = [(law, i) for law, functions in WRONG.items() for i in range(len(functions))]


def as_impl(function) -> types.SimpleNamespace:
    return types.SimpleNamespace(task=function, __file__=types.__file__)


@pytest.fixture(autouse=True)
def _restored():
    """What planted faults change globally is put back."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(("law", "number"), CASES)
def test_a_planted_fault_is_found(law: str, number: int) -> None:
    """Each conformance law refuses each of its faults."""
    with pytest.raises((Mismatch, RuntimeError)):
        getattr(conformance, law)(as_impl(WRONG[law][number]), "task", EXAMPLE)


@pytest.mark.parametrize("law", conformance.TESTS)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function_is_accepted(law, name: str) -> None:
    """No conformance law refuses a right way to write it."""
    example = EXAMPLE if name != "numbered" else Example((X, X.cos()))
    law(as_impl(RIGHT[name]), "task", example)


class Scaled(nn.Module):
    """A module with parameters, one of which a planted fault cuts out of the gradient."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.cut = (
            nn.Parameter(torch.ones(2)),
            nn.Parameter(torch.zeros(2)),
            cut,
        )

    def forward(self, x):
        return x * (self.weight.detach() if self.cut else self.weight) + self.bias


@pytest.mark.parametrize("cut", [False, True])
def test_gradients_of_parameters_are_checked(cut: bool) -> None:
    """A parameter that gets no gradient is found."""
    example = Example((X,), module=lambda impl: fill(impl.task(cut)), gradient=(0,))
    impl = types.SimpleNamespace(task=Scaled, __file__=types.__file__)
    if not cut:
        conformance.test_gradients_are_finite_and_right(impl, "task", example)
        return
    with pytest.raises(Mismatch):
        conformance.test_gradients_are_finite_and_right(impl, "task", example)


def test_fill_leaves_nothing_neutral() -> None:
    """No weight is 1, no bias 0, no two values equal, and the same layout gives the same values."""
    layer = nn.Linear(3, 4)
    one, two = fill(layer), fill(nn.Linear(3, 4))
    values = torch.cat([p.flatten() for p in one.parameters()])
    assert values.unique().numel() == values.numel() == 16
    assert values.abs().min() > 1e-3
    assert values.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(fill(nn.Linear(3, 4), seed=1).weight, one.weight)


def attention(q, k):
    return torch.softmax(q @ k.T, -1) @ k


def tiled(q, k, block=4):
    total, weight = torch.zeros_like(q), torch.zeros(len(q), 1)
    for start in range(0, len(k), block):
        part = (q @ k[start : start + block].T).exp()
        total, weight = total + part @ k[start : start + block], weight + part.sum(-1, keepdim=True)
    return total / weight


def test_the_meter_tells_a_whole_matrix_from_tiles() -> None:
    """The largest tensor of the naive form is n^2, of the tiled form linear in n;
    both by size and by growth.
    """
    largest = {}
    for function in (attention, tiled):
        for n in (16, 32):
            x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
            largest[function, n] = measure(lambda f=function, x=x: f(x, x)).largest
    assert largest[attention, 32] == 32 * 32
    assert largest[attention, 32] == 4 * largest[attention, 16]
    assert largest[tiled, 32] == 2 * largest[tiled, 16] == 32 * 4


def test_the_meter_tells_linear_growth_from_quadratic() -> None:
    """From one length to another, all pairs grow as the square, and sums of blocks do not."""

    def pairs(n: int):
        x = torch.ones(n, 2)
        return lambda: (x @ x.T).sum()

    def streamed(n: int):
        x = torch.ones(n, 2)
        return lambda: sum((x @ row).sum() for row in x)

    assert growth(pairs, 16, 64) == pytest.approx(2.0)
    assert growth(streamed, 16, 64) == pytest.approx(1.0)
    assert growth(streamed, 16, 64, of="mv") == pytest.approx(1.0)


def test_the_meter_tells_what_is_kept_for_the_backward_pass() -> None:
    """exp keeps its answer, a product with a constant keeps nothing new, no_grad nothing at all."""
    x = torch.ones(5, 5, requires_grad=True)
    assert measure(lambda: x.exp().sum()).kept == 25 + 1
    assert measure(lambda: (x * 2.0).sum()).kept == 1
    assert measure(torch.no_grad()(lambda: x.exp().sum())).kept == 1
    assert measure(lambda: x.T.T * 2.0).kept == 25


def test_the_meter_sees_the_backward_pass_and_counts() -> None:
    """What runs inside the call counts, backward too."""
    x = torch.ones(3, 3, requires_grad=True)
    seen = measure(lambda: (x @ x).sum().backward())
    assert seen.count("mm") == 3
    assert seen.largest == 9
    assert measure(lambda: x.view(-1).reshape(9)).made == 0, "a view makes nothing"


@pytest.mark.parametrize(
    "call",
    [
        lambda q: nn.functional.scaled_dot_product_attention(q, q, q),
        lambda q: torch.nn.functional.scaled_dot_product_attention(
            q.double(), q.double(), q.double()
        ),
        lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q),
    ],
    ids=["functional", "composite", "operator"],
)
def test_a_forbidden_operator_is_found_however_it_is_called(call) -> None:
    """By its name in torch and by its name in the dispatcher."""
    q = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Mismatch, match="scaled_dot_product"):
        assert_avoids(lambda: call(q), "scaled_dot_product", question="what is left to write?")
    assert_avoids(lambda: q.softmax(-1), "scaled_dot_product", question="nothing forbidden here")


def test_tensors_shrink_to_small_integers() -> None:
    """A counterexample is one to compute by hand: the smallest shape, zeros and ones."""
    cases = sizes(2).flatmap(tensors)
    assert find(cases, lambda x: x.sum() != 0).tolist() == [[1.0]]
    assert find(cases, lambda x: True).tolist() == [[0.0]]
    assert find(cases, lambda x: x.shape[1] > 1 and x[0, 0] < x[0, 1]).tolist() == [[0.0, 1.0]]


@given(x=tensors((3, 4), ("plain", "tiny", "large", "ties", "spike", "rows")))
@settings(max_examples=200, database=None)
def test_every_family_is_finite(x) -> None:
    """Every family gives finite float64 of the shape asked for."""
    assert x.shape == (3, 4)
    assert x.dtype == torch.float64
    assert torch.isfinite(x).all()


def test_the_families_and_masks_all_occur() -> None:
    """Twenty examples hold every family, a row that sees nothing, and sizes that differ."""
    seen = {"ties": 0, "spike": 0, "tiny": 0, "none": 0, "equal": 0}

    @given(
        x=tensors((3, 4), ("plain", "tiny", "ties", "spike")),
        mask=masks((3, 4)),
        pair=sizes(2),
        apart=distinct(3),
        index=indices((3,), 2),
    )
    @settings(max_examples=60, database=None, derandomize=True)
    def look(x, mask, pair, apart, index):
        seen["ties"] += x.unique().numel() == 1
        seen["spike"] += bool(x.max() >= 40)
        seen["tiny"] += 0 < float(x.abs().max()) < 1e-4
        seen["none"] += bool((~mask[0]).all())
        seen["equal"] += pair[0] == pair[1]
        assert len(set(apart)) == 3
        assert index.max() < 2

    look()
    assert all(seen.values()), seen


@given(st.integers(0, 3))
@settings(max_examples=5, database=None)
def test_generators_among_the_arguments_are_copied(seed: int) -> None:
    """Every call of an example gets a generator of its own in the same state."""
    example = Example((torch.Generator().manual_seed(seed),))
    draws = [torch.rand(2, generator=example.arguments()[0]) for _ in range(2)]
    assert torch.equal(*draws)


CONSTANT = (1, 2.5)
FOREIGN = object()


class Helper(dict):
    def __init__(self, size):
        super().__init__()
        self.size = size + CONSTANT[0]


def helped(x):
    return x + Helper(1).size


def reads_more(x):
    return [FOREIGN for _ in x]


def test_a_driver_takes_plain_data_and_gives_it_back() -> None:
    """Tensors, numbers and their containers pass; helpers, classes and constants may be read."""
    run = driver(lambda impl, x, *, n: {"y": helped(x) * n, "names": ["a", None, torch.float32]})
    assert run(None, torch.ones(2), n=3)["y"].tolist() == [9.0, 9.0]


@pytest.mark.parametrize(
    ("function", "argument", "named"),
    [
        (lambda impl, x: x, nn.Linear(1, 1), "is given a Linear"),
        (lambda impl, x: {"deep": [x.numpy()]}, torch.ones(1), "returns a ndarray"),
        (lambda impl, x: FOREIGN, 1, "FOREIGN"),
        (lambda impl, x: reads_more([x]), 1, "FOREIGN"),
        (lambda impl, x: pytest, 1, "pytest"),
    ],
    ids=["given a module", "returns an array", "reads an object", "through a helper", "a library"],
)
def test_a_driver_that_could_not_run_elsewhere_is_refused(function, argument, named) -> None:
    """Live objects in or out, and names that could not go along, are a TypeError naming them."""
    with pytest.raises(TypeError, match=named):
        driver(function)(None, argument)


def test_a_driver_closes_over_nothing() -> None:
    """A variable of an enclosing function could not go along."""
    secret = 3
    with pytest.raises(TypeError, match="closes over"):
        driver(lambda impl: secret)(None)
