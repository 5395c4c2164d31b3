"""What judges kernels/flash_attention: Dao et al. 2022, arXiv:2205.14135; Dao 2023, 2307.08691."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlings.lanes.compiled import assert_compiles, tensor
from paperlings.testing import (
    assert_as_exact_as_torch,
    assert_at_most,
    assert_close,
    drawn,
    measure,
    rejects,
)
from paperlings.testing.kernel_laws import KernelExample
from paperlings.testing.spread import spread
from paperlings.testing.traffic import traffic

INF, NAN = math.inf, math.nan
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# batch, heads of queries and of keys, queries, keys, width
SHAPES = (
    (1, 1, 1, 3, 5, 16),
    (2, 2, 1, 65, 130, 32),
    (1, 2, 2, 129, 40, 64),
    (1, 1, 1, 96, 200, 128),
)
# around the sizes of blocks, and far from them
LENGTHS = ((1, 129), (17, 1), (64, 17), (65, 64), (127, 63), (128, 127), (129, 128), (63, 257))
# queries and keys, where the mask decides
TRIANGLES = ((2, 1), (1, 70), (64, 192), (130, 131), (200, 70), (129, 257))
# queries and keys in whole blocks, and whether causal
WORK = (((512, 512), True), ((256, 640), True), ((256, 128), False))
# heads of queries and of keys
HEADS = ((3, 1), (4, 2))


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Distinct values of magnitude about `scale`, in float32."""
    return scale * torch.randn(shape, generator=drawn(seed + 1))


