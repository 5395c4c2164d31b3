"""What judges compression/lora: Hu et al. 2021, arXiv:2106.09685."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlings.testing import (
    Example,
    assert_close,
    distinct,
    driver,
    gradients,
    growth,
    indices,
    masks,
    measure,
    rejects,
    sizes,
    tensors,
)

LEADS = ((3,), (), (1,), (2, 3))
ALPHAS = (3.0, 0.5, 7.0, 16.0)
FAMILIES = ("plain", "tiny", "large", "spike", "rows")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Fixed standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Fixed small integers, none of them 0: sums and products of a few are exact."""
    values = torch.randint(1, 4, shape, generator=torch.Generator().manual_seed(seed))
    return values.double() * torch.where(numbers(*shape, seed=seed + 1) > 0, 1.0, -1.0)


def rotation(n: int, seed: int = 0) -> Tensor:
    """A fixed orthogonal matrix (n, n)."""
    return torch.linalg.qr(numbers(n, n, seed=seed)).Q


def spectral(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A fixed matrix (rows, columns) with singular values 3, 3/2, 3/4, ..., no two alike."""
    k = min(rows, columns)
    values = 3.0 * 0.5 ** torch.arange(k, dtype=torch.float64)
    return rotation(rows, seed)[:, :k] * values @ rotation(columns, seed + 1)[:k]


def parts(rank: int = 2, rows: int = 4, columns: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A base and an adapter for it, by name."""
    return {
        "W0": numbers(rows, columns, seed=seed),
        "bias": numbers(rows, seed=seed + 1),
        "A": numbers(rank, columns, seed=seed + 2),
        "B": numbers(rows, rank, seed=seed + 3),
    }


# ---- what is drawn


LAYER_SIZES = distinct(3, high=5) | sizes(3, high=3)
REQUEST_SIZES = distinct(5, high=5) | sizes(5, high=3)
WRAPPING_SIZES = distinct(3, high=5)


@st.composite
def layers(draw: st.DrawFn, *names: str) -> dict[str, Any]:
    """W0, A, B and alpha of one layer, and of x, dy, bias and keep those that are named."""
    columns, rows, rank = draw(LAYER_SIZES)
    lead = draw(st.sampled_from(LEADS)) if names else ()
    case = {
        "W0": draw(tensors((rows, columns), ("plain", "rows"))),
        "A": draw(tensors((rank, columns), ("plain", "tiny", "large"))),
        "B": draw(tensors((rows, rank), ("plain", "rows"))),
        "alpha": draw(st.sampled_from(ALPHAS)),
    }
    if "x" in names:
        case["x"] = draw(tensors((*lead, columns), FAMILIES))
    if "dy" in names:
        case["dy"] = draw(tensors((*lead, rows), FAMILIES))
    if "bias" in names:
        case["bias"] = draw(tensors((rows,)))
    if "keep" in names:
        case["keep"] = 2.0 * draw(masks((*lead, columns))).double()
    return case


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """x, W0, As, Bs, ids and alpha for batched_lora, by name."""
    batch, tokens, columns, rows, rank = draw(REQUEST_SIZES)
    adapters = draw(st.integers(1, 3))
    return {
        "x": draw(tensors((batch, tokens, columns), FAMILIES)),
        "W0": draw(tensors((rows, columns))),
        "As": draw(tensors((adapters, rank, columns))),
        "Bs": draw(tensors((adapters, rows, rank))),
        "ids": draw(indices((batch,), adapters + 1)) - 1,
        "alpha": draw(st.sampled_from(ALPHAS)),
    }


def most(*factors: Tensor) -> float:
    """A bound of a product of matrices, which is the size of what may cancel in it."""
    bound = 1.0
    for factor in factors:
        bound *= 5 * float(factor.abs().max())
    return bound


def size_of(case: dict[str, Any]) -> float:
    """The size of the terms that cancel in the answer of a layer."""
    factors = [case[name] for name in ("A", "B", "As", "Bs") if name in case]
    return (most(case["W0"]) + case["alpha"] * most(*factors)) * float(case["x"].abs().max())


# ---- init_lora


@given(case=distinct(3, high=6), std=st.sampled_from([0.25, 3.0, 0.0]))
def test_a_new_adapter_is_gaussian_times_zero(impl, case, std):
    """A is std times one torch.randn of its shape, and B is 0: their product vanishes."""
    rank, columns, rows = sorted(case)
    for in_f, out_f in ((columns, rows), (rows, columns)):
        A, B = impl.init_lora(
            in_f, out_f, rank, torch.Generator().manual_seed(7), std=std, dtype=torch.float64
        )
        question = "Which of the two factors is random, and what are their shapes?"
        assert_close(A, std * numbers(rank, in_f, seed=7), question)
        assert_close(B, torch.zeros(out_f, rank, dtype=torch.float64), question)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_width_sets_the_spread_unless_it_is_given(impl, dtype):
    """Without std the standard deviation of A is in^-0.5; both factors have the dtype asked for."""
    A, B = impl.init_lora(9, 6, 4, torch.Generator().manual_seed(3), dtype=dtype)
    drawn = torch.randn(4, 9, generator=torch.Generator().manual_seed(3), dtype=dtype)
    assert_close(A, drawn / 3, "Is the default one over the root of the width that A reads?")
    assert_close(B, torch.zeros(6, 4, dtype=dtype), "Does B have the dtype that is asked for?")
    A, _ = impl.init_lora(9, 6, 4, torch.Generator().manual_seed(3))
    drawn = torch.randn(4, 9, generator=torch.Generator().manual_seed(3))
    assert_close(A, drawn / 3, "Which dtype is the default?")


def test_two_adapters_are_two_draws(impl):
    """The generator goes on: an adapter draws r in numbers, and B none."""
    generator = torch.Generator().manual_seed(5)
    answers = [impl.init_lora(4, 5, 2, generator, std=1.0, dtype=torch.float64) for _ in range(2)]
    own = torch.Generator().manual_seed(5)
    drawn = [torch.randn(2, 4, generator=own, dtype=torch.float64) for _ in range(2)]
    assert_close([A for A, _ in answers], drawn, "Is the generator seeded anew, or used for B?")


@pytest.mark.parametrize(
    ("r", "in_f", "out_f", "most"), [(0, 4, 5, 4), (-1, 4, 5, 4), (6, 5, 8, 5)]
)
def test_a_rank_that_is_none_is_refused(impl, r, in_f, out_f, most):
    """ValueError with the rank and the largest one unless 1 <= r <= min(in, out)."""
    with rejects("rank", r, most):
        impl.init_lora(in_f, out_f, r, torch.Generator())
    with rejects("rank", r, most):
        impl.init_lora(out_f, in_f, r, torch.Generator())


def test_the_largest_rank_is_allowed(impl):
    """r = 1 and r = min(in, out) are ranks."""
    for r in (1, 4):
        A, B = impl.init_lora(4, 6, r, torch.Generator())
        question = "Are both ends of the interval inside?"
        assert_close([list(A.shape), list(B.shape)], [[r, 4], [6, r]], question)


# ---- lora_forward


@given(case=layers("x", "bias"))
def test_the_output_is_that_of_the_dense_weight(impl, reference, case):
    """y = (W0 + (alpha / r) B A) x + bias, with any leading axes, bias or none."""
    for bias in (case.pop("bias"), None):
        assert_close(
            impl.lora_forward(**case, bias=bias),
            reference.lora_forward(**case, bias=bias),
            "Eq. 3: is the branch scaled by alpha / r, and what is added once?",
            scale=size_of(case),
        )


@given(case=layers("x", "keep"))
def test_dropout_touches_the_branch_alone(impl, reference, case):
    """keep multiplies what A reads; W0 reads x itself."""
    assert_close(
        impl.lora_forward(**case),
        reference.lora_forward(**case),
        "Which of the two branches is dropped? Is keep scaled already?",
        scale=2 * size_of(case),
    )


def test_b_of_zeros_is_the_base_bit_for_bit(impl):
    """With B = 0 the answer is that of the frozen layer, exactly."""
    x, W0, bias = integers(3, 4), integers(5, 4, seed=1), integers(5, seed=2)
    y = impl.lora_forward(x, W0, numbers(2, 4), torch.zeros_like(W0[:, :2]), alpha=3.0, bias=bias)
    wrong = int((y != x @ W0.T + bias).sum())
    assert_close(wrong, 0, "What does the branch add when one factor is zero?")


@given(case=layers("x"), factor=st.sampled_from([2.0, -0.25, 8.0]))
def test_one_factor_may_grow_as_the_other_shrinks(impl, reference, case, factor):
    """(c A, B / c, alpha) is the same adapter, and so is (R A, B R^-1, alpha)."""
    x, W0, A, B, alpha = (case[name] for name in ("x", "W0", "A", "B", "alpha"))
    wanted = reference.lora_forward(x, W0, A, B, alpha=alpha)
    question = "Does anything but the product B A count?"
    assert_close(
        impl.lora_forward(x, W0, factor * A, B / factor, alpha=alpha),
        wanted,
        question,
        scale=size_of(case),
    )
    # unit upper triangular of integers: so is its inverse, and both are exact
    R = torch.eye(len(A), dtype=torch.float64) + 2.0 * torch.ones(len(A), len(A)).double().triu(1)
    turned = torch.linalg.inv(R).round()
    assert_close(
        impl.lora_forward(x, W0, R @ A, B @ turned, alpha=alpha),
        wanted,
        question,
        scale=size_of(case),
    )


@given(case=layers("x"))
def test_alpha_scales_the_branch_and_not_the_base(impl, reference, case):
    """alpha -> 2 alpha adds the branch once more."""
    x, W0, A, B, alpha = (case[name] for name in ("x", "W0", "A", "B", "alpha"))
    once = reference.lora_forward(x, W0, A, B, alpha=alpha)
    base = reference.linear(x, W0)
    assert_close(
        impl.lora_forward(x, W0, A, B, alpha=2 * alpha),
        2 * once - base,
        "What does alpha multiply?",
        scale=3 * size_of(case),
    )


@given(case=layers("x"), copies=st.integers(2, 3))
def test_only_alpha_over_r_counts(impl, reference, case, copies):
    """An adapter stacked k times has rank k r; with the same alpha it is the same update."""
    x, W0, A, B, alpha = (case[name] for name in ("x", "W0", "A", "B", "alpha"))
    assert_close(
        impl.lora_forward(x, W0, A.repeat(copies, 1), B.repeat(1, copies), alpha=alpha),
        reference.lora_forward(x, W0, A, B, alpha=alpha),
        "By what is alpha divided?",
        scale=2 * size_of(case),
    )


# ---- lora_backward


@given(case=layers("x", "dy"))
def test_the_gradients_go_through_both_factors(impl, reference, case):
    """dx, dA and dB are those of the chain rule through the dense weight."""
    dy, x, W0, A, B, alpha = (case[name] for name in ("dy", "x", "W0", "A", "B", "alpha"))
    got = impl.lora_backward(dy, x, W0, A, B, alpha=alpha)
    wanted = reference.lora_backward(dy, x, W0, A, B, alpha=alpha)
    assert_close(len(got), 3, "The function returns dx, dA and dB.")
    given_, seen = float(dy.abs().max()), float(x.abs().max())
    bounds = (
        given_ * (most(W0) + alpha * most(A, B)),
        30 * alpha * given_ * seen * most(B),
        30 * alpha * given_ * seen * most(A),
    )
    question = "Which product of thin matrices is {}, and is alpha / r in it?"
    for actual, expected, name, bound in zip(got, wanted, ("dx", "dA", "dB"), bounds, strict=True):
        assert_close(actual, expected, question.format(name), scale=bound)


def test_the_gradients_are_slopes(impl, reference):
    """sum(dy * y) is linear in x, in A and in B, so a difference of 1 is its slope, exactly."""
    dy, x, W0 = integers(2, 3, 4), integers(2, 3, 5, seed=1), integers(4, 5, seed=2)
    factors = [x, integers(2, 5, seed=3), integers(4, 2, seed=4)]

    def value(x, A, B):
        return float((dy.numpy() * reference.lora_forward(x, W0, A, B, alpha=6.0)).sum())

    start = value(*factors)
    got = impl.lora_backward(dy, x, W0, *factors[1:], alpha=6.0)
    for place, name in enumerate(("x", "A", "B")):
        slopes = torch.zeros_like(factors[place])
        for at in np.ndindex(*slopes.shape):
            moved = [factor.clone() for factor in factors]
            moved[place][at] += 1.0
            slopes[at] = value(*moved) - start
        assert_close(got[place], slopes, f"What does the loss gain when an entry of {name} grows?")


def test_the_leading_axes_may_lie_in_memory_in_any_order(impl, reference):
    """Transposed views of x and dy have the gradients of their copies."""
    dy, x = numbers(3, 2, 4).transpose(0, 1), numbers(3, 2, 5, seed=1).transpose(0, 1)
    factors = numbers(4, 5, seed=2), numbers(2, 5, seed=3), numbers(4, 2, seed=4)
    got = impl.lora_backward(dy, x, *factors, alpha=3.0)
    wanted = reference.lora_backward(dy, x, *factors, alpha=3.0)
    assert_close(got, wanted, "How are the leading axes made one?", scale=10.0)


def test_at_the_start_only_b_learns(impl):
    """With B = 0, dA = 0 and dB is not; with A = 0, it is the other way round."""
    dy, x, W0, A = numbers(3, 4), numbers(3, 5, seed=1), numbers(4, 5, seed=2), numbers(2, 5)
    B = numbers(4, 2, seed=5)
    zero = torch.zeros
    _, dA, dB = impl.lora_backward(dy, x, W0, A, zero(4, 2).double(), alpha=3.0)
    question = "Whose gradient has which factor in it?"
    assert_close(dA, zero(2, 5).double(), question)
    assert_close(bool((dB == 0).any()), False, question)
    _, dA, dB = impl.lora_backward(dy, x, W0, zero(2, 5).double(), B, alpha=3.0)
    assert_close(dB, zero(4, 2).double(), question)
    assert_close(bool((dA == 0).any()), False, question)


def test_a_full_rank_adapter_descends_as_the_weight_would(impl):
    """With r = in and A orthogonal, a step of gradient descent on B moves the weight as a step on
    the weight itself does, scaled by (alpha / r)^2.
    """
    dy, x, W0, A = numbers(6, 5), numbers(6, 4, seed=1), numbers(5, 4, seed=2), rotation(4)
    _, _, dB = impl.lora_backward(dy, x, W0, A, torch.zeros(5, 4).double(), alpha=12.0)
    moved = 12.0 / 4 * dB @ A
    assert_close(moved, 9.0 * dy.T @ x, "dB A is dW A^T A: is dB the whole of dW A^T?", scale=10.0)


# ---- merge, unmerge, swap


@given(case=layers())
def test_the_merged_weight_serves_alone(impl, reference, case):
    """W = W0 + (alpha / r) B A."""
    W0, A, B, alpha = (case[name] for name in ("W0", "A", "B", "alpha"))
    assert_close(
        impl.merge(W0, A, B, alpha=alpha),
        reference.merge(W0, A, B, alpha=alpha),
        "Which product of the two factors has the shape of W0, and what scales it?",
        scale=most(W0) + alpha * most(A, B),
    )


def test_a_merged_layer_answers_as_before(impl, reference):
    """x W^T + bias with the merged W is Eq. 3."""
    x, case = numbers(3, 6, seed=9), parts(rank=2, rows=5, columns=6)
    W = impl.merge(case["W0"], case["A"], case["B"], alpha=5.0)
    assert_close(
        x @ W.T + case["bias"],
        reference.lora_forward(x, **case, alpha=5.0),
        "Is the merged weight the sum that the two branches compute?",
        scale=10.0,
    )


def test_the_update_has_the_rank_of_the_adapter(impl):
    """merge(W0) - W0 has r singular values that are not 0, and no more."""
    for rank in (1, 2, 3):
        case = parts(rank=rank, rows=6, columns=5, seed=rank)
        update = impl.merge(case["W0"], case["A"], case["B"], alpha=3.0) - case["W0"]
        values = torch.linalg.svdvals(update)
        found = int((values > 1e-9 * values[0]).sum())
        assert_close(found, rank, "Is the update a product of the two factors?")


@given(case=layers())
def test_unmerging_takes_the_update_back(impl, reference, case):
    """unmerge(W) = W - (alpha / r) B A, and of a merged weight it is W0."""
    W, A, B, alpha = (case[name] for name in ("W0", "A", "B", "alpha"))
    scale = most(W) + alpha * most(A, B)
    question = "Is exactly what was added subtracted?"
    assert_close(
        impl.unmerge(W, A, B, alpha=alpha),
        reference.unmerge(W, A, B, alpha=alpha),
        question,
        scale=scale,
    )
    merged = torch.from_numpy(reference.merge(W, A, B, alpha=alpha))
    assert_close(impl.unmerge(merged, A, B, alpha=alpha), W, question, scale=scale)


@given(case=layers(), seed=st.integers(0, 9), rank=st.integers(1, 4))
def test_swapping_goes_from_one_task_to_another(impl, reference, case, seed, rank):
    """A weight merged with one adapter becomes one merged with another, of whatever rank."""
    W0, A, B, alpha = (case[name] for name in ("W0", "A", "B", "alpha"))
    second = parts(rank, *W0.shape, seed=seed)
    old, new = (A, B, alpha), (second["A"], second["B"], 2.5)
    W = torch.from_numpy(reference.merge(W0, A, B, alpha=alpha))
    assert_close(
        impl.swap(W, old, new),
        reference.merge(W0, second["A"], second["B"], alpha=2.5),
        "Whose alpha and whose rank go with which factors?",
        scale=most(W0) + alpha * most(A, B),
    )


def test_there_and_back_is_where_it_was(impl):
    """Swapping to a second adapter and back, or to itself, changes nothing."""
    case, second = parts(), parts(rank=3, seed=9)
    old, new = (case["A"], case["B"], 5.0), (second["A"], second["B"], 0.5)
    W = case["W0"]
    there = impl.swap(W, old, new)
    moved = bool((there - W).abs().max() > 0.1)
    assert_close(moved, True, "Is anything swapped?")
    assert_close(impl.swap(there, new, old), W, "Which is taken out, which put in?", scale=10.0)
    assert_close(impl.swap(W, old, old), W, "What is added and subtracted?", scale=10.0)


def test_two_updates_add_up(impl, reference):
    """Two adapters in sequence add both updates, and come out in either order."""
    case, second = parts(), parts(rank=3, seed=9)
    first = reference.merge(case["W0"], case["A"], case["B"], alpha=5.0)
    both = impl.merge(torch.from_numpy(first), second["A"], second["B"], alpha=0.5)
    # the first comes out first
    left = reference.unmerge(both, case["A"], case["B"], alpha=5.0)
    wanted = reference.merge(case["W0"], second["A"], second["B"], alpha=0.5)
    assert_close(torch.from_numpy(left), wanted, "Does merging start from W?", scale=10.0)


def test_merging_is_differentiable(impl, reference):
    """The merged weight carries the gradients of W0, A and B."""
    case = {name: tensor.requires_grad_(True) for name, tensor in parts().items()}
    W0, A, B, dW = case["W0"], case["A"], case["B"], numbers(4, 3, seed=9)
    eye = torch.eye(3, dtype=torch.float64)
    _, dA, dB = reference.lora_backward(dW.T, eye, W0, A, B, alpha=5.0)
    got = gradients((dW * impl.merge(W0, A, B, alpha=5.0)).sum(), (W0, A, B))
    assert_close(got, (dW, dA, dB), "Is a factor detached?")


# ---- LoRALinear


@driver
def wrapped(impl, base, x, script, *, r, adapter=None, training=True, seed=0, **options):
    """Wrap an nn.Linear made of `base`, follow the script, and tell what was seen.

    A word of the script: "forward" and "base" record what the layer and the bare nn.Linear answer,
    "weight" the weight, "merged" that attribute, "shift" adds 1 to all parameters of the nn.Linear;
    others are methods of the layer.
    """
    rows, columns = base["weight"].shape
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(columns, rows, bias="bias" in base, dtype=base["weight"].dtype)
    linear.load_state_dict(base)
    linear.train(training)
    layer = impl.LoRALinear(linear, r, generator=torch.Generator().manual_seed(seed), **options)
    layer.load_state_dict(adapter or {}, strict=False)
    seen = []
    for word in script:
        if word in ("forward", "base"):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                seen.append((linear if word == "base" else layer)(x).detach())
        elif word == "weight":
            seen.append(layer.state_dict()["weight"].clone())
        elif word == "merged":
            seen.append(layer.merged)
        elif word == "shift":
            with torch.no_grad():
                for p in linear.parameters():
                    p.add_(1.0)
        else:
            getattr(layer, word)()
    return {
        "seen": seen,
        "state": {name: tensor.clone() for name, tensor in layer.state_dict().items()},
        "trained": {name: p.requires_grad for name, p in layer.named_parameters()},
        "frozen base": not linear.weight.requires_grad,
        "training": layer.training,
        "chained": [answer is layer for answer in (layer.train(), layer.eval())],
        "widths": [layer.in_features, layer.out_features],
    }


@driver
def learned(impl, base, adapter, x, dy, script, *, r, **options):
    """The gradients of sum(dy * layer(x)) by x and by every parameter, zeros where there is none,
    and what the forward pass made and kept.
    """
    rows, columns = base["weight"].shape
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(columns, rows, dtype=base["weight"].dtype)
    linear.load_state_dict(base)
    layer = impl.LoRALinear(linear, r, generator=torch.Generator(), **options)
    layer.load_state_dict(adapter, strict=False)
    for word in script:
        getattr(layer, word)()
    x = x.clone().requires_grad_(True)
    (dy * layer(x)).sum().backward()
    found = {"x": x, **dict(layer.named_parameters())}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in found.items()}


