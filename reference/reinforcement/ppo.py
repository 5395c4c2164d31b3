"""Oracle of proximal policy optimization: explicit sums, one number at a time, in float64.

Advantages are the double sum of Eq. 11, cut at the first done, and once more the solution of a
dense triangular system. The surrogate asks for the sign of the advantage and the side of the clip.
One divergence is the gap between log-sum-exp and its tangent, the other a quadrature. The update
differentiates the loss of a linear policy by central differences.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
STEP = 1e-5  # of central differences


def td_errors(rewards: Array, values: Array, dones: Bools, *, gamma: float = 0.99) -> Array:
    """Eq. 12, entry by entry."""
    out = np.empty_like(rewards)
    for t, n in np.ndindex(rewards.shape):
        out[t, n] = rewards[t, n] - values[t, n]
        if not dones[t, n]:
            out[t, n] += gamma * values[t + 1, n]
    return out


def gae(
    rewards: Array, values: Array, dones: Bools, *, gamma: float = 0.99, lam: float = 0.95
) -> tuple[Array, Array]:
    """Eq. 11 as it is printed, with the exponent mended: a sum over l for every t and actor."""
    deltas = td_errors(rewards, values, dones, gamma=gamma)
    advantages = np.zeros_like(rewards)
    for t, n in np.ndindex(rewards.shape):
        terms = []
        for l in range(len(rewards) - t):
            terms.append((gamma * lam) ** l * deltas[t + l, n])
            if dones[t + l, n]:
                break
        advantages[t, n] = math.fsum(terms)
    return advantages, advantages + values[:-1]


gae_scan = gae


def gae_by_solving(
    rewards: Array, values: Array, dones: Bools, *, gamma: float, lam: float
) -> Array:
    """The advantages as the solution of (I - L) A = delta, an actor at a time."""
    deltas = td_errors(rewards, values, dones, gamma=gamma)
    columns = [
        np.linalg.solve(
            np.eye(len(rewards)) - np.diag(gamma * lam * ~dones[:-1, n], 1), deltas[:, n]
        )
        for n in range(rewards.shape[1])
    ]
    return np.stack(columns, axis=1)


def affine_compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The composed map's slope and offset, read off what it makes of 0 and of 1."""

    def both(x: float) -> Array:
        return first[0] * (second[0] * x + second[1]) + first[1]

    return both(1.0) - both(0.0), both(0.0)


def reverse_affine_scan(a: Array, b: Array) -> Array:
    """x_t as a sum over the b behind it, each times the product of the a on the way."""
    out = np.zeros_like(b)
    for t in range(len(b)):
        for s in range(t, len(b)):
            out[t] += np.prod(a[t:s], axis=0) * b[s]
    return out


