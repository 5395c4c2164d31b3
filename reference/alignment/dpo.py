"""Oracle of direct preference optimization: one token, one pair and one ranking at a time, in
float64.

Sums of exponentials are shifted by their largest term and added exactly (math.fsum); sigmoids
branch on the sign; rankings are judged by listing all of them; streamed log-probabilities have
their logits whole.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def log_sum_exp(terms: ArrayLike) -> float:
    """log of the sum of exp, over all entries; -inf where there is nothing to add."""
    values = [float(term) for term in np.ravel(terms)]
    largest = max(values, default=-math.inf)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def log_softmax(logits: Array) -> Array:
    """Normalised log-probabilities along the last axis."""
    rows = [row - log_sum_exp(row) for row in logits.reshape(-1, logits.shape[-1])]
    return np.array(rows, dtype=np.float64).reshape(logits.shape)


def sequence_logprob(logits: Array, labels: NDArray[np.int64], *, ignore: int = -100) -> Array:
    """Section 4: the counted labels' log-probabilities, from the logits one place before."""
    out = []
    for row, names in zip(logits, labels, strict=True):
        counted = [t for t in range(1, len(names)) if names[t] != ignore]
        out.append(math.fsum(row[t - 1][names[t]] - log_sum_exp(row[t - 1]) for t in counted))
    return np.array(out, dtype=np.float64)


def sequence_logprob_gradient(
    grad: Array, logits: Array, labels: NDArray[np.int64], *, ignore: int = -100
) -> Array:
    """The gradient of sum(grad * sequence_logprob): onehot - softmax where a label is counted."""
    out = np.zeros_like(logits)
    for b, t in np.ndindex(labels.shape):
        if t > 0 and labels[b, t] != ignore:
            out[b, t - 1] = -grad[b] * np.exp(log_softmax(logits[b, t - 1]))
            out[b, t - 1, labels[b, t]] += grad[b]
    return out


def optimal_policy(ref_logp: Array, reward: Array, *, beta: float) -> tuple[Array, Array]:
    """Eq. 4: the reference tilted by exp(r / beta) and normalised, prompt by prompt."""
    logp, log_z = np.empty_like(ref_logp), np.empty(len(ref_logp))
    for x, (prior, r) in enumerate(zip(ref_logp, reward, strict=True)):
        weights = [p + value / beta for p, value in zip(prior, r, strict=True)]
        log_z[x] = log_sum_exp(weights)
        logp[x] = [w - log_z[x] for w in weights]
    return logp, log_z


def implicit_reward(policy_logp: Array, ref_logp: Array, *, beta: float) -> Array:
    """Eq. 5 without the prompt's own term."""
    return np.subtract(policy_logp, ref_logp) * beta


def dpo_loss(
    policy_chosen: Array,
    policy_rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    *,
    beta: float,
) -> dict[str, Array | np.float64]:
    """Eq. 7, pair by pair."""
    chosen = implicit_reward(policy_chosen, ref_chosen, beta=beta)
    rejected = implicit_reward(policy_rejected, ref_rejected, beta=beta)
    losses = [softplus(lost - won) for won, lost in zip(chosen, rejected, strict=True)]
    right = [won - lost > 0 for won, lost in zip(chosen, rejected, strict=True)]
    return {
        "loss": np.float64(math.fsum(losses) / len(losses)),
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "margin": chosen - rejected,
        "accuracy": np.float64(sum(right) / len(right)),
    }


def softplus(x: float) -> float:
    """log(1 + exp(x)), from the side on which exp does not overflow."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), likewise."""
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def dpo_gradient_weight(chosen_reward: Array, rejected_reward: Array) -> Array:
    """Section 4: the probability that the implicit reward gives to the wrong order."""
    return np.array(
        [sigmoid(lost - won) for won, lost in zip(chosen_reward, rejected_reward, strict=True)]
    )


def dpo_gradient(
    policy_chosen: Array,
    policy_rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    *,
    beta: float,
) -> tuple[Array, Array]:
    """The derivatives of the loss by the policy's log-probabilities, chosen and rejected."""
    numbers = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=beta)
    weight = dpo_gradient_weight(numbers["chosen_reward"], numbers["rejected_reward"])
    slope = beta * weight / len(weight)
    return -slope, slope