def layered(case: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parts as state dicts of the base and of the adapter."""
    base = {"weight": case["W0"], "bias": case["bias"]}
    return base, {"lora_A": case["A"], "lora_B": case["B"]}


@st.composite
def wrappings(draw: st.DrawFn) -> dict[str, Any]:
    """A base, an adapter, x, alpha, and whether there is a bias."""
    lead = draw(st.sampled_from(LEADS))
    rank, columns, rows = sorted(draw(WRAPPING_SIZES))
    if draw(st.booleans()):
        rows, columns = columns, rows
    base = {"weight": draw(tensors((rows, columns))), "bias": draw(tensors((rows,)))}
    if draw(st.booleans()):
        del base["bias"]
    adapter = {"lora_A": draw(tensors((rank, columns))), "lora_B": draw(tensors((rows, rank)))}
    x, alpha = draw(tensors((*lead, columns))), draw(st.sampled_from(ALPHAS))
    return {"base": base, "adapter": adapter, "x": x, "r": rank, "alpha": alpha}


def answers(reference: Any, case: dict[str, Any]) -> tuple[Any, Any]:
    """What the base alone and the adapted layer should answer."""
    base, adapter = case["base"], case["adapter"]
    A, B, bias = adapter["lora_A"], adapter["lora_B"], base.get("bias")
    nothing = torch.zeros_like(B)
    return tuple(
        reference.lora_forward(case["x"], base["weight"], A, b, alpha=case["alpha"], bias=bias)
        for b in (nothing, B)
    )


@given(case=wrappings())
def test_a_wrapped_layer_adds_its_adapter(impl, reference, case):
    """The layer answers as Eq. 3, in training mode and in eval mode, merged or not."""
    script = ["forward", "eval", "forward", "merge", "forward", "unmerge", "forward"]
    seen = wrapped(impl, script=script, **case)["seen"]
    _, wanted = answers(reference, case)
    question = "Does the layer add the branch once, and bias once, in every state?"
    assert_close(seen, [wanted] * 4, question, scale=1e3)


def test_a_new_layer_is_the_base_bit_for_bit(impl):
    """Wrapping changes no answer: B starts at 0."""
    base = {"weight": integers(5, 4), "bias": integers(5, seed=1)}
    seen = wrapped(impl, base, integers(3, 4, seed=2), ["base", "forward"], r=2, alpha=3.0)["seen"]
    assert_close(int((seen[0] != seen[1]).sum()), 0, "What does a new adapter add?")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_draws_its_adapter_from_the_generator(impl, dtype):
    """lora_A and lora_B start as init_lora draws them, in the dtype of the weight."""
    base = {"weight": numbers(5, 4).to(dtype), "bias": numbers(5, seed=1).to(dtype)}
    x = numbers(3, 4).to(dtype)
    state = wrapped(impl, base, x, [], r=3, alpha=2.0, seed=11)["state"]
    drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(11), dtype=dtype)
    wanted = base | {"lora_A": drawn / 2, "lora_B": torch.zeros(5, 3, dtype=dtype)}
    assert_close(state, wanted, "Which tensors does the layer hold, and how do they start?")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("r", [2, 0])
def test_the_state_is_the_base_and_two_factors(impl, bias, r):
    """The state dict has weight, bias if there is one, lora_A and lora_B; r = 0 adds nothing."""
    base, adapter = layered(parts())
    if not bias:
        del base["bias"]
    told = wrapped(impl, base, numbers(3, 3), [], r=r, adapter=adapter if r else {}, alpha=5.0)
    wanted = base | (adapter if r else {})
    assert_close(told["state"], wanted, "Is anything renamed, copied twice, or left out?")
    assert_close(told["widths"], [3, 4], "Do in_features and out_features tell the base's?")


@pytest.mark.parametrize("train_bias", [True, False])
@pytest.mark.parametrize("r", [2, 0])
def test_only_the_adapter_is_trained(impl, train_bias, r):
    """weight is frozen, and so is bias unless train_bias; lora_A and lora_B are not."""
    base, _ = layered(parts())
    told = wrapped(impl, base, numbers(3, 3), [], r=r, alpha=5.0, train_bias=train_bias)
    wanted = {"weight": False, "bias": train_bias} | ({"lora_A": True, "lora_B": True} if r else {})
    assert_close(told["trained"], wanted, "What does the optimizer get to see?")
    assert_close(told["frozen base"], True, "Is the weight the base's own?")


def test_rank_zero_is_the_plain_layer(impl):
    """With r = 0 the layer answers as the base, whatever is done to it."""
    base, _ = layered(parts())
    script = ["base", "forward", "merge", "forward", "unmerge", "forward", "eval", "forward"]
    seen = wrapped(impl, base, numbers(3, 3), script, r=0, alpha=5.0, auto_merge=True)["seen"]
    assert_close(seen, [seen[0]] * 5, "What is alpha / r when there is no adapter?")
    assert_close(seen[0], numbers(3, 3) @ base["weight"].T + base["bias"], "Is it the base?")


def test_the_layer_shares_the_weight_of_the_base(impl, reference):
    """A change of the base's weight is a change of the layer's, and merging is seen by the base."""
    case = {"base": layered(parts())[0], "adapter": layered(parts())[1], "x": numbers(3, 3)}
    case |= {"r": 2, "alpha": 5.0}
    script = ["base", "forward", "merge", "base", "forward", "unmerge", "base"]
    plain, adapted = answers(reference, case)
    seen = wrapped(impl, script=script, **case)["seen"]
    question = "Is the weight a copy? Then there are two in memory."
    assert_close(seen, [plain, adapted, adapted, adapted, plain], question, scale=10.0)
    seen = wrapped(impl, script=["shift", "forward"], **case)["seen"]
    shifted = {name: tensor + 1.0 for name, tensor in case["base"].items()}
    assert_close(seen[0], answers(reference, case | {"base": shifted})[1], question, scale=10.0)


def test_merging_twice_adds_once(impl, reference):
    """merge and unmerge do nothing where there is nothing to do; `merged` tells."""
    base, adapter = layered(parts())
    W0, A, B = base["weight"], adapter["lora_A"], adapter["lora_B"]
    W = torch.from_numpy(reference.merge(W0, A, B, alpha=5.0))
    script, wanted = ["unmerge", "merged", "weight"], [False, W0]
    for word, state, weight in (
        ("merge", True, W),
        ("merge", True, W),
        ("unmerge", False, W0),
        ("unmerge", False, W0),
        ("merge", True, W),
    ):
        script += [word, "merged", "weight"]
        wanted += [state, weight]
    told = wrapped(impl, base, numbers(3, 3), script, r=2, adapter=adapter, alpha=5.0)
    question = "How does the layer know that the update is in the weight already?"
    assert_close(told["seen"], wanted, question, scale=10.0)
    assert_close(told["state"]["lora_A"], A, "Does merging change the factors?")
    assert_close(told["state"]["lora_B"], B, "Does merging change the factors?")


@pytest.mark.parametrize("auto_merge", [True, False])
def test_eval_merges_where_that_is_wanted(impl, reference, auto_merge):
    """With auto_merge, eval() merges once and train() unmerges; without it, neither does."""
    base, adapter = layered(parts())
    W0, A, B = base["weight"], adapter["lora_A"], adapter["lora_B"]
    W = torch.from_numpy(reference.merge(W0, A, B, alpha=5.0)) if auto_merge else W0
    script, wanted = [], []
    for word in ("train", "eval", "eval", "train", "train", "eval"):
        script += [word, "merged", "weight"]
        wanted += [auto_merge and word == "eval", W if word == "eval" else W0]
    told = wrapped(
        impl, base, numbers(3, 3), script, r=2, adapter=adapter, alpha=5.0, auto_merge=auto_merge
    )
    question = "What do train() and eval() do to the weight, the second time as well?"
    assert_close(told["seen"], wanted, question, scale=10.0)
    assert_close(told["training"], False, "Does train(mode) still set the mode?")
    assert_close(told["chained"], [True, True], "What do train() and eval() of a module return?")


def test_a_manual_merge_outlives_the_mode(impl, reference):
    """Without auto_merge a merged layer stays merged in training mode."""
    base, adapter = layered(parts())
    W = reference.merge(base["weight"], adapter["lora_A"], adapter["lora_B"], alpha=5.0)
    script = ["merge", "train", "merged", "weight", "eval", "merged", "weight"]
    told = wrapped(impl, base, numbers(3, 3), script, r=2, adapter=adapter, alpha=5.0)
    wanted = [True, torch.from_numpy(W)] * 2
    assert_close(told["seen"], wanted, "Who asked for it to be taken out?", scale=10.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("auto_merge", [True, False])
def test_a_layer_begins_in_the_mode_of_its_base(impl, training, auto_merge):
    """A base in eval mode gives a layer in eval mode, which auto_merge merges."""
    base, _ = layered(parts())
    told = wrapped(
        impl,
        base,
        numbers(3, 3),
        ["merged"],
        r=2,
        alpha=5.0,
        training=training,
        auto_merge=auto_merge,
    )
    assert_close(told["training"], training, "Is a layer put into an eval model dropping entries?")
    assert_close(told["seen"][0], auto_merge and not training, "Is the mode set by train(mode)?")


def test_the_factors_get_the_gradients_of_eq_3(impl, reference):
    """x, lora_A and lora_B get the gradients of lora_backward, bias if asked, weight none."""
    case, x, dy = parts(), numbers(2, 3, 3, seed=7), numbers(2, 3, 4, seed=8)
    W0, A, B = case["W0"], case["A"], case["B"]
    dx, dA, dB = reference.lora_backward(dy, x, W0, A, B, alpha=5.0)
    zeros = np.zeros_like
    for train_bias in (True, False):
        got = learned(impl, *layered(case), x, dy, [], r=2, alpha=5.0, train_bias=train_bias)
        bias = dy.sum((0, 1)).numpy()
        wanted = {"x": dx, "weight": zeros(W0), "lora_A": dA, "lora_B": dB}
        wanted |= {"bias": bias if train_bias else zeros(bias)}
        question = "Is a factor detached, or the frozen weight in the graph?"
        assert_close(got, wanted, question, scale=10.0)


def test_a_merged_layer_teaches_its_factors_nothing(impl, reference):
    """Merged, only the weight is read: lora_A and lora_B get no gradient, x that of W."""
    case, x, dy = parts(), numbers(3, 3, seed=7), numbers(3, 4, seed=8)
    got = learned(impl, *layered(case), x, dy, ["merge"], r=2, alpha=5.0)
    W = reference.merge(case["W0"], case["A"], case["B"], alpha=5.0)
    zeros = torch.zeros_like
    wanted = {"x": dy @ torch.from_numpy(W), "weight": zeros(case["W0"])}
    wanted |= {"bias": zeros(case["bias"])}
    wanted |= {"lora_A": zeros(case["A"]), "lora_B": zeros(case["B"])}
    assert_close(got, wanted, "What does a layer without latency compute?", scale=10.0)
    again = learned(impl, *layered(case), x, dy, ["eval", "train"], r=2, alpha=5.0, auto_merge=True)
    _, dA, _ = reference.lora_backward(dy, x, case["W0"], case["A"], case["B"], alpha=5.0)
    assert_close(again["lora_A"], dA, "Does training go on after a merge?", scale=10.0)


def test_everything_dropped_leaves_the_base(impl, reference):
    """With dropout 1, training mode answers as the base; eval mode and merged layers drop
    nothing.
    """
    case = {"base": layered(parts())[0], "adapter": layered(parts())[1], "x": numbers(3, 3)}
    case |= {"r": 2, "alpha": 5.0, "dropout": 1.0}
    script = ["forward", "eval", "forward", "train", "forward", "merge", "forward"]
    plain, adapted = answers(reference, case)
    seen = wrapped(impl, script=script, **case)["seen"]
    question = "Which input is dropped, and in which mode?"
    assert_close(seen, [plain, adapted, plain, adapted], question, scale=10.0)


def test_dropout_drops_entries_of_the_input(impl):
    """In training mode a share of the entries of x, each on its own, does not reach A, and the
    others do 1 / (1 - rate) times.
    """
    n, rate = 12, 0.25
    A = rotation(n)
    x = numbers(5, 40, n, seed=3)
    base = {"weight": numbers(n, n, seed=4), "bias": numbers(n, seed=5)}
    adapter = {"lora_A": A, "lora_B": A.T.contiguous()}
    told = wrapped(
        impl, base, x, ["base", "forward"], r=n, adapter=adapter, alpha=2.0 * n, dropout=rate
    )
    plain, dropped = told["seen"]
    reached = (dropped - plain) / 2.0  # A^T A x keep = x keep
    gone = (reached.abs() < 1e-9).double()
    question = "Is an entry of x dropped, each on its own, and the rest scaled?"
    assert_close(reached, x / (1 - rate) * (1 - gone), question, scale=30.0)
    # four standard errors of 2400 draws, and of the 200 and 480 of a column and of a row
    assert_close(gone.mean(), np.float64(rate), "Is dropout the share that goes?", rtol=0.15)
    assert_close(gone.mean((0, 1)), np.full(n, rate), question, rtol=0.5)
    assert_close(gone.mean((1, 2)), np.full(5, rate), question, rtol=0.32)
    # nearly every vector of 12 loses some entries and keeps some
    mixed = ((gone.sum(-1) > 0) & (gone.sum(-1) < n)).double().mean()
    wanted = np.float64(1 - (1 - rate) ** n - rate**n)
    assert_close(mixed, wanted, "Is a whole vector dropped at once?", rtol=0.1)


@pytest.mark.parametrize(("r", "named"), [(-1, 3), (4, 3)])
def test_a_layer_refuses_a_rank_that_is_none(impl, r, named):
    """ValueError with the rank and the largest one, unless r is 0 or a rank."""
    base, _ = layered(parts())
    with rejects("rank", r, named):
        wrapped(impl, base, numbers(3, 3), [], r=r, alpha=5.0)


# ---- apply_lora

NESTED = ("block.0.q_proj", "block.0.freq_proj", "block.1.q_proj", "block.10.q_proj", "q_proj.out")


@driver
def applied(impl, names, r, *, x, seed=0, training=True, adapter=None, extra=(), **options):
    """A model of nn.Linears (3 -> 4) with these dotted names, and of LayerNorms with the names in
    `extra`, after apply_lora.
    """
    model = torch.nn.Module()
    generator = torch.Generator().manual_seed(99)
    for name in [*names, *extra]:
        parent = model
        *path, last = name.split(".")
        for step in path:
            if step not in dict(parent.named_children()):
                parent.add_module(step, torch.nn.Module())
            parent = parent.get_submodule(step)
        if name in extra:
            part = torch.nn.LayerNorm(4, dtype=x.dtype)
        else:
            with torch.random.fork_rng(devices=[]):
                part = torch.nn.Linear(3, 4, dtype=x.dtype)
            with torch.no_grad():
                for p in part.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        parent.add_module(last, part)
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        found = impl.apply_lora(model, r, generator=torch.Generator().manual_seed(seed), **options)
    except ValueError as error:
        found = str(error)
    model.load_state_dict(adapter or {}, strict=False)
    told = {"names": found, "before": before}
    told["state"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told["trained"] = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    told["training"] = sorted({part.training for part in model.modules()})
    told["answers"] = [model.get_submodule(name)(x).detach() for name in names]
    model.eval()
    told["eval weights"] = [model.get_submodule(name).weight.detach().clone() for name in names]
    return told


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("q_proj",), ["block.0.q_proj", "block.1.q_proj", "block.10.q_proj"]),
        (("1.q_proj",), ["block.1.q_proj"]),
        (("block.10.q_proj", "out"), ["block.10.q_proj", "q_proj.out"]),
        (("freq_proj", "0.q_proj"), ["block.0.freq_proj", "block.0.q_proj"]),
        (("nothing", "q_proj.out"), ["q_proj.out"]),
    ],
)
def test_targets_are_ends_of_names(impl, reference, targets, wanted):
    """A target means the layers whose dotted name ends with it, in whole words; the names are
    sorted.
    """
    told = applied(impl, NESTED, 2, x=numbers(2, 3), alpha=5.0, targets=targets)
    assert_close(reference.named(NESTED, targets), wanted, "The oracle's own names.")
    assert_close(told["names"], wanted, "Is q_proj a part of freq_proj? Are the names sorted?")
    factors = [f"{name}.lora_{factor}" for name in wanted for factor in "AB"]
    added = sorted(told["state"].keys() - told["before"].keys())
    assert_close(added, sorted(factors), "Is every layer that is named replaced, and no other?")
    kept = {name: told["state"].get(name) for name in told["before"]}
    assert_close(kept, told["before"], "What has become of the pre-trained weights?")


@pytest.mark.parametrize("train_bias", [True, False])
def test_everything_else_is_frozen(impl, train_bias):
    """After apply_lora only the adapters are trained, and their biases if asked for."""
    told = applied(
        impl,
        ("a.q", "a.k", "head"),
        2,
        x=numbers(2, 3),
        extra=("norm",),
        alpha=5.0,
        targets=("q",),
        train_bias=train_bias,
    )
    wanted = ["a.q.bias"] * train_bias + ["a.q.lora_A", "a.q.lora_B"]
    assert_close(told["trained"], wanted, "What else in the model has parameters?")


def test_adapters_are_drawn_in_the_order_of_their_names(impl):
    """One generator draws all adapters, layer by layer in sorted order, each of rank r."""
    told = applied(impl, ("v", "a.v", "k"), 2, x=numbers(2, 3), seed=4, alpha=5.0, targets=("v",))
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64) / 3**0.5
    got = [told["state"].get("a.v.lora_A"), told["state"].get("v.lora_A")]
    assert_close(got, list(drawn), "Does the generator go on from layer to layer?")


def test_the_options_reach_every_layer(impl, reference):
    """alpha, dropout and auto_merge of apply_lora are those of its layers."""
    case = parts()
    adapter = {f"{name}.{key}": case[key[-1]] for name in "av" for key in ("lora_A", "lora_B")}
    x, names = numbers(2, 3), ("a", "v", "k")
    options = {"x": x, "adapter": adapter, "alpha": 5.0, "targets": ("a", "v")}
    told = applied(impl, names, 2, **options)
    for name, answer in zip(names[:2], told["answers"], strict=False):
        W0, bias = told["before"][f"{name}.weight"], told["before"][f"{name}.bias"]
        wanted = reference.lora_forward(x, W0, case["A"], case["B"], alpha=5.0, bias=bias)
        assert_close(answer, wanted, "Which alpha and which rank has this layer?", scale=10.0)
    weights = [told["before"][f"{name}.weight"] for name in names]
    question = "Does eval() merge without being asked, or not where it is?"
    assert_close(told["eval weights"], weights, question)
    told = applied(impl, names, 2, auto_merge=True, dropout=1.0, **options)
    for name, answer in zip(names, told["answers"], strict=True):
        wanted = x @ told["before"][f"{name}.weight"].T + told["before"][f"{name}.bias"]
        assert_close(answer, wanted, "Is dropout at work in training mode?", scale=10.0)
    merged = [reference.merge(W0, case["A"], case["B"], alpha=5.0) for W0 in weights[:2]]
    assert_close(told["eval weights"], [*merged, weights[2].numpy()], question, scale=10.0)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode(impl, training):
    """The new layers are in the mode that the model is in."""
    told = applied(
        impl, ("a", "k"), 2, x=numbers(2, 3), training=training, alpha=5.0, targets=("a",)
    )
    assert_close(told["training"], [training], "In which mode is a new module?")


def test_a_target_that_nothing_has_is_refused(impl):
    """ValueError with the names of the layers there are, and the model is as it was."""
    told = applied(impl, ("a.q", "b.k"), 2, x=numbers(2, 3), alpha=5.0, targets=("v", "a", "proj"))
    question = "What would help somebody who mistyped a name?"
    told_names = told["names"] if isinstance(told["names"], str) else "no error"
    missing = [name for name in ("a.q", "b.k") if name not in told_names]
    assert_close(missing, [], question)
    assert_close(told["state"], told["before"], "Is the model changed before the check?")
    wanted = ["a.q.bias", "a.q.weight", "b.k.bias", "b.k.weight"]
    assert_close(told["trained"], wanted, "Is the model frozen before the check?")


# ---- lora_state_dict and load_lora

STACK = {
    "first": {"weight": numbers(4, 3), "bias": numbers(4, seed=1)},
    "second": {"weight": numbers(3, 4, seed=2), "bias": numbers(3, seed=3)},
    "head": {"weight": numbers(5, 3, seed=4), "bias": numbers(5, seed=5)},
}
RANKS = {"first": 2, "second": 3, "head": None}


def adapter_of(seed: int, *, bias: bool = False) -> dict[str, Tensor]:
    """An adapter for the stack, by name."""
    found = {
        "net.first.lora_A": numbers(2, 3, seed=seed),
        "net.first.lora_B": numbers(4, 2, seed=seed + 1),
        "net.second.lora_A": numbers(3, 4, seed=seed + 2),
        "net.second.lora_B": numbers(3, 3, seed=seed + 3),
    }
    if bias:
        found |= {
            "net.first.bias": numbers(4, seed=seed + 4),
            "net.second.bias": numbers(3, seed=seed + 5),
        }
    return found


# the layer is read by its name, so that these judge what is done with it, not the layer
@driver
def saved(impl, bases, ranks, adapter, script, *, alone="", layer="LoRALinear", **options):
    """Save the adapters of a stack of layers after each word of the script: "train", "eval",
    "merge", "unmerge", or "move", which adds 1 to everything that is trained.

    alone: save those of this layer alone.
    """
    model, stack = torch.nn.Module(), torch.nn.Sequential()
    model.add_module("net", stack)
    for name, base in bases.items():
        rows, columns = base["weight"].shape
        with torch.random.fork_rng(devices=[]):
            part = torch.nn.Linear(columns, rows, dtype=torch.float64)
        part.load_state_dict(base)
        if ranks[name] is not None:
            generator = torch.Generator()
            part = getattr(impl, layer)(part, ranks[name], generator=generator, **options)
        stack.add_module(name, part)
    model.load_state_dict(adapter, strict=False)
    found = []
    for word in script:
        if word == "move":
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1.0 * p.requires_grad)
        elif word in ("train", "eval"):
            getattr(model, word)()
        elif word in ("merge", "unmerge"):
            for name in ranks:
                if ranks[name] is not None:
                    getattr(stack.get_submodule(name), word)()
        found.append(impl.lora_state_dict(model.get_submodule(alone)))
    tracked = [t.requires_grad for state in found for t in state.values()]
    return {"found": found, "tracked": sorted(set(tracked))}


@driver
def loaded(impl, bases, ranks, x, script, *, layer="LoRALinear", **options):
    """Follow a script of words, "train", "eval", "merge", "unmerge", and of adapters to load; tell
    the error, the answer to x and the state after each.
    """
    model, stack = torch.nn.Module(), torch.nn.Sequential()
    model.add_module("net", stack)
    for name, base in bases.items():
        rows, columns = base["weight"].shape
        with torch.random.fork_rng(devices=[]):
            part = torch.nn.Linear(columns, rows, dtype=x.dtype)
        part.load_state_dict(base)
        if ranks[name] is not None:
            generator = torch.Generator()
            part = getattr(impl, layer)(part, ranks[name], generator=generator, **options)
        stack.add_module(name, part)
    told = []
    for word in script:
        error = ""
        if isinstance(word, dict):
            given_ = {name: tensor.clone() for name, tensor in word.items()}
            try:
                impl.load_lora(model, given_)
            except ValueError as refusal:
                error = str(refusal)
            for tensor in given_.values():
                tensor.zero_()
        elif word in ("train", "eval"):
            getattr(model, word)()
        else:
            for name in ranks:
                if ranks[name] is not None:
                    getattr(stack.get_submodule(name), word)()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
        answer = {"error": error, "y": stack(x).detach(), "state": state, "trained": trained}
        told.append({**answer, "training": model.training})
    return told


def stacked(reference: Any, x: Tensor, adapter: dict[str, Tensor], *, alpha: float) -> Any:
    """What the stack should answer."""
    y = x
    for name, base in STACK.items():
        bias = adapter.get(f"net.{name}.bias", base["bias"])
        if RANKS[name] is None:
            y = reference.linear(y, base["weight"]) + bias.numpy()
        else:
            A, B = adapter[f"net.{name}.lora_A"], adapter[f"net.{name}.lora_B"]
            y = reference.lora_forward(y, base["weight"], A, B, alpha=alpha, bias=bias)
    return y


def test_an_adapter_is_two_factors_a_layer(impl):
    """The keys are <layer>.lora_A and <layer>.lora_B of the adapted layers, and no others."""
    adapter = adapter_of(10)
    told = saved(impl, STACK, RANKS, adapter, [""], alpha=5.0)
    assert_close(told["found"], [adapter], "What does one task add to the base?")
    assert_close(told["tracked"], [False], "Does a saved tensor need a gradient?")
    told = saved(impl, STACK, RANKS | {"second": 0}, adapter, [""], alpha=5.0)
    wanted = {name: tensor for name, tensor in adapter.items() if "first" in name}
    assert_close(told["found"], [wanted], "What has a layer of rank 0 to save?")


def test_a_trained_bias_belongs_to_the_adapter(impl):
    """Biases of layers that train them are saved too; that of a plain layer is not."""
    adapter = adapter_of(10, bias=True)
    told = saved(impl, STACK, RANKS, adapter, [""], alpha=5.0, train_bias=True)
    assert_close(told["found"], [adapter], "What else did training move?")


def test_a_single_layer_has_no_prefix(impl):
    """If the model is the layer, the keys are lora_A and lora_B."""
    adapter = adapter_of(10)
    told = saved(impl, STACK, RANKS, adapter, [""], alone="net.second", alpha=5.0)
    wanted = {key: adapter[f"net.second.{key}"] for key in ("lora_A", "lora_B")}
    assert_close(told["found"], [wanted], "What is the name of the model itself?")


def test_merging_does_not_show_in_what_is_saved(impl):
    """Merged or not, in training or eval mode, the same adapter is saved."""
    adapter = adapter_of(10)
    script = ["", "merge", "unmerge", "eval", "train", "eval"]
    told = saved(impl, STACK, RANKS, adapter, script, alpha=5.0, auto_merge=True)
    assert_close(told["found"], [adapter] * 6, "Where is the adapter when it is merged?")


def test_saved_tensors_are_copies(impl):
    """Training after saving does not change what was saved."""
    adapter = adapter_of(10)
    told = saved(impl, STACK, RANKS, adapter, ["", "move", "move"], alpha=5.0)
    wanted = [{name: tensor + k for name, tensor in adapter.items()} for k in range(3)]
    assert_close(told["found"], wanted, "What happens to a saved tensor when the layer moves on?")


@pytest.mark.parametrize("auto_merge", [True, False])
@pytest.mark.parametrize("state", ["train", "eval", "merge"])
def test_loading_goes_from_task_to_task(impl, reference, state, auto_merge):
    """After each load, merged or not, the model is the base with that adapter and no other."""
    x, tasks = numbers(6, 3, seed=8), [adapter_of(seed) for seed in (10, 20, 10)]
    bases = {k: dict(v) for k, v in STACK.items()}
    told = loaded(
        impl, bases, RANKS, x, [state, *tasks, "unmerge"], alpha=5.0, auto_merge=auto_merge
    )
    question = "With which factors does a merged layer take the old update out?"
    for step, task in zip(told[1:-1], tasks, strict=True):
        assert_close(step["error"], "", "Is an adapter that fits refused?")
        assert_close(step["training"], state != "eval", "Whose is the mode of the model?")
        assert_close(step["y"], stacked(reference, x, task, alpha=5.0), question, scale=1e3)
    base = {f"net.{name}.{key}": t for name, base in STACK.items() for key, t in base.items()}
    wanted = base | tasks[-1]
    assert_close(told[-1]["state"], wanted, "Does loading leave the base alone?", scale=1e3)


@pytest.mark.parametrize("word", ["merge", "unmerge"])
def test_a_load_leaves_a_layer_merged_or_not(impl, reference, word):
    """The weight of a merged layer holds the new update, that of another none; the factors are the
    new ones.
    """
    adapter = adapter_of(20)
    script = [adapter_of(10), "merge", word, adapter]
    state = loaded(impl, STACK, RANKS, numbers(6, 3), script, alpha=5.0)[-1]["state"]
    for name in ("first", "second"):
        A, B = adapter[f"net.{name}.lora_A"], adapter[f"net.{name}.lora_B"]
        W = STACK[name]["weight"].numpy()
        W = reference.merge(W, A, B, alpha=5.0) if word == "merge" else W
        question = "In which state was the layer, and in which is it now?"
        assert_close(state[f"net.{name}.weight"], W, question, scale=1e2)
        got = [state[f"net.{name}.lora_A"], state[f"net.{name}.lora_B"]]
        assert_close(got, [A, B], "Are the factors loaded as well?")


def test_loading_copies_values(impl, reference):
    """What happens to the loaded tensors later does not reach the model, biases included."""
    x, adapter = numbers(6, 3, seed=8), adapter_of(10, bias=True)
    told = loaded(impl, STACK, RANKS, x, [adapter], alpha=5.0, train_bias=True)[0]
    wanted = stacked(reference, x, adapter, alpha=5.0)
    assert_close(told["y"], wanted, "Does the model hold your tensors, or copies?", scale=1e3)
    wanted = ["net.head.bias", "net.head.weight", *adapter]
    assert_close(told["trained"], sorted(wanted), "Can training go on from what was loaded?")


def test_loading_keeps_the_dtype_of_the_model(impl):
    """A float64 adapter becomes float32 in a float32 model."""
    bases = {k: {n: t.float() for n, t in v.items()} for k, v in STACK.items()}
    told = loaded(impl, bases, RANKS, numbers(6, 3).float(), [adapter_of(10)], alpha=5.0)
    wanted = {name: tensor.float() for name, tensor in adapter_of(10).items()}
    got = {name: tensor for name, tensor in told[0]["state"].items() if "lora" in name}
    assert_close(got, wanted, "Which dtype have the parameters afterwards?")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"net.second.lora_B": None}, ("missing", "net.second.lora_B")),
        ({"net.third.lora_A": numbers(2, 3)}, ("unexpected", "net.third.lora_A")),
        ({"net.head.weight": numbers(5, 3)}, ("unexpected", "net.head.weight")),
        ({"net.first.bias": numbers(4)}, ("unexpected", "net.first.bias")),
        ({"net.second.lora_A": numbers(2, 4)}, ("shape", "net.second.lora_A")),
        # these would broadcast
        ({"net.second.lora_B": numbers(1, 3)}, ("shape", "net.second.lora_B")),
        ({"net.second.lora_B": numbers(3)}, ("shape", "net.second.lora_B")),
    ],
)
@pytest.mark.parametrize("state", ["train", "merge"])
def test_an_adapter_that_does_not_fit_is_refused_whole(impl, change, named, state):
    """ValueError with the key that is missing, unexpected, or of another shape; nothing is
    written.
    """
    wrong = {k: t for k, t in (adapter_of(20) | change).items() if t is not None}
    x = numbers(6, 3, seed=8)
    told = loaded(impl, STACK, RANKS, x, [adapter_of(10), state, wrong], alpha=5.0)
    error = told[-1]["error"].lower()
    unsaid = [word for word in named if word.lower() not in error]
    assert_close(unsaid, [], "What does the error say about an adapter of another model?")
    assert_close(told[-1]["state"], told[-2]["state"], "Is a part of it loaded before the check?")


# ---- counting


def test_what_training_moves_is_counted(impl):
    """count_trainable adds up the entries of parameters that require a gradient, each once."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.LayerNorm(5))
    question = "Which parameters does the optimizer move?"
    assert_close(impl.count_trainable(model), 3 * 4 + 4 + 4 * 5 + 5 + 5, question)
    model[0].weight.requires_grad_(False)
    assert_close(impl.count_trainable(model), 4 + 4 * 5 + 5 + 5, question)
    model.add_module("tied", nn.Linear(4, 5, bias=False))
    model.tied.weight = model[1].weight
    model.register_buffer("statistics", torch.ones(7))
    assert_close(impl.count_trainable(model), 4 + 4 * 5 + 5 + 5, "Is a tied weight trained twice?")
    model.requires_grad_(False)
    assert_close(impl.count_trainable(model), 0, question)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=4),
    r=st.integers(1, 9),
)
def test_an_adapter_has_two_thin_matrices(impl, reference, shapes, r):
    """|Theta| is the sum of r (in + out) over the adapted matrices."""
    question = "How many rows and columns have A and B?"
    assert_close(impl.lora_param_count(shapes, r), reference.lora_param_count(shapes, r), question)