def inputs(
    b: int, h: int, hkv: int, nq: int, nk: int, d: int, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """do, q, k and v."""
    shapes = (b, h, nq, d), (b, h, nq, d), (b, hkv, nk, d), (b, hkv, nk, d)
    return [numbers(*shape, seed=i + nq).to(dtype) for i, shape in enumerate(shapes)]


def scaled(**factors: float) -> Callable[[list[Tensor]], None]:
    """Multiply what is named: scaled(q=30.0)."""

    def change(case: list[Tensor]) -> None:
        for name, factor in factors.items():
            case["oqkv".index(name)].mul_(factor)

    return change


def spiked(at: int) -> Callable[[list[Tensor]], None]:
    """One key outweighs all others."""

    def change(case: list[Tensor]) -> None:
        case[1][..., 0] = 4.0
        case[2][..., at, 0] = 6.0

    return change


def outliers(case: list[Tensor]) -> None:
    """One channel of each tensor is ten times the others."""
    for i, x in enumerate(case):
        x[..., i] *= 10.0


def low(case: list[Tensor]) -> None:
    """All scores are far below zero."""
    case[1][..., 0] = 16.0
    case[2][..., 0] = -32.0


def constant(case: list[Tensor]) -> None:
    """All keys and values of a head are the same."""
    for x in case[2:]:
        x.copy_(x[..., :1, :].clone())


# by name: what is changed in do, q, k and v
FAMILIES: dict[str, Callable[[list[Tensor]], None]] = {
    "plain": scaled(),
    "tiny": scaled(o=2**-8, q=2**-8, k=2**-8, v=2**-8),
    "large logits": scaled(q=30.0, k=30.0),
    "low logits": low,
    "large values": scaled(o=16.0, v=64.0),
    "constant keys": constant,
    "spike at the first key": spiked(0),
    "spike at the last key": spiked(-1),
    "outlier channels": outliers,
}


def scores(q: Tensor, k: Tensor, causal: bool, scale: float | None) -> Tensor:
    """In float32, -inf for a pair that is not seen."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = (q.float() @ k.float().mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    late = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1 + s.shape[-1] - s.shape[-2])
    return s.masked_fill(late, -INF) if causal else s


def weights(s: Tensor, lse: Tensor) -> Tensor:
    """exp(s - lse), 0 where no key is seen."""
    return torch.exp(s - lse.masked_fill(lse == -INF, 0.0)[..., None])


def eager_fwd(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """What torch answers that keeps its scores in float32, and its weights in the dtype of q."""
    s = scores(q, k, causal, scale)
    lse = s.logsumexp(-1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return weights(s, lse).to(q.dtype) @ v, lse


def eager_bwd(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What torch makes of the formulas, in the same dtypes."""
    group, tau = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
    p = weights(scores(q, k, causal, scale), lse)
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    delta = (do.float() * o.float()).sum(-1, keepdim=True)
    ds = (p * (do @ values.mT - delta)).to(q.dtype)
    dk, dv = (ds.mT @ q).float() * tau, (p.to(q.dtype).mT @ do).float()
    dk, dv = (x.unflatten(1, (-1, group)).sum(2).to(q.dtype) for x in (dk, dv))
    return ((ds @ keys).float() * tau).to(q.dtype), dk, dv


def answers(reference: Any, case: list[Tensor], **options: Any) -> list[Tensor]:
    """The arguments of the backward pass: do, q, k, v, and the oracle's o and lse."""
    o, lse = reference.flash_attention_fwd(*case[1:], **options)
    return [*case, torch.from_numpy(o).to(case[1].dtype), torch.from_numpy(lse).float()]


def check_fwd(
    impl: Any, reference: Any, case: list[Tensor], question: str, rows: int = 1, **options: Any
) -> None:
    """Compare o and lse with the oracle's, by torch's own error."""
    q, k, v = case[1:]
    out = impl.flash_attention_fwd(q, k, v, **options)
    truth = reference.flash_attention_fwd(q, k, v, **options)
    assert_as_exact_as_torch(out, truth, eager_fwd(q, k, v, **options), question, rows=rows)


def check_bwd(impl: Any, reference: Any, case: list[Tensor], question: str, **options: Any) -> None:
    """Compare dq, dk and dv with the oracle's, by torch's own error."""
    args = answers(reference, case, **options)
    truth = reference.flash_attention_bwd(*case, **options)
    eager = eager_bwd(*args, **options)  # before anybody could write into what it reads
    out = impl.flash_attention_bwd(*args, **options)
    # a row of dq is a difference of sums, and torch's own error of a single one is luck
    assert_as_exact_as_torch(out, truth, eager, question, rows=2)


EXAMPLES = {
    "flash_attention_fwd": KernelExample(
        args=tuple(inputs(1, 2, 1, 5, 7, 16)[1:]), kwargs={"causal": True, "scale": 0.4}
    ),
    "flash_attention_bwd": KernelExample(
        args=(
            *inputs(1, 2, 1, 5, 7, 16),
            numbers(1, 2, 5, 16, seed=9).bfloat16(),
            2.0 + numbers(1, 2, 5, seed=10).square(),
        ),
        kwargs={"causal": True, "scale": 0.4},
        torch_may=("zeros", "zeros_like", "new_zeros", "zero_"),  # where dq is added up
    ),
}


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], dict[str, Any]]:
    """Inputs of any sizes, and options."""
    group, hkv = draw(st.sampled_from(((1, 1), (2, 1), (1, 2))))
    nq, nk = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    d, dtype = draw(st.sampled_from((16, 32))), draw(st.sampled_from(list(DTYPES)))
    scale = draw(st.sampled_from((None, 0.3, 1.5)))
    case = inputs(1, group * hkv, hkv, nq, nk, d, dtype)
    return case, {"causal": draw(st.booleans()), "scale": scale}


# ---- 1 flash_attention_fwd


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_is_exact_attention(impl, reference, dtype, shape):
    """o is the softmax of all scores times the values, as exactly as torch has it, and lse the
    logarithm of each row's sum, as exactly as in float32.
    """
    question = "By what must acc and total be multiplied when the maximum of a row grows?"
    check_fwd(impl, reference, inputs(*shape, dtype), question)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_is_exact_on_every_kind_of_input(impl, reference, dtype, family):
    """Neither large nor tiny scores, nor one key that outweighs the others, cost accuracy."""
    case = inputs(1, 1, 1, 40, 150, 16, dtype)
    FAMILIES[family](case)
    question = "What is subtracted before 2^x is taken, and in which dtype is it all added up?"
    check_fwd(impl, reference, case, question, causal=True, scale=0.3)


