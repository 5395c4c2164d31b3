"""Attention Is All You Need: the tests that judge it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from paperlings.testing import (
    Example,
    assert_avoids,
    assert_close,
    distinct,
    driver,
    fill,
    indices,
    logits,
    masks,
    rejects,
    seeded,
    sizes,
    tensors,
)

LEADS = ((3,), (), (1,), (2, 3))
WIDTHS = ((4, 2), (6, 3), (6, 2), (4, 1), (2, 2), (2, 1))  # (D, n_heads)
ANY = ("plain", "tiny", "ties", "spike", "rows")


def numbers(*shape, seed=0):
    """Fixed standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape, below, seed=0):
    """Fixed tokens in [0, below)."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def prepared(module, seed=0):
    """The module in float64 and eval mode, no weight neutral."""
    return fill(module, seed).eval()


def state_of(module):
    """The weights of a module by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def encoder_of(impl, d_model=4, n_heads=2, d_ff=5, dropout=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = impl.EncoderLayer(d_model, n_heads, d_ff, dropout=dropout, generator=generator)
    return prepared(layer, seed)


def decoder_of(impl, d_model=4, n_heads=2, d_ff=5, dropout=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = impl.DecoderLayer(d_model, n_heads, d_ff, dropout=dropout, generator=generator)
    return prepared(layer, seed)


def transformer_of(
    impl, vocab=7, width=(4, 2), d_ff=5, n_layers=2, pad_id=3, dropout=0.6, positions=True, seed=0
):
    generator = torch.Generator().manual_seed(seed)
    model = impl.Transformer(
        vocab,
        *width,
        d_ff,
        n_layers,
        pad_id=pad_id,
        dropout=dropout,
        positions=positions,
        generator=generator,
    )
    return prepared(model, seed)


# ---- what is drawn


@st.composite
def attentions(draw, masked=None):
    """(q, k, v, mask): all families, masks of every broadcastable shape or none."""
    lead = draw(st.sampled_from(LEADS))
    queries, keys, width, values = draw(distinct(4) | sizes(4))
    q = draw(tensors((*lead, queries, width), ANY))
    k = draw(tensors((*lead, keys, width), ("plain", "tiny", "ties", "spike")))
    v = draw(tensors((*lead, keys, values), ANY))
    shapes = [(queries, keys), (*lead, queries, keys), (1, keys), (queries, 1)]
    shape = draw(st.sampled_from(shapes if masked else [*shapes, None, None]))
    return q, k, v, None if shape is None else draw(masks(shape))


@st.composite
def small_attentions(draw):
    """(q, k, v) whose scores are moderate."""
    queries, keys, width, values = draw(distinct(4))
    q = draw(tensors((3, queries, width))) / 4
    k = draw(tensors((3, keys, width))) / 4
    return q, k, draw(tensors((3, keys, values)))


def several(*shapes):
    """A dict of tensors of small integers, by name."""
    return st.fixed_dictionaries({name: tensors(shape) for name, shape in shapes})


@st.composite
def multi_heads(draw):
    """x_q, x_kv, the four matrices, n_heads and mask, by name."""
    lead = draw(st.sampled_from(LEADS))
    width, heads = draw(st.sampled_from(WIDTHS))
    queries, keys = draw(distinct(2, high=5) | sizes(2, high=4))
    case = {
        "x_q": draw(tensors((*lead, queries, width))) / 4,
        "x_kv": draw(tensors((*lead, keys, width))) / 4,
    }
    for name in ("w_q", "w_k", "w_v", "w_o"):
        case[name] = draw(tensors((width, width))) / 2
    shapes = [(*lead, heads, queries, keys), (*lead, 1, 1, keys), (queries, keys), None]
    shape = draw(st.sampled_from(shapes))
    return case | {"n_heads": heads, "mask": None if shape is None else draw(masks(shape))}


@st.composite
def layers(draw):
    """d_model, n_heads, d_ff, seed; x, memory and masks for a layer, by name."""
    width, heads = draw(st.sampled_from(WIDTHS))
    batch, targets, sources, hidden = draw(distinct(4, high=5) | sizes(4, high=4))
    own = [(batch, heads, targets, targets), (batch, 1, 1, targets), (targets, targets), None]
    cross = [(batch, heads, targets, sources), (batch, 1, 1, sources), (targets, sources), None]
    shapes = [draw(st.sampled_from(own)), draw(st.sampled_from(cross))]
    return {
        "sizes": (width, heads, hidden),
        "seed": draw(st.integers(0, 9)),
        "x": draw(tensors((batch, targets, width), ANY)),
        "memory": draw(tensors((batch, sources, width))),
        "masks": [None if shape is None else draw(masks(shape)) for shape in shapes],
    }


@st.composite
def transductions(draw, least=0):
    """The arguments of transformer_of, and src and tgt_in, by name."""
    batch, sources, targets = draw(distinct(3, high=4) | sizes(3, high=3))
    vocab = draw(st.integers(2, 7))
    model = {
        "vocab": vocab,
        "width": draw(st.sampled_from(WIDTHS)),
        "d_ff": draw(st.integers(1, 6)),
        "n_layers": draw(st.integers(least, 2)),
        "pad_id": draw(st.integers(0, vocab - 1)),
        "positions": draw(st.sampled_from([True, True, False])),
        "seed": draw(st.integers(0, 9)),
    }
    src, tgt_in = draw(indices((batch, sources), vocab)), draw(indices((batch, targets), vocab))
    return {"model": model, "src": src, "tgt_in": tgt_in}


@st.composite
def smoothings(draw):
    """logits, target with at least one real token, eps and pad_id, by name."""
    lead = draw(st.sampled_from(((3,), (), (2, 4), (1, 1), (5, 2))))
    vocab = draw(st.integers(2, 6))
    pad_id = draw(st.integers(0, vocab - 1))
    target = draw(indices(lead, vocab))
    if bool((target == pad_id).all()):
        target = (target + 1) % vocab
    eps = draw(st.sampled_from([0.1, 0.0, 0.3, 0.75]))
    return {"logits": draw(logits((*lead, vocab))), "target": target, "eps": eps, "pad_id": pad_id}


# ---- scaled_dot_product_attention


@given(case=attentions())
def test_weights_are_the_softmax_of_scaled_scores(impl, reference, case):
    """The weights are softmax(q k^T / sqrt(dk)) over the keys a query sees."""
    _, weights = impl.scaled_dot_product_attention(*case)
    _, expected = reference.scaled_dot_product_attention(*case)
    assert_close(
        weights,
        expected,
        "Is the divisor the square root of dk, and the softmax over the visible keys?",
    )


@given(case=attentions())
def test_the_output_is_the_weighted_mean_of_the_values(impl, reference, case):
    """out = weights v."""
    out, _ = impl.scaled_dot_product_attention(*case)
    expected, _ = reference.scaled_dot_product_attention(*case)
    question = "Which axis of the weights runs along the keys?"
    assert_close(out, expected, question, scale=float(case[2].abs().max()))


@given(case=attentions())
def test_weights_are_a_distribution_over_keys(impl, case):
    """Weights are in [0, 1] and those of a query that sees a key sum to 1."""
    q, k, _, mask = case
    _, weights = impl.scaled_dot_product_attention(*case)
    sums = torch.ones(weights.shape[:-1], dtype=torch.float64)
    if mask is not None:
        sums = mask.expand(*q.shape[:-1], k.shape[-2]).any(-1).double()
    assert_close(weights.sum(-1), sums, "Over which axis does the softmax normalise?", rtol=1e-12)
    assert_close(weights.clamp(0, 1), weights.detach(), "Can a weight be negative or above 1?")


@given(case=small_attentions())
def test_a_query_that_sees_nothing_gets_zeros(impl, case):
    """A fully hidden row has weights 0 and output 0, beside rows that see something."""
    q, k, v = case
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    mask[0] = False
    out, weights = impl.scaled_dot_product_attention(q, k, v, mask)
    question = "What does softmax make of a row that is all -inf, or all -1e9?"
    assert_close(weights[:, 0], torch.zeros_like(k[..., 0]), question)
    assert_close(out[:, 0], torch.zeros_like(v[:, 0]), question)


def test_a_query_that_sees_nothing_has_no_gradient(impl):
    """The gradients of a fully hidden row are 0, never NaN, whatever the other rows see."""
    q, k, v = (numbers(3, 4, 2, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False
    out, weights = impl.scaled_dot_product_attention(q, k, v, mask)
    lost = (out[:, 1] * 2).sum() + (weights[:, 1] * numbers(4, seed=4)).sum()
    question = "Do the gradients pass a 0 / 0 on their way back?"
    grads = torch.autograd.grad(lost, (q, k, v), retain_graph=True, allow_unused=True)
    grads = [torch.zeros_like(q) if g is None else g for g in grads]
    assert_close(grads, [torch.zeros_like(x) for x in (q, k, v)], question)
    (grad,) = torch.autograd.grad((out * numbers(3, 4, 2, seed=5)).sum(), q)
    assert_close(grad[:, 1], torch.zeros_like(grad[:, 1]), question)


@given(case=small_attentions())
def test_a_single_visible_key_gets_all_the_weight(impl, case):
    """With one visible key the weight is 1 and the output is its value."""
    q, k, v = case
    mask = torch.zeros(q.shape[-2], k.shape[-2], dtype=torch.bool)
    mask[:, -1] = True
    out, weights = impl.scaled_dot_product_attention(q, k, v, mask)
    question = "Does True in the mask mean that the key may be seen?"
    assert_close(weights, mask.double().expand(3, -1, -1), question, rtol=1e-15)
    assert_close(out, v[:, -1:].expand(-1, q.shape[-2], -1), question)


@given(case=small_attentions())
def test_hidden_keys_have_no_influence(impl, case):
    """Hidden keys and values may be anything, however large."""
    q, k, v = case
    mask = torch.arange(k.shape[-2]) % 2 == 0
    hidden = ~mask[:, None]
    out, _ = impl.scaled_dot_product_attention(q, k, v, mask[None])
    k, v = k.masked_fill(hidden, 1e7), v.masked_fill(hidden, -1e7)
    other, _ = impl.scaled_dot_product_attention(q, k, v, mask[None])
    assert_close(
        other, out.detach(), "Is a hidden key's weight exactly 0, also when its score is huge?"
    )


@given(case=small_attentions(), shift=tensors((6,)))
def test_a_shift_of_all_keys_changes_nothing(impl, case, shift):
    """Adding one vector to every key changes nothing: softmax sees differences alone."""
    q, k, v = case
    out, _ = impl.scaled_dot_product_attention(q, k, v)
    moved, _ = impl.scaled_dot_product_attention(q, k + shift[: k.shape[-1]], v)
    question = "Do the scores of one query share their normaliser?"
    assert_close(moved, out.detach(), question, scale=float(v.abs().max()))


@given(case=small_attentions())
def test_the_order_of_keys_does_not_matter(impl, case):
    """Keys, values and the mask's columns may be turned around; turning queries turns outputs."""
    q, k, v = case
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    out, _ = impl.scaled_dot_product_attention(q, k, v, mask)
    turned, _ = impl.scaled_dot_product_attention(q, k.flip(-2), v.flip(-2), mask.flip(-1))
    question, scale = "Does the place of a key enter anywhere?", float(v.abs().max())
    assert_close(turned, out.detach(), question, scale=scale)
    turned, _ = impl.scaled_dot_product_attention(q.flip(-2), k, v, mask.flip(-2))
    assert_close(turned, out.detach().flip(-2), "Does one query see another?", scale=scale)


@given(case=small_attentions())
def test_the_scale_goes_with_the_root_of_the_width(impl, case):
    """Twice as many features, the new ones 0, with q times sqrt(2), leave the output as it was."""
    q, k, v = case
    out, _ = impl.scaled_dot_product_attention(q, k, v)
    wide = [F.pad(x, (0, x.shape[-1])) for x in (q * math.sqrt(2), k)]
    other, _ = impl.scaled_dot_product_attention(*wide, v)
    question = "Are the scores divided by the square root of q's last size?"
    assert_close(other, out.detach(), question, scale=float(v.abs().max()))


def test_the_future_has_no_gradient(impl):
    """Under the causal mask out[t] has derivative exactly 0 by keys and values later than t."""
    q, k, v = (numbers(3, 5, 2, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    out, _ = impl.scaled_dot_product_attention(q, k, v, mask)
    for t in range(5):
        grads = torch.autograd.grad(out[:, t].sum(), (k, v), retain_graph=True)
        late = [g[:, t + 1 :] for g in grads]
        question = "Can anything leak from a key that is hidden?"
        assert_close(late, [torch.zeros_like(g) for g in late], question)


def test_huge_scores_pick_the_best_key(impl):
    """Scores of 1e6, of either sign, give finite weights: 1 for the best key."""
    best = torch.tensor([[2, 0, 3], [1, 1, 0], [3, 2, 2]])
    k = torch.eye(4, dtype=torch.float64).expand(3, 4, 4) - 3.0
    q = F.one_hot(best, 4).double() * 2e6 - 1e6
    v = numbers(3, 4, 2)
    out, weights = impl.scaled_dot_product_attention(q, k, v)
    question = "Is the largest score of each row subtracted before the exponential?"
    assert_close(weights, F.one_hot(best, 4).double(), question)
    assert_close(out, torch.stack([v[b, best[b]] for b in range(3)]), question)


def test_hidden_keys_take_no_part_however_low_the_others_are(impl):
    """A hidden key has no weight where all visible scores are -1e6, and theirs are right."""
    q, k = torch.full((3, 2, 1), -1e6, dtype=torch.float64), torch.ones(3, 5, 1).double()
    mask = torch.tensor([True, False, True, True, False])
    expected = mask.double() / 3
    out, weights = impl.scaled_dot_product_attention(q, k, numbers(3, 5, 2), mask[None])
    question = "Is the score of a hidden key below every score that a visible one can have?"
    assert_close(weights, expected.expand(3, 2, 5), question)
    assert_close(out[:, 0], expected @ numbers(3, 5, 2), question)


def test_one_huge_query_does_not_hurt_the_others(impl, reference):
    """Rows whose scores differ by 1e6 are normalised each by itself, gradients too."""
    q = (numbers(3, 4, 2) * torch.tensor([[1e6], [1.0], [-1e5], [1e-3]])).requires_grad_()
    k, v = numbers(3, 5, 2, seed=1), numbers(3, 5, 3, seed=2)
    out, weights = impl.scaled_dot_product_attention(q, k, v)
    question = "Is it the largest score of its own row that is subtracted?"
    expected = reference.scaled_dot_product_attention(q, k, v)
    assert_close([out, weights], list(expected), question)
    (grad,) = torch.autograd.grad((out * numbers(3, seed=3)).sum(), q)
    assert_close(torch.isfinite(grad), torch.ones_like(grad, dtype=torch.bool), question)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_answered_in_kind(impl, reference, dtype):
    """Half-precision inputs give half-precision answers, masked or not."""
    q, k, v = ((numbers(3, 4, 2, seed=i) / 4).to(dtype) for i in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[2] = False
    question = "Does every constant fit the dtype of the inputs? float16 ends at 65504."
    for seen in (mask, None):
        answer = list(impl.scaled_dot_product_attention(q, k, v, seen))
        expected = [
            torch.tensor(x).to(dtype) for x in reference.scaled_dot_product_attention(q, k, v, seen)
        ]
        assert_close(answer, expected, question, scale=float(v.abs().max()))


def test_attention_is_written_out(impl):
    """Attention is the learner's own, not torch's."""
    q, k, v = (numbers(3, 4, 2, seed=i) for i in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    for arguments in ((q, k, v), (q, k, v, mask)):
        assert_avoids(
            lambda arguments=arguments: impl.scaled_dot_product_attention(*arguments),
            "scaled_dot_product",
            question="Can you write Eq. 1 with a product, a softmax and a product?",
        )


@given(shape=distinct(3))
def test_features_of_queries_and_keys_must_agree(impl, shape):
    """ValueError with both widths where q and k differ in theirs."""
    rows, queries, keys = shape
    with rejects(queries, keys):
        impl.scaled_dot_product_attention(
            torch.ones(3, rows, queries), torch.ones(3, 2, keys), torch.ones(3, 2, queries)
        )


@given(shape=distinct(3))
def test_there_are_as_many_values_as_keys(impl, shape):
    """ValueError with both lengths where k and v differ in theirs."""
    width, keys, values = shape
    with rejects(keys, values):
        impl.scaled_dot_product_attention(
            torch.ones(3, keys, width), torch.ones(3, keys, width), torch.ones(3, values, width)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_mask_is_boolean(impl, dtype):
    """ValueError "mask must be boolean" for a mask of another dtype."""
    x = torch.ones(3, 4, 2)
    with rejects(
        "mask must be boolean", question="0 and 1, or 0 and -inf? Refuse what can be mistaken."
    ):
        impl.scaled_dot_product_attention(x, x, x, torch.ones(4, 4, dtype=dtype))


# ---- causal_mask


@given(t=st.integers(1, 9))
def test_a_token_sees_itself_and_the_past(impl, reference, t):
    """Query i sees key j iff j <= i."""
    question = "May a token see itself? Which of the axes is the query's?"
    assert_close(impl.causal_mask(t), reference.causal_mask(t), question)


@given(t=st.integers(1, 9))
def test_query_i_sees_that_many_keys(impl, t):
    """Query i sees i + 1 keys, key j is seen by t - j queries."""
    mask = impl.causal_mask(t)
    counts = torch.arange(1, t + 1)
    assert_close(mask.sum(1), counts, "How many keys does the first query see?")
    assert_close(mask.sum(0), counts.flip(0), "How many queries see the first key?")


@pytest.mark.parametrize("t", [0, -3])
def test_a_sequence_has_a_token(impl, t):
    """ValueError with t if t < 1."""
    with rejects(t):
        impl.causal_mask(t)


# ---- decoder_mask


@given(shape=sizes(2), target=indices((5, 5), 4), pad_id=st.integers(0, 4))
def test_a_target_token_sees_the_real_past(impl, reference, shape, target, pad_id):
    """Query i sees key j iff j <= i and target j is no padding; heads have an axis of 1."""
    rows, columns = shape
    target = target[:rows, :columns]
    question = "Is padding hidden as a key, in the last axis? Is there an axis for the heads?"
    assert_close(
        impl.decoder_mask(target, pad_id), reference.decoder_mask(target, pad_id), question
    )


def test_padding_is_hidden_wherever_it_stands(impl):
    """Padding in the middle is hidden from later tokens and from itself; it still sees the past."""
    mask = impl.decoder_mask(torch.tensor([[5, 9, 7], [9, 9, 9], [1, 2, 3]]), 9)
    expected = torch.tensor(
        [
            [[True, False, False], [True, False, False], [True, False, True]],
            [[False] * 3] * 3,
            [[True, False, False], [True, True, False], [True, True, True]],
        ]
    )
    assert_close(mask, expected[:, None], "Does padding hide a key, or a query?")


# ---- multi_head_attention


@given(case=multi_heads())
def test_heads_attend_with_their_own_columns(impl, reference, case):
    """Head h has columns [h dk, (h+1) dk) of W_q, W_k, W_v; the heads, joined, go through W_o."""
    expected = reference.multi_head_attention(**case)
    question = (
        "Is the feature axis split as (n_heads, dk), and the head axis moved before the time axis?"
    )
    assert_close(
        impl.multi_head_attention(**case),
        expected,
        question,
        scale=float(np.abs(expected).max() + 1),
    )


@given(
    case=several(
        ("x_q", (3, 2, 6)),
        ("x_kv", (3, 4, 6)),
        ("w_q", (6, 6)),
        ("w_k", (6, 6)),
        ("w_v", (6, 6)),
        ("w_o", (6, 6)),
    )
)
def test_the_order_of_heads_does_not_matter(impl, case):
    """Permuting blocks of columns of W_q, W_k, W_v and of rows of W_o changes nothing."""
    case = {name: x / 4 for name, x in case.items()}
    out = impl.multi_head_attention(**case, n_heads=3)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    permuted = {name: case[name][:, order] for name in ("w_q", "w_k", "w_v")}
    other = impl.multi_head_attention(**(case | permuted | {"w_o": case["w_o"][order]}), n_heads=3)
    assert_close(
        other, out.detach(), "Do the heads keep apart until W_o?", scale=float(out.abs().max() + 1)
    )


def test_a_head_without_output_rows_does_not_matter(impl):
    """Where head 1's rows of W_o are 0, its columns of W_q, W_k, W_v may be anything."""
    x_q, x_kv = numbers(3, 2, 6), numbers(3, 4, 6, seed=1)
    w_q, w_k, w_v, w_o = (numbers(6, 6, seed=i) for i in range(2, 6))
    w_o[2:4] = 0
    out = impl.multi_head_attention(x_q, x_kv, w_q, w_k, w_v, w_o, n_heads=3)
    own = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    w_q, w_k, w_v = (w + 7 * own * numbers(6, seed=9) for w in (w_q, w_k, w_v))
    other = impl.multi_head_attention(x_q, x_kv, w_q, w_k, w_v, w_o, n_heads=3)
    assert_close(other, out.detach(), "Which rows of W_o belong to head h?")


def test_each_head_can_have_its_own_mask(impl, reference):
    """A mask with a head axis hides a key from one head and not from another."""
    x_q, x_kv = numbers(3, 2, 4), numbers(3, 5, 4, seed=1)
    weights = [numbers(4, 4, seed=i) for i in range(2, 6)]
    mask = numbers(3, 2, 2, 5, seed=7) > 0
    out = impl.multi_head_attention(x_q, x_kv, *weights, n_heads=2, mask=mask)
    expected = reference.multi_head_attention(x_q, x_kv, *weights, n_heads=2, mask=mask)
    assert_close(out, expected, "Which axis of the mask is the head's?")


def test_multi_head_attention_is_written_out(impl):
    """Neither torch's attention nor its multi-head attention is used."""
    x, w = numbers(3, 4, 6), numbers(6, 6, seed=1)
    assert_avoids(
        lambda: impl.multi_head_attention(x, x, w, w, w, w, n_heads=2),
        "scaled_dot_product",
        "multi_head_attention",
        question="Can you use your own attention on all heads at once?",
    )


@pytest.mark.parametrize(("width", "heads"), [(6, 4), (5, 2), (3, 9)])
def test_heads_divide_the_width(impl, width, heads):
    """ValueError with D and n_heads if n_heads does not divide D."""
    x, w = torch.ones(3, 2, width), torch.ones(width, width)
    with rejects(width, heads):
        impl.multi_head_attention(x, x, w, w, w, w, n_heads=heads)


# ---- sinusoidal_positions


@given(
    n=st.integers(1, 9),
    pairs=st.integers(1, 5),
    base=st.sampled_from([10000.0, 2.0, 500.0, 0.5]),
)
def test_positions_are_sines_and_cosines(impl, reference, n, pairs, base):
    """Even columns are sin(p / base^(2i/d)), odd ones cosines of the same angles, from p = 0."""
    question = "Are sine and cosine of one angle neighbours, and is the exponent 2i / d?"
    actual = impl.sinusoidal_positions(n, 2 * pairs, base=base)
    assert_close(actual, reference.sinusoidal_positions(n, 2 * pairs, base=base), question)


def test_the_base_is_ten_thousand(impl, reference):
    """Without another base the wave lengths go from 2 pi to nearly 10000 times 2 pi, in float64."""
    question = "Which base does section 3.5 take? Is everything computed in float64?"
    assert_close(
        impl.sinusoidal_positions(700, 6), reference.sinusoidal_positions(700, 6), question
    )


def test_every_position_has_the_same_length(impl):
    """|PE[p]|^2 = d / 2, and PE[0] is 0, 1, 0, 1, ..."""
    positions = impl.sinusoidal_positions(50, 10)
    question = "Does every angle give one sine and one cosine?"
    assert_close((positions**2).sum(-1), torch.full((50,), 5.0, dtype=torch.float64), question)
    first = torch.tensor([0.0, 1.0] * 5, dtype=torch.float64)
    assert_close(positions[0], first, "Is the first position 0?")


@given(k=st.integers(1, 7), pairs=st.integers(1, 4))
def test_a_step_is_a_rotation(impl, reference, k, pairs):
    """PE[p + k] = R_k PE[p] with one rotation for all p, so their product depends on k alone."""
    positions = impl.sinusoidal_positions(20, 2 * pairs, base=50.0)
    turned = positions @ torch.tensor(reference.rotation(k, 2 * pairs, base=50.0)).T
    question = "Do both columns of a pair have one frequency?"
    assert_close(positions[k:], turned[:-k].detach(), question)
    products = (positions[k:] * positions[:-k]).sum(-1)
    cosines = sum(math.cos(k / 50.0 ** (i / pairs)) for i in range(pairs))
    expected = torch.full((20 - k,), cosines, dtype=torch.float64)
    assert_close(products, expected, question, scale=1.0)


@pytest.mark.parametrize("width", [7, 1])
def test_the_width_is_even(impl, width):
    """ValueError with d_model if it is odd."""
    with rejects(width):
        impl.sinusoidal_positions(5, width)


# ---- EncoderLayer


@given(case=layers())
def test_the_encoder_layer_is_post_norm(impl, reference, case):
    """x <- LayerNorm(x + Sublayer(x)), for self-attention, then max(0, x W1 + b1) W2 + b2."""
    layer = encoder_of(impl, *case["sizes"], seed=case["seed"])
    mask, heads = case["masks"][0], case["sizes"][1]
    expected = reference.encoder_layer(state_of(layer), case["x"], mask, n_heads=heads)
    question = "Is each sub-layer added to its own input, and the sum normalised?"
    assert_close(layer(case["x"], mask), expected, question, scale=1.0)


def test_the_encoder_rectifies_and_does_no_more(impl, reference):
    """max(0, h) for hidden values of any size, far below zero and far above."""
    layer, x = encoder_of(impl), numbers(3, 5, 4)
    state = state_of(layer)
    layer.load_state_dict({**state, "w_1": 40 * state["w_1"]})
    expected = reference.encoder_layer(state_of(layer), x, None, n_heads=2)
    question = "What stands between the two matrices of the feed-forward network?"
    assert_close(layer(x), expected, question, scale=1.0)


def test_an_encoder_layer_answers_normalised_tokens(impl):
    """At initialisation every token comes out with mean 0 and variance 1: the norm is last."""
    generator = torch.Generator().manual_seed(3)
    layer = impl.EncoderLayer(16, 4, 24, dropout=0.0, generator=generator).double()
    out = layer(100 * numbers(3, 5, 16))
    question = "Is the layer normalisation after the addition?"
    assert_close(out.mean(-1), torch.zeros(3, 5, dtype=torch.float64), question, scale=1.0)
    # the norm's epsilon takes 1e-5 of the variance at most
    variance = out.var(-1, unbiased=False)
    assert_close(variance, torch.ones(3, 5, dtype=torch.float64), question, rtol=1e-4)


def test_the_encoder_has_no_order_of_its_own(impl):
    """Without positions, permuting the tokens and the mask permutes what a stack of layers says."""
    x, order = numbers(3, 5, 4), torch.tensor([3, 0, 4, 1, 2])
    stack = [encoder_of(impl, seed=seed) for seed in (1, 2)]
    mask = numbers(3, 1, 5, 5, seed=8) > -0.5
    plain, permuted = x, x[:, order]
    for layer in stack:
        plain, permuted = layer(plain, mask), layer(permuted, mask[:, :, order][..., order])
    assert_close(
        permuted,
        plain[:, order].detach(),
        "Does the layer treat a place in the sequence specially?",
    )


def test_tokens_meet_only_in_attention(impl):
    """Under a mask that shows each token only itself, a change of one token changes no other."""
    layer, x = encoder_of(impl), numbers(3, 4, 4)
    out, mask = layer(x, torch.eye(4, dtype=torch.bool)), torch.eye(4, dtype=torch.bool)
    x[:, 2] += 1
    question = "Does the mask reach the attention? Do the norms run over features alone?"
    assert_close(layer(x, mask)[:, [0, 1, 3]], out[:, [0, 1, 3]].detach(), question)


def test_the_encoder_drops_out_every_sublayer(impl, reference):
    """With dropout 1 in train mode nothing of the sub-layers is left: two norms of the input."""
    layer, x = encoder_of(impl, dropout=1.0).train(), numbers(3, 4, 4)
    state = state_of(layer)
    for name in ("norm_1", "norm_2"):
        x = torch.tensor(reference.layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    question = (
        "Is dropout applied to both sub-layers' outputs, before the addition, and to nothing else?"
    )
    assert_close(layer(numbers(3, 4, 4)), x, question)


@pytest.mark.parametrize("kept", ["self_attention", "feed_forward"])
def test_the_encoder_drops_at_the_given_rate(impl, reference, kept):
    """In train mode a feature of a sub-layer's output is dropped at rate p, or divided by 1 - p."""
    layer, x = encoder_of(impl, dropout=0.3), numbers(150, 1, 4)
    only(layer, kept)
    clean = sublayers(reference, state_of(layer), x, None, ("self_attention", "feed_forward"), kept)
    with torch.random.fork_rng():
        seeded(impl, 0)
        out = layer.train()(x)
    assert_dropped(out, clean, 0.3)


def test_the_encoder_layer_has_these_weights(impl):
    """The state_dict has the names and shapes of the docstring, and the mask may be left out."""
    layer = encoder_of(impl, 6, 3, 5)
    shapes = {name: list(tensor.shape) for name, tensor in layer.state_dict().items()}
    question = "Which names and shapes does the docstring give the weights?"
    assert_close(shapes, encoder_shapes(6, 5), question)
    assert_close(
        layer(numbers(3, 2, 6)).detach() * 0, torch.zeros(3, 2, 6, dtype=torch.float64), question
    )


# ---- DecoderLayer


@given(case=layers())
def test_the_decoder_layer_has_three_sublayers(impl, reference, case):
    """Self-attention, then attention to the memory, then feed-forward, each post-norm."""
    layer = decoder_of(impl, *case["sizes"], seed=case["seed"])
    arguments = (case["x"], case["memory"], *case["masks"])
    expected = reference.decoder_layer(state_of(layer), *arguments, n_heads=case["sizes"][1])
    question = (
        "Do queries come from the decoder, keys and values from the memory? Which mask goes where?"
    )
    assert_close(layer(*arguments), expected, question, scale=1.0)


def test_the_decoder_rectifies_and_does_no_more(impl, reference):
    """max(0, h) for hidden values of any size, far below zero and far above."""
    layer, arguments = decoder_of(impl), (numbers(3, 5, 4), numbers(3, 2, 4, seed=1), None, None)
    state = state_of(layer)
    layer.load_state_dict({**state, "w_1": 40 * state["w_1"]})
    expected = reference.decoder_layer(state_of(layer), *arguments, n_heads=2)
    question = "What stands between the two matrices of the feed-forward network?"
    assert_close(layer(*arguments), expected, question, scale=1.0)


def test_the_decoder_layer_does_not_see_the_future(impl):
    """Under the causal mask the derivative of out[t] by x[s] is exactly 0 for s > t."""
    layer, x = decoder_of(impl), numbers(3, 5, 4).requires_grad_()
    out = layer(x, numbers(3, 2, 4, seed=1), torch.ones(5, 5, dtype=torch.bool).tril())
    for t in range(5):
        (grad,) = torch.autograd.grad((out[:, t] * numbers(4, seed=2)).sum(), x, retain_graph=True)
        question = "Does self_mask reach the self-attention?"
        assert_close(grad[:, t + 1 :], torch.zeros(3, 4 - t, 4, dtype=torch.float64), question)


def test_hidden_memory_has_no_influence(impl):
    """Memory that cross_mask hides may be anything."""
    layer, x, memory = decoder_of(impl), numbers(3, 2, 4), numbers(3, 5, 4, seed=1)
    mask = torch.tensor([True, True, False, True, False])[None, None, None]
    out = layer(x, memory, None, mask)
    memory[:, [2, 4]] = 1e3
    question = "Does cross_mask reach the attention to the memory?"
    assert_close(layer(x, memory, None, mask), out.detach(), question)


def test_the_order_of_the_memory_does_not_matter(impl):
    """The decoder looks at its memory as at a set."""
    layer, x, memory = decoder_of(impl), numbers(3, 2, 4), numbers(3, 5, 4, seed=1)
    out = layer(x, memory)
    question = "Is the memory used as it is, for keys and values alike?"
    assert_close(layer(x, memory.flip(1)), out.detach(), question)


def test_the_decoder_drops_out_every_sublayer(impl, reference):
    """With dropout 1 in train mode nothing of the sub-layers is left: three norms of the input."""
    layer, x = decoder_of(impl, dropout=1.0).train(), numbers(3, 4, 4)
    state = state_of(layer)
    for name in ("norm_1", "norm_2", "norm_3"):
        x = torch.tensor(reference.layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    question = "Is dropout applied to all three sub-layers' outputs, before the addition?"
    assert_close(layer(numbers(3, 4, 4), numbers(3, 2, 4, seed=1)), x, question)


@pytest.mark.parametrize("kept", ["self_attention", "cross_attention", "feed_forward"])
def test_the_decoder_drops_at_the_given_rate(impl, reference, kept):
    """In train mode a feature of a sub-layer's output is dropped at rate p, or divided by 1 - p."""
    layer, x, memory = decoder_of(impl, dropout=0.3), numbers(150, 1, 4), numbers(150, 1, 4, seed=1)
    only(layer, kept)
    order = ("self_attention", "cross_attention", "feed_forward")
    clean = sublayers(reference, state_of(layer), x, memory, order, kept)
    with torch.random.fork_rng():
        seeded(impl, 0)
        out = layer.train()(x, memory)
    assert_dropped(out, clean, 0.3)


def test_the_decoder_layer_has_these_weights(impl):
    """The state_dict has the names and shapes of the docstring, and the masks may be left out."""
    layer = decoder_of(impl, 6, 3, 5)
    shapes = {name: list(tensor.shape) for name, tensor in layer.state_dict().items()}
    question = "Which names and shapes does the docstring give the weights?"
    assert_close(shapes, decoder_shapes(6, 5), question)
    out = layer(numbers(3, 2, 6), numbers(3, 4, 6, seed=1))
    assert_close(out.detach() * 0, torch.zeros(3, 2, 6, dtype=torch.float64), question)


def only(layer, kept):
    """Silence all sub-layers of a layer but one."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            silent = name.endswith("attention.w_o") or name in ("w_2", "b_2")
            if silent and not name.startswith(kept) and (kept != "feed_forward" or "." in name):
                parameter.zero_()


def sublayers(reference, state, x, memory, order, kept):
    """Outputs (16, B, 4) of a layer for every choice of kept features, and the choices (16, 4)."""
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    y = x[:, 0].expand(16, -1, -1)
    for number, name in enumerate(order, start=1):
        if name == kept == "feed_forward":
            out = torch.relu(y @ state["w_1"] + state["b_1"]) @ state["w_2"] + state["b_2"]
        elif name == kept:
            # a single key has all the weight
            source = y if name == "self_attention" else memory[:, 0].expand(16, -1, -1)
            out = source @ state[f"{name}.w_v"] @ state[f"{name}.w_o"]
        else:
            out = torch.zeros_like(y)
        y = y + choices[:, None] * out / 0.7
        norm = [state[f"norm_{number}.{part}"] for part in ("weight", "bias")]
        y = torch.tensor(reference.layer_norm(y, *norm))
    return y, choices


def assert_dropped(out, clean, rate):
    """Check that every token is a possible one, and the rate of dropped features."""
    possible, choices = clean
    nearest = (possible - out.detach()[None, :, 0]).abs().amax(-1).argmin(0)
    expected = possible[nearest, torch.arange(len(nearest))]
    question = "Are features of the sub-layer's output alone dropped, the others over 1 - p?"
    assert_close(out[:, 0], expected, question)
    # 600 features: their rate has a standard deviation of 0.019, and this allows 0.09
    dropped = float(1 - choices[nearest].mean())
    assert_close(dropped, rate, "Is the rate the one that was asked for?", rtol=0.3)
    assert_independent(choices[nearest] == 1)


def assert_independent(kept):
    """Check that features (n, 4) kept with probability 0.7 are drawn one by one."""
    frequent = float(kept.unique(dim=0, return_counts=True)[1].max() / len(kept))
    # the most frequent choice keeps all four: a rate of 0.24 with a standard deviation of 0.035
    question = "Is every feature of every token dropped by a draw of its own?"
    assert_close(frequent, 0.7**4, question, rtol=0.75)


def encoder_shapes(width, hidden):
    square = [width, width]
    shapes = {f"self_attention.{w}": square for w in ("w_q", "w_k", "w_v", "w_o")}
    shapes |= {"w_1": [width, hidden], "b_1": [hidden], "w_2": [hidden, width], "b_2": [width]}
    return shapes | {f"norm_{i}.{part}": [width] for i in (1, 2) for part in ("weight", "bias")}


def decoder_shapes(width, hidden):
    cross = {f"cross_attention.{w}": [width, width] for w in ("w_q", "w_k", "w_v", "w_o")}
    return (
        encoder_shapes(width, hidden) | cross | {"norm_3.weight": [width], "norm_3.bias": [width]}
    )


# ---- Transformer


@given(case=transductions())
def test_the_transformer_maps_two_sequences_to_logits(impl, reference, case):
    """Embed, encode, decode, and compare with the same embedding: logits = h E^T, in eval mode."""
    model = transformer_of(impl, **case["model"])
    heads, pad_id = case["model"]["width"][1], case["model"]["pad_id"]
    options = {"n_heads": heads, "pad_id": pad_id, "positions": case["model"]["positions"]}
    expected = reference.transformer(state_of(model), case["src"], case["tgt_in"], **options)
    question = "Which masks go to the encoder, to the decoder, and to its look at the encoder?"
    assert_close(model(case["src"], case["tgt_in"]), expected, question, scale=1.0)


@given(case=transductions())
def test_embeddings_are_scaled_before_positions_are_added(impl, reference, case):
    """What enters the first layer is sqrt(D) E[token] + PE[position], in eval mode."""
    model = transformer_of(impl, **case["model"])
    expected = reference.embed(state_of(model), case["src"], positions=case["model"]["positions"])
    assert_close(
        model.embed(case["src"]),
        expected,
        "Are the embeddings, and only they, multiplied by sqrt(D)?",
    )


def test_without_layers_embeddings_meet_themselves(impl, reference):
    """With n_layers = 0 the logits are (sqrt(D) E[token] + PE) E^T: one matrix at both ends."""
    model, src, tgt_in = (
        transformer_of(impl, n_layers=0),
        tokens(3, 5, below=7),
        tokens(3, 4, below=7, seed=1),
    )
    table = state_of(model)["embedding"]
    expected = (2 * table[tgt_in] + torch.tensor(reference.sinusoidal_positions(4, 4))) @ table.T
    assert_close(model(src, tgt_in), expected, "Is the output matrix the embedding, transposed?")


def test_the_embedding_learns_from_both_ends(impl, reference):
    """The gradient of the embedding is that of looking up plus that of the logits."""
    model, tgt_in = transformer_of(impl, n_layers=0), tokens(3, 4, below=7, seed=1)
    table, weigh = state_of(model)["embedding"].requires_grad_(), numbers(3, 4, 7, seed=2)
    logits_ = (2 * table[tgt_in] + torch.tensor(reference.sinusoidal_positions(4, 4))) @ table.T
    (expected,) = torch.autograd.grad((logits_ * weigh).sum(), table)
    loss = (model(tokens(3, 5, below=7), tgt_in) * weigh).sum()
    (grad,) = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert_close(grad, expected, "Is either use of the embedding detached, or a copy?")


def test_all_weights_but_the_layers_are_one_embedding(impl, reference):
    """The state_dict is that of the docstring; no weight is there twice, none is missing."""
    model = transformer_of(impl, vocab=9, width=(6, 3), d_ff=5, n_layers=2)
    expected = {"embedding": [9, 6]}
    for i in range(2):
        expected |= {f"encoder.{i}.{name}": shape for name, shape in encoder_shapes(6, 5).items()}
        expected |= {f"decoder.{i}.{name}": shape for name, shape in decoder_shapes(6, 5).items()}
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert_close(
        shapes, expected, "Is there one embedding, and are there n_layers layers in each stack?"
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert_close(
        count, reference.parameter_count(9, 6, 5, 2), "Does every layer have weights of its own?"
    )
    assert_close([model.d_model, model.pad_id], [6, 3], "Which attributes do others read?")


def test_initial_weights_come_from_the_generator(impl):
    """One seed gives one set of weights, another seed another; biases are 0, all layers differ."""

    def weights(seed):
        generator = torch.Generator().manual_seed(seed)
        return state_of(impl.Transformer(5, 4, 2, 6, 2, pad_id=0, generator=generator))

    first, again, other = weights(1), weights(1), weights(2)
    assert_close(again, first, "Is every weight drawn from the generator?")
    drawn = [name for name in first if ".w_" in name or name == "embedding"]
    values = [float(state[name].flatten()[0]) for state in (first, other) for name in drawn]
    assert_close(len(set(values)), len(values), "Does every matrix have draws of its own?")
    biases = {name: tensor for name, tensor in first.items() if "b_" in name or "bias" in name}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in biases.items()}
    assert_close(biases, zeros, "With which values do biases start?")


def test_initial_weights_are_drawn_in_order(impl):
    """The embedding, then the encoder's layers, then the decoder's: a second layer of each leaves
    what was drawn before it as it is.
    """

    def weights(layers):
        generator = torch.Generator().manual_seed(1)
        return state_of(impl.Transformer(5, 4, 2, 6, layers, pad_id=0, generator=generator))

    one, two = weights(1), weights(2)
    before = [name for name in one if name == "embedding" or name.startswith("encoder.0")]
    question = "Which weights are drawn first? The generator knows the order."
    assert_close({n: two[n] for n in before}, {n: one[n] for n in before}, question)
    name = "decoder.0.self_attention.w_q"
    assert_close(bool((two[name] == one[name]).all()), False, question)


def test_embeddings_start_with_unit_length(impl):
    """Initial embeddings are normal with standard deviation D^-0.5: sqrt(D) E has variance 1."""
    generator = torch.Generator().manual_seed(0)
    table = impl.Transformer(200, 64, 2, 4, 0, pad_id=0, generator=generator).embedding.detach()
    # 12,800 draws know the deviation to 0.6 %, the fourth moment to 3 %, the mean to 0.001
    question = "Are the embeddings normal, with mean 0 and standard deviation D^-0.5?"
    assert_close(float(table.std()), 0.125, question, rtol=0.03)
    assert_close(float((table**4).mean()), 3 * 0.125**4, question, rtol=0.15)
    assert_close(float(table.mean()), 0.0, question, rtol=1.0, scale=0.006)


@given(case=transductions(least=1), place=st.integers(0, 3))
def test_logits_do_not_depend_on_later_tokens(impl, case, place):
    """Changing target tokens after t never changes the logits at t."""
    model, tgt_in = transformer_of(impl, **case["model"]), case["tgt_in"]
    before = model(case["src"], tgt_in)
    changed = torch.where(
        torch.arange(tgt_in.shape[1]) > place, (tgt_in + 1) % case["model"]["vocab"], tgt_in
    )
    after = model(case["src"], changed)
    question = "Is the future hidden in every layer of the decoder?"
    assert_close(after[:, : place + 1], before[:, : place + 1].detach(), question, scale=1.0)


@given(case=transductions(least=1), count=st.integers(1, 3))
def test_padding_of_the_source_changes_nothing(impl, case, count):
    """Appending padding to the source leaves the logits."""
    model, src = transformer_of(impl, **case["model"]), case["src"]
    longer = F.pad(src, (0, count), value=case["model"]["pad_id"])
    before = model(src, case["tgt_in"]).detach()
    question = "Is padding hidden from the encoder, and from the decoder's look at the encoder?"
    assert_close(model(longer, case["tgt_in"]), before, question, scale=1.0)


@given(case=transductions(least=1), count=st.integers(1, 3))
def test_padding_of_the_target_changes_nothing_before_it(impl, case, count):
    """Appending padding to the target leaves the logits of the tokens that were there."""
    model, tgt_in = transformer_of(impl, **case["model"]), case["tgt_in"]
    longer = F.pad(tgt_in, (0, count), value=case["model"]["pad_id"])
    before = model(case["src"], tgt_in).detach()
    after = model(case["src"], longer)[:, : tgt_in.shape[1]]
    assert_close(after, before, "Can a token see padding that comes after it?", scale=1.0)


def test_a_float32_model_answers_in_float32(impl, reference):
    """The logits have the dtype of the weights, though positions are made in float64."""
    model, src, tgt_in = (
        transformer_of(impl).float(),
        tokens(3, 5, below=7),
        tokens(3, 4, below=7, seed=1),
    )
    expected = reference.transformer(state_of(model), src, tgt_in, n_heads=2, pad_id=3)
    question = "Are the positions brought to the dtype of the embedding?"
    actual = model(src, tgt_in)
    # rounding grows over two layers and six norms
    assert_close(
        actual,
        expected,
        question,
        rtol=1e-4,
        scale=float(np.abs(expected).max()),
        dtype=torch.float32,
    )


def test_a_source_of_padding_alone_is_silence(impl):
    """Where the whole source is padding the logits are finite, however long it is."""
    model, tgt_in = transformer_of(impl), tokens(3, 4, below=3)
    before = model(torch.full((3, 1), 3), tgt_in)
    after = model(torch.full((3, 4), 3), tgt_in)
    assert_close(
        after, before.detach(), "What does attention answer where there is nothing to see?"
    )
    finite = torch.isfinite(before)
    assert_close(
        finite, torch.ones_like(finite), "What does attention answer where there is nothing to see?"
    )


def test_only_positions_tell_the_order_of_the_source(impl):
    """Turning the source around changes the logits, and nothing where positions are left out."""
    src, tgt_in = torch.tensor([[0, 1, 2, 4], [6, 5, 4, 0], [1, 1, 5, 2]]), tokens(3, 4, below=3)
    for positions in (True, False):
        model = transformer_of(impl, positions=positions)
        change = (model(src, tgt_in) - model(src.flip(1), tgt_in)).detach()
        change = float(change.abs().amax(dim=(1, 2)).min())
        assert_close(
            change > 1e-3, positions, "Are positions added to source and target, when asked for?"
        )


def test_embeddings_are_dropped_out_with_their_positions(impl):
    """With dropout 1 in train mode the embedded tokens are 0, positions and all."""
    model = transformer_of(impl, dropout=1.0).train()
    zeros = torch.zeros(3, 4, 4, dtype=torch.float64)
    question = "Is dropout applied to the sum of embeddings and positions?"
    assert_close(model.embed(tokens(3, 4, below=7)), zeros, question)


def test_layers_have_the_dropout_of_their_model(impl, reference):
    """With dropout 1 in train mode the logits know no token: norms of norms of 0, times E^T."""
    model = transformer_of(impl, dropout=1.0, n_layers=2).train()
    state, h = state_of(model), np.zeros(4)
    for i, number in itertools.product((0, 1), (1, 2, 3)):
        norm = [state[f"decoder.{i}.norm_{number}.{part}"] for part in ("weight", "bias")]
        h = reference.layer_norm(h, *norm)
    expected = torch.tensor(h @ state["embedding"].T.numpy()).expand(3, 4, 7)
    actual = model(tokens(3, 5, below=7), tokens(3, 4, below=7, seed=1))
    assert_close(actual, expected, "Is the rate of dropout handed on to the layers?")


def test_embeddings_are_dropped_at_the_given_rate(impl):
    """In train mode each feature is dropped with probability p, else divided by 1 - p."""
    model, some = transformer_of(impl, dropout=0.3), tokens(60, 5, below=7)
    clean = model.embed(some).detach()
    with torch.random.fork_rng():
        seeded(impl, 0)
        out = model.train().embed(some)
    gone = out.detach() == 0
    question = "Is dropout applied once, to the embeddings with their positions?"
    assert_close(out, torch.where(gone, 0.0, clean / 0.7), question)
    # 1200 features: their rate has a standard deviation of 0.013, and this allows 0.06
    dropped = float(gone.double().mean())
    assert_close(dropped, 0.3, "Is the rate the one that was asked for?", rtol=0.2)
    assert_independent(~gone.flatten(0, 1))
    # two masks drawn apart agree at 58 % of the features
    for other in (gone.roll(1, dims=0), gone.roll(1, dims=1)):
        alike = float((gone == other).double().mean())
        assert_close(alike, 0.58, "Has every token of every row a mask of its own?", rtol=0.2)


def test_without_dropout_training_is_evaluation(impl):
    """With dropout 0 the logits are the same in train and in eval mode, in every layer."""
    src, tgt_in = tokens(3, 5, below=7), tokens(3, 4, below=7, seed=1)
    model = transformer_of(impl, dropout=0.0)
    expected = model(src, tgt_in).detach()
    with torch.random.fork_rng():
        seeded(impl, 0)
        out = model.train()(src, tgt_in)
    assert_close(out, expected, "Is the rate of dropout handed on to the layers of both stacks?")


def test_positions_and_dropout_are_there_by_default(impl, reference):
    """Unless they are given, positions are added and the rate of dropout is 0.1."""
    generator = torch.Generator().manual_seed(0)
    model = fill(impl.Transformer(7, 4, 2, 5, 1, pad_id=3, generator=generator))
    some = tokens(60, 5, below=7)
    expected = reference.embed(state_of(model), some)
    assert_close(model.eval().embed(some), expected, "Are positions added by default?")
    with torch.random.fork_rng():
        seeded(impl, 0)
        dropped = float((model.train().embed(some) == 0).double().mean())
    # 1200 features: their rate has a standard deviation of 0.009, and this allows 0.045
    assert_close(dropped, 0.1, "Which rate of dropout does the base model have?", rtol=0.45)


# ---- label_smoothed_loss


@given(case=smoothings())
def test_the_loss_is_the_smoothed_cross_entropy(impl, reference, case):
    """The mean of -sum_v q_v log p_v over real targets, with q = (1 - eps) onehot + eps / V."""
    expected = np.float64(reference.label_smoothed_loss(**case))
    question = "Is eps spread over all V classes, and the mean taken over real targets only?"
    assert_close(
        impl.label_smoothed_loss(**case),
        expected,
        question,
        scale=float(case["logits"].abs().max()),
    )


@given(case=smoothings())
def test_the_gradient_is_what_is_said_less_what_is_true(impl, reference, case):
    """The derivative by the logits is (softmax - q) / n, and 0 at padding."""
    expected = reference.loss_gradient(**case)
    case["logits"].requires_grad_()
    (grad,) = torch.autograd.grad(impl.label_smoothed_loss(**case), case["logits"])
    question = "Does padding pull at its logits? How many positions share the mean?"
    assert_close(grad, expected, question, scale=1 / max(1, case["target"].numel()))


@given(target=indices((3, 2), 4), eps=st.sampled_from([0.1, 0.4, 0.8]), shift=tensors((3, 2, 1)))
def test_the_loss_is_least_where_p_equals_q(impl, reference, target, eps, shift):
    """With softmax(logits) = q the loss is the entropy H(q) and its gradient vanishes."""
    q = torch.tensor(
        [[reference.smoothed(int(t), 4, eps) for t in row] for row in target], dtype=torch.float64
    )
    best = (q.log() + shift).requires_grad_()
    loss = impl.label_smoothed_loss(best, target, eps=eps, pad_id=7)
    question = "Which distribution is the loss to teach?"
    assert_close(loss, np.float64(reference.entropy(q[0, 0].tolist())), question)
    (grad,) = torch.autograd.grad(loss, best)
    assert_close(grad, torch.zeros_like(grad), question, scale=1.0)


@given(case=smoothings())
def test_without_smoothing_it_is_cross_entropy(impl, case):
    """eps = 0 is the plain negative log-likelihood of the real targets."""
    case["eps"] = 0.0
    real = case["target"] != case["pad_id"]
    expected = F.cross_entropy(case["logits"][real], case["target"][real])
    question = "What is left when eps is 0?"
    assert_close(
        impl.label_smoothed_loss(**case),
        expected,
        question,
        scale=float(case["logits"].abs().max()),
    )


@given(case=smoothings(), garbage=tensors((6,), ("large",)))
def test_logits_at_padding_do_not_matter(impl, case, garbage):
    """What is said where the target is padding changes nothing, nor does more padding."""
    before = impl.label_smoothed_loss(**case)
    case["logits"][case["target"] == case["pad_id"]] = garbage[: case["logits"].shape[-1]]
    question, scale = (
        "Are padded positions in the sum, or in the count?",
        float(case["logits"].abs().max()),
    )
    assert_close(impl.label_smoothed_loss(**case), before.detach(), question, scale=scale)
    if case["target"].dim():
        padding = torch.full_like(case["target"], case["pad_id"])
        case["target"] = torch.cat([case["target"], padding])
        case["logits"] = torch.cat([case["logits"], case["logits"]])
        assert_close(impl.label_smoothed_loss(**case), before.detach(), question, scale=scale)


def test_a_loss_of_half_precision_stays_half(impl, reference):
    """The loss has the dtype of the logits."""
    said, target = numbers(3, 4, 5), tokens(3, 4, below=5)
    for dtype in (torch.float16, torch.bfloat16):
        expected = reference.label_smoothed_loss(said.to(dtype), target, eps=0.1, pad_id=2)
        loss = impl.label_smoothed_loss(said.to(dtype), target, pad_id=2)
        assert_close(loss, np.float64(expected), "Which dtype has the loss?", dtype=dtype)


def test_the_smoothing_of_the_paper_is_the_default(impl, reference):
    """eps is 0.1 unless it is given."""
    said, target = numbers(3, 4, 5), tokens(3, 4, below=5)
    expected = np.float64(reference.label_smoothed_loss(said, target, eps=0.1, pad_id=2))
    assert_close(
        impl.label_smoothed_loss(said, target, pad_id=2),
        expected,
        "Which eps does section 5.4 use?",
    )


def test_impossible_classes_cost_much_and_not_everything(impl, reference):
    """Logits apart by 1e5 give a large finite loss and finite gradients, in each row by itself."""
    said = (numbers(3, 4) * torch.tensor([[1e5], [1.0], [1e-4]])).requires_grad_()
    target = torch.tensor([2, 0, 3])
    loss = impl.label_smoothed_loss(said, target, eps=0.2, pad_id=1)
    question = "Is log p computed without first rounding p to 0?"
    assert_close(
        loss, np.float64(reference.label_smoothed_loss(said, target, eps=0.2, pad_id=1)), question
    )
    (grad,) = torch.autograd.grad(loss, said)
    assert_close(grad, reference.loss_gradient(said, target, eps=0.2, pad_id=1), question)


def test_the_loss_is_written_out(impl):
    """The loss is the learner's own, not torch's."""
    assert_avoids(
        lambda: impl.label_smoothed_loss(numbers(3, 4), torch.tensor([1, 2, 3]), pad_id=0),
        "cross_entropy",
        question="Can you write it with log_softmax?",
    )


@pytest.mark.parametrize("eps", [-0.25, 1.0, 1.5])
def test_eps_is_a_probability(impl, eps):
    """ValueError with eps unless 0 <= eps < 1."""
    with rejects(eps):
        impl.label_smoothed_loss(numbers(3, 4), torch.tensor([1, 2, 3]), eps=eps, pad_id=0)


@pytest.mark.parametrize("pad_id", [3, 2])
def test_padding_alone_has_no_loss(impl, pad_id):
    """ValueError with pad_id if every target is padding."""
    with rejects(pad_id):
        impl.label_smoothed_loss(numbers(3, 4), torch.full((3,), pad_id), pad_id=pad_id)


# ---- noam_lr


@given(step=st.integers(1, 20000), d_model=st.integers(1, 1024), warmup=st.integers(1, 9000))
def test_the_rate_rises_and_falls(impl, reference, step, d_model, warmup):
    """d_model^-0.5 min(step^-0.5, step warmup^-1.5)."""
    question = "Which of the two is smaller before the end of the warm-up?"
    actual = impl.noam_lr(step, d_model, warmup=warmup)
    assert_close(actual, reference.noam_lr(step, d_model, warmup=warmup), question)


@given(d_model=st.integers(1, 600), warmup=st.integers(2, 5000))
def test_the_rate_peaks_at_the_end_of_the_warmup(impl, d_model, warmup):
    """The peak is (d_model warmup)^-0.5 at step = warmup, and four times as many steps halve it."""
    before, peak, after, late = (
        impl.noam_lr(step, d_model, warmup=warmup)
        for step in (warmup - 1, warmup, warmup + 1, 4 * warmup)
    )
    question = "Where do the two branches meet?"
    assert_close(peak, 1 / math.sqrt(d_model * warmup), question)
    assert_close(late, peak / 2, "Does the rate fall like 1 over the root of the step?")
    assert_close(before < peak > after, True, question)


@given(d_model=st.integers(1, 600), warmup=st.integers(9, 5000), step=st.integers(1, 9))
def test_the_warmup_is_linear(impl, d_model, warmup, step):
    """During the warm-up step n has n times the rate of step 1."""
    first = impl.noam_lr(1, d_model, warmup=warmup)
    actual = impl.noam_lr(step, d_model, warmup=warmup)
    assert_close(actual, step * first, "Does the rate grow with the step itself?")


def test_the_warmup_of_the_paper_is_the_default(impl):
    """The base model starts at 1.75e-7 and peaks at 6.99e-4."""
    rates = [impl.noam_lr(1, 512), impl.noam_lr(4000, 512)]
    expected = [1 / math.sqrt(512 * 4000) / 4000, 1 / math.sqrt(512 * 4000)]
    assert_close(rates, expected, "How many warm-up steps does section 5.3 take?")


@pytest.mark.parametrize("step", [0, -5])
def test_steps_count_from_one(impl, step):
    """ValueError with the step if it is less than 1."""
    with rejects(step):
        impl.noam_lr(step, 16, warmup=7)


# ---- train_step


class Bigrams(nn.Module):
    """logits[t] = table[tgt_in[t]] + the sum of source[src], whose gradients are simple."""

    def __init__(self, weights, d_model, pad_id):
        super().__init__()
        self.table = nn.Parameter(weights["table"].clone())
        self.source = nn.Parameter(weights["source"].clone())
        self.d_model, self.pad_id = d_model, pad_id
        self.seen = []

    def forward(self, src, tgt_in):
        self.seen.append([src.tolist(), tgt_in.tolist(), self.training])
        return self.table[tgt_in] + self.source[src].sum(1, keepdim=True)


@driver
def trained(
    impl,
    weights,
    batches,
    first,
    *,
    d_model,
    pad_id,
    frozen=False,
    stale=False,
    training=True,
    **options,
):
    """Train Bigrams by gradient descent from step `first` on: weights, losses, rates, inputs."""
    model = Bigrams(weights, d_model, pad_id).train(training)
    model.source.requires_grad_(not frozen)
    if stale:
        model.table.grad = torch.full_like(model.table, 100.0)
    groups = [{"params": [model.table], "lr": 7.0}, {"params": [model.source], "lr": 0.0}]
    optimizer, losses, rates = torch.optim.SGD(groups), [], []
    for step, batch in enumerate(batches, start=first):
        losses.append(impl.train_step(model, optimizer, batch, step, **options))
        rates.append([group["lr"] for group in optimizer.param_groups])
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in model.named_parameters()},
        "losses": losses,
        "rates": rates,
        "seen": model.seen,
        "training": model.training,
    }


def descended(reference, weights, batches, first, *, d_model, pad_id, warmup, eps):
    """What `trained` should come to: weights and losses."""
    table, source = (weights[name].numpy().copy() for name in ("table", "source"))
    losses = []
    for step, (src, tgt) in enumerate(batches, start=first):
        src, tgt_in, tgt_out = src.numpy(), tgt[:, :-1].numpy(), tgt[:, 1:].numpy()
        said = table[tgt_in] + source[src].sum(1, keepdims=True)
        losses.append(reference.label_smoothed_loss(said, tgt_out, eps=eps, pad_id=pad_id))
        grad = reference.loss_gradient(said, tgt_out, eps=eps, pad_id=pad_id)
        rate = reference.noam_lr(step, d_model, warmup=warmup)
        for b, t in np.ndindex(*tgt_in.shape):
            table[tgt_in[b, t]] -= rate * grad[b, t]
            for token in src[b]:
                source[token] -= rate * grad[b, t]
    return {"table": table, "source": source}, losses


BIGRAMS = {"table": numbers(5, 5), "source": numbers(5, 5, seed=1)}
BATCHES = [(tokens(3, 4, below=5, seed=i), tokens(3, 6, below=5, seed=i + 9)) for i in range(3)]


@st.composite
def trainings(draw):
    """weights, three batches and options for `trained` and `descended`."""
    weights = draw(several(("table", (4, 4)), ("source", (4, 4))))
    columns = draw(st.integers(2, 5))
    batches = []
    for _ in range(3):
        tgt = draw(indices((3, columns), 4))
        tgt[0, -1] = tgt[0, -1] % 3  # a target that is no padding
        batches.append((draw(indices((3, 2), 4)), tgt))
    options = {
        "d_model": draw(st.integers(1, 8)),
        "pad_id": 3,
        "warmup": draw(st.integers(1, 9)),
        "eps": draw(st.sampled_from([0.2, 0.0, 0.6])),
    }
    return weights, batches, draw(st.integers(1, 9)), options


@given(case=trainings())
def test_three_steps_descend_the_loss(impl, reference, case):
    """Each step moves the weights along the gradient of the loss at the rate of that step."""
    weights, batches, first, options = case
    after = trained(impl, weights, batches, first, **options)["weights"]
    expected, _ = descended(reference, weights, batches, first, **options)
    question = "Is every step one gradient of this batch alone, at noam_lr(step)?"
    assert_close(after, expected, question, scale=1.0)


@given(case=trainings())
def test_a_step_tells_its_loss(impl, reference, case):
    """The answer is the loss before the update, as a Python float."""
    weights, batches, first, options = case
    losses = trained(impl, weights, batches, first, **options)["losses"]
    _, expected = descended(reference, weights, batches, first, **options)
    question = "Is tgt[:, 1:] predicted from tgt[:, :-1], and the loss taken before the step?"
    assert_close(losses, expected, question, scale=1.0)


def test_the_model_reads_all_but_the_last_token(impl):
    """Once a step the model is given src, and tgt without its last token, in the mode it was in."""
    for training in (True, False):
        result = trained(impl, BIGRAMS, BATCHES, 3, d_model=4, pad_id=2, training=training)
        expected = [[src.tolist(), tgt[:, :-1].tolist(), training] for src, tgt in BATCHES]
        assert_close(
            result["seen"], expected, "Which tokens may the model see to predict the next one?"
        )
        assert_close(result["training"], training, "Who chooses between train and eval mode?")


def test_every_group_gets_the_rate_of_the_step(impl, reference):
    """At each update all parameter groups have the rate noam_lr(step, d_model, warmup)."""
    rates = trained(impl, BIGRAMS, BATCHES, 5, d_model=9, pad_id=2, warmup=6)["rates"]
    expected = [[reference.noam_lr(step, 9, warmup=6)] * 2 for step in (5, 6, 7)]
    assert_close(rates, expected, "Is the rate set anew at every step, in every group?")


def test_the_defaults_are_the_papers(impl, reference):
    """Without options the warm-up is 4000 steps and eps 0.1."""
    result = trained(impl, BIGRAMS, BATCHES, 3000, d_model=4, pad_id=2)
    options = {"d_model": 4, "pad_id": 2, "warmup": 4000, "eps": 0.1}
    weights, losses = descended(reference, BIGRAMS, BATCHES, 3000, **options)
    assert_close(result["losses"], losses, "Which eps does section 5.4 use?")
    assert_close(result["weights"], weights, "Which warm-up does section 5.3 use?")


def test_old_gradients_do_not_count(impl, reference):
    """A gradient left over from before does not enter the update."""
    options = {"d_model": 4, "pad_id": 2, "warmup": 5, "eps": 0.3}
    after = trained(impl, BIGRAMS, BATCHES, 1, stale=True, **options)["weights"]
    expected, _ = descended(reference, BIGRAMS, BATCHES, 1, **options)
    assert_close(after, expected, "When are the gradients cleared?")


def test_frozen_weights_stay(impl):
    """A parameter that needs no gradient is left as it is, and does not stop the others."""
    after = trained(impl, BIGRAMS, BATCHES, 2, d_model=4, pad_id=2, frozen=True, warmup=5)[
        "weights"
    ]
    assert_close(
        after["source"], BIGRAMS["source"], "Is anything but the optimizer changing weights?"
    )
    moved = bool((after["table"] != BIGRAMS["table"]).any())
    assert_close(moved, True, "Does the optimizer take a step?")


# ---- the claim


@driver
def transduced(impl, seed, src, *, positions, steps=700, warmup=150):
    """Train on the reversal task and decode other strings: plain data."""
    generator = torch.Generator().manual_seed(seed)
    model = impl.Transformer(
        13, 48, 4, 96, 2, pad_id=0, dropout=0.0, positions=positions, generator=generator
    )
    optimizer = impl.adam(model)
    for step in range(1, steps + 1):
        batch = impl.reversal_batch(64, generator=generator)
        impl.train_step(model, optimizer, batch, step, warmup=warmup)
    model.eval()
    decoded = impl.greedy_decode(model, src, length=9)
    with torch.no_grad():
        said = model(src, decoded[:, :-1]).argmax(-1)
    return {"decoded": decoded, "said": said, "state": state_of(model)}


def reversal(count, seed=1234):
    """Strings of 3 to 8 digits that nobody trains on, and their reversals."""
    generator = torch.Generator().manual_seed(seed)
    src, tgt = torch.zeros(count, 9, dtype=torch.int64), torch.zeros(count, 10, dtype=torch.int64)
    tgt[:, 0] = 1
    for row in range(count):
        length = int(torch.randint(3, 9, (), generator=generator))
        digits = torch.randint(3, 13, (length,), generator=generator)
        src[row, : length + 1] = torch.cat([digits, torch.tensor([2])])
        tgt[row, 1 : length + 2] = torch.cat([digits.flip(0), torch.tensor([2])])
    return src, tgt


def exact(result, wanted):
    """The rate of strings reversed exactly, where the model itself says each next token."""
    own = (result["said"] == result["decoded"][:, 1:]) | (wanted[:, 1:] == 0)
    return float(
        ((result["decoded"] == wanted) & F.pad(own, (1, 0), value=True)).all(1).double().mean()
    )


@pytest.mark.claim(seconds=60)
def test_attention_and_positions_transduce_sequences(impl, reference, figure):
    """Attention with positions reverses 85 % of strings exactly; without them, 20 % at most."""
    src, wanted = reversal(256)
    full = transduced(impl, 1, src, positions=True)
    blind = transduced(impl, 1, src, positions=False)
    rates = {"with positions": exact(full, wanted), "without positions": exact(blind, wanted)}
    fig = figure(
        "Reversing strings of digits: where the decoder looks, and the schedule that got it there."
    )
    left, right = fig.subplots(1, 2)
    row = int((src == 0).sum(1).argmin())
    maps = reference.cross_attention(
        full["state"], src[row], full["decoded"][row, :-1], n_heads=4, pad_id=0
    )
    left.imshow(maps.max(axis=(0, 1)), cmap="magma", vmin=0, vmax=1)
    letters = dict(enumerate(["PAD", "BOS", "EOS", *"0123456789"]))
    left.set_xticks(range(maps.shape[3]), [letters[int(t)] for t in src[row]])
    left.set_yticks(range(maps.shape[2]), [letters[int(t)] for t in full["decoded"][row, :-1]])
    left.set(
        xlabel="source",
        ylabel="last token decoded",
        title="largest cross-attention weight of all heads",
    )
    steps = range(1, 701)
    right.plot(steps, [reference.noam_lr(step, 48, warmup=150) for step in steps])
    reversed_ = ", ".join(f"{rate:.0%} {name}" for name, rate in rates.items())
    right.set(
        xlabel="step", ylabel="learning rate", title=f"{reversed_}\nof 256 strings reversed exactly"
    )
    assert rates["with positions"] >= 0.85, (
        f"Does a train step teach every part of the model? {reversed_}"
    )
    assert rates["without positions"] <= 0.20, (
        f"What tells order when positions are left out? {reversed_}"
    )


HIDDEN = torch.tensor([[True, False, True], [False, False, False]])
EXAMPLES = {
    "scaled_dot_product_attention": Example(
        args=(
            numbers(3, 2, 2),
            numbers(3, 3, 2, seed=1),
            numbers(3, 3, 4, seed=2),
            HIDDEN.expand(3, 2, 3),
        ),
        gradient=(0, 1, 2),
        batch=(0, 1, 2, 3),
    ),
    "causal_mask": Example(args=(5,)),
    "decoder_mask": Example(args=(torch.tensor([[1, 4, 2], [4, 4, 1], [2, 3, 4]]), 4), batch=(0,)),
    "multi_head_attention": Example(
        args=(
            numbers(3, 2, 2),
            numbers(3, 3, 2, seed=1),
            *(numbers(2, 2, seed=i) for i in range(2, 6)),
        ),
        kwargs={"n_heads": 2, "mask": HIDDEN},
        gradient=(0, 1, 2, 3, 4, 5),
        batch=(0, 1),
    ),
    "sinusoidal_positions": Example(args=(5, 6), kwargs={"base": 30.0}, float32=False),
    "EncoderLayer": Example(
        args=(
            numbers(3, 3, 4),
            torch.tensor([[True, True, False], [True] * 3, [False] * 3])[:, None, None],
        ),
        module=encoder_of,
        gradient=(0,),
        batch=(0, 1),
    ),
    "DecoderLayer": Example(
        args=(
            numbers(3, 2, 4),
            numbers(3, 3, 4, seed=1),
            torch.tensor([[True, False], [True, True]]).expand(3, 1, 2, 2),
            torch.tensor([[True, True, False], [True] * 3, [False] * 3])[:, None, None],
        ),
        module=decoder_of,
        gradient=(0, 1),
        batch=(0, 1, 2, 3),
    ),
    "Transformer": Example(
        args=(
            torch.tensor([[1, 2, 3], [4, 5, 6], [6, 3, 3]]),
            torch.tensor([[0, 1], [2, 3], [5, 5]]),
        ),
        module=lambda impl: transformer_of(impl, n_layers=1),
        batch=(0, 1),
        float32=False,  # there is no floating argument: a test above says it
    ),
    "label_smoothed_loss": Example(
        args=(numbers(3, 2, 4), torch.tensor([[1, 2], [3, 0], [2, 2]])),
        kwargs={"eps": 0.3, "pad_id": 2},
        gradient=(0,),
    ),
    "noam_lr": Example(args=(7, 12), kwargs={"warmup": 5}),
    "train_step": Example(
        args=(BIGRAMS, BATCHES),
        call=lambda impl, weights, batches: {
            key: value
            for key, value in trained(
                impl, weights, batches, 4, d_model=4, pad_id=2, warmup=6
            ).items()
            if key in ("weights", "losses", "rates")
        },
    ),
}