@pytest.mark.parametrize(
    ("width", "blocks", "r", "wanted"),
    [
        (12288, 96, 1, 4_718_592),
        (12288, 96, 4, 18_874_368),
        (12288, 96, 8, 37_748_736),
        (768, 12, 8, 294_912),
        (1024, 24, 8, 786_432),
        (1536, 48, 16, 4_718_592),
    ],
)
def test_the_paper_s_adapters_have_their_sizes(impl, width, blocks, r, wanted):
    """Tables 2 to 4: with W_q and W_v of every block adapted, GPT-3 175B takes 4.7M parameters at
    r = 1 and 37.7M at r = 8, RoBERTa 0.3M and 0.8M, DeBERTa XXL 4.7M.
    """
    count = impl.lora_param_count([(width, width)] * (2 * blocks), r)
    assert_close(count, wanted, "Is |Theta| = 2 L d r, with two matrices in each block?")


def test_a_checkpoint_shrinks_ten_thousand_times(impl):
    """Section 4.2: at r = 4, 350 GB of GPT-3 in half precision become some 35 MB."""
    saved_ = 2 * impl.lora_param_count([(12288, 12288)] * 192, 4)
    question = "How many bytes has a number in half precision?"
    assert_close(round(350e9 / saved_, -3), 9000.0, question)