@given(problem=problems())
@settings(max_examples=6)
def test_forward_is_exact_for_any_sizes(impl, reference, problem):
    """No size, group or scale is special."""
    case, options = problem
    check_fwd(impl, reference, case, "Which of these sizes did you not think of?", **options)


@pytest.mark.parametrize("sides", LENGTHS, ids=str)
def test_forward_takes_any_length(impl, reference, sides):
    """The last block of queries and that of keys may be short; what lies beyond weighs nothing."""
    question = "Which rows are stored, and what is the score of a key beyond the last one?"
    check_fwd(impl, reference, inputs(1, 1, 1, *sides, 16), question)


@pytest.mark.parametrize("sides", TRIANGLES, ids=str)
def test_the_last_query_sees_every_key(impl, reference, sides):
    """Causal: query i sees key j iff j <= i + (Nk - Nq)."""
    case = inputs(1, 1, 1, *sides, 16)
    question = "Which key is the last that query 0 sees, and where does the diagonal end?"
    check_fwd(impl, reference, case, question, causal=True)


def test_a_row_that_sees_no_key_is_zero(impl):
    """Causal with more queries than keys: the first Nq - Nk rows have o = 0 and lse = -inf."""
    _, q, k, v = inputs(1, 1, 1, 150, 20, 16)
    o, lse = impl.flash_attention_fwd(q, k, v, causal=True)
    question = "What is -inf - -inf, and 0 / 0?"
    assert_close(o[:, :, :130], torch.zeros(1, 1, 130, 16).bfloat16(), question)
    assert_close(lse[:, :, :130], torch.full((1, 1, 130), -INF), question)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads_of_a_group_share_their_keys(impl, reference, heads):
    """Head h attends to head h // group of k and v."""
    case = inputs(1, *heads, 3, 5, 16)
    check_fwd(impl, reference, case, "Which heads of queries share head 0 of the keys?")


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_forward_takes_any_scale(impl, reference, scale):
    """Scores are multiplied by the scale that is given, before anything else is done to them."""
    case = inputs(1, 1, 1, 20, 140, 16)
    check_fwd(impl, reference, case, "Where is the scale needed besides the scores?", scale=scale)


def test_forward_adds_up_many_blocks_in_float32(impl, reference):
    """Values that cancel at the end of a long row leave no rounding of what was there before."""
    case = inputs(1, 1, 1, 5, 500, 16)
    case[1].mul_(0.5)
    cancel(case[3])
    question = "Which dtype has the accumulator between two blocks?"
    # a row's columns err together, so that torch's own error of a single row is luck
    check_fwd(impl, reference, case, question, rows=2)


def cancel(x: Tensor) -> None:
    """Make the first rows large, and the last ones as large with the other sign."""
    x[..., :150, :] += 50.0
    x[..., -150:, :] -= 50.0


@pytest.mark.parametrize("kind", ["mixed", "packed", "repeated"])
def test_forward_reads_views(impl, reference, kind):
    """q, k and v may each have strides of their own, and start anywhere."""
    question = "By which stride of which tensor is each index multiplied?"
    check_fwd(impl, reference, views(kind), question, causal=True)


def views(kind: str) -> list[Tensor]:
    """do, q, k and v, in memory of which the rest is NaN."""
    if kind == "repeated":  # one batch element for all, one head of keys: strides of 0
        do, q, k, v = inputs(2, 2, 2, 70, 70, 16)
        alike = [x[:1].expand(2, 2, 70, 16) for x in (do, q)]
        return [*alike, *(x[:, :1].expand(2, 2, 70, 16) for x in (k, v))]
    if kind == "packed":  # as one projection makes them
        memory = torch.full((1, 70, 5, 2, 16), NAN, dtype=torch.bfloat16)
        found = [memory[:, :, i].transpose(1, 2) for i in range(4)]
    else:
        wide = torch.full((2, 1, 70, 35), NAN, dtype=torch.bfloat16)
        flat = torch.full((9 + 2 * 70 * 48,), NAN, dtype=torch.bfloat16)
        found = [
            torch.empty(2, 1, 16, 70, dtype=torch.bfloat16).mT,
            wide[..., 1:33:2],
            torch.empty(16, 70, 2, 1, dtype=torch.bfloat16).permute(2, 3, 1, 0),
            flat[9:].view(70, 2, 1, 48).permute(1, 2, 0, 3)[..., 7:23],
        ]
    b, h = found[0].shape[:2]
    case = inputs(b, h, h, 70, 70, 16)
    return [x.copy_(values) for x, values in zip(found, case, strict=True)]


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_forward_reaches_beyond_two_billion_numbers(impl, reference, axis):
    """The last batch element, head, row or column lies 2^31 places behind the first."""
    case = far_apart(axis)
    check_fwd(impl, reference, case, "How far does an offset of 32 bits reach?", scale=0.5)