def rankings(score: Array) -> dict[tuple[int, ...], float]:
    """The log-probability of every ranking of answers: pick one of those left, again and again."""
    found: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in score:
        longer = {}
        for placed, logp in found.items():
            left = [answer for answer in range(len(score)) if answer not in placed]
            total = log_sum_exp([score[answer] for answer in left])
            for answer in left:
                longer[(*placed, answer)] = logp + float(score[answer]) - total
        found = longer
    return found


def plackett_luce_dpo_loss(
    policy_logp: Array, ref_logp: Array, ranking: NDArray[np.int64], *, beta: float
) -> np.float64:
    """Appendix A.3: minus the mean log-probability of the rankings observed, found among all."""
    scores = implicit_reward(policy_logp, ref_logp, beta=beta)
    observed = [tuple(int(answer) for answer in places) for places in ranking]
    logp = [rankings(score)[places] for score, places in zip(scores, observed, strict=True)]
    return np.float64(-math.fsum(logp) / len(logp))


def plackett_luce_gradient(
    policy_logp: Array, ref_logp: Array, ranking: NDArray[np.int64], *, beta: float
) -> Array:
    """Its derivatives by policy_logp: at every place, the chance of being picked less the pick."""
    scores = implicit_reward(policy_logp, ref_logp, beta=beta)
    out = np.zeros_like(scores)
    for b, places in enumerate(ranking):
        for i, picked in enumerate(places):
            out[b, places[i:]] += np.exp(log_softmax(scores[b, places[i:]]))
            out[b, picked] -= 1
    return out * beta / len(out)


def linear_logprob_forward(
    hidden: Array, weight: Array, targets: NDArray[np.int64], *, chunk: int = 1
) -> tuple[Array, Array]:
    """Log-probabilities of the targets and log-sum-exps, from the whole matrix of logits."""
    logits = hidden @ weight.T
    lse = np.array([log_sum_exp(row) for row in logits])
    picked = np.array([row[target] for row, target in zip(logits, targets, strict=True)])
    return picked - lse, lse


def linear_logprob(
    hidden: Array, weight: Array, targets: NDArray[np.int64], *, chunk: int = 1
) -> Array:
    """The first of the two."""
    return linear_logprob_forward(hidden, weight, targets)[0]


def linear_logprob_backward(
    grad: Array,
    hidden: Array,
    weight: Array,
    targets: NDArray[np.int64],
    lse: Array,
    *,
    chunk: int = 1,
) -> tuple[Array, Array]:
    """The gradients of sum(grad * logp): onehot - softmax, pulled back through both factors."""
    dlogits = -np.exp(log_softmax(hidden @ weight.T))
    for row, target in zip(dlogits, targets, strict=True):
        row[target] += 1
    dlogits *= grad[:, None]
    return dlogits @ weight, dlogits.T @ hidden


def learning_rate(step: int, *, peak_lr: float, warmup: int) -> float:
    """Appendix B: linear over the first `warmup` steps, then constant."""
    return peak_lr * (step + 1) / warmup if step + 1 < warmup else peak_lr


def expected_reward(logp: Array, reward: Array) -> float:
    """E[r] under a policy, averaged over prompts."""
    return float(np.mean(np.sum(np.exp(logp) * reward, axis=-1)))


def divergence(logp: Array, ref_logp: Array) -> float:
    """KL(pi || pi_ref), averaged over prompts; answers that the policy never gives cost nothing."""
    p = np.exp(logp)
    gap = np.where(p > 0, logp, 0.0) - np.where(p > 0, ref_logp, 0.0)
    return float(np.mean(np.sum(p * gap, axis=-1)))


def objective(logp: Array, ref_logp: Array, reward: Array, *, beta: float) -> float:
    """Eq. 3: what the policy should make large."""
    return expected_reward(logp, reward) - beta * divergence(logp, ref_logp)


def frontier_reward(kl: float, ref_logp: Array, reward: Array) -> float:
    """The largest expected reward at this distance from the reference: that of a pi*."""
    from scipy.optimize import brentq  # half a second, for the claim alone

    def excess(log_beta: float) -> float:
        logp, _ = optimal_policy(ref_logp, reward, beta=math.exp(log_beta))
        return divergence(logp, ref_logp) - kl

    beta = math.exp(float(brentq(excess, -7.0, 7.0, xtol=1e-12)))
    return expected_reward(optimal_policy(ref_logp, reward, beta=beta)[0], reward)