# ---- subspace_similarity


@st.composite
def subspaces(draw: st.DrawFn) -> dict[str, Any]:
    """Two matrices with well separated singular values, and i and j, by name."""
    n = draw(st.integers(1, 6))
    rows = [draw(st.integers(1, 7)) for _ in range(2)]
    seed = draw(st.integers(0, 99))
    scale = draw(st.sampled_from([1.0, 1e-6, 1e4]))
    return {
        "A1": spectral(rows[0], n, seed),
        "A2": scale * spectral(rows[1], n, seed + 7),
        "i": draw(st.integers(1, min(rows[0], n))),
        "j": draw(st.integers(1, min(rows[1], n))),
    }


@given(case=subspaces())
def test_the_similarity_is_that_of_the_projections(impl, reference, case):
    """phi = trace(P1 P2) / min(i, j), of the projections onto the leading right directions."""
    question = "Which side has vectors in R^n, which of them lead, and what is the largest overlap?"
    actual = impl.subspace_similarity(case["A1"], case["A2"], case["i"], case["j"])
    assert_close(actual, reference.subspace_similarity(**case), question, scale=1.0)


@given(case=subspaces())
def test_the_similarity_is_between_none_and_all(impl, case):
    """0 <= phi <= 1, and a matrix is wholly like itself; the order of the two does not count."""
    A1, A2, i, j = (case[name] for name in ("A1", "A2", "i", "j"))
    there, back = impl.subspace_similarity(A1, A2, i, j), impl.subspace_similarity(A2, A1, j, i)
    assert_close(there, back, "Is one of the two treated in another way?", scale=1.0)
    assert_close(-1e-9 <= there <= 1 + 1e-9, True, f"phi is {there}: what is it divided by?")
    same = impl.subspace_similarity(A1, A1, i, i)
    assert_close(same, 1.0, "How much of a subspace lies in itself?")
    smaller = impl.subspace_similarity(A1, A1, 1, i)
    assert_close(smaller, 1.0, "How much of a part lies in the whole?")