def far_apart(axis: int) -> list[Tensor]:
    """do, q, k and v, neighbours on one axis so far apart that the last is beyond 2^31."""
    shape, strides = [1, 1, 3, 16], [48, 48, 16, 1] if axis < 3 else [3, 3, 1, 1]
    shape[axis] = (2, 2, 65, 16)[axis]  # a row of a second block of 64
    strides[axis] = 2**31 // (shape[axis] - 1) + 16
    return [spread(x, strides) for x in inputs(*(shape[i] for i in (0, 1, 1, 2, 2, 3)))]


@pytest.mark.parametrize(("sides", "causal"), WORK, ids=str)
def test_forward_multiplies_no_more_than_what_is_seen(impl, reference, sides, causal):
    """Two products for every block of 128 x 128 that holds a pair that is seen, and for no other;
    each is a tl.dot.
    """
    case = inputs(1, 1, 1, *sides, 16)
    record = traffic(impl, impl.flash_attention_fwd, *case[1:], causal=causal)
    most = reference.flops(1, *sides, 16, causal=causal, products=2, m=128, n=128)
    least = 2 * 2 * 16 * reference.pairs(*sides, causal)
    question = "Where does the loop over the keys end for this block of queries?"
    assert_at_most(record.flops, most, question, "the number of FLOPs")
    question = "Which product does not go to the tensor cores?"
    assert_close(min(record.flops, least), least, question)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_multiplies_short_numbers(impl, dtype):
    """Both products take tiles of the inputs' own dtype, not of float32."""
    case = inputs(1, 1, 1, 3, 5, 16, dtype)
    record = traffic(impl, impl.flash_attention_fwd, *case[1:])
    question = "How many times slower is a product of float32?"
    assert_close(sorted(record.dot_dtypes), [DTYPES[dtype]], question)


@pytest.mark.parametrize("causal", [False, True])
def test_forward_moves_what_is_stated(impl, reference, causal):
    """One launch: q, o and lse cross once, k and v once for every 64 queries that see them; and
    nothing is stored besides the answers.
    """
    case, sizes = inputs(1, 2, 1, 256, 256, 64), (2, 1, 256, 256, 64)
    record = traffic(impl, impl.flash_attention_fwd, *case[1:], causal=causal)
    stated = reference.traffic(*sizes, causal=causal, own=64, other=128)["forward"]
    assert_at_most(record.launches, 1, "What has a second launch to wait for?", "launches")
    question = "How many queries share a key that was loaded, and what is loaded more than once?"
    assert_at_most(record.sectors, 1.05 * stated, question, "the number of bytes that move")
    question = "What is stored besides o and lse?"
    allowed = 2 * 256 * (2 * 64 + 4 + 8)
    assert_at_most(record.stored, allowed, question, "the number of bytes stored")


def test_forward_makes_nothing_besides_the_answers(impl):
    """No tensor has Nq x Nk elements: o and lse are made, and at most 8 bytes a row."""
    _, q, k, v = inputs(1, 1, 1, 200, 150, 16)
    made = measure(lambda: impl.flash_attention_fwd(q, k, v)).made
    question = "Which tensor is neither an answer nor one or two numbers a row?"
    assert_at_most(made, q.numel() + 3 * 200, question, "the number of elements made")


