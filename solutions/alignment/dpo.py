"""Direct preference optimization: a language model is secretly its own reward model.

*Paper*  Rafailov, Sharma, Mitchell, Ermon, Manning, Finn (2023), Direct Preference Optimization:
Your Language Model is Secretly a Reward Model, arXiv:2305.18290.
Read section 4 first, then appendices A.1, A.3 and B.

*Why*  RLHF fits a reward model to human choices, then climbs it by reinforcement learning on a
leash, a KL penalty to the model it started from. That problem has a closed-form answer,
pi* ~ pi_ref exp(r / beta). Solved for r it says that a policy *is* a reward, beta log(pi / pi_ref),
up to a term of the prompt alone; and a choice between two answers to one prompt sees only their
difference. So the policy can be fitted to the choices as a classifier:
no reward model, no sampling, no reinforcement learning.

*Names*
    pi, pi_ref       the policy trained, and the one it started from: `policy`, `ref`, `reference`
    y_w, y_l         the answer that won and the one that lost: `chosen`, `rejected`
    log pi(y | x)    `logp`, a sum over the tokens of the answer                 (b,) (x, y) (b, k)
    beta             the price of one nat of KL                                  a number > 0
    r, r^            a reward, and the reward implicit in a policy               as logp
    Z(x)             the partition function; `log_z` is its logarithm            (x,)
    tau              `ranking`: tau(0) is the best answer, tau(1) the next       (b, k)
    lse              log sum exp of a row of logits                              (n,)
    b, t, v          pairs or sequences, tokens, vocabulary
    x, y, k          prompts, answers listed for a prompt, answers ranked
    n, d             rows and width of hidden states

*Tasks*  sequence_logprob, optimal_policy, implicit_reward, dpo_loss, dpo_gradient_weight,
plackett_luce_dpo_loss, linear_logprob_forward, linear_logprob_backward, linear_logprob, dpo_step.

*Differs*  Losses are means over the batch where the paper writes expectations. The warm-up takes
its first step at peak / warmup, not at 0. The linear_logprob functions are not in the paper: with a
large vocabulary the logits outgrow everything else in memory, so here they are made a block at a
time, and made again for the gradient, at the price of one more matrix product.

*Limits*  dpo_step still makes the logits whole. linear_logprob has no second derivative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDES = ("chosen", "rejected")


def sequence_logprob(logits: Tensor, labels: Tensor, *, ignore: int = -100) -> Tensor:
    """The log-probability of each row of labels: (b, t, v), (b, t) -> (b,)  [section 4].

    sum over t of log_softmax(logits[:, t])[labels[:, t + 1]], where that label is not `ignore`

    The logits at t predict the label at t + 1: the first label and the last logits are not used.

    A sum, not a mean. It is computed and returned in float32 for float32 and half-precision logits,
    in float64 for float64. A position whose label is `ignore`, which may be any integer, touches
    neither value nor gradient, even where some of its logits are -inf; a row of nothing else gives
    0, and so does t = 1. Finite for logits of +-1e4.

    Raises ValueError: labels that are not (b, t) for logits (b, t, v) ("shape"); a label, the
    unused first one included, that is neither `ignore` nor in [0, v) ("label").
    """
    # Task: check, shift by one, log-softmax in the wider dtype, pick the labels, sum the counted.
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"shapes do not fit: logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        )
    counted = labels != ignore
    if (counted & ((labels < 0) | (labels >= logits.shape[-1]))).any():
        raise ValueError(f"a label lies outside [0, {logits.shape[-1]}) and is not {ignore}")
    counted = counted[:, 1:]
    # an ignored label is no index: let it point somewhere harmless
    index = labels[:, 1:].where(counted, 0)
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    logp = wide.log_softmax(-1).gather(-1, index[..., None])[..., 0]  # (b, t - 1)
    return logp.where(counted, 0.0).sum(-1)


def optimal_policy(ref_logp: Tensor, reward: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """What leashed reinforcement learning would find: (x, y), (x, y) -> (x, y), (x,)  [Eq. 4].

    log pi*(y | x) = log pi_ref(y | x) + r(x, y) / beta - log Z(x)
    log Z(x) = log sum over y of pi_ref(y | x) exp(r(x, y) / beta)

    The maximiser of E[r] - beta KL(pi || pi_ref) over all policies. Returns (logp, log_z).
    Rows of exp(ref_logp) sum to 1; an answer that the reference never gives, of ref_logp -inf,
    stays at -inf. Right for |r / beta| of 1e4.

    Raises ValueError: beta <= 0 ("beta").
    """
    # Task: tilt the reference by the reward, then normalise in log space.
    _check(beta)
    tilted = ref_logp + reward / beta
    log_z = tilted.logsumexp(-1)
    return tilted - log_z[:, None], log_z


def implicit_reward(policy_logp: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """The reward a policy is optimal for, detached: any shape, same shape -> that shape  [Eq. 5].

    r^ = beta (log pi - log pi_ref), without beta log Z(x), which all answers to a prompt share.
    """
    # Task: Eq. 5 without its last term; no gradient flows through it.
    return (beta * (policy_logp - ref_logp)).detach()


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> dict[str, Tensor]:
    """The loss of a batch of pairs, from four log-probabilities (b,)  [Eq. 7].

    h = beta [(policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)]
    loss = -mean of log sigmoid(h)

    Returns a dict: `loss`, a scalar; `chosen_reward` and `rejected_reward`, (b,), the implicit
    rewards; `margin`, (b,), the first minus the second; `accuracy`, a scalar of the same dtype, the
    share of pairs whose margin is > 0. Only `loss` carries a gradient, and only to the two policy
    terms, never to the reference's. Loss and gradient are right for |h| of 1e4.

    Raises ValueError: inputs of different shapes ("shape"), beta <= 0 ("beta").
    """
    # Task: rewards of both answers, then a logistic loss on their difference that never overflows.
    _check(beta, policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    chosen_reward = beta * (policy_chosen - ref_chosen.detach())
    rejected_reward = beta * (policy_rejected - ref_rejected.detach())
    margin = chosen_reward - rejected_reward
    return {
        "loss": -F.logsigmoid(margin).mean(),
        "chosen_reward": chosen_reward.detach(),
        "rejected_reward": rejected_reward.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype).mean(),
    }


def dpo_gradient_weight(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """How much each pair pulls: (b,), (b,) -> (b,)  [section 4, "What does the DPO update do?"].

    weight = sigmoid(r^_rejected - r^_chosen), near 1 where the implicit reward is wrong
    grad loss = -(beta / b) sum of weight (grad log pi(chosen) - grad log pi(rejected))

    Finite for rewards of +-1e4.
    """
    # Task: one line.
    return torch.sigmoid(rejected_reward - chosen_reward)


def plackett_luce_dpo_loss(
    policy_logp: Tensor, ref_logp: Tensor, ranking: Tensor, *, beta: float
) -> Tensor:
    """The loss of rankings instead of pairs: (b, k), (b, k), (b, k) -> scalar  [appendix A.3].

    s = beta (log pi - log pi_ref)
    loss = -mean over b of sum over places i of [s_tau(i) - log sum over j >= i of exp(s_tau(j))]

    ranking[:, 0] is the index of the best answer, ranking[:, 1] of the second, and so on.
    The gradient flows to policy_logp only. k = 1 gives 0, k = 2 is Eq. 7. Right for |s| of 1e4.

    Raises ValueError: inputs of different shapes ("shape"), a row of ranking that is not a
    permutation of 0 ... k - 1 ("permutation"), beta <= 0 ("beta").
    """
    # Task: put the scores in ranked order; every place is a softmax choice among those left.
    _check(beta, policy_logp, ref_logp, ranking)
    if (ranking.sort(-1).values != torch.arange(ranking.shape[-1], device=ranking.device)).any():
        raise ValueError(f"ranking has a row that is no permutation: {ranking.tolist()}")
    score = (beta * (policy_logp - ref_logp.detach())).gather(-1, ranking)  # (b, k), best first
    # a running log-sum-exp from the last place backwards: who is left at each place
    left = score.flip(-1).logcumsumexp(-1).flip(-1)
    return (left - score).sum(-1).mean()


def linear_logprob_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T) at the targets: (n, d), (v, d), (n,) -> (n,), (n,).

    lse = log sum exp of a row of logits,  logp = logit of the target - lse;  returns (logp, lse)

    Blocks of `chunk` rows of weight, the last perhaps shorter, give logits (n, chunk); a running
    maximum and a running sum of exp(logit - maximum) are carried along for each of the n rows.
    No tensor made is larger than the inputs and one such block together, (n + v) d + n chunk
    elements. Logits of +-1e4 are fine.
    All arithmetic, the matrix products included, and both answers are in float32 for float32 and
    half-precision inputs, in float64 for float64. linear_logprob has checked the arguments.
    """
    # Task: when a later block raises the maximum, the sum so far was measured from the old one.
    # The target's logit lies in exactly one block.
    wide = torch.promote_types(hidden.dtype, torch.float32)
    h = hidden.to(wide)
    top = h.new_full(targets.shape, -torch.inf)
    total, picked = torch.zeros_like(top), torch.zeros_like(top)
    for start in range(0, len(weight), chunk):
        logits = h @ weight[start : start + chunk].to(wide).T  # (n, chunk)
        new = torch.maximum(top, logits.amax(-1))
        total = total * torch.exp(top - new) + torch.exp(logits - new[:, None]).sum(-1)
        top = new
        column = targets - start
        inside = (column >= 0) & (column < logits.shape[1])
        column = column.where(inside, 0)
        picked = torch.where(inside, logits.gather(1, column[:, None])[:, 0], picked)
    lse = top + total.log()
    return picked - lse, lse


