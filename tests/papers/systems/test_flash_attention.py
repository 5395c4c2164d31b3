"""What judges systems/flash_attention: Dao et al. 2022, arXiv:2205.14135."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paperlings.testing import (
    Example,
    assert_at_most,
    assert_close,
    driver,
    growth,
    masks,
    measure,
    rejects,
    sizes,
    tensors,
)

INF = math.inf
# what FlashAttention gets after q, k and v
PLAIN = {"sram": 128, "causal": False, "scale": None, "dropout_p": 0.0, "seed": 0}
OPTIONS = {"sram": 20, "causal": True, "scale": -0.75, "dropout_p": 0.25, "seed": 11}


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Distinct values of magnitude about `scale`."""
    generator = torch.Generator().manual_seed(seed + 1)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def qkv(nq: int, nk: int, d: int, *lead: int) -> list[Tensor]:
    """Queries, keys and values."""
    shapes = ((*lead, nq, d), (*lead, nk, d), (*lead, nk, d))
    return [numbers(*shape, seed=i) for i, shape in enumerate(shapes)]


def statistics(reference: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    """The oracle's o, m and l, as backward gets them."""
    return [torch.from_numpy(x).to(q.dtype) for x in reference.flash_forward(q, k, v, **options)]


# ---- what runs on the candidate's side


class Crossings:
    """An HBM that keeps the size of everything that passes."""

    def __init__(self) -> None:
        self.loads: list[int] = []
        self.stores: list[int] = []

    def load(self, t: Tensor) -> Tensor:
        self.loads.append(t.numel())
        return t.clone()

    def store(self, dst: Tensor, v: Tensor) -> None:
        self.stores.append(dst.numel())
        dst.copy_(v)


@driver
def moved(impl, q, k, v, options):
    """The sizes of all that flash_forward loads and stores, and its o."""
    hbm = Crossings()
    o, _, _ = impl.flash_forward(q, k, v, hbm=hbm, **options)
    return {"loads": hbm.loads, "stores": hbm.stores, "o": o}


@driver
def moved_whole(impl, q, k, v):
    """How much Alg. 0 moves, which is given, and its o."""
    hbm = Crossings()
    o = impl.dense_attention(q, k, v, hbm)
    return {"total": sum(hbm.loads) + sum(hbm.stores), "o": o}


def spied(call, names):
    """The shapes of the tensors made in a call, how many matrix products it took, and, if names
    are asked for, which of torch's own attentions.
    """
    made, products = {}, []

    def dispatch(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        products.extend([name] * ("mm" in name))
        given = [id(x) for x in args]
        for leaf in out if isinstance(out, tuple | list) else [out]:
            if isinstance(leaf, torch.Tensor) and id(leaf) not in given and not func.is_view:
                made[tuple(leaf.shape)] = True
        return out

    with type("Spy", (TorchDispatchMode,), {"__torch_dispatch__": dispatch})():
        call()
    used = measure(call).operators if names else ()
    borrowed = [name for name in used if "attention" in name]
    return {
        "made": [list(shape) for shape in made],
        "products": len(products),
        "borrowed": borrowed,
    }


def both_passes(function, inputs):
    """A function and its gradients."""
    inputs = [x.clone().requires_grad_(True) for x in inputs]
    return torch.autograd.grad(function(*inputs).sum(), inputs)


@driver
def made_forward(impl, inputs, options, names=False):
    return spied(lambda: impl.flash_forward(*inputs, **options), names)


@driver
def made_backward(impl, inputs, options, names=False):
    return spied(lambda: impl.flash_backward(*inputs, **options), names)


@driver
def made_by_class(impl, inputs, options, names=False):
    apply = impl.FlashAttention.apply
    return spied(lambda: both_passes(lambda *x: apply(*x, *options.values()), inputs), names)


@driver
def made_by_wrapper(impl, inputs, options, names=False):
    attend = impl.flash_attention
    return spied(lambda: both_passes(lambda *x: attend(*x, **options), inputs), names)


@driver
def kept_by_class(impl, inputs, options):
    """Elements that outlive the forward call while its answer is held, the answer among them."""
    q, k, v = (x.clone().requires_grad_(True) for x in inputs)
    return measure(lambda: impl.FlashAttention.apply(q, k, v, *options.values())).kept


@driver
def growth_by_wrapper(impl, inputs, options):
    """The powers of n = 8 and 32 with which the largest tensor, and what is kept, grow."""

    def both(n):
        return lambda: both_passes(lambda *x: impl.flash_attention(*x, **options), inputs[n])

    def first(n):
        q, k, v = (x.clone().requires_grad_(True) for x in inputs[n])
        return lambda: impl.flash_attention(q, k, v, **options)

    return {"largest": growth(both, 8, 32), "kept": growth(first, 8, 32, of="kept")}


@driver
def backward_without_autograd(impl, inputs, options):
    """flash_backward where autograd can record nothing; None where that breaks it."""
    with torch.inference_mode():
        try:
            return list(impl.flash_backward(*inputs, **options))
        except NotImplementedError:
            raise
        except RuntimeError:
            return None


@driver
def applied(impl, q, k, v, do, options, by="qkv"):
    """o of FlashAttention, and the gradients of sum(do * o) by the inputs named in `by`."""
    inputs = {
        name: x.clone().requires_grad_(name in by) for name, x in zip("qkv", (q, k, v), strict=True)
    }
    o = impl.FlashAttention.apply(*inputs.values(), *options.values())
    grads = torch.autograd.grad(o, [inputs[name] for name in by], do)
    return o.detach(), list(grads)


@driver
def second_derivative(impl, q, k, v, options):
    """The gradient by q of the squared gradient by q, or None where autograd refuses it."""
    q = q.clone().requires_grad_(True)
    o = impl.FlashAttention.apply(q, k, v, *options.values())
    (dq,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    try:
        return torch.autograd.grad(dq.square().sum(), q)[0]
    except RuntimeError:
        return None


@driver
def checked_by_torch(impl, q, k, v, options):
    """What torch's own comparison with central differences says."""
    inputs = [x.clone().requires_grad_(True) for x in (q, k, v)]
    return torch.autograd.gradcheck(lambda *x: impl.flash_attention(*x, **options), inputs)


# ---- one ordinary call of every task


PARTS = [
    (numbers(3, 4, seed=i), 1.0 + numbers(3, 4, seed=i + 2).square(), numbers(3, 4, 2, seed=i + 4))
    for i in range(2)
]
HEADS = [numbers(3, 3, 2), numbers(3, 4, 2, seed=1), numbers(3, 4, 2, seed=2)]
MASK = torch.tensor([[True, False], [True, True]])

EXAMPLES = {
    "merge_stats": Example(args=(*PARTS[0], *PARTS[1]), batch=(0, 1, 2, 3, 4, 5)),
    "block_sizes": Example(args=(100, 3), float32=False),
    "flash_forward": Example(
        args=tuple(HEADS),
        kwargs={**OPTIONS, "block_mask": MASK},
        batch=(0, 1, 2),
    ),
    # o, m and l belong to no q, k and v: backward is a formula of all seven
    "flash_backward": Example(
        args=(
            numbers(3, 3, 2, seed=3),
            *HEADS,
            numbers(3, 3, 2, seed=4),
            numbers(3, 3, seed=5),
            1.0 + numbers(3, 3, seed=6).square(),
        ),
        kwargs={**OPTIONS, "block_mask": MASK},
        batch=(0, 1, 2, 3, 4, 5, 6),
    ),
    # its gradients are compared with the oracle below, and with differences through the function
    "FlashAttention": Example(
        args=tuple(HEADS),
        call=lambda impl, q, k, v: impl.FlashAttention.apply(q, k, v, *OPTIONS.values()),
        batch=(0, 1, 2),
    ),
    "flash_attention": Example(
        args=tuple(HEADS), kwargs=OPTIONS, gradient=(0, 1, 2), batch=(0, 1, 2)
    ),
    "hbm_accesses": Example(
        args=(20, 3),
        kwargs={"sram": 40, "algorithm": "block_sparse", "sparsity": 0.7},
        float32=False,
    ),
    "flops": Example(args=(7, 5, 3), kwargs={"causal": True, "pass_": "backward"}, float32=False),
}


# ---- what hypothesis draws


LEADS = (
    ((), (), ()),
    ((3,), (3,), (3,)),
    ((2, 3), (2, 1), (1,)),
    ((), (2,), (2,)),
    ((2,), (1,), (3, 1)),
    ((1,), (1,), (1,)),
)
SCALES = (None, 0.5, -0.75, 2.0, 0.0)


@st.composite
def parts(draw: st.DrawFn) -> list[Tensor]:
    """Two partial answers for rows of any number of axes; some rows have seen no key."""
    lead, (n, d) = draw(st.sampled_from(((), (3,), (2, 3)))), draw(sizes(2, 1, 4))
    found = []
    for _ in range(2):
        m = draw(tensors((*lead, n), ("plain", "large", "ties")))
        l = 0.5 + draw(tensors((*lead, n))).abs()
        o = draw(tensors((*lead, n, d), ("plain", "tiny", "rows")))
        seen = draw(masks((*lead, n)))
        found += [m.where(seen, -INF), l.where(seen, 0.0), o.where(seen[..., None], 0.0)]
    return found


@st.composite
def problems(draw: st.DrawFn, masked: bool = False) -> dict[str, Any]:
    """Inputs whose leading axes broadcast, an incoming gradient, and options."""
    lead, (nq, nk, d) = draw(st.sampled_from(LEADS)), draw(sizes(3, 1, 6))
    inputs = [
        draw(tensors((*lead[0], nq, d), ("plain", "tiny", "ties", "spike", "rows"))),
        draw(tensors((*lead[1], nk, d), ("plain", "ties", "spike", "rows"))),
        draw(tensors((*lead[2], nk, d), ("plain", "tiny", "large", "rows"))),
    ]
    whole = np.broadcast_shapes(*lead)
    options = {
        "sram": draw(st.integers(d, 4 * d * (max(nq, nk) + 1))),
        "causal": draw(st.booleans()),
        "scale": draw(st.sampled_from(SCALES)),
        "dropout_p": draw(st.sampled_from((0.0, 0.25, 0.6))),
        "seed": draw(st.integers(0, 9)),
    }
    if masked:
        bc = -(-options["sram"] // (4 * d))
        options["block_mask"] = draw(masks((-(-nq // min(bc, d)), -(-nk // bc))))
    return {"inputs": inputs, "do": draw(tensors((*whole, nq, d))), "options": options}


def largest(*values: Tensor) -> float:
    return max(float(x.abs().max()) for x in values)


# ---- 1 merge_stats


@given(case=parts())
def test_two_partial_answers_merge_into_one(impl, reference, case):
    """A softmax over two sets of keys is the mean of that over each, weighted by e^(m_x - m) l_x.

    Rows that one of the sets has no key for are among them, and rows that neither has.
    """
    assert_close(
        impl.merge_stats(*case),
        reference.merge_stats(*case),
        "From which maximum is each sum measured, and how often is o divided? What is -inf + inf?",
        scale=largest(case[2], case[5]),
    )


@pytest.mark.parametrize("side", [0, 1])
def test_a_row_before_its_first_key_adds_nothing(impl, side):
    """(-inf, 0, 0) is the identity of merging, on the left as on the right."""
    part = [PARTS[0][0] - 3.0, *PARTS[0][1:]]
    none = [torch.full_like(part[0], -INF), torch.zeros_like(part[1]), torch.zeros_like(part[2])]
    assert_close(
        impl.merge_stats(*(none + part if side == 0 else part + none)),
        tuple(part),
        "What does exp(-inf - m) weigh? Is a maximum of 0 the same as none?",
    )


def test_two_rows_without_keys_make_one(impl):
    """Merging (-inf, 0, 0) with itself gives (-inf, 0, 0), never NaN."""
    none = [torch.full((3,), -INF), torch.zeros(3), torch.zeros(3, 2)]
    assert_close(
        impl.merge_stats(*none, *none), tuple(none), "What is -inf - -inf, and what is 0 / 0?"
    )


def test_singletons_fold_into_a_softmax(impl):
    """Folding (s_j, 1, v_j) one by one gives the softmax of s, and v weighted by it."""
    s, v = numbers(6, 5, scale=3.0), numbers(6, 5, 2, seed=1)
    for order in (range(6), reversed(range(6)), (3, 0, 5, 1, 4, 2)):
        m, l, o = (
            torch.full((5,), -INF).double(),
            torch.zeros(5).double(),
            torch.zeros(5, 2).double(),
        )
        for j in order:
            m, l, o = impl.merge_stats(m, l, o, s[j], torch.ones_like(s[j]), v[j])
        expected = (s.amax(0), (s - s.amax(0)).exp().sum(0), (s.softmax(0)[..., None] * v).sum(0))
        assert_close(
            (m, l, o),
            expected,
            "When a later key raises the maximum, what of the sum and the output so far?",
            scale=largest(v),
        )


def test_merging_is_associative_and_commutative(impl, reference):
    """Three sets of keys may be merged in any order and grouping."""
    a, b, c = (
        [numbers(4, seed=i), numbers(4, seed=i + 3).exp(), numbers(4, 2, seed=i + 6)]
        for i in range(3)
    )
    expected = reference.merge_stats(*reference.merge_stats(*a, *b), *c)
    question = "Does the answer know which of the two came first?"
    for first, second, third in ((a, b, c), (b, a, c), (b, c, a), (c, a, b)):
        left = impl.merge_stats(*impl.merge_stats(*first, *second), *third)
        right = impl.merge_stats(*third, *impl.merge_stats(*first, *second))
        assert_close(left, expected, question, scale=largest(a[2], b[2], c[2]))
        assert_close(right, expected, question, scale=largest(a[2], b[2], c[2]))


def test_maxima_far_apart_neither_overflow_nor_vanish(impl, reference):
    """With maxima 2e4 apart the larger side wins, in float32 too."""
    m = torch.tensor([1e4, -1e4, 1e4, -1e4])
    sides = [m, torch.tensor([1.0, 2, 3, 4]), numbers(4, 3).float()]
    sides += [-m.flip(0), torch.tensor([4.0, 3, 2, 1]), numbers(4, 3, seed=1).float()]
    assert_close(
        impl.merge_stats(*sides),
        reference.merge_stats(*sides),
        "Is any exponent ever positive?",
        dtype=torch.float32,
    )


# ---- 2 block_sizes


@given(d=st.integers(1, 9), more=st.integers(0, 200))
def test_four_blocks_fill_the_chip(impl, reference, d, more):
    """Bc = ceil(sram / 4d), so that blocks of Q, K, V and O fit; Br = min(Bc, d)."""
    assert_close(
        impl.block_sizes(d + more, d),
        reference.block_sizes(d + more, d),
        "Alg. 1, line 1: is it rounded up, which of the two comes first, and which can d bound?",
    )


def test_an_a100_holds_blocks_of_64_by_512(impl):
    """With M = 131072 elements and d = 64, Br = 64 and Bc = 512; the least chip holds one key."""
    assert_close(impl.block_sizes(131072, 64), (64, 512), "What bounds Br?")
    assert_close(impl.block_sizes(64, 64), (1, 1), "Is one vector of width d enough?")


@pytest.mark.parametrize(
    ("sram", "d", "named"),
    [
        (7, 8, ("sram must be at least d", "7")),
        (0, 1, ("sram must be at least d", "0")),
        (10, 0, ("d must be at least 1", "0")),
        (10, -2, ("d must be at least 1", "-2")),
    ],
)
def test_a_chip_holds_at_least_one_vector(impl, sram, d, named):
    """block_sizes refuses sram < d and d < 1."""
    with rejects(*named):
        impl.block_sizes(sram, d)


# ---- 3 flash_forward: values


QUESTION = (
    "Score, mask, exponentiate from the block's own maximum, sum, average, merge: which step?"
)


@given(case=problems())
def test_tiles_give_exact_attention(impl, reference, case):
    """o, m and l are those of the whole softmax, for every tiling, mask, scale and dropout."""
    inputs, options = case["inputs"], case["options"]
    assert_close(
        impl.flash_forward(*inputs, **options),
        reference.flash_forward(*inputs, **options),
        QUESTION,
        scale=largest(inputs[2]),
    )


@given(case=problems(masked=True))
def test_a_hidden_block_counts_as_minus_infinity(impl, reference, case):
    """A False block of block_mask is as if its scores were -inf (Alg. 5)."""
    inputs, options = case["inputs"], case["options"]
    assert_close(
        impl.flash_forward(*inputs, **options),
        reference.flash_forward(*inputs, **options),
        "Is block_mask[i, j] row i of Q and column j of K, and is a hidden block skipped?",
        scale=largest(inputs[2]),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_long_sequences_are_exact_too(impl, reference, dtype):
    """37 queries and 40 keys in blocks that do not divide them: nothing is lost or padded."""
    for nq, nk, sram, causal in ((37, 40, 130, True), (37, 40, 500, False), (40, 29, 7, True)):
        inputs = [x.to(dtype) for x in qkv(nq, nk, 7)]
        assert_close(
            impl.flash_forward(*inputs, sram=sram, causal=causal),
            reference.flash_forward(*inputs, sram=sram, causal=causal),
            "What is in the last, short block?",
            scale=largest(inputs[2]),
            dtype=dtype,
        )


def test_the_size_of_the_chip_changes_nothing(impl, reference):
    """o, m and l are the same for every sram from d to 8 N d, dropout included."""
    inputs, options = qkv(9, 11, 3), {"causal": True, "dropout_p": 0.3, "seed": 5}
    expected = reference.flash_forward(*inputs, **options)
    for sram in (3, 13, 40, 100, 8 * 11 * 3):
        assert_close(
            impl.flash_forward(*inputs, sram=sram, **options),
            expected,
            "Does a row's statistic, or its dropout mask, depend on how it is cut into blocks?",
            scale=largest(inputs[2]),
        )


def test_the_last_query_sees_every_key(impl, reference):
    """The causal mask is aligned at the bottom right: i sees j iff j <= i + Nk - Nq."""
    for nq, nk in ((2, 5), (5, 2), (4, 4), (1, 3), (3, 1)):
        q, k, v = torch.zeros(nq, 2).double(), torch.zeros(nk, 2).double(), numbers(nk, 2)
        expected = [
            v[: max(i + 1 + nk - nq, 0)].sum(0) / max(i + 1 + nk - nq, 1) for i in range(nq)
        ]
        o, _, _ = impl.flash_forward(q, k, v, sram=9, causal=True)
        assert_close(
            o,
            torch.stack(expected),
            "The first of 2 queries beside 5 keys: does it see one key, or four?",
            scale=largest(v),
        )


def test_rows_without_keys_are_zero(impl):
    """A query that sees no key has o = 0, m = -inf and l = 0, beside others that see some."""
    q, k, v = qkv(5, 2, 2)
    question = "exp(-inf - -inf) is NaN: what does a row without keys subtract, and divide by?"
    for options in ({"causal": True}, {"block_mask": torch.tensor([[False], [True], [True]])}):
        o, m, l = impl.flash_forward(q, k, v, sram=16, **options)
        hidden = 3 if "causal" in options else 2
        assert_close(o[:hidden], torch.zeros(hidden, 2).double(), question)
        assert_close(m[:hidden], torch.full((hidden,), -INF).double(), question)
        assert_close(l[:hidden], torch.zeros(hidden).double(), question)


def test_negative_scores_have_a_negative_maximum(impl, reference):
    """Where every score is negative m is the largest of them, not 0, and no padding joins them."""
    q, k, v = qkv(5, 7, 2)
    q, k = q.abs() + 1.0, -k.abs() - 9.0
    assert_close(
        impl.flash_forward(q, k, v, sram=24),
        reference.flash_forward(q, k, v, sram=24),
        "What is the maximum of no scores? What do zeros in a padded block score?",
        scale=largest(v),
    )


@pytest.mark.parametrize("scale", [None, 0.0, -1.5])
def test_scores_are_scaled(impl, reference, scale):
    """tau is 1 / sqrt(d) unless given, and may be 0 or negative."""
    inputs = qkv(3, 5, 7)
    options = {"sram": 60} | ({} if scale is None else {"scale": scale})
    assert_close(
        impl.flash_forward(*inputs, **options),
        reference.flash_forward(*inputs, **options),
        "Is the scale applied once, and is 0 a scale like any other?",
        scale=largest(inputs[2]),
    )


def test_dropout_leaves_the_softmax_alone(impl, reference):
    """m + log l is the logsumexp of the scores, with dropout or without: Z weighs values only."""
    q, k, v = qkv(6, 9, 3)
    expected = reference.logsumexp(q, k, causal=True, scale=0.7)
    for dropout_p in (0.0, 0.5):
        _, m, l = impl.flash_forward(
            q, k, v, sram=30, causal=True, scale=0.7, dropout_p=dropout_p, seed=3
        )
        assert_close(
            m + l.log(), expected, "Alg. 2: is l summed before or after dropout?", scale=1.0
        )


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_scores_stay_finite(impl, reference, size):
    """Scores of +-1e4 give the right o, and adding a constant to all scores of a row the same."""
    q, k, v = qkv(4, 6, 3)
    q[:, 0], k[:, 0] = 1.0, size
    expected = reference.flash_forward(q, k - torch.tensor([size, 0, 0]), v, sram=30, scale=1.0)
    o, m, l = impl.flash_forward(q, k, v, sram=30, scale=1.0)
    question = "Is exp ever taken of a score from which no maximum was subtracted?"
    # scores are as exact as 1e4 in float64, and so is the exponent
    assert_close(o, expected[0], question, rtol=1e-8)
    assert_close(m, expected[1] + size, question)
    assert_close(l, expected[2], question, rtol=1e-8)


def test_keys_and_values_are_a_set(impl, reference):
    """Permuting keys together with values changes nothing; permuting queries permutes o."""
    q, k, v = qkv(5, 7, 3)
    expected = reference.flash_attention(q, k, v)
    rows, keys = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 5, 1, 3, 4])
    question = "Does the place of a key matter, where nothing is masked?"
    assert_close(impl.flash_forward(q, k[keys], v[keys], sram=30)[0], expected, question)
    assert_close(impl.flash_forward(q[rows], k, v, sram=30)[0], expected[rows.numpy()], question)


def test_the_answer_is_a_mean_of_the_values(impl):
    """Each coordinate of o lies between those of v; where all values are equal, o is the value."""
    q, k, v = qkv(6, 8, 3)
    o, _, _ = impl.flash_forward(3.0 * q, k, v, sram=30)
    question = "Do the weights of a row add up to 1 after the last block?"
    assert_close(o.clamp(v.amin(0), v.amax(0)), o.clone(), question)
    same = v[:1].expand(8, 3)
    assert_close(impl.flash_forward(q, k, same, sram=30)[0], v[:1].expand(6, 3), question)


def test_every_block_visible_is_no_mask(impl, reference):
    """An all-True block_mask is dense attention."""
    inputs = qkv(5, 7, 2)
    assert_close(
        impl.flash_forward(*inputs, sram=16, block_mask=torch.ones(3, 4, dtype=torch.bool)),
        reference.flash_forward(*inputs),
        "Does True mean computed?",
        scale=largest(inputs[2]),
    )


def test_a_row_of_hidden_blocks_is_zero(impl):
    """Where a whole row of blocks is False o = 0, m = -inf and l = 0."""
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    o, m, l = impl.flash_forward(*qkv(5, 7, 2), sram=16, block_mask=mask)
    question = "What are o, m and l before the first block?"
    assert_close(o[2:4], torch.zeros(2, 2).double(), question)
    assert_close(m[2:4], torch.full((2,), -INF).double(), question)
    assert_close(l[2:4], torch.zeros(2).double(), question)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sram": 1}, ("sram must be at least d", "1")),
        ({"dropout_p": 1.0}, ("dropout_p", "1.0")),
        ({"dropout_p": -0.1}, ("dropout_p", "-0.1")),
        ({"block_mask": torch.ones(4, 3, dtype=torch.bool)}, ("block_mask", "(3, 4)")),
        ({"block_mask": torch.ones(3, 1, dtype=torch.bool)}, ("block_mask", "(3, 4)")),
    ],
)
def test_options_that_mean_nothing_are_refused(impl, changed, named):
    """flash_forward refuses a dropout_p outside [0, 1), a wrong block_mask and too small a chip."""
    with rejects(*named):
        impl.flash_forward(*qkv(5, 7, 2), **{"sram": 16, **changed})


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((5, 2), (0, 2), (0, 2)), ("no keys",)),
        (((5, 2), (7, 3), (7, 3)), ("shapes", "(5, 2)", "(7, 3)")),
        (((5, 2), (7, 2), (7, 3)), ("shapes", "(7, 2)", "(7, 3)")),
        (((5, 2), (7, 2), (6, 2)), ("shapes", "(7, 2)", "(6, 2)")),
    ],
)
def test_shapes_that_do_not_fit_are_refused(impl, shapes, named):
    """flash_forward refuses no keys, unequal widths, and unequal numbers of keys and values."""
    with rejects(*named):
        impl.flash_forward(*(torch.zeros(shape) for shape in shapes), sram=16)


# ---- 3 flash_forward: what it moves and makes


CHIPS = (128, 192, 320)  # blocks of 4 x 4, 6 x 6 and 8 x 10 where d = 8


def tiled(*lead: int) -> list[Tensor]:
    """20 queries and 24 keys of width 8: a strip of scores is larger than two blocks of keys."""
    return qkv(20, 24, 8, *lead)


def assert_tiled(made: list[list[int]], sram: int, lead: int = 1) -> None:
    """Check that nothing is larger than two blocks of keys, but what looks like an input."""
    bc, rows = -(-sram // 32), lead * 24 * 8
    for shape in made:
        size = math.prod(shape)
        most = rows if shape[-1:] == [8] else lead * 2 * bc * 8
        if len(shape) > 1 and shape[-1] == 24 and size != rows:
            most = bc  # scores of all keys, be it for one query
        question = f"With sram = {sram} a block has {bc} columns: what has the shape {shape}?"
        assert_at_most(size, most, question, f"the size of {shape}")


def assert_own(found: dict[str, Any]) -> None:
    """Check that a call with sram = 128 is tiled, and does not leave the work to torch."""
    assert_close(found["borrowed"], [], "Which line has torch do all of it?")
    assert_tiled(found["made"], 128)


def half_hidden(how: str) -> dict[str, Any]:
    """Options under which many of 5 x 6 blocks are hidden."""
    if how == "diagonal":
        return {"sram": 128, "causal": True}
    return {"sram": 128, "block_mask": (torch.arange(30) % 3 == 0).reshape(5, 6)}


def assert_skipped(products: int, of_all: int, work: dict[str, int]) -> None:
    """Check that hidden blocks cost no product; two may stand outside the loops."""
    allowed = 2 + of_all * work["blocks"] // work["all_blocks"]
    question = "Is a block computed first and thrown away afterwards?"
    assert_close(products, min(products, allowed), question)


@pytest.mark.parametrize("sram", CHIPS)
def test_forward_never_makes_a_strip_of_scores(impl, sram):
    """Nothing made is larger than two blocks of keys: no N x N, no Br x N, no N x Bc scores."""
    options = {"sram": sram, "causal": True, "dropout_p": 0.25, "seed": 3}
    assert_tiled(made_forward(impl, tiled(2), options)["made"], sram, 2)


def test_plain_forward_is_tiled_too(impl):
    """Where nothing is masked or dropped no strip is made either, nor torch's attention called."""
    assert_own(made_forward(impl, tiled(), {"sram": 128}, names=True))


@pytest.mark.parametrize("how", ["diagonal", "mask"])
def test_forward_skips_what_nobody_sees(impl, reference, how):
    """Blocks above the causal diagonal, and those that block_mask hides, cost no product."""
    options = half_hidden(how)
    of_all = made_forward(impl, tiled(), {"sram": 128})["products"]
    products = made_forward(impl, tiled(), options)["products"]
    assert_skipped(products, of_all, reference.walk(20, 24, 8, **options))


@st.composite
def journeys(draw: st.DrawFn) -> dict[str, Any]:
    nq, nk, d = draw(sizes(3, 1, 6))
    sram = draw(st.integers(d, 4 * d * (nk + 1)))
    bc = -(-sram // (4 * d))
    mask = draw(st.none() | masks((-(-nq // min(bc, d)), -(-nk // bc))))
    return {
        "lead": draw(st.sampled_from(((), (3,), (2, 1)))),
        "sizes": (nq, nk, d),
        "options": {"sram": sram, "causal": draw(st.booleans()), "block_mask": mask},
    }


@given(case=journeys())
def test_what_crosses_is_that_of_algorithm_1(impl, reference, case):
    """K and V are loaded once; Q, o, m and l are loaded, and o, m and l stored, for every block.

    With Q in the outer loop other tensors would cross, and K and V more often.
    """
    (nq, nk, d), heads = case["sizes"], math.prod(case["lead"])
    path = reference.walk(nq, nk, d, **case["options"])
    passed = moved(impl, *qkv(nq, nk, d, *case["lead"]), case["options"])
    stored, loaded = sum(passed["stores"]), sum(passed["loads"])
    assert_close(
        stored, heads * path["writes"], "Are o, m and l written for every block, and nothing else?"
    )
    # the keys of a column in which no block is computed may stay where they are
    low, high = heads * path["least"], heads * path["reads"]
    assert_close(
        loaded, min(max(loaded, low), high), "Which loop is the outer one, and what does it load?"
    )


def test_what_crosses_is_one_block_at_a_time(impl, reference):
    """No load or store is larger than a block of keys: the chip holds no more."""
    for sram in (16, 40, 100):
        _, bc = reference.block_sizes(sram, 4)
        passed = moved(impl, *qkv(17, 19, 4), {"sram": sram})
        most = max(passed["loads"] + passed["stores"])
        assert_close(most, min(most, 4 * bc), "Is a whole matrix loaded where a block would do?")


def test_what_crosses_is_what_theorem_2_says(impl, reference):
    """For n from 8 to 96 the counter and the formula agree, block-sparse runs among them."""
    for n, d, sram in ((8, 4, 20), (33, 4, 70), (96, 8, 600)):
        passed = moved(impl, *qkv(n, n, d), {"sram": sram})
        expected = reference.hbm_accesses(n, d, sram=sram, algorithm="flash")
        assert_close(
            {"reads": sum(passed["loads"]), "writes": sum(passed["stores"])},
            expected,
            "Does every element that is used pass through hbm, and only once a block?",
        )


# ---- 4 flash_backward


def assert_gradients(got, expected, inputs, do, options, question):
    """Compare with the oracle, to the size of the terms that cancel in dS."""
    q, k, v = inputs
    tau = q.shape[-1] ** -0.5 if options.get("scale") is None else abs(options["scale"])
    terms = q.shape[-1] * largest(do) * largest(v) * tau
    for x, wanted, size in zip(got, expected, (largest(k), largest(q), 0.0), strict=True):
        assert_close(x, wanted, question, scale=terms * size if size else largest(do))


@given(case=problems())
def test_backward_goes_through_the_jacobian_of_softmax(impl, reference, case):
    """dq, dk and dv are those of the whole softmax, summed over axes that were broadcast."""
    inputs, do, options = case["inputs"], case["do"], case["options"]
    assert_gradients(
        impl.flash_backward(do, *inputs, *statistics(reference, *inputs, **options), **options),
        reference.flash_backward(do, *inputs, **options),
        inputs,
        do,
        options,
        "Alg. 4: what is D, what does Z multiply, and to which of the three does scale belong?",
    )


@given(case=problems(masked=True))
def test_hidden_blocks_give_no_gradient(impl, reference, case):
    """A False block of block_mask adds to no gradient, and a row or column of them has none."""
    inputs, do, options = case["inputs"], case["do"], case["options"]
    assert_gradients(
        impl.flash_backward(do, *inputs, *statistics(reference, *inputs, **options), **options),
        reference.flash_backward(do, *inputs, **options),
        inputs,
        do,
        options,
        "Does backward compute the very blocks that forward did?",
    )


def test_gradients_do_not_depend_on_the_chip(impl, reference):
    """dq, dk and dv are the same for every sram, dropout included."""
    inputs, do = qkv(9, 11, 3), numbers(9, 3, seed=7)
    options = {"causal": True, "scale": 0.7, "dropout_p": 0.3, "seed": 5}
    three = statistics(reference, *inputs, **options)
    for sram in (3, 13, 40, 100, 8 * 11 * 3):
        assert_gradients(
            impl.flash_backward(do, *inputs, *three, sram=sram, **options),
            reference.flash_backward(do, *inputs, **options),
            inputs,
            do,
            options,
            "Is the mask that of the seed, the row and the column, and D that of the whole row?",
        )


def test_the_default_scale_belongs_to_backward_too(impl, reference):
    """Without a scale dq and dk carry 1 / sqrt(d); without more options nothing is masked."""
    inputs, do = qkv(5, 4, 7), numbers(5, 7, seed=7)
    assert_gradients(
        impl.flash_backward(do, *inputs, *statistics(reference, *inputs), sram=60),
        reference.flash_backward(do, *inputs),
        inputs,
        do,
        {},
        "S = tau Q K^T: how does tau come into dQ and dK?",
    )


def test_equal_values_give_no_gradient_to_scores(impl, reference):
    """Where all values are equal no score matters: dq = dk = 0, and dv adds up to do."""
    q, k, v = qkv(5, 6, 3)
    same, do = v[:1].expand(6, 3), numbers(5, 3, seed=7)
    dq, dk, dv = impl.flash_backward(do, q, k, same, *statistics(reference, q, k, same), sram=30)
    question = "dS = P * (dP - D): is D inside the brackets, and of the whole row?"
    assert_close(dq, torch.zeros_like(q), question, scale=1.0)
    assert_close(dk, torch.zeros_like(k), question, scale=1.0)
    assert_close(dv.sum(0), do.sum(0), "Do the weights of a row add up to 1?", scale=1.0)


@pytest.mark.parametrize("hidden", ["diagonal", "mask"])
def test_rows_without_keys_have_no_gradient(impl, reference, hidden):
    """Fully masked rows have dq = 0 and add nothing to dk and dv, never NaN."""
    inputs, do = qkv(7, 4, 2), numbers(7, 2, seed=7)
    options: dict[str, Any] = {"sram": 16, "causal": hidden == "diagonal"}
    if hidden == "mask":
        options["block_mask"] = torch.tensor([[True, True], [False, False]] * 2)
    got = impl.flash_backward(do, *inputs, *statistics(reference, *inputs, **options), **options)
    expected = reference.flash_backward(do, *inputs, **options)
    assert_gradients(
        got, expected, inputs, do, options, "m = -inf and l = 0: what is exp(s - m) / l there?"
    )


def test_gradients_of_huge_scores_are_right(impl, reference):
    """Scores of 1e4 leave P, and so every gradient, exact and finite."""
    q, k, v = qkv(4, 6, 3)
    q[:, 0], k[:, 0] = 1.0, 1e4
    do, options = numbers(4, 3, seed=7), {"sram": 30, "scale": 1.0}
    got = impl.flash_backward(do, q, k, v, *statistics(reference, q, k, v, **options), **options)
    for x, wanted in zip(got, reference.flash_backward(do, q, k, v, **options), strict=True):
        # scores are as exact as 1e4 in float64, and dq is multiplied by keys of that size
        assert_close(x, wanted, "Is m subtracted before exp?", rtol=1e-8, scale=largest(k))


def test_backward_needs_no_autograd(impl, reference):
    """flash_backward is a formula: it works where autograd records nothing."""
    inputs, do = qkv(5, 4, 2), numbers(5, 2, seed=7)
    three = statistics(reference, *inputs, sram=16)
    got = backward_without_autograd(impl, [do, *inputs, *three], {"sram": 16})
    question = "Does backward call autograd? Alg. 4 says what it would find."
    assert_close(got is None, False, question)
    assert_gradients(got, reference.flash_backward(do, *inputs), inputs, do, {}, question)


@pytest.mark.parametrize("sram", CHIPS)
def test_backward_never_makes_a_strip_of_scores(impl, reference, sram):
    """Scores, dP and the dropout mask are made again block by block, never for all keys."""
    inputs, options = tiled(2), {"sram": sram, "causal": True, "dropout_p": 0.25, "seed": 3}
    do, three = numbers(2, 20, 8, seed=7), statistics(reference, *inputs, **options)
    assert_tiled(made_backward(impl, [do, *inputs, *three], options)["made"], sram, 2)


def test_plain_backward_is_tiled_too(impl, reference):
    """Where nothing is masked or dropped no strip is made either, nor torch's attention called."""
    inputs, do = tiled(), numbers(20, 8, seed=7)
    arguments = [do, *inputs, *statistics(reference, *inputs)]
    assert_own(made_backward(impl, arguments, {"sram": 128}, names=True))


@pytest.mark.parametrize("how", ["diagonal", "mask"])
def test_backward_skips_what_nobody_sees(impl, reference, how):
    """Blocks above the causal diagonal, and those that block_mask hides, cost no product."""
    inputs, do, options, counts = tiled(), numbers(20, 8, seed=7), half_hidden(how), []
    for chosen in ({"sram": 128}, options):
        three = statistics(reference, *inputs, **chosen)
        counts.append(made_backward(impl, [do, *inputs, *three], chosen)["products"])
    assert_skipped(counts[1], counts[0], reference.walk(20, 24, 8, **options))


# ---- 5 FlashAttention


@given(case=problems())
def test_autograd_goes_through_both_passes(impl, reference, case):
    """FlashAttention.apply gives o, and its gradients are those of the whole softmax."""
    inputs, do, options = case["inputs"], case["do"], case["options"]
    o, grads = applied(impl, *inputs, do, options)
    question = "Does backward get every option that forward got?"
    expected = reference.flash_attention(*inputs, **options)
    assert_close(o, expected, "Which of o, m and l is returned?", scale=largest(inputs[2]))
    wanted = reference.flash_backward(do, *inputs, **options)
    assert_gradients(grads, wanted, inputs, do, options, question)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_one_input_alone_may_be_differentiated(impl, reference, name):
    """Whichever of q, k and v needs a gradient gets its own, the others left out."""
    inputs, do = qkv(3, 4, 2), numbers(3, 2, seed=7)
    _, grads = applied(impl, *inputs, do, OPTIONS, name)
    wanted = reference.flash_backward(do, *inputs, **OPTIONS)["qkv".index(name)]
    assert_close(grads, [wanted], "In which order does backward return its gradients?", scale=1.0)


def test_the_class_makes_no_strip_of_scores(impl):
    """Through both passes nothing is larger than two blocks of the keys that sram asks for."""
    options = {"sram": 192, "causal": True, "scale": 0.3, "dropout_p": 0.25, "seed": 3}
    assert_tiled(made_by_class(impl, tiled(), options)["made"], 192)


def test_the_plain_class_is_tiled_too(impl):
    """Where nothing is masked or dropped no strip is made either, nor torch's attention called."""
    assert_own(made_by_class(impl, tiled(), PLAIN, names=True))


def test_only_outputs_and_statistics_are_kept(impl):
    """Between the passes q, k, v, o, m and l are kept: N d + 2 N numbers that were not there."""
    options = {"sram": 400, "causal": True, "scale": 0.3, "dropout_p": 0.25, "seed": 3}
    living, allowed = kept_by_class(impl, qkv(12, 60, 4), options), 12 * 4 + 2 * 12
    question = "Are weights, a dropout mask, or copies of the inputs kept?"
    assert_close(living, min(living, allowed), question)


def test_a_second_derivative_is_never_wrong(impl, reference):
    """A second derivative is refused, for backward treats m and l as constants."""
    q, k, v = qkv(2, 3, 2)
    got = second_derivative(impl, q, k, v, OPTIONS)
    if got is None:
        return

    def squared(x: Tensor) -> float:
        o = reference.flash_attention(x, k, v, **OPTIONS)
        return float(np.square(reference.flash_backward(2 * o, x, k, v, **OPTIONS)[0]).sum())

    slopes = []
    for unit in 1e-5 * torch.eye(4).double().reshape(4, 2, 2):
        slopes.append((squared(q + unit) - squared(q - unit)) / 2e-5)
    # differences are exact to about 1e-6
    question = "Where does the chain of dq break: is backward marked once_differentiable?"
    assert_close(got, np.array(slopes).reshape(2, 2), question, rtol=1e-6, scale=max(slopes))


# ---- 6 flash_attention


@given(case=problems())
def test_the_function_hands_everything_on(impl, reference, case):
    """flash_attention(q, k, v, ...) is the o of exact attention, whatever the options."""
    inputs, options = case["inputs"], case["options"]
    assert_close(
        impl.flash_attention(*inputs, **options),
        reference.flash_attention(*inputs, **options),
        "apply takes no keywords: in which order does forward list its arguments?",
        scale=largest(inputs[2]),
    )


def test_the_function_needs_no_options(impl, reference):
    """By default nothing is masked or dropped, and tau is 1 / sqrt(d)."""
    inputs = qkv(5, 7, 3, 2)
    assert_close(
        impl.flash_attention(*inputs),
        reference.flash_attention(*inputs),
        "What are the defaults?",
        scale=largest(inputs[2]),
    )


def test_torch_finds_the_gradients_right(impl):
    """torch.autograd.gradcheck passes for 5 queries, 7 keys and d = 3, in several blocks."""
    options = {"sram": 30, "causal": True, "dropout_p": 0.25, "seed": 3}
    agrees = checked_by_torch(impl, *qkv(5, 7, 3), options)
    assert_close(agrees, True, "Does a small step in q, k or v change o as backward says?")


@pytest.mark.parametrize("changed", [{"sram": 1}, {"dropout_p": 1.5}])
def test_the_function_refuses_what_forward_refuses(impl, changed):
    """flash_attention passes sram and dropout_p on, and so refuses what flash_forward does."""
    with rejects(next(iter(changed))):
        impl.flash_attention(*qkv(5, 7, 2), **changed)


def test_the_plain_function_is_tiled_too(impl):
    """Where nothing is masked or dropped no strip is made either, nor torch's attention called."""
    assert_own(made_by_wrapper(impl, tiled(), PLAIN, names=True))


def test_memory_grows_with_the_length_not_its_square(impl):
    """Four times the queries and keys take four times the memory, during the passes and between."""
    powers = growth_by_wrapper(
        impl,
        {n: qkv(n, n, 8) for n in (8, 32)},
        {"sram": 320, "causal": True, "dropout_p": 0.25, "seed": 3},
    )
    for of, question in (
        ("largest", "What is as large as the scores of every query for every key?"),
        ("kept", "What does autograd hold on to between the passes?"),
    ):
        assert_close(powers[of], min(powers[of], 1.1), question)


# ---- 7 hbm_accesses


@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    more=st.integers(0, 1000),
    algorithm=st.sampled_from(("standard", "flash", "block_sparse")),
    # no share of an even number is half an integer
    sparsity=st.sampled_from((1.0, 1 / 3, 2 / 7, 10 / 11)),
)
def test_traffic_is_what_the_loops_move(impl, reference, sides, more, algorithm, sparsity):
    """Reads and writes are those added up along the loops of Alg. 0, Alg. 1 and Alg. 5."""
    n, d = sides
    asked = {"sram": d + more, "algorithm": algorithm, "sparsity": sparsity}
    assert_close(
        impl.hbm_accesses(n, d, **asked),
        reference.hbm_accesses(n, d, **asked),
        "What is read once, what once for each of the Tc blocks, and what does sparsity spare?",
    )


def test_standard_attention_moves_its_scores_four_times(impl):
    """Alg. 0 moves 4 n^2 + 4 n d elements, however large the chip."""
    for sram in (1, 64, 10**6):
        moves = impl.hbm_accesses(1024, 64, sram=sram, algorithm="standard")
        assert_close(
            moves["reads"] + moves["writes"],
            4 * 1024**2 + 4 * 1024 * 64,
            "S and P are written and read: how often are Q, K, V and O?",
        )


def test_a_larger_chip_moves_less(impl):
    """The traffic of flash attention never rises with sram."""
    totals = [
        sum(impl.hbm_accesses(500, 16, sram=sram, algorithm="flash").values())
        for sram in range(16, 4000, 37)
    ]
    assert_close(totals, sorted(totals, reverse=True), "Is Tc = ceil(n / Bc), from block_sizes?")


@pytest.mark.parametrize("b", [32, 64, 128])
def test_traffic_is_the_square_over_the_chip(impl, b):
    """Theorem 2: with M = 4 d B the traffic is between 12 and 16 times n^2 d^2 / M."""
    n, d = 4096, 64
    moves = impl.hbm_accesses(n, d, sram=4 * d * b, algorithm="flash")
    ratio = sum(moves.values()) * 4 * d * b / (n * d) ** 2
    assert_close(
        ratio, min(max(ratio, 12.0), 16.0), "How often do all of Q and O pass by, and how often K?"
    )


@pytest.mark.parametrize("algorithm", ["standart", "Flash", ""])
def test_an_unknown_algorithm_is_refused(impl, algorithm):
    """hbm_accesses names the algorithms there are."""
    with rejects("algorithm", "standard", "flash", "block_sparse"):
        impl.hbm_accesses(8, 4, sram=16, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["standard", "block_sparse"])
@pytest.mark.parametrize("sparsity", [0.0, 1.5, -0.5])
def test_an_impossible_sparsity_is_refused(impl, algorithm, sparsity):
    """hbm_accesses refuses a sparsity outside (0, 1], whatever the algorithm."""
    with rejects("sparsity", sparsity):
        impl.hbm_accesses(8, 4, sram=16, algorithm=algorithm, sparsity=sparsity)


@pytest.mark.parametrize("algorithm", ["flash", "block_sparse"])
def test_traffic_needs_a_chip(impl, algorithm):
    """hbm_accesses refuses sram < d, as block_sizes does."""
    with rejects("sram must be at least d"):
        impl.hbm_accesses(8, 4, sram=3, algorithm=algorithm)


# ---- 8 flops


@given(
    sides=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 5)),
    causal=st.booleans(),
    pass_=st.sampled_from(("forward", "backward", "backward_recompute")),
)
def test_every_visible_pair_is_counted(impl, reference, sides, causal, pass_):
    """2 d operations a product and pair: two products forward, four backward, five with S again."""
    assert_close(
        impl.flops(*sides, causal=causal, pass_=pass_),
        reference.flops(*sides, causal=causal, pass_=pass_),
        "How many keys does query i see, and how many products does the pass have?",
    )


def test_recomputing_costs_a_sixth(impl):
    """Forward and backward of GPT-2 medium's heads take 7 / 6 of the operations with S again."""
    sides = (1024, 1024, 64)
    forward, backward, again = (
        impl.flops(*sides, causal=False, pass_=pass_)
        for pass_ in ("forward", "backward", "backward_recompute")
    )
    assert_close(forward, 4 * 1024 * 1024 * 64, "A multiplication and an addition: is it 2 d?")
    assert_close(6 * (forward + again), 7 * (forward + backward), "Which product is made twice?")


def test_the_triangle_is_more_than_half(impl):
    """Causal attention of n to n sees n (n + 1) / 2 pairs, not n^2 / 2."""
    assert_close(
        impl.flops(101, 101, 3, causal=True, pass_="forward"),
        4 * 3 * 101 * 102 // 2,
        "Does a query see itself?",
    )


@pytest.mark.parametrize("pass_", ["both", "Forward"])
def test_an_unknown_pass_is_refused(impl, pass_):
    """flops names the passes there are."""
    with rejects("pass_", "forward", "backward", "backward_recompute"):
        impl.flops(3, 3, 2, causal=False, pass_=pass_)


# ---- the claim


@pytest.mark.claim(seconds=20)
def test_flash_attention_moves_nine_times_less_with_more_arithmetic(impl, figure):
    """At N = 2048 and M = 131072 elements 9 times fewer cross than for Alg. 0, as N^2 d^2 / M.

    The output is the same, and backward makes its scores again: 7 / 6 of the operations.
    On a chip of 8192 elements the detour does not pay.
    """
    d, lengths, chips = 64, (512, 1024, 2048), [8192 << i for i in range(5)]
    whole, flash = {}, {}
    for n in lengths:
        inputs = [x.float() for x in qkv(n, n, d)]
        dense = moved_whole(impl, *inputs)
        whole[n], flash[n] = dense["total"], []
        for sram in chips:
            passed = moved(impl, *inputs, {"sram": sram})
            flash[n].append(sum(passed["loads"]) + sum(passed["stores"]))
            error = float((passed["o"] - dense["o"]).abs().max())
            assert error <= 1e-5, f"o is off by {error:.1e} at N = {n}, M = {sram}: is it exact?"
    operations = {
        pass_: impl.flops(2048, 2048, d, causal=False, pass_=pass_)
        for pass_ in ("forward", "backward", "backward_recompute")
    }
    assert min(flash[2048]) > 0, "Nothing crosses: does all that is used pass through hbm?"
    ratios = [whole[2048] / moves for moves in flash[2048]]
    slope = float(np.polyfit(np.log(chips), np.log(flash[2048]), 1)[0])
    draw_traffic(figure, chips, whole, flash, d)
    assert ratios[-1] >= 8, (
        f"{ratios[-1]:.1f} times less crosses; measured 9.3. What is read twice?"
    )
    assert ratios[0] < 0.8, (
        f"{ratios[0]:.2f} at M = 8192; measured 0.67. Is all that crosses counted?"
    )
    assert -1.05 <= slope <= -0.90, f"Traffic goes as M^{slope:.2f}; measured M^-0.95: which loop?"
    more = (operations["forward"] + operations["backward_recompute"]) / (
        operations["forward"] + operations["backward"]
    )
    assert more > 1, f"{more:.2f} times the arithmetic; 7 / 6 is what recomputing takes."


def draw_traffic(
    figure: Any, chips: list[int], whole: dict[int, int], flash: dict[int, list[int]], d: int
) -> None:
    """Elements that cross, and their ratio to those of Alg. 0, against the size of the chip."""
    fig = figure("Elements between HBM and chip in one forward pass, d = 64, as counted")
    left, right = fig.subplots(1, 2)
    for n, color in zip(flash, ("tab:green", "tab:orange", "tab:blue"), strict=True):
        left.loglog(chips, flash[n], "o-", color=color, markersize=4)
        left.axhline(whole[n], color=color, linewidth=1, linestyle=":")
        bound = [12 * (n * d) ** 2 / sram for sram in chips]
        left.loglog(chips, bound, "--", color=color, linewidth=1)
        ratio = [whole[n] / moves for moves in flash[n]]
        right.semilogx(chips, ratio, "o-", color=color, markersize=4, label=f"N = {n}")
    for style, name in (("o-", "flash, Alg. 1"), (":", "standard, Alg. 0"), ("--", "12 N²d²/M")):
        left.plot([], [], style, color="gray", markersize=4, linewidth=1, label=name)
    left.set_ylim(bottom=2e4)
    left.set_title("what crosses between HBM and the chip", fontsize=10)
    left.set(xlabel="M, elements of SRAM", ylabel="elements read and written")
    left.legend(fontsize=8, loc="lower left")
    right.axhline(1.0, color="black", linewidth=1)
    right.set_title("how many times less than for standard attention", fontsize=10)
    right.set(xlabel="M, elements of SRAM", ylabel="standard / flash")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xticks(chips, [f"{sram // 1024}k" for sram in chips], minor=False)
        axes.minorticks_off()