BAD_SHAPES = (
    ((3, 5, 16), (2, 3, 5, 16), (2, 3, 5, 16)),
    ((2, 3, 5, 16), (2, 3, 5, 16), (2, 3, 6, 16)),
    ((2, 3, 5, 16), (1, 3, 5, 16), (1, 3, 5, 16)),
    ((2, 3, 5, 16), (2, 3, 5, 32), (2, 3, 5, 32)),
    ((2, 3, 5, 16), (2, 2, 5, 16), (2, 2, 5, 16)),
    ((2, 2, 5, 16), (2, 3, 5, 16), (2, 3, 5, 16)),
    ((2, 3, 0, 16), (2, 3, 5, 16), (2, 3, 5, 16)),
    ((2, 3, 5, 16), (2, 3, 0, 16), (2, 3, 0, 16)),
)


@pytest.mark.parametrize("shapes", BAD_SHAPES, ids=str)
def test_forward_refuses_shapes_that_do_not_fit(impl, shapes):
    """flash_attention_fwd names the three shapes."""
    with rejects("shapes", *shapes):
        impl.flash_attention_fwd(*(torch.zeros(shape).half() for shape in shapes))


@pytest.mark.parametrize("d", [8, 24, 96, 256])
def test_forward_refuses_other_widths(impl, d):
    """flash_attention_fwd refuses a D that is none of 16, 32, 64 and 128."""
    with rejects("D must be", d):
        impl.flash_attention_fwd(*inputs(1, 1, 1, 2, 2, d)[1:])


@pytest.mark.parametrize(
    "dtypes", [("float32",) * 3, ("bfloat16", "bfloat16", "float16"), ("float16", "int16", "int16")]
)
def test_forward_refuses_other_dtypes(impl, dtypes):
    """flash_attention_fwd takes three tensors of one 16-bit dtype."""
    with rejects("dtype", *dtypes):
        impl.flash_attention_fwd(*(torch.ones(1, 1, 2, 16).to(getattr(torch, t)) for t in dtypes))


@pytest.mark.parametrize("scale", [0.0, -0.5, INF, NAN])
def test_forward_refuses_an_impossible_scale(impl, scale):
    """flash_attention_fwd refuses a scale that is not positive and finite."""
    with rejects("scale", scale):
        impl.flash_attention_fwd(*inputs(1, 1, 1, 2, 2, 16)[1:], scale=scale)


# ---- 2 flash_attention_bwd


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_is_the_gradient(impl, reference, dtype, shape):
    """dq, dk and dv are the gradients of sum(do * o), as exactly as torch's autograd has them."""
    question = "Which of the five products has which factor transposed, and which the scale?"
    check_bwd(impl, reference, inputs(*shape, dtype), question)


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_is_exact_on_every_kind_of_input(impl, reference, family):
    """The weights are made again from lse, whatever the size of the scores."""
    case = inputs(1, 1, 1, 40, 150, 16)
    FAMILIES[family](case)
    question = "How are the weights made from the scores and lse, and in which dtype is all added?"
    check_bwd(impl, reference, case, question, causal=True, scale=0.3)


@given(problem=problems())
@settings(max_examples=4)
def test_backward_is_exact_for_any_sizes(impl, reference, problem):
    """No size, group or scale is special."""
    case, options = problem
    check_bwd(impl, reference, case, "Which of these sizes did you not think of?", **options)


@pytest.mark.parametrize("sides", LENGTHS, ids=str)
def test_backward_takes_any_length(impl, reference, sides):
    """What lies beyond the last query or the last key has no gradient, and gives none."""
    question = "What is the weight of a pair that does not exist?"
    check_bwd(impl, reference, inputs(1, 1, 1, *sides, 16), question)


@pytest.mark.parametrize("sides", TRIANGLES, ids=str)
def test_gradients_stop_at_the_diagonal(impl, reference, sides):
    """A query gives no gradient to a key that it does not see, and gets none from it."""
    case = inputs(1, 1, 1, *sides, 16)
    question = "Which query is the first that sees key j?"
    check_bwd(impl, reference, case, question, causal=True)