def linear_logprob_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """The gradients of sum(grad * logp): (n,), (n, d), (v, d), (n,), (n,) -> (n, d), (v, d).

    dlogits = grad (onehot - exp(logits - lse)), each block of logits made again
    dhidden = sum over blocks of dlogits @ block,  dweight of a block = dlogits.T @ hidden

    lse is as linear_logprob_forward returned it. No tensor made is larger than (n + v) d + n chunk
    elements. All arithmetic, the sum over blocks included, is in float32 (float64 for float64
    inputs); dhidden and dweight, returned in this order, have the dtypes of hidden and weight.
    """
    # Task: the same loop over blocks; no maximum is needed now, since lse is known.
    wide = torch.promote_types(hidden.dtype, torch.float32)
    h, g = hidden.to(wide), grad.to(wide)
    dhidden, dweight = torch.zeros_like(h), torch.empty_like(weight)
    for start in range(0, len(weight), chunk):
        block = weight[start : start + chunk].to(wide)
        columns = torch.arange(start, start + len(block), device=targets.device)
        onehot = targets[:, None] == columns  # (n, chunk)
        dlogits = g[:, None] * (onehot.to(wide) - torch.exp(h @ block.T - lse[:, None]))
        dhidden += dlogits @ block
        dweight[start : start + chunk] = dlogits.T @ h
    return dhidden.to(hidden.dtype), dweight