def test_directions_of_coordinates_overlap_as_one_counts(impl):
    """Of spans of coordinate axes, phi is the number they share over the smaller dimension."""
    axes = torch.eye(6, dtype=torch.float64)
    A1 = torch.stack([5 * axes[0], 4 * axes[1], 3 * axes[2], 2 * axes[3]])
    A2 = torch.stack([2 * axes[5], 9 * axes[2], 7 * axes[0], 1 * axes[1]])
    question = "Which rows lead? Those of the largest singular values."
    for i, j, wanted in ((1, 1, 0.0), (3, 1, 1.0), (2, 2, 0.5), (4, 3, 2 / 3), (4, 4, 0.75)):
        got = impl.subspace_similarity(A1, A2, i, j)
        assert_close(got, wanted, question, scale=1.0)


def test_orthogonal_rows_have_nothing_in_common(impl):
    """phi is 0 for row spaces at right angles, and 1 for equal ones of another basis."""
    Q = rotation(6)
    R = numbers(3, 3, seed=4)
    zero = impl.subspace_similarity(R @ Q[:3], R @ Q[3:], 3, 3)
    assert_close(zero, 0.0, "Whose singular vectors are compared?", scale=1.0)
    one = impl.subspace_similarity(Q[:3], R @ Q[:3], 3, 3)
    assert_close(one, 1.0, "Does a basis matter when the whole row space is compared?")