def test_a_row_that_sees_no_key_has_no_gradient(impl, reference):
    """Causal with more queries than keys: the first Nq - Nk rows of dq are 0."""
    case = inputs(1, 1, 1, 150, 20, 16)
    dq, _, _ = impl.flash_attention_bwd(*answers(reference, case, causal=True), causal=True)
    question = "What is 2^(score + inf)?"
    assert_close(dq[:, :, :130], torch.zeros(1, 1, 130, 16).bfloat16(), question)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_key_gets_the_gradients_of_its_whole_group(impl, reference, heads):
    """dk and dv are sums over all heads of queries that share the key."""
    case = inputs(1, *heads, 3, 5, 16)
    check_bwd(impl, reference, case, "Which heads of queries add to head 0 of dk and dv?")


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_backward_takes_any_scale(impl, reference, scale):
    """The scale is in the scores, and once more in dq and dk, and never in dv."""
    case = inputs(1, 1, 1, 20, 140, 16)
    check_bwd(impl, reference, case, "Which of the three has a factor of scale?", scale=scale)


@pytest.mark.parametrize("over", ["keys", "queries"])
def test_backward_adds_up_many_blocks_in_float32(impl, reference, over):
    """What cancels at the end of a long sum, over keys or over queries, leaves no rounding."""
    sides = (5, 500) if over == "keys" else (500, 5)
    case = inputs(1, 1, 1, *sides, 16)
    for x in case[1:3]:
        x.mul_(0.1).add_(1.0)
    cancel(case[3 if over == "keys" else 0])
    question = "Which dtype has the accumulator between two blocks?"
    check_bwd(impl, reference, case, question)


@pytest.mark.parametrize("kind", ["mixed", "packed", "repeated"])
def test_backward_reads_views(impl, reference, kind):
    """do, q, k, v and o may each have strides of their own, and start anywhere."""
    question = "By which stride of which tensor is each index multiplied?"
    check_bwd(impl, reference, views(kind), question, causal=True)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_backward_reaches_beyond_two_billion_numbers(impl, reference, axis):
    """The last batch element, head or row lies 2^31 places behind the first."""
    case = far_apart(axis)
    check_bwd(impl, reference, case, "How far does an offset of 32 bits reach?", scale=0.5)


@pytest.mark.parametrize(("sides", "causal"), WORK, ids=str)
def test_backward_multiplies_no_more_than_what_is_seen(impl, reference, sides, causal):
    """At most seven products for every block of 128 x 128 that holds a pair that is seen, at least
    five, each a tl.dot of short numbers.
    """
    case = answers(reference, inputs(1, 1, 1, *sides, 16), causal=causal)
    record = traffic(impl, impl.flash_attention_bwd, *case, causal=causal)
    most = reference.flops(1, *sides, 16, causal=causal, products=7, m=128, n=128)
    least = 5 * 2 * 16 * reference.pairs(*sides, causal)
    question = "Where do the two loops begin and end for a block?"
    assert_at_most(record.flops, most, question, "the number of FLOPs")
    question = "Which product does not go to the tensor cores?"
    assert_close(min(record.flops, least), least, question)
    question = "How many times slower is a product of float32?"
    assert_close(sorted(record.dot_dtypes), ["bf16"], question)


@pytest.mark.parametrize("causal", [False, True])
def test_backward_moves_what_is_stated(impl, reference, causal):
    """Queries cross once for every 64 keys that they see, keys for every 64 queries, and all else
    once or twice; in four launches at most.
    """
    case, sizes = inputs(1, 2, 1, 256, 256, 64), (2, 1, 256, 256, 64)
    o, lse = eager_fwd(*case[1:], causal=causal)
    record = traffic(impl, impl.flash_attention_bwd, *case, o, lse, causal=causal)
    stated = reference.traffic(*sizes, causal=causal, own=64, other=128)["backward"]
    question = "How many keys share a query that was loaded, and how many queries a key?"
    assert_at_most(record.sectors, 1.05 * stated, question, "the number of bytes that move")
    assert_at_most(record.launches, 4, "What waits for what?", "launches")