class StreamedLogprob(torch.autograd.Function):
    """The two functions above as one that autograd can use (given).

    Between forward and backward it keeps its inputs, which exist anyway, and lse: n numbers.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        """Keep what the backward pass needs."""
        logp, lse = linear_logprob_forward(hidden, weight, targets, chunk=chunk)
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.chunk = chunk
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient for each argument of forward."""
        return *linear_logprob_backward(grad, *ctx.saved_tensors, chunk=ctx.chunk), None, None


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = 1024) -> Tensor:
    """log softmax(hidden @ weight.T) at the targets, differentiable: (n, d), (v, d), (n,) -> (n,).

    float32, or float64 for float64 inputs. Gradients flow to hidden and weight. Neither pass makes
    a tensor larger than (n + v) d + n chunk elements, and between them only n numbers are kept
    besides the inputs and the answer. Any chunk >= 1 gives the same answer, dividing v or not.

    Raises ValueError: chunk < 1 ("chunk"), a target outside [0, v) ("target").
    """
    # Task: check the arguments, then apply StreamedLogprob.
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if ((targets < 0) | (targets >= len(weight))).any():
        raise ValueError(f"a target lies outside [0, {len(weight)})")
    return StreamedLogprob.apply(hidden, weight, targets, chunk)


def dpo_step(
    policy: nn.Module,
    reference: nn.Module,
    batch: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    step: int,
    beta: float,
    peak_lr: float,
    warmup: int = 150,
) -> dict[str, Tensor]:
    """One update of the policy on a batch of pairs  [appendix B].

    policy, reference: causal models, tokens (n, t) -> logits (n, t, v).
    batch: `chosen`, `chosen_labels` (b, t) and `rejected`, `rejected_labels` (b, u), int64;
    labels are the tokens, with -100 at the prompt and at padding. t and u may differ: pad the
    shorter on the right, tokens with 0 and labels with -100, and run all 2b rows in ONE forward
    pass of each model, in any order.

    The reference runs in eval mode, in which it may be left, and without a graph; the policy runs
    in the mode it is in.
    Before the update the learning rate of every parameter group is set to
    peak_lr min(1, (step + 1) / warmup), where step counts from 0; warmup = 0 is peak_lr at once.
    Gradients left from before do not count. One step of the optimiser is taken, and nothing else of
    it is changed.

    Returns the dict of dpo_loss as it was before the update, all of it detached, `loss` too.
    """
    # Task: pad and join, log-probabilities under both models, the loss, the rate, one step.
    length = max(batch["chosen"].shape[1], batch["rejected"].shape[1])
    tokens = torch.cat([_pad(batch[side], length, 0) for side in SIDES])
    labels = torch.cat([_pad(batch[f"{side}_labels"], length, -100) for side in SIDES])
    reference.eval()
    with torch.no_grad():
        ref_logp = sequence_logprob(reference(tokens), labels)
    policy_logp = sequence_logprob(policy(tokens), labels)
    numbers = dpo_loss(*policy_logp.chunk(2), *ref_logp.chunk(2), beta=beta)
    for group in optimiser.param_groups:
        group["lr"] = peak_lr * min(1.0, (step + 1) / max(warmup, 1))
    optimiser.zero_grad()
    numbers["loss"].backward()
    optimiser.step()
    return {name: value.detach() for name, value in numbers.items()}