def test_a_change_of_basis_changes_only_what_leads(impl, reference):
    """phi of R A is that of A where i = r, but not for i < r, where R may let another lead."""
    A1, A2 = spectral(3, 7), spectral(4, 7, seed=5)
    R = torch.diag(torch.tensor([0.1, 3.0, 40.0], dtype=torch.float64)) @ rotation(3, seed=8)
    whole = [impl.subspace_similarity(A, A2, 3, 4) for A in (A1, R @ A1)]
    assert_close(whole[1], whole[0], "Does the span of the rows change?", scale=1.0)
    one = [impl.subspace_similarity(A, A2, 1, 4) for A in (A1, R @ A1)]
    wanted = [reference.subspace_similarity(A, A2, 1, 4) for A in (A1, R @ A1)]
    assert_close(one, wanted, "Are the directions those of the largest values?", scale=1.0)


def test_chance_overlaps_by_the_larger_share(impl):
    """Random matrices have phi = max(i, j) / n on average: what a similarity is to be held against
    (section 7.2).
    """
    found = [
        impl.subspace_similarity(numbers(4, 12, seed=k), numbers(6, 12, seed=k + 500), 2, 5)
        for k in range(60)
    ]
    # four standard errors: phi has a standard deviation of 0.13 here
    question = "Is it the square of the norm, over min(i, j)?"
    assert_close(float(np.mean(found)), 5 / 12, question, rtol=0.16)


def test_similarity_is_computed_in_float64(impl):
    """Matrices in float32, and parameters that need a gradient, give the float64 answer."""
    A1, A2 = spectral(3, 7).float(), spectral(4, 7, seed=5).float()
    wanted = impl.subspace_similarity(A1.double(), A2.double(), 2, 3)
    got = impl.subspace_similarity(nn.Parameter(A1), nn.Parameter(A2), 2, 3)
    assert_close(got, wanted, "In which dtype are the matrices decomposed?", scale=1.0)


@pytest.mark.parametrize(
    ("i", "j", "named"),
    [(0, 1, ("i", 0)), (4, 1, ("i", 4)), (1, 0, ("j", 0)), (1, 6, ("j", 6)), (-1, 2, ("i", -1))],
)
def test_directions_that_are_none_are_refused(impl, i, j, named):
    """ValueError with i or j and its value, unless there are so many singular vectors."""
    with rejects(f"{named[0]} ", named[1]):
        impl.subspace_similarity(numbers(3, 5), numbers(7, 5, seed=1), i, j)


# ---- amplification


@st.composite
def updates(draw: st.DrawFn) -> dict[str, Any]:
    """dW, W and r, by name."""
    rows, columns = draw(distinct(2, high=6) | sizes(2, high=5))
    seed, scale = draw(st.integers(0, 99)), draw(st.sampled_from([1.0, 1e-5, 1e4]))
    return {
        "dW": scale * spectral(rows, columns, seed),
        "W": numbers(rows, columns, seed=seed + 3),
        "r": draw(st.integers(1, min(rows, columns))),
    }


@given(case=updates())
def test_an_update_is_held_against_what_was_there(impl, reference, case):
    """factor = |dW| / |U^T W V|, U and V the r leading singular vectors of dW."""
    assert_close(
        impl.amplification(case["dW"], case["W"], case["r"]),
        reference.amplification(**case),
        "Whose singular vectors are they, and what is projected on both sides?",
    )


@given(case=updates(), factor=st.sampled_from([-3.0, 0.125, 1e6]))
def test_the_factor_grows_with_the_update(impl, reference, case, factor):
    """Twice the update is twice the factor, with the same projection."""
    dW, W, r = case["dW"], case["W"], case["r"]
    wanted, proj = reference.amplification(dW, W, r)
    got = impl.amplification(factor * dW, W, r)
    question = "Does the projection know how large the update is?"
    assert_close(got, (abs(factor) * wanted, proj), question)


def test_a_weight_amplifies_its_own_leading_part(impl):
    """amplification(c W, W, r) = c |W| / |the r leading singular values of W|."""
    W = spectral(5, 4)
    values = 3.0 * 0.5 ** torch.arange(4, dtype=torch.float64)
    for r in (1, 2, 4):
        proj = float(values[:r].square().sum().sqrt())
        wanted = (7 * float(values.square().sum().sqrt()) / proj, proj)
        question = "Is the whole of W in the denominator, or its part in these directions?"
        assert_close(impl.amplification(7 * W, W, r), wanted, question)


def test_rotations_of_both_change_nothing(impl, reference):
    """amplification(P dW Q, P W Q, r) is that of dW and W."""
    dW, W = spectral(5, 4), numbers(5, 4, seed=3)
    P, Q = rotation(5, seed=1), rotation(4, seed=2)
    wanted = reference.amplification(dW, W, 2)
    got = impl.amplification(P @ dW @ Q, P @ W @ Q, 2)
    assert_close(got, wanted, "Do the axes of the coordinates enter?")


def test_an_update_where_there_was_nothing_is_amplified_without_bound(impl):
    """Where the projection is 0 the factor is inf; and parameters are taken as they are."""
    got = impl.amplification(nn.Parameter(spectral(3, 4)), torch.zeros(3, 4).double(), 2)
    assert_close(got, (float("inf"), 0.0), "What is a number over zero?")


def test_amplification_is_computed_in_float64(impl):
    """float32 weights give the float64 answer."""
    dW, W = spectral(5, 4).float(), numbers(5, 4, seed=3).float()
    wanted = impl.amplification(dW.double(), W.double(), 2)
    assert_close(impl.amplification(dW, W, 2), wanted, "In which dtype is dW decomposed?")


@pytest.mark.parametrize("r", [0, -2, 4])
def test_ranks_that_an_update_has_not_are_refused(impl, r):
    """ValueError with r unless 1 <= r <= min(out, in)."""
    with rejects("r ", r):
        impl.amplification(numbers(3, 5), numbers(3, 5, seed=1), r)


# ---- finetune


@driver
def tuned(
    impl, base, x, y, *, trained=("weight",), dropout=0.0, training=False, stale=0.0, seed=0, **how
):
    """Fine-tune a linear model, of which only `trained` may change, and watch the optimizer."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    rows, columns = base["weight"].shape
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(columns, rows, dtype=base["weight"].dtype)
    linear.load_state_dict(base)
    for name, p in linear.named_parameters():
        p.requires_grad_(name in trained)
        p.grad = torch.full_like(p, stale) if stale else None
    model = torch.nn.Sequential(torch.nn.Dropout(dropout), linear).train(training)
    watched = []

    def watch(optimizer, *_):
        moments = [t.numel() for s in optimizer.state.values() for t in s.values() if t.numel() > 1]
        watched.append([type(optimizer).__name__, sum(moments), model.training])

    handle = register_optimizer_step_post_hook(watch)
    try:
        losses = impl.finetune(model, x, y, generator=torch.Generator().manual_seed(seed), **how)
    finally:
        handle.remove()
    return {
        "losses": losses,
        "weight": linear.weight.detach().clone(),
        "bias": linear.bias.detach().clone(),
        "training": [part.training for part in model.modules()],
        "watched": watched,
        "trained": [p.requires_grad for p in linear.parameters()],
    }


def draws(count: int, steps: int, batch: int, seed: int = 0) -> list[Tensor]:
    """The rows that each step draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(count, (batch,), generator=generator) for _ in range(steps)]


LINEAR = {"weight": numbers(3, 4), "bias": numbers(3, seed=1)}
DATA = (numbers(7, 4, seed=2), torch.tensor([0, 2, 1, 1, 0, 2, 2]))


