"""What judges kernels/token_log_probs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paperlings.lanes.compiled import assert_compiles, tensor
from paperlings.testing import (
    assert_as_exact_as_torch,
    assert_at_most,
    assert_close,
    drawn,
    gradients,
    rejects,
)
from paperlings.testing.kernel_laws import KernelExample
from paperlings.testing.spread import spread
from paperlings.testing.traffic import traffic

INF, NAN = math.inf, math.nan
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LONG = 8209  # logits: prime, and more than most blocks hold
# around the sizes of blocks, and far from them
VOCABULARIES = (1, 2, 7, 127, 128, 129, 1000, 1023, 1025, 4095, 4097, 8192, 16385)
RANGE = (
    "From which number is each exponential measured, and what becomes of the sum so far when that "
    "number changes?"
)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Distinct values of magnitude about `scale`, in float32."""
    return scale * torch.randn(shape, generator=drawn(seed + 1))


def ends(tokens: int, vocabulary: int) -> Tensor:
    """Labels at the first and the last logit, and in between."""
    step = max(1, (vocabulary - 1) * 3 // 7)
    return (
        torch.tensor([0, vocabulary - 1, *range(step, step * tokens, step)])[:tokens] % vocabulary
    )


def spiked(tokens: int, at: int) -> Tensor:
    """Logits of which one, at the same place in each row, outweighs all others."""
    x = numbers(tokens, LONG, seed=3)
    x[:, at] += 50.0
    return x


def sparse(tokens: int, other: float) -> Tensor:
    """Logits that are no tokens but for every 997th, from the row's own number on."""
    x = numbers(tokens, LONG, seed=4)
    kept = (torch.arange(LONG) + torch.arange(tokens)[:, None]) % 997 == 0
    return x.where(kept, other)


# of a number of tokens: their logits
FAMILIES: dict[str, Callable[[int], Tensor]] = {
    "plain": lambda t: numbers(t, LONG, scale=3.0),
    "tiny": lambda t: numbers(t, LONG, seed=1, scale=2.0**-10),
    "large": lambda t: numbers(t, LONG, seed=2, scale=4e3),
    "offset": lambda t: numbers(t, LONG, seed=5) + torch.tensor([1e4, -2e4, 3e4])[:t, None],
    "constant": lambda t: torch.tensor([-2e38, 0.5, 1e38])[:t, None].expand(t, LONG),
    "spike at the first": lambda t: spiked(t, 0),
    "spike at the last": lambda t: spiked(t, LONG - 1),
    "rising": lambda t: torch.linspace(-30, 30, LONG).expand(t, LONG) + numbers(t, 1),
    "falling": lambda t: torch.linspace(40, -40, LONG).expand(t, LONG) + numbers(t, 1),
    "mostly -inf": lambda t: sparse(t, -INF),
    "mostly the lowest": lambda t: sparse(t, torch.finfo(torch.float32).min),
}

# every family in the dtype that shows most, and some in the others
CASES = [
    *((torch.float32, family) for family in FAMILIES),
    *((dtype, family) for dtype in DTYPES[:2] for family in ("plain", "large", "mostly -inf")),
]


def eager_fwd(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What torch answers."""
    x = logits.float()
    return x.log_softmax(-1).gather(-1, labels[:, None])[:, 0], x.logsumexp(-1)


def eager_bwd(dlogp: Tensor, logits: Tensor, labels: Tensor, lse: Tensor) -> Tensor:
    """What torch answers, of the same lse."""
    chosen = torch.nn.functional.one_hot(labels, logits.shape[-1])
    return (dlogp[:, None] * (chosen - (logits.float() - lse[:, None]).exp())).to(logits.dtype)


def lse_of(reference: Any, logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """What the forward pass leaves for the backward pass."""
    _, lse = reference.token_log_probs_fwd(logits, labels, **options)
    return torch.from_numpy(lse).float()


def check_fwd(impl: Any, reference: Any, logits: Tensor, labels: Tensor, question: str) -> None:
    """Compare a forward pass as a whole, then token by token, so that none hides behind another."""
    out = impl.token_log_probs_fwd(logits, labels)
    truth, eager = reference.token_log_probs_fwd(logits, labels), eager_fwd(logits, labels)
    assert_as_exact_as_torch(out, truth, eager, question)
    for i in range(len(labels)):
        one = ([x[i : i + 1] for x in values] for values in (out, truth, eager))
        assert_as_exact_as_torch(*one, question)


def check_bwd(
    impl: Any, reference: Any, dlogp: Tensor, logits: Tensor, labels: Tensor, question: str
) -> None:
    """Compare a backward pass, of the oracle's lse."""
    case = dlogp, logits, labels, lse_of(reference, logits, labels)
    truth = reference.token_log_probs_bwd(*case)
    assert_as_exact_as_torch(impl.token_log_probs_bwd(*case), truth, eager_bwd(*case), question)


# every value is different, and every row is read
EXAMPLES = {
    "token_log_probs_fwd": KernelExample(args=(numbers(3, 300), torch.tensor([7, 299, 0]))),
    "token_log_probs_bwd": KernelExample(
        args=(
            numbers(3, seed=1),
            numbers(3, 300),
            torch.tensor([7, 299, 0]),
            6.0 + numbers(3, seed=2),
        )
    ),
}


# ---- 1 token_log_probs_fwd


@pytest.mark.parametrize(("dtype", "family"), CASES, ids=str)
def test_forward_is_the_log_softmax_at_the_label(impl, reference, dtype, family):
    """lse is the logarithm of the sum of all exponentials, and logp what the label's logit is above
    it, as exactly as torch has them in float32.
    """
    logits = FAMILIES[family](3).to(dtype)
    check_fwd(impl, reference, logits, ends(3, LONG), RANGE)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_forward_takes_any_vocabulary(impl, reference, vocabulary):
    """The last block of a row may be short, and the first may be the last."""
    check_fwd(
        impl,
        reference,
        numbers(3, vocabulary, seed=vocabulary),
        ends(3, vocabulary),
        "Which lanes of the last block are inside the row, and what do the others add to the sum?",
    )


def test_every_label_of_a_row_together_has_all_the_probability(impl):
    """The probabilities of all labels add up to 1."""
    logits = numbers(1, 11, scale=2.0).expand(11, 11)
    logp, _ = impl.token_log_probs_fwd(logits, torch.arange(11))
    assert_close(
        logp.exp().sum(),
        torch.tensor(1.0),
        "Is it the row's own lse that each logit is measured from?",
    )


def test_a_shift_of_the_logits_moves_only_lse(impl):
    """Adding a number to every logit of a row adds it to lse, and leaves logp alone."""
    logits, labels = numbers(3, 500).bfloat16().float(), ends(3, 500)
    logp, lse = impl.token_log_probs_fwd(logits, labels)
    shift = torch.tensor([64.0, -32.0, 256.0])
    moved = impl.token_log_probs_fwd(logits + shift[:, None], labels)
    assert_close(moved, (logp, lse + shift), RANGE)


def test_the_order_of_the_vocabulary_does_not_matter(impl):
    """Logits in another order, and labels that follow them, give the same logp and lse."""
    logits, labels = numbers(3, 5000, scale=5.0), ends(3, 5000)
    order = torch.randperm(5000, generator=drawn(0))
    assert_close(
        impl.token_log_probs_fwd(logits[:, order], order.argsort()[labels]),
        impl.token_log_probs_fwd(logits, labels),
        "Does every logit of every block count, and once?",
    )


@pytest.mark.parametrize("ignore", [-100, -1, 0, 3])
def test_an_ignored_token_is_zero_whatever_its_logits(impl, reference, ignore):
    """Where the label is `ignore`, logp and lse are exactly 0, even of a row of NaN."""
    logits, labels = numbers(5, 200), torch.tensor([5, ignore, 199, ignore, 7])
    logits[1], logits[3, ::2] = NAN, INF
    assert_close(
        impl.token_log_probs_fwd(logits, labels, ignore=ignore),
        reference.token_log_probs_fwd(logits, labels, ignore=ignore),
        "Is an ignored row left before its logits are looked at? Is `ignore` -100 by nature?",
        dtype=torch.float32,
    )


def test_minus_100_is_ignored_unless_told_otherwise(impl):
    """The default of `ignore` is -100; with another one, -100 is no label."""
    logits, labels = numbers(2, 50), torch.tensor([-100, -100])
    assert_close(
        impl.token_log_probs_fwd(logits, labels),
        (torch.zeros(2), torch.zeros(2)),
        "What is the label of a prompt in every library?",
    )
    assert_close(
        impl.token_log_probs_fwd(logits, labels, ignore=-1),
        (torch.full((2,), NAN), torch.full((2,), NAN)),
        "Is -100 ignored as well as `ignore`?",
    )


@pytest.mark.parametrize("label", [-1, 50, 51, 2**40, -(2**33) + 3])
def test_what_is_no_label_gives_nan(impl, reference, label):
    """A label outside the vocabulary that is not `ignore` makes logp and lse NaN, and only its own;
    nothing is read at its place.
    """
    logits, labels = numbers(3, 50), torch.tensor([4, label, 49])
    assert_close(
        impl.token_log_probs_fwd(logits, labels),
        reference.token_log_probs_fwd(logits, labels),
        "What can a kernel, which cannot raise, answer that nobody overlooks?",
        dtype=torch.float32,
    )


def test_a_nan_spoils_its_own_row(impl, reference):
    """A NaN among the logits makes logp and lse of its row NaN, and of no other."""
    logits, labels = numbers(4, LONG), ends(4, LONG)
    logits[1, 5], logits[2, LONG - 1] = NAN, NAN
    logp, lse = reference.token_log_probs_fwd(logits, labels)
    logp[1:3] = lse[1:3] = NAN
    assert_close(
        impl.token_log_probs_fwd(logits, labels),
        (logp, lse),
        "Can a maximum pass over a NaN? Does the sum?",
        dtype=torch.float32,
    )


def test_a_label_that_cannot_be_has_a_log_probability_of_minus_infinity(impl, reference):
    """exp(-inf) is 0: such a logit adds nothing, and where it is the label's, logp is -inf."""
    logits = numbers(3, 300).bfloat16()
    logits[0, :] = -INF
    logits[0, 299] = 2.0
    logits[1, 7] = -INF
    logits[2, :200] = -INF
    check_fwd(impl, reference, logits, torch.tensor([299, 7, 250]), "What is -inf - -inf?")


@pytest.mark.parametrize(
    "view", ["rows apart", "columns apart", "transposed", "repeated", "labels"]
)
def test_forward_reads_views(impl, reference, view):
    """Logits and labels may have any strides and start anywhere; what lies between is not read."""
    logits, labels = views(view)
    check_fwd(impl, reference, logits, labels, "By which stride is each index multiplied?")


def views(kind: str) -> tuple[Tensor, Tensor]:
    """Four rows of 333 logits and their labels, in memory of which the rest is NaN."""
    x, labels = numbers(4, 333).bfloat16(), ends(4, 333)
    if kind == "rows apart":
        memory = torch.full((4, 400), NAN, dtype=x.dtype)
        return memory[:, 3:336].copy_(x), labels
    if kind == "columns apart":
        memory = torch.full((4, 999), NAN, dtype=x.dtype)
        return memory[:, 1::3].copy_(x), labels
    if kind == "transposed":
        return x.T.contiguous().T, labels
    if kind == "repeated":
        return x[1].expand(4, 333), labels
    memory = torch.full((4, 7), -1)
    memory[:, 2] = labels
    return x, memory[:, 2]


@pytest.mark.parametrize("which", ["rows", "columns"])
def test_forward_reaches_beyond_two_billion_logits(impl, reference, which):
    """Row 2, or column 2, of these logits lies 2^31 places behind the first."""
    logits, labels = far_apart(which)
    check_fwd(impl, reference, logits, labels, "How far does an offset of 32 bits reach?")


def far_apart(which: str) -> tuple[Tensor, Tensor]:
    """Three rows of logits and labels; rows, or columns, are 2^30 + 16 places apart."""
    step = 2**30 + 16
    if which == "rows":
        return spread(numbers(3, 40).bfloat16(), (step, 1)), ends(3, 40)
    return spread(numbers(3, 3).bfloat16(), (1, step)), torch.tensor([0, 2, 1])


def test_no_tokens_are_no_work(impl):
    """Of no tokens, logp and lse are empty."""
    assert_close(
        impl.token_log_probs_fwd(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(0), torch.zeros(0)),
        "How many programs do no tokens need?",
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_reads_each_logit_once_and_keeps_none(impl, dtype):
    """Tokens ((vocabulary + 1) e + 8) bytes are loaded and 8 tokens stored: no second pass for the
    sum, and no probabilities. Only parts of a row that is shared out may take a second launch.
    """
    logits, labels = numbers(4, 8192).to(dtype), ends(4, 8192)
    record = traffic(impl, impl.token_log_probs_fwd, logits, labels)
    e = logits.element_size()
    stated = 4 * ((8192 + 1) * e + 8 + 8)
    question = "How often does a logit cross from memory, and what is written besides the answers?"
    assert_at_most(record.sectors, 1.05 * stated, question, "the number of bytes that move")
    assert_at_most(record.stored, 0.02 * stated, question, "the number of bytes stored")
    assert_at_most(record.launches, 2, question, "the number of launches")


def test_forward_does_not_read_what_is_ignored(impl):
    """A token whose label is `ignore` costs its label, and none of its logits."""
    logits, labels = numbers(4, 8192), torch.tensor([3, -100, -100, 8191])
    record = traffic(impl, impl.token_log_probs_fwd, logits, labels)
    assert_at_most(
        record.sectors,
        1.05 * 2 * ((8192 + 1) * 4 + 16),
        "When is it known that a row does not count?",
        "the number of bytes that move",
    )


@pytest.mark.parametrize(
    ("logits", "labels", "named"),
    [
        (torch.zeros(5), torch.zeros(5).long(), ((5,),)),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), ((2, 3, 4), (2, 3))),
        (torch.zeros(3, 4), torch.zeros(2).long(), ((3, 4), (2,))),
        (torch.zeros(3, 4), torch.zeros(3, 1).long(), ((3, 4), (3, 1))),
        (torch.zeros(3, 0), torch.zeros(3).long(), ((3, 0), (3,))),
        (torch.zeros(3, 4).double(), torch.zeros(3).long(), ("float64",)),
        (torch.zeros(3, 4).long(), torch.zeros(3).long(), ("int64",)),
        (torch.zeros(3, 4), torch.zeros(3).int(), ("int32",)),
    ],
)
def test_forward_refuses_what_it_cannot_read(impl, logits, labels, named):
    """token_log_probs_fwd refuses shapes that do not fit, no vocabulary and other dtypes."""
    with rejects(*named):
        impl.token_log_probs_fwd(logits, labels)


# ---- 2 token_log_probs_bwd


@pytest.mark.parametrize(("dtype", "family"), CASES, ids=str)
def test_backward_is_the_label_less_the_softmax(impl, reference, dtype, family):
    """dlogits = dlogp (onehot - softmax), rounded once to the dtype of the logits."""
    logits = FAMILIES[family](3).to(dtype)
    dlogp = torch.tensor([0.75, -1.3, 40.0])
    question = "Which logit is the label's, what is subtracted at every other, and times what?"
    check_bwd(impl, reference, dlogp, logits, ends(3, LONG), question)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_backward_takes_any_vocabulary(impl, reference, vocabulary):
    """The last block of a row may be short, and the next row begins right behind it."""
    check_bwd(
        impl,
        reference,
        numbers(3, seed=7),
        numbers(3, vocabulary, seed=vocabulary),
        ends(3, vocabulary),
        "How many programs does a row take, and where does each of them begin?",
    )


def test_backward_is_a_formula_of_its_arguments(impl, reference):
    """The softmax is exp(logits - lse) with the lse that is given: it is not made again."""
    logits, labels = numbers(3, 700).half(), ends(3, 700)
    lse = lse_of(reference, logits, labels) + torch.tensor([0.5, -0.25, 1.0])
    case = numbers(3, seed=1), logits, labels, lse
    assert_as_exact_as_torch(
        impl.token_log_probs_bwd(*case),
        reference.token_log_probs_bwd(*case),
        eager_bwd(*case),
        "What was lse saved for?",
    )


def test_backward_is_the_slope_of_forward(impl, reference):
    """dlogits are the differences that a change of each logit makes to the sum of dlogp logp."""
    logits, labels, dlogp = numbers(3, 6).double(), ends(3, 6), numbers(3, seed=1)
    slopes, step = np.zeros((3, 6)), 1e-5
    for place in np.ndindex(3, 6):
        sides = []
        for sign in (1, -1):
            moved = logits.clone()
            moved[place] += sign * step
            sides.append(reference.token_log_probs_fwd(moved, labels)[0] @ dlogp.double().numpy())
        slopes[place] = (sides[0] - sides[1]) / (2 * step)
    lse = lse_of(reference, logits, labels)
    assert_close(
        impl.token_log_probs_bwd(dlogp, logits.float(), labels, lse),
        slopes,
        "Which logits does logp depend on, besides the label's?",
        dtype=torch.float32,
    )


def test_a_row_of_the_gradient_adds_up_to_zero(impl, reference):
    """A shift of all logits changes no logp, so the entries of a row of dlogits cancel."""
    logits, labels = numbers(4, 3000, scale=2.0), ends(4, 3000)
    dlogits = impl.token_log_probs_bwd(
        torch.ones(4), logits, labels, lse_of(reference, logits, labels)
    )
    assert_close(
        dlogits.double().sum(-1).float(),
        torch.zeros(4),
        "Do the probabilities of a row add up to what the label gets?",
        scale=1.0,
    )


@pytest.mark.parametrize("ignore", [-100, -1, 0, 3])
def test_an_ignored_token_has_no_gradient(impl, reference, ignore):
    """Where the label is `ignore`, dlogits are exactly 0, whatever logits, dlogp and lse are."""
    logits, labels = numbers(5, 200), torch.tensor([5, ignore, 199, ignore, 7])
    dlogp, lse = numbers(5, seed=1), lse_of(reference, logits, labels, ignore=ignore)
    logits[1], dlogp[1], lse[1] = NAN, NAN, NAN
    logits[3, ::2], dlogp[3] = INF, 1.0
    assert_close(
        impl.token_log_probs_bwd(dlogp, logits, labels, lse, ignore=ignore),
        reference.token_log_probs_bwd(dlogp, logits, labels, lse, ignore=ignore),
        "What is 0 times NaN? Is `ignore` -100 by nature?",
        dtype=torch.float32,
    )


def test_the_default_of_ignore_is_minus_100_in_backward(impl, reference):
    """Without `ignore`, only -100 is ignored."""
    logits, labels = numbers(3, 50), torch.tensor([-100, 0, 4])
    lse = lse_of(reference, logits, labels)
    assert_close(
        impl.token_log_probs_bwd(torch.ones(3), logits, labels, lse),
        reference.token_log_probs_bwd(torch.ones(3), logits, labels, lse),
        "What is the label of a prompt in every library?",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("label", [300, -5, -100])
def test_a_row_whose_lse_is_nan_has_a_nan_for_gradient(impl, reference, label):
    """What forward could not tell, backward does not make up: that whole row is NaN."""
    logits, labels = numbers(3, 300), torch.tensor([3, 0, 299])
    lse = lse_of(reference, logits, labels)
    lse[1] = NAN
    expected = reference.token_log_probs_bwd(torch.ones(3), logits, labels, lse)
    labels[1] = label
    assert_close(
        impl.token_log_probs_bwd(torch.ones(3), logits, labels, lse, ignore=-1),
        expected,
        "Which parts of a gradient does an unknown lse leave known?",
        dtype=torch.float32,
    )


@pytest.mark.parametrize(
    "view", ["rows apart", "columns apart", "transposed", "repeated", "labels"]
)
def test_backward_reads_views(impl, reference, view):
    """All four may have any strides and start anywhere; dlogits are contiguous."""
    logits, labels = views(view)
    question = "By which stride is each index multiplied, in what is read and in what is written?"
    check_bwd(impl, reference, numbers(9, 2, seed=1)[1::2, 1], logits, labels, question)
    case = torch.tensor(-0.5).expand(4), logits, labels, 6.0 + numbers(4, 3, seed=2)[:, 1]
    dlogits = impl.token_log_probs_bwd(*case)
    truth = reference.token_log_probs_bwd(*case)
    assert_as_exact_as_torch(dlogits, truth, eager_bwd(*case), question)
    assert dlogits.is_contiguous(), "dlogits is not contiguous: whose strides does it have?"


@pytest.mark.parametrize("which", ["rows", "columns"])
def test_backward_reaches_beyond_two_billion_logits(impl, reference, which):
    """Row 2, or column 2, of these logits lies 2^31 places behind the first."""
    logits, labels = far_apart(which)
    question = "How far does an offset of 32 bits reach?"
    check_bwd(impl, reference, numbers(3, seed=1), logits, labels, question)


def test_no_tokens_have_no_gradient(impl):
    """Of no tokens, dlogits are (0, vocabulary)."""
    none = torch.zeros(0)
    assert_close(
        impl.token_log_probs_bwd(none, torch.zeros(0, 5).half(), none.long(), none),
        torch.zeros(0, 5).half(),
        "How many programs do no tokens need?",
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_reads_each_logit_once_and_writes_each_gradient_once(impl, dtype):
    """One launch loads tokens (vocabulary e + 16) bytes and stores tokens vocabulary e: no other
    tensor of the size of the logits.
    """
    logits, labels = numbers(4, 8192).to(dtype), ends(4, 8192)
    lse = torch.full((4,), 9.5)
    record = traffic(impl, impl.token_log_probs_bwd, torch.ones(4), logits, labels, lse)
    e = logits.element_size()
    stated = 4 * (2 * 8192 * e + 16)
    question = "Which tensors of the size of the logits are there?"
    assert_at_most(record.sectors, 1.05 * stated, question, "the number of bytes that move")
    assert_at_most(record.stored, 4 * 8192 * e, question, "the number of bytes stored")
    assert_at_most(record.launches, 1, question, "the number of launches")


def test_backward_does_not_read_what_is_ignored(impl):
    """A token whose label is `ignore` costs its zeros, and none of its logits is loaded."""
    logits, labels = numbers(4, 8192), torch.tensor([3, -100, -100, 8191])
    lse = torch.full((4,), 9.5)
    record = traffic(impl, impl.token_log_probs_bwd, torch.ones(4), logits, labels, lse)
    assert_at_most(
        record.sectors,
        1.05 * ((2 + 4) * 8192 * 4 + 4 * 16),
        "When is it known that a row does not count?",
        "the number of bytes that move",
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logits": torch.zeros(3)}, ((3,),)),
        ({"logits": torch.zeros(2, 4)}, ((2, 4), (3,))),
        ({"logits": torch.zeros(3, 4).double()}, ("float64",)),
        ({"labels": torch.zeros(3).int()}, ("int32",)),
        ({"dlogp": torch.ones(2)}, ((2,), (3,))),
        ({"dlogp": torch.ones(())}, ("()", (3,))),
        ({"dlogp": torch.ones(3).half()}, ("float16",)),
        ({"lse": torch.ones(3, 1)}, ((3, 1), (3,))),
        ({"lse": torch.ones(3).double()}, ("float64",)),
    ],
)
def test_backward_refuses_what_it_cannot_read(impl, change, named):
    """token_log_probs_bwd refuses what forward does, and dlogp or lse of another shape or dtype."""
    given = {"logits": torch.zeros(3, 4), "labels": torch.zeros(3).long()}
    given |= {"dlogp": torch.ones(3), "lse": torch.ones(3)} | change
    with rejects(*named):
        impl.token_log_probs_bwd(given["dlogp"], given["logits"], given["labels"], given["lse"])


def test_autograd_joins_the_two(impl, reference):
    """A loss of token_log_probs, as DPO has one, has the gradient of both passes by its logits."""
    logits, labels = numbers(2, 3, 150), torch.tensor([[5, -100, 149], [0, 77, -100]])
    x = logits.clone().requires_grad_(True)
    signs = torch.tensor([[1.0], [-1.0]])
    loss = -torch.nn.functional.logsigmoid(0.5 * (signs * impl.token_log_probs(x, labels)).sum())
    flat, label = logits.reshape(6, 150), labels.flatten()
    logp, lse = (torch.from_numpy(y).float() for y in reference.token_log_probs_fwd(flat, label))
    margin = 0.5 * (signs * logp.view(2, 3)).sum()
    slope = (-0.5 * signs * torch.sigmoid(-margin)).expand(2, 3).flatten()
    assert_close(
        gradients(loss, [x])[0].view(6, 150),
        impl.token_log_probs_bwd(slope, flat, label, lse),
        "Do both passes agree about the ignored rows?",
    )


# ---- compiled, and timed


@pytest.mark.compiled
def test_forward_compiles(impl):
    """For three generations of GPUs: no spills, and logits of aligned rows come 16 bytes a load."""
    args = tensor("bfloat16", 4096, 128256), tensor("int64", 4096)
    assert_compiles(impl, impl.token_log_probs_fwd, *args)


@pytest.mark.compiled
def test_backward_compiles(impl):
    """For three generations of GPUs: no spills, and logits of aligned rows come 16 bytes a load."""
    logits, labels = tensor("bfloat16", 4096, 128256), tensor("int64", 4096)
    rows = tensor("float32", 4096)
    assert_compiles(impl, impl.token_log_probs_bwd, rows, logits, labels, rows)


@pytest.mark.gate
def test_token_log_probs_are_as_fast_as_memory(impl, gate):
    """Both passes move their logits about as fast as the GPU copies memory."""
    gate(impl)