def test_backward_makes_little_besides_the_answers(impl, reference):
    """No tensor has Nq x Nk elements: besides the answers two numbers a row, and a sum of dq."""
    case = answers(reference, inputs(1, 1, 1, 400, 150, 16))
    _, q, k, v = case[:4]
    made = measure(lambda: impl.flash_attention_bwd(*case)).made
    allowed = 2 * q.numel() + k.numel() + v.numel() + 2 * 400
    question = "Which tensor is neither an answer, nor one or two numbers a row?"
    assert_at_most(made, allowed, question, "the number of elements made")


@pytest.mark.parametrize("shapes", BAD_SHAPES, ids=str)
def test_backward_refuses_shapes_that_do_not_fit(impl, shapes):
    """flash_attention_bwd names the three shapes, as flash_attention_fwd does."""
    q, k, v = (torch.zeros(shape).half() for shape in shapes)
    with rejects("shapes", *shapes):
        impl.flash_attention_bwd(q, q, k, v, q, torch.zeros(q.shape[:-1]))


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_backward_refuses_an_impossible_scale(impl, scale):
    """flash_attention_bwd refuses a scale that is not positive."""
    x = torch.zeros(1, 1, 2, 16).half()
    with rejects("scale", scale):
        impl.flash_attention_bwd(x, x, x, x, x, torch.zeros(1, 1, 2), scale=scale)


@pytest.mark.parametrize("wrong", ["do", "o", "lse", "dtype of lse", "dtype of do"])
def test_backward_refuses_answers_of_other_inputs(impl, wrong):
    """do and o have the shape and dtype of q, lse is float32 (B, H, Nq)."""
    x, lse = torch.zeros(1, 2, 3, 16).half(), torch.zeros(1, 2, 3)
    do = {"do": x[:, :, :2], "dtype of do": x.bfloat16()}.get(wrong, x)
    o = x[:, :1] if wrong == "o" else x
    lse = {"lse": lse[..., None], "dtype of lse": lse.half()}.get(wrong, lse)
    with rejects("do, o and lse"):
        impl.flash_attention_bwd(do, x, x, x, o, lse)


def test_autograd_goes_through_both_passes(impl):
    """flash_attention, which is given, has the o of the one and the gradients of the other."""
    do, q, k, v = inputs(1, 2, 1, 9, 12, 16)
    options = {"causal": True, "scale": 0.3}
    leaves = [x.clone().requires_grad_(True) for x in (q, k, v)]
    out = impl.flash_attention(*leaves, **options)
    o, lse = impl.flash_attention_fwd(q, k, v, **options)
    question = "Do both passes answer as their docstrings say?"
    assert_close(out.detach(), o, question)
    grads = torch.autograd.grad(out, leaves, do)
    assert_close(grads, impl.flash_attention_bwd(do, q, k, v, o, lse, **options), question)


# ---- compiled, and timed


def described(h: int, hkv: int, n: int, d: int) -> list[Any]:
    """do, q, k, v, o and lse of a causal language model, without values."""
    q, k = tensor("bfloat16", 4, h, n, d), tensor("bfloat16", 4, hkv, n, d)
    return [q, q, k, k, q, tensor("float32", 4, h, n)]


@pytest.mark.compiled
@pytest.mark.parametrize("d", [64, 128])
def test_forward_compiles(impl, d):
    """For three generations of GPUs: no spills, tensor cores, and loads of 16 bytes."""
    case = described(32, 8, 4096, d)
    assert_compiles(impl, impl.flash_attention_fwd, *case[1:4], causal=True)


@pytest.mark.compiled
@pytest.mark.parametrize("d", [64, 128])
def test_backward_compiles(impl, d):
    """For three generations of GPUs: few spills, tensor cores, and loads of 16 bytes."""
    assert_compiles(impl, impl.flash_attention_bwd, *described(32, 8, 4096, d), causal=True)


@pytest.mark.gate
def test_attention_is_as_fast_as_its_products(impl, gate):
    """Both passes are bound by their products, and keep the tensor cores busy."""
    gate(impl)