@given(
    steps=st.integers(1, 4),
    batch=st.integers(1, 9),
    seed=st.integers(0, 50),
    lr=st.sampled_from([0.1, 0.003]),
)
def test_training_is_adam_on_what_may_be_trained(impl, reference, steps, batch, seed, lr):
    """Each step draws its rows and moves the trainable parameters as Adam does; the frozen ones
    stay.
    """
    how = {"steps": steps, "lr": lr, "batch": batch}
    told = tuned(impl, LINEAR, *DATA, seed=seed, **how)
    rows = draws(7, steps, batch, seed)
    weight, losses = reference.finetune(*LINEAR.values(), *DATA, rows, lr=lr)
    question = "Is every step one batch drawn anew, its gradient alone, and one step of Adam?"
    assert_close(told["losses"], losses, question, scale=1.0)
    # the first steps divide a gradient by its own size, and with it the rounding
    assert_close(told["weight"], weight, question, rtol=1e-7, scale=1.0)
    assert_close(int((told["bias"] != LINEAR["bias"]).sum()), 0, "Is anything frozen moved?")
    assert_close(told["trained"], [True, False], "Who may decide what is trained?")


def test_a_batch_is_64_unless_it_is_given(impl, reference):
    """batch is 64 by default, drawn with replacement."""
    told = tuned(impl, LINEAR, *DATA, steps=2, lr=0.1)
    _, losses = reference.finetune(*LINEAR.values(), *DATA, draws(7, 2, 64), lr=0.1)
    assert_close(told["losses"], losses, "How many examples does a step see?")


def test_no_steps_change_nothing(impl):
    """steps = 0 gives no losses."""
    told = tuned(impl, LINEAR, *DATA, steps=0, lr=0.1)
    assert_close(told["losses"], [], "How many losses are there?")
    assert_close(told["weight"], LINEAR["weight"], "What moved?")


def test_the_optimizer_holds_what_is_trained(impl):
    """Adam keeps two numbers for each one it trains, and none for a frozen one."""
    for stale in (0.0, 3.0):
        for trained, count in ((("weight",), 12), (("bias",), 3), (("weight", "bias"), 15)):
            told = tuned(impl, LINEAR, *DATA, steps=2, lr=0.1, trained=trained, stale=stale)
            watched = [[name, held] for name, held, _ in told["watched"]]
            question = "Which parameters is the optimizer given, and how many steps does it take?"
            assert_close(watched, [["Adam", 2 * count]] * 2, question)


def test_gradients_from_before_do_not_count(impl):
    """A gradient left over, of a trained or of a frozen parameter, moves nothing."""
    stale = tuned(impl, LINEAR, *DATA, steps=2, lr=0.1, stale=9.0)
    clean = tuned(impl, LINEAR, *DATA, steps=2, lr=0.1)
    question = "When are the gradients cleared?"
    assert_close(stale["weight"], clean["weight"], question)
    assert_close(int((stale["bias"] != LINEAR["bias"]).sum()), 0, question)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_trains_in_training_mode(impl, training):
    """Dropout is at work while the model trains, and it returns to the mode it was in."""
    told = tuned(impl, LINEAR, *DATA, steps=3, lr=0.1, batch=5, dropout=1.0, training=training)
    # all inputs dropped: only the bias speaks
    said = LINEAR["bias"].log_softmax(-1)
    wanted = [float(-said[DATA[1][rows]].mean()) for rows in draws(7, 3, 5)]
    assert_close(told["losses"], wanted, "In which mode does a model train?")
    assert_close([mode for *_, mode in told["watched"]], [True] * 3, "And at every step?")
    assert_close(told["training"], [training] * 3, "In which mode was the model before?")


def test_a_frozen_model_cannot_be_trained(impl):
    """ValueError if no parameter requires a gradient."""
    with rejects("trainable"):
        tuned(impl, LINEAR, *DATA, steps=1, lr=0.1, trained=())


# ---- batched_lora


@given(case=requests())
def test_every_request_has_its_own_adapter(impl, reference, case):
    """Row b is the layer with the adapter ids[b], or the base alone where that is -1."""
    x, W0, As, Bs, ids = (case[name] for name in ("x", "W0", "As", "Bs", "ids"))
    assert_close(
        impl.batched_lora(x, W0, As, Bs, ids, alpha=case["alpha"]),
        reference.batched_lora(**case),
        "Which adapter answers which request, and which one is -1?",
        scale=size_of(case),
    )


def batch_of(count: int = 5, adapters: int = 3) -> tuple[Tensor, ...]:
    """x, W0, As, Bs and ids, with a request for the base among them."""
    return (
        numbers(count, 2, 4),
        numbers(5, 4, seed=1),
        numbers(adapters, 3, 4, seed=2),
        numbers(adapters, 5, 3, seed=3),
        torch.arange(count) % (adapters + 1) - 1,
    )


def test_the_gradients_of_requests_add_up_in_their_adapters(impl, reference):
    """An adapter gets the gradients of its own requests, all of them; x and W0 likewise."""
    x, W0, As, Bs, _ = batch_of()
    ids, dy = torch.tensor([2, -1, 0, 2, 2]), numbers(5, 2, 5, seed=9)
    wanted = [np.zeros(tuple(t.shape)) for t in (x, W0, As, Bs)]
    for b, k in enumerate(ids.tolist()):
        A, B = (As[k], Bs[k]) if k >= 0 else (torch.zeros(3, 4), torch.zeros(5, 3))
        wanted[0][b], dA, dB = reference.lora_backward(dy[b], x[b], W0, A, B, alpha=4.0)
        wanted[1] += (dy[b].T @ x[b]).numpy()
        if k >= 0:
            wanted[2][k] += dA
            wanted[3][k] += dB
    factors = [t.requires_grad_(True) for t in (x, W0, As, Bs)]
    y = impl.batched_lora(*factors, ids, alpha=4.0)
    got = gradients((dy * y).sum(), factors)
    question = "Does every request reach its own adapter, and no other?"
    assert_close(got, wanted, question, scale=10.0)


def test_the_order_of_requests_does_not_matter(impl):
    """Requests in another order get the same answers in that order."""
    x, W0, As, Bs, ids = batch_of()
    order = torch.tensor([3, 0, 4, 1, 2])
    y = impl.batched_lora(x, W0, As, Bs, ids, alpha=4.0)
    again = impl.batched_lora(x[order], W0, As, Bs, ids[order], alpha=4.0)
    assert_close(again, y[order], "Are answers put back where they were asked for?")


def test_no_adapter_touches_a_request_for_the_base(impl):
    """id -1 is the base model, in value and gradient, even if all adapters are NaN."""
    x, W0, As, Bs, _ = batch_of()
    broken = [torch.full_like(t, float("nan")) for t in (As, Bs)]
    x.requires_grad_(True)
    y = impl.batched_lora(x, W0, *broken, torch.full((5,), -1), alpha=4.0)
    question = "What is 0 times NaN? And which adapter does -1 index?"
    assert_close(y, x @ W0.T, question)
    dy = numbers(5, 2, 5, seed=9)
    assert_close(gradients((dy * y).sum(), [x])[0], dy @ W0, question)
    none = impl.batched_lora(x, W0, As[:0], Bs[:0], torch.full((5,), -1), alpha=4.0)
    assert_close(none, x @ W0.T, "What if there is no adapter at all?")


@pytest.mark.parametrize("wrong", [-2, 3, 17])
def test_an_adapter_that_is_none_is_refused(impl, wrong):
    """ValueError with the id unless it is -1 or that of an adapter."""
    x, W0, As, Bs, ids = batch_of()
    ids[3] = wrong
    with rejects("id", wrong):
        impl.batched_lora(x, W0, As, Bs, ids, alpha=4.0)


# ---- structure

DENSE = "Is a matrix as large as W0 made? Which order of the products avoids it?"


def wide(n: int) -> dict[str, Tensor]:
    """A layer (n, n) of rank 2."""
    return {"W0": numbers(n, n), "A": numbers(2, n, seed=1), "B": numbers(n, 2, seed=2)}


@pytest.mark.parametrize("lead", [(3,), (2, 3), ()])
def test_the_forward_pass_makes_no_dense_matrix(impl, lead):
    """The largest tensor made grows with the width, not with its square."""

    def call(n):
        case, x = wide(n), numbers(*lead, n, seed=3)
        return lambda: impl.lora_forward(x, **case, alpha=4.0, bias=case["B"][:, 0], keep=x)

    power = growth(call, 32, 128)
    assert_close(power < 1.3, True, f"{DENSE} It grows as the width to the power {power:.2f}.")


def test_the_backward_pass_makes_no_dense_matrix(impl):
    """Neither the update nor a gradient of W0 is made."""

    def call(n):
        case, x, dy = wide(n), numbers(2, 3, n, seed=3), numbers(2, 3, n, seed=4)
        return lambda: impl.lora_backward(dy, x, **case, alpha=4.0)

    power = growth(call, 32, 128)
    assert_close(power < 1.3, True, f"{DENSE} It grows as the width to the power {power:.2f}.")


def test_a_batch_of_adapters_makes_no_dense_matrix(impl):
    """No update is made dense, for one request or for all."""

    def call(n):
        _, _, _, _, ids = batch_of()
        As, Bs = numbers(3, 2, n, seed=1), numbers(3, n, 2, seed=2)
        x, W0 = numbers(5, 2, n), numbers(n, n, seed=3)
        return lambda: impl.batched_lora(x, W0, As, Bs, ids, alpha=4.0)

    power = growth(call, 32, 128)
    assert_close(power < 1.3, True, f"{DENSE} It grows as the width to the power {power:.2f}.")


def test_requests_are_served_together(impl):
    """Four times as many requests for the same adapters take no more operators."""
    few, many = (
        measure(lambda count=count: impl.batched_lora(*batch_of(count), alpha=4.0)).operators
        for count in (5, 20)
    )
    counts = [sum(k for name, k in used.items() if "aten" in name) for used in (few, many)]
    assert_close(counts[1] <= counts[0], True, "Is there a loop over requests?")


@driver
def largest_of_layer(impl, n, *, merged):
    """Elements of the largest tensor that a layer (n, n) makes in a forward pass."""
    linear = torch.nn.Linear(n, n)
    layer = impl.LoRALinear(linear, 2, alpha=4.0, generator=torch.Generator(), dropout=0.5)
    layer.eval()
    if merged:
        layer.merge()
    x = torch.ones(3, n)
    return measure(lambda: layer(x)).largest


def test_a_layer_makes_no_dense_matrix(impl):
    """Unmerged, the layer computes with the thin factors; merged, with the weight as it is."""
    for merged in (False, True):
        made = largest_of_layer(impl, 64, merged=merged)
        assert_close(made < 64 * 64, True, f"{DENSE} The largest has {made} elements.")


# ---- the claim