def _check(beta: float, *same: Tensor) -> None:
    """Refuse a beta that is not positive, and tensors of different shapes (given)."""
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    shapes = [tuple(x.shape) for x in same]
    if len(set(shapes)) > 1:
        raise ValueError(f"the inputs must have the same shape, got {shapes}")


def _pad(rows: Tensor, length: int, value: int) -> Tensor:
    """(b, t) -> (b, length), with `value` on the right (given)."""
    return F.pad(rows, (0, length - rows.shape[1]), value=value)


class ToyTransformer(nn.Module):
    """A causal language model of two layers (given): tokens (n, t) -> logits (n, t, vocab).

    generator: draws the initial weights, so that the global random state is left alone.
    """

    def __init__(
        self,
        vocab: int,
        generator: torch.Generator,
        *,
        width: int = 8,
        context: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * shape[-1] ** -0.5)

        self.token = weights(vocab, width)
        self.place = weights(context, width)
        self.mix = nn.ParameterList([weights(3 * width, width) for _ in range(2)])
        self.widen = nn.ParameterList([weights(4 * width, width) for _ in range(2)])
        self.narrow = nn.ParameterList([weights(width, 4 * width) for _ in range(2)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attention and a two-layer network, twice; the embedding serves as the output layer
        too.
        """
        x = F.embedding(tokens, self.token) + self.place[: tokens.shape[1]]
        for mix, widen, narrow in zip(self.mix, self.widen, self.narrow, strict=True):
            query, key, value = F.linear(F.layer_norm(x, x.shape[-1:]), mix).chunk(3, dim=-1)
            x = x + self.dropout(F.scaled_dot_product_attention(query, key, value, is_causal=True))
            x = x + self.dropout(
                F.linear(F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), widen)), narrow)
            )
        return F.linear(F.layer_norm(x, x.shape[-1:]), self.token)