def reverse_affine_gradient(grad: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """The gradients of sum(grad * x) by a and b: b_t reaches all steps before it, a_t as a_t x."""
    x = np.concatenate([reverse_affine_scan(a, b), np.zeros_like(b[:1])])
    by_b = reverse_affine_scan(np.concatenate([a[:1], a[:-1]])[::-1], grad[::-1])[::-1]
    return by_b * x[1:], by_b


def ratio(logp: float, old_logp: float) -> float:
    """rho, its logarithm held within +-20."""
    return math.exp(min(max(logp - old_logp, -20.0), 20.0))


def clipped_surrogate(
    logp: Array, old_logp: Array, advantages: Array, *, clip: float = 0.2
) -> dict[str, np.float64]:
    """Eq. 7 by cases: gains stop growing above 1 + clip, losses stop shrinking below 1 - clip."""
    terms, outside, kl = [], [], []
    for new, old, a in zip(logp, old_logp, advantages, strict=True):
        rho = ratio(new, old)
        if a >= 0:
            terms.append(a * (1 + clip if rho > 1 + clip else rho))
        else:
            terms.append(a * (1 - clip if rho < 1 - clip else rho))
        outside.append(rho > 1 + clip or rho < 1 - clip)
        kl.append(excess(math.log(rho)))
    return {
        "objective": np.float64(math.fsum(terms) / len(terms)),
        "clip_fraction": np.float64(sum(outside) / len(outside)),
        "approx_kl": np.float64(math.fsum(kl) / len(kl)),
    }


def excess(x: float) -> float:
    """exp(x) - 1 - x, as a series where x is small."""
    if abs(x) > 0.5:
        return math.exp(x) - 1 - x
    return math.fsum(x**k / math.factorial(k) for k in range(2, 20))


def clipped_gradient(logp: Array, old_logp: Array, advantages: Array, *, clip: float) -> Array:
    """The derivatives of the objective by logp: rho A / B, or 0 where the clip holds."""
    out = np.zeros(len(logp))
    for i, (new, old, a) in enumerate(zip(logp, old_logp, advantages, strict=True)):
        rho = ratio(new, old)
        held = (a > 0 and rho > 1 + clip) or (a < 0 and rho < 1 - clip)
        out[i] = 0.0 if held or abs(new - old) > 20 else rho * a / len(logp)
    return out


def kl_penalised_surrogate(
    logp: Array, old_logp: Array, advantages: Array, kl: Array, *, beta: float
) -> np.float64:
    """Eq. 8, sample by sample."""
    terms = [
        ratio(new, old) * a - beta * d
        for new, old, a, d in zip(logp, old_logp, advantages, kl, strict=True)
    ]
    return np.float64(math.fsum(terms) / len(terms))


def log_sum_exp(row: Array) -> float:
    """log of the sum of exp of a row, of which -inf is no part."""
    top = float(max(row))
    return top + math.log(math.fsum(math.exp(x - top) for x in row))


def categorical_kl(old_logits: Array, logits: Array) -> Array:
    """As the Bregman divergence of log-sum-exp: how far it lies above its tangent at the old."""
    out = np.zeros(len(logits))
    for i, (old, new) in enumerate(zip(old_logits, logits, strict=True)):
        p = [math.exp(x - log_sum_exp(old)) for x in old]
        tangent = math.fsum(w * (b - a) for w, a, b in zip(p, old, new, strict=True) if w > 0)
        out[i] = log_sum_exp(new) - log_sum_exp(old) - tangent
    return out


def categorical_kl_gradient(grad: Array, old_logits: Array, logits: Array) -> tuple[Array, Array]:
    """The gradients of sum(grad * KL): by the old logits p (gap - KL), by the new ones q - p."""
    p, q, kl = softmax(old_logits, -1), softmax(logits, -1), categorical_kl(old_logits, logits)
    gap = np.zeros_like(p)
    np.log(p / np.where(p > 0, q, 1.0), where=p > 0, out=gap)
    return grad[:, None] * p * (gap - kl[:, None]), grad[:, None] * (q - p)


def gaussian_kl(old_mean: Array, old_log_std: Array, mean: Array, log_std: Array) -> Array:
    """By Gauss-Hermite quadrature: the mean of log p_old - log p_new under p_old, component by
    component; both are quadratic, so five nodes are exact.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    out = np.zeros(len(mean))
    for b, d in np.ndindex(mean.shape):
        gap = (old_mean[b, d] - mean[b, d]) * math.exp(-log_std[b, d])
        wider = math.exp(old_log_std[b, d] - log_std[b, d])
        log_old = -(nodes**2) / 2 - old_log_std[b, d]
        log_new = -((gap + wider * nodes) ** 2) / 2 - log_std[b, d]
        out[b] += math.fsum(weights * (log_old - log_new))
    return out


def adapt_beta(beta: float, kl: float, *, target: float) -> float:
    """Section 4."""
    factor = 1.0
    if kl * 1.5 < target:
        factor = 0.5
    elif kl > target * 1.5:
        factor = 2.0
    return beta * factor


def ppo_objective(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    values: Array,
    returns: Array,
    entropy: Array,
    *,
    clip: float = 0.2,
    c1: float = 1.0,
    c2: float = 0.01,
) -> dict[str, np.float64]:
    """Eq. 9, its three terms one after the other."""
    numbers = clipped_surrogate(logp, old_logp, advantages, clip=clip)
    policy = numbers.pop("objective")
    errors = [(v - r) ** 2 for v, r in zip(values, returns, strict=True)]
    value = np.float64(math.fsum(errors) / len(errors))
    mean = np.float64(math.fsum(entropy) / len(entropy))
    loss = np.float64(c1 * value - policy - c2 * mean)
    return {"loss": loss, "policy": policy, "value": value, "entropy": mean, **numbers}


def standardise(x: Array, *, eps: float = 1e-8) -> Array:
    """Away from the mean, in population standard deviations."""
    mean = math.fsum(x) / len(x)
    std = math.sqrt(math.fsum((y - mean) ** 2 for y in x) / len(x))
    return np.array([(y - mean) / (std + eps) for y in x])


def linear_numbers(theta: Array, sizes: tuple[int, int], part: dict, **named: float) -> dict:
    """The numbers of Eq. 9 of a linear policy and a linear value, whose weights lie in theta."""
    actions, width = sizes
    weight, bias, slope, offset = np.split(theta, np.cumsum([actions * width, actions, width]))
    logits = part["observations"] @ weight.reshape(actions, width).T + bias
    logp, entropy = [], []
    for row, action in zip(logits, part["actions"], strict=True):
        logs = row - log_sum_exp(row)
        logp.append(logs[action])
        entropy.append(-math.fsum(np.exp(logs) * logs))
    values = part["observations"] @ slope + offset
    return ppo_objective(
        logp, part["logp"], part["advantages"], values, part["returns"], entropy, **named
    )


def ppo_update(
    theta: Array,
    sizes: tuple[int, int],
    batch: dict[str, Array],
    epochs: list[list[NDArray[np.int64]]],
    *,
    rate: float,
    normalise: bool,
    **named: float,
) -> tuple[Array, dict[str, Array]]:
    """Algorithm 1 with plain gradient descent and central differences.

    sizes: A, O.  epochs: the blocks of every epoch.  Returns the new theta and the statistics.
    """
    theta = theta.copy()
    stats: dict[str, list[float]] = {}
    for blocks in epochs:
        kept = []
        for index in blocks:
            part = {name: x[index] for name, x in batch.items()}
            if normalise:
                part["advantages"] = standardise(part["advantages"])
            kept.append((len(index), linear_numbers(theta, sizes, part, **named)))
            slopes = np.zeros_like(theta)
            for i in range(len(theta)):
                sides = [theta.copy(), theta.copy()]
                sides[0][i] += STEP
                sides[1][i] -= STEP
                up, down = (linear_numbers(x, sizes, part, **named)["loss"] for x in sides)
                slopes[i] = (up - down) / (2 * STEP)
            theta -= rate * slopes
        size = sum(count for count, _ in kept)
        for name in kept[0][1]:
            mean = math.fsum(count * numbers[name] for count, numbers in kept) / size
            stats.setdefault(name, []).append(mean)
    return theta, {name: np.array(values) for name, values in stats.items()}