SEEDS = (0, 1)
PHASES = ((400, 1.0), (200, 0.2))  # steps, and the share of the rate they take


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """1797 images of digits in a fixed order: upright and turned by 90 degrees, (n, 64), and what
    they show.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    upright = torch.tensor(data.images, dtype=torch.float32)[order] / 16
    turned = torch.rot90(upright, 1, (1, 2))
    return upright.flatten(1), turned.flatten(1), torch.tensor(data.target)[order]


def network(seed: int) -> nn.Sequential:
    """64-256-256-10, its weights and biases uniform within one over the root of the width read."""
    parts_ = []
    generator = torch.Generator().manual_seed(seed)
    for columns, rows in ((64, 256), (256, 256), (256, 10)):
        linear = nn.Linear(columns, rows)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) / columns**0.5)
        parts_ += [linear, nn.ReLU()]
    return nn.Sequential(*parts_[:-1])


def fitted(model: nn.Module, x: Tensor, y: Tensor, lr: float, seed: int) -> nn.Module:
    """The judge's own training of what requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    for steps, share in PHASES:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr * share)
        for _ in range(steps):
            rows = torch.randint(len(x), (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model


@driver
def adapted(impl, base, x, y, unseen, r, *, phases, seed):
    """Adapt the network with the candidate's own code, and answer for images it has not seen."""
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )
    model.load_state_dict(base)
    generator = torch.Generator().manual_seed(seed)
    targets = ("0", "2", "4")
    impl.apply_lora(model, r, alpha=16.0, targets=targets, generator=generator, auto_merge=True)
    count = impl.count_trainable(model)
    for steps, share in phases:
        impl.finetune(model, x, y, steps=steps, lr=8e-3 * share, generator=generator)
    state = model.state_dict()
    frozen = all(torch.equal(state[name], tensor) for name, tensor in base.items())
    with torch.no_grad():
        said = model(unseen).argmax(-1)
        merged = model.eval()(unseen).argmax(-1)
    adapter = impl.lora_state_dict(model)
    return {"count": count, "frozen": frozen, "said": said, "merged": merged, "adapter": adapter}


def baselines(base: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, nn.Module]:
    """Other ways to adapt the network, each at a rate that suits it."""
    found = {}
    for name, lr, chosen in (
        ("all parameters", 4e-3, lambda key: True),
        ("the last layer", 2e-2, lambda key: key.startswith("4.")),
        ("all biases", 3e-2, lambda key: key.endswith("bias")),
    ):
        model = network(0)
        model.load_state_dict(base.state_dict())
        for key, p in model.named_parameters():
            p.requires_grad_(chosen(key))
        found[name] = fitted(model, x, y, lr, seed)
    return found


@pytest.mark.claim(seconds=20)
def test_a_few_parameters_recover_full_fine_tuning(impl, reference, figure):
    """A tenth of the parameters recover fine-tuning, and add no latency (Table 2, Fig. 2).

    A network that reads upright digits learns to read turned ones, mean of 2 seeds: rank 8 is
    within 0.02 of training everything, rank 4 is 0.03 above training the last layer, and rank 2,
    with fewer parameters than that layer, 0.015; merged and unmerged answers are the same.
    """
    upright, turned, y = digits()
    seen, unseen = slice(0, 1347), slice(1347, None)
    rates: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for seed in SEEDS:
        base = fitted(network(seed), upright[seen], y[seen], 1e-3, seed + 10)
        others = baselines(base, turned[seen], y[seen], seed + 20)
        for name, model in {"before": base, **others}.items():
            right = (model(turned[unseen]).argmax(-1) == y[unseen]).double().mean().item()
            rates.setdefault(name, []).append(right)
            counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        told = {}
        for r in (1, 2, 4, 8):
            told[r] = adapted(
                impl,
                base.state_dict(),
                turned[seen],
                y[seen],
                turned[unseen],
                r,
                phases=PHASES,
                seed=seed + 30 + r,
            )
            name = f"LoRA, r = {r}"
            right = (told[r]["said"] == y[unseen]).double().mean().item()
            rates.setdefault(name, []).append(right)
            counts[name] = told[r]["count"]
            assert_close(told[r]["count"], 1098 * r, "What is trained besides the adapters?")
            assert_close(told[r]["frozen"], True, "Which pre-trained weight has training moved?")
            question = "Is the merged weight that of the two branches?"
            assert_close(told[r]["merged"], told[r]["said"], question)
    mean = {name: float(np.mean(rate)) for name, rate in rates.items()}
    alike = learned_directions(impl, told)
    loud = amplified(impl, base, told[4]["adapter"])
    draw_adaptation(figure, mean, counts, alike, loud)
    whole, last = mean["all parameters"], mean["the last layer"]
    assert mean["LoRA, r = 8"] >= whole - 0.02, (
        f"Rank 8 reaches {mean['LoRA, r = 8']:.3f}, full fine-tuning {whole:.3f}: do both factors "
        "of every layer learn?"
    )
    for r, margin in ((4, 0.03), (2, 0.015)):
        rate = mean[f"LoRA, r = {r}"]
        assert rate >= last + margin, (
            f"Rank {r} reaches {rate:.3f}, the last layer alone {last:.3f}: is every layer adapted?"
        )
    assert alike[0, 0] >= 0.3, f"phi of the leading directions is {alike[0, 0]:.2f}; chance: 0.02."
    assert min(loud) >= 1.5, f"The updates amplify {loud} times: are U and V those of dW?"


def learned_directions(impl: Any, told: dict[int, Any]) -> np.ndarray:
    """phi of the first layer's A at rank 4 and rank 8, as in Fig. 3."""
    A4, A8 = (told[r]["adapter"]["0.lora_A"] for r in (4, 8))
    table = [[impl.subspace_similarity(A4, A8, i, j) for j in range(1, 9)] for i in range(1, 5)]
    return np.array(table)


def amplified(impl: Any, base: nn.Module, adapter: dict[str, Tensor]) -> list[float]:
    """The amplification factors of the layers at rank 4, as in Table 7."""
    found = []
    for name in ("0", "2", "4"):
        dW = 4.0 * adapter[f"{name}.lora_B"] @ adapter[f"{name}.lora_A"]
        W = base.get_parameter(f"{name}.weight")
        found.append(impl.amplification(dW, W, 4)[0])
    return found


def draw_adaptation(
    figure: Any,
    mean: dict[str, float],
    counts: dict[str, int],
    alike: np.ndarray,
    loud: list[float],
) -> None:
    """Errors against trained parameters, and which directions two ranks share."""
    left, right = figure(
        "Adapting a network from upright to turned digits, and what two ranks learn alike"
    ).subplots(1, 2, width_ratios=[1, 1.1])
    for r in (1, 2, 4, 8):
        name = f"LoRA, r = {r}"
        left.annotate(f"r = {r}", (counts[name], 1.15 * (1 - mean[name])), ha="center")
    errors = {name: 1 - rate for name, rate in mean.items()}
    ranks = [name for name in mean if name.startswith("LoRA")]
    left.plot([counts[n] for n in ranks], [errors[n] for n in ranks], "o-", label="LoRA")
    for name, marker in (("all parameters", "s"), ("the last layer", "^"), ("all biases", "v")):
        left.plot(counts[name], errors[name], marker, markersize=8, linestyle="", label=name)
    left.axhline(errors["before"], color="grey", linestyle=":", label="not adapted")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="trained parameters",
        ylabel="errors on unseen turned digits",
        title="a few parameters do the work of all",
    )
    left.legend()
    shown = right.imshow(alike, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
    for i, j in np.ndindex(*alike.shape):
        right.annotate(f"{alike[i, j]:.2f}", (j, i), ha="center", va="center", color="white")
    right.set_xticks(range(8), range(1, 9))
    right.set_yticks(range(4), range(1, 5))
    factors = ", ".join(f"{factor:.1f}" for factor in loud)
    right.set(
        xlabel="j leading directions of A at rank 8",
        ylabel="i leading directions of A at rank 4",
        title=f"first layer: one direction is shared\n(amplification by layer: {factors})",
    )
    right.figure.colorbar(shown, ax=right, label="subspace similarity phi(i, j)")


def layer_answers(impl: Any, base: dict[str, Tensor], x: Tensor, adapter: Any) -> Any:
    """A layer in training mode, in eval mode, and merged."""
    script = ["forward", "eval", "forward", "merge", "forward"]
    return wrapped(impl, base, x, script, r=2, adapter=adapter, alpha=5.0)["seen"]


def load_answers(impl: Any, x: Tensor, first: Any, second: Any) -> Any:
    """The stack with one adapter, merged, and with another."""
    bases = {k: {n: t.to(x.dtype) for n, t in v.items()} for k, v in STACK.items()}
    told = loaded(impl, bases, RANKS, x, [first, "merge", second], alpha=5.0)
    return [step["y"] for step in told]


EXAMPLES = {
    # the answer has the dtype it is asked for, whatever comes in
    "init_lora": Example(
        args=(5, 4, 3, torch.Generator().manual_seed(3)),
        kwargs={"std": 0.7, "dtype": torch.float64},
        float32=False,
    ),
    "lora_forward": Example(
        args=(numbers(3, 3, seed=5), *parts().values(), numbers(3, 3, seed=6) > 0),
        call=lambda impl, x, W0, bias, A, B, keep: impl.lora_forward(
            x, W0, A, B, alpha=5.0, bias=bias, keep=2.0 * keep.to(x.dtype)
        ),
        gradient=(0, 1, 2, 3, 4),
        batch=(0, 5),
    ),
    "lora_backward": Example(
        args=(
            numbers(2, 3, 4, seed=5),
            numbers(2, 3, 3, seed=6),
            parts()["W0"],
            parts()["A"],
            parts()["B"],
        ),
        kwargs={"alpha": 5.0},
    ),
    "merge": Example(
        args=(parts()["W0"], parts()["A"], parts()["B"]),
        kwargs={"alpha": 5.0},
        gradient=(0, 1, 2),
    ),
    "unmerge": Example(
        args=(parts()["W0"], parts()["A"], parts()["B"]),
        kwargs={"alpha": 5.0},
        gradient=(0, 1, 2),
    ),
    "swap": Example(
        args=(
            parts()["W0"],
            (parts()["A"], parts()["B"], 5.0),
            (parts(3, seed=9)["A"], parts(3, seed=9)["B"], 0.5),
        ),
        gradient=(0, 1, 2),
    ),
    "LoRALinear": Example(
        args=(layered(parts())[0], numbers(3, 3, seed=5), layered(parts())[1]),
        call=layer_answers,
        batch=(1,),
    ),
    "apply_lora": Example(
        args=(NESTED, numbers(2, 3)),
        call=lambda impl, names, x: applied(impl, names, 2, x=x, alpha=5.0, targets=("q_proj",))[
            "answers"
        ],
    ),
    "lora_state_dict": Example(
        args=(STACK, adapter_of(10)),
        call=lambda impl, bases, adapter: saved(
            impl, bases, RANKS, adapter, ["", "move"], alpha=5.0
        )["found"],
        float32=False,  # the stack is float64
    ),
    "load_lora": Example(
        args=(numbers(3, 3, seed=5), adapter_of(10), adapter_of(20)),
        call=load_answers,
        batch=(0,),
    ),
    "count_trainable": Example(args=(nn.Sequential(nn.LayerNorm(7), nn.LayerNorm(3)),)),
    "lora_param_count": Example(args=([(5, 7), (3, 4)], 2)),
    "subspace_similarity": Example(args=(spectral(3, 5), spectral(4, 5, seed=3), 2, 3)),
    "amplification": Example(args=(spectral(4, 5), numbers(4, 5, seed=3), 2)),
    "finetune": Example(
        args=(LINEAR, *DATA),
        call=lambda impl, base, x, y: [
            tuned(impl, base, x, y, steps=3, lr=0.1, batch=5)[key] for key in ("losses", "weight")
        ],
    ),
    "batched_lora": Example(
        args=batch_of(),
        kwargs={"alpha": 5.0},
        gradient=(0, 1, 2, 3),
        batch=(0, 4),
    ),
}
