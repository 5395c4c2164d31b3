"""Denoising diffusion by its definition: the chain as one joint Gaussian, the rest entry by entry.

Everything takes the variances `betas` themselves, not tables of them, and t is counted from 0.
Where the paper draws, these take what was drawn. A model is a function of arrays, model(x_t, t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Callable[[Array, NDArray[np.int64]], Array]


def linear_betas(T: int, *, start: float = 1e-4, end: float = 0.02) -> Array:
    """Variances in equal steps, both ends included."""
    return np.array([start + (end - start) * i / max(T - 1, 1) for i in range(T)])


def chain(betas: Array) -> tuple[Array, Array]:
    """Mean and covariance of (x_{-1}, ..., x_{T-1}) given x_{-1} = 1: (T + 1,), (T + 1, T + 1).

    x_t is a combination of the start and of the noises of all steps so far.
    """
    T = len(betas)
    weights = np.zeros((T + 1, T + 1))  # row: state, column: the start, then one noise a step
    weights[0, 0] = 1.0
    for t, beta in enumerate(betas):
        weights[t + 1] = math.sqrt(1.0 - beta) * weights[t]
        weights[t + 1, t + 1] = math.sqrt(beta)
    noises = weights[:, 1:]
    return weights[:, 0], noises @ noises.T


def posterior(betas: Array, t: int) -> tuple[float, float, float]:
    """E[x_{t-1} | x_t, x_{-1}] = a x_{-1} + b x_t and its variance: a, b, variance."""
    mean, covariance = chain(betas[: t + 1])
    gain = float(np.linalg.solve(covariance[t + 1 :, t + 1 :], covariance[t + 1 :, t])[0])
    variance = float(covariance[t, t] - gain * covariance[t + 1, t])
    return float(mean[t] - gain * mean[t + 1]), gain, variance


def make_schedule(betas: Array) -> dict[str, Array]:
    """Every table, from running products and from the joint Gaussian of the chain."""
    T = len(betas)
    bars, product = [], 1.0
    for beta in betas:
        product *= 1.0 - beta
        bars.append(product)
    coef_x0, coef_xt, variance = np.array([posterior(betas, t) for t in range(T)]).T
    clipped = [math.log(variance[max(t, 1)] if T > 1 else betas[0]) for t in range(T)]
    return {
        "betas": np.array(betas),
        "alphas": np.array([1.0 - beta for beta in betas]),
        "alpha_bars": np.array(bars),
        "alpha_bars_prev": np.array([1.0, *bars[:-1]]),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.array(clipped),
        "coef_x0": coef_x0,
        "coef_xt": coef_xt,
    }


def extract(table: Array, t: NDArray[np.int64], x: Array) -> Array:
    """One entry an example, with as many axes as x."""
    out = np.zeros((len(x),) + (1,) * (x.ndim - 1))
    for b, step in enumerate(t):
        out[b] = table[step]
    return out


def q_sample(x0: Array, t: NDArray[np.int64], noise: Array, betas: Array) -> Array:
    """A draw of x_t given x_{-1} = x0: mean and standard deviation from the joint Gaussian."""
    mean, covariance = chain(betas)
    out = np.zeros_like(x0)
    for b, step in enumerate(t):
        out[b] = mean[step + 1] * x0[b] + math.sqrt(covariance[step + 1, step + 1]) * noise[b]
    return out


def q_posterior(x0: Array, x_t: Array, t: NDArray[np.int64], betas: Array) -> tuple[Array, Array]:
    """The joint Gaussian conditioned on both ends."""
    mean, variance = np.zeros_like(x_t), np.zeros((len(x_t),) + (1,) * (x_t.ndim - 1))
    for b, step in enumerate(t):
        a, gain, variance[b] = posterior(betas, int(step))
        mean[b] = a * x0[b] + gain * x_t[b]
    return mean, variance


def predict_x0(x_t: Array, eps: Array, t: NDArray[np.int64], betas: Array) -> Array:
    """The x0 from which q_sample with the noise eps reaches x_t."""
    mean, covariance = chain(betas)
    out = np.zeros_like(x_t)
    for b, step in enumerate(t):
        out[b] = (x_t[b] - math.sqrt(covariance[step + 1, step + 1]) * eps[b]) / mean[step + 1]
    return out


def reverse_mean(x_t: Array, eps: Array, t: NDArray[np.int64], betas: Array) -> Array:
    """The posterior mean at the predicted x0, which is where equation 11 comes from."""
    return q_posterior(predict_x0(x_t, eps, t, betas), x_t, t, betas)[0]


def vlb_weight(betas: Array, t: int) -> float:
    """What a squared error in eps costs in KL at step t if sigma^2 = beta: (d mean / d eps)^2 /
    (2 sigma^2).
    """
    at = np.array([t])
    slope = reverse_mean(np.zeros(1), np.ones(1), at, betas) - reverse_mean(
        np.zeros(1), np.zeros(1), at, betas
    )
    return float(slope[0] ** 2 / (2.0 * betas[t]))


def diffusion_loss(
    model: Model,
    x0: Array,
    t: NDArray[np.int64],
    noise: Array,
    betas: Array,
    *,
    weighting: str = "simple",
) -> float:
    """Squared errors, one number at a time."""
    eps = model(q_sample(x0, t, noise, betas), t)
    total = 0.0
    for b in range(len(x0)):
        errors = [(n - e) ** 2 for n, e in zip(noise[b].ravel(), eps[b].ravel(), strict=True)]
        weight = vlb_weight(betas, int(t[b])) if weighting == "vlb" else 1.0
        total += weight * sum(errors) / len(errors)
    return total / len(x0)


def p_sample(
    model: Model, x_t: Array, t: int, z: Array, betas: Array, *, variance: str, clip: float | None
) -> Array:
    """One step back with the noise z, which does not matter at t = 0."""
    steps = np.full(len(x_t), t)
    x0 = predict_x0(x_t, model(x_t, steps), steps, betas)
    if clip is not None:
        x0 = np.minimum(np.maximum(x0, -clip), clip)
    mean, posterior_variance = q_posterior(x0, x_t, steps, betas)
    if t == 0:
        return mean
    sigma = np.sqrt(betas[t] if variance == "beta" else posterior_variance)
    return mean + sigma * z


def sample(
    model: Model, draws: Sequence[Array], betas: Array, *, variance: str, clip: float | None
) -> Array:
    """The trajectory, (T + 1, ...), from the T draws: x_T, then the noise of steps T - 1 to 1."""
    T, states = len(betas), [draws[0]]
    for t in range(T - 1, -1, -1):
        z = draws[T - t] if t > 0 else np.zeros_like(states[0])
        states.append(p_sample(model, states[-1], t, z, betas, variance=variance, clip=clip))
    return np.stack(states)


def phi(z: float) -> float:
    """The normal distribution function."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def discretized_gaussian_nll(x: Array, mean: Array, log_scale: Array) -> Array:
    """Every pixel on its own: the probability of its bin, taken in the tail where it is small."""
    x, mean, log_scale = np.broadcast_arrays(x, mean, log_scale)
    out = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        k = round((x[i] + 1.0) * 127.5)
        low = -math.inf if k == 0 else (k - 0.5) / 127.5 - 1.0
        high = math.inf if k == 255 else (k + 0.5) / 127.5 - 1.0
        low, high = ((end - mean[i]) / math.exp(log_scale[i]) for end in (low, high))
        probability = phi(high) - phi(low) if low + high < 0.0 else phi(-low) - phi(-high)
        out[i] = -math.log(max(probability, 1e-12))
    return out


def gaussian_kl(m1: Array, v1: Array, m2: Array, v2: Array) -> Array:
    """KL(N(m1, v1) || N(m2, v2)), elementwise."""
    return 0.5 * (v1 / v2 + (m1 - m2) ** 2 / v2 - 1.0 - np.log(v1 / v2))


def vlb_bits_per_dim(
    model: Model, x0: Array, noises: Sequence[Array], betas: Array
) -> dict[str, Array]:
    """The bound term by term; `noises` are those of t = T - 1 down to 0."""
    T, B = len(betas), len(x0)

    def bits(nats: Array) -> Array:
        return nats.reshape(B, -1).sum(1) / (x0[0].size * math.log(2.0))

    mean, covariance = chain(betas)
    one = np.ones_like(x0)
    prior = bits(gaussian_kl(mean[T] * x0, covariance[T, T] * one, 0.0 * one, one))
    clipped = make_schedule(betas)["posterior_log_variance_clipped"]
    kl = np.zeros((B, T - 1))
    for t in range(T - 1, -1, -1):
        steps = np.full(B, t)
        x_t = q_sample(x0, steps, noises[T - 1 - t], betas)
        guess = reverse_mean(x_t, model(x_t, steps), steps, betas)
        if t > 0:
            target, variance = q_posterior(x0, x_t, steps, betas)
            kl[:, t - 1] = bits(
                gaussian_kl(target, variance * one, guess, math.exp(clipped[t]) * one)
            )
    decoder = bits(discretized_gaussian_nll(x0, guess, 0.5 * clipped[0] * one))
    return {"prior": prior, "kl": kl, "decoder": decoder, "total": prior + kl.sum(1) + decoder}


def timestep_embedding(t: Array, dim: int) -> Array:
    """One sine and one cosine at a time."""
    half = dim // 2
    out = np.zeros((len(t), dim))
    for b in range(len(t)):
        for k in range(half):
            frequency = 10000.0 ** (-k / (half - 1)) if half > 1 else 1.0
            out[b, k] = math.sin(t[b] * frequency)
            out[b, half + k] = math.cos(t[b] * frequency)
    return out


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x / (1.0 + np.exp(-x))


def group_norm(x: Array, groups: int, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    """Every group of every example has mean 0 and variance 1, then scale and shift a channel."""
    out = np.zeros_like(x)
    size = x.shape[1] // groups
    for b in range(len(x)):
        for g in range(groups):
            part = x[b, g * size : (g + 1) * size]
            out[b, g * size : (g + 1) * size] = (part - part.mean()) / math.sqrt(part.var() + eps)
    return out * weight[:, None, None] + bias[:, None, None]


def conv(x: Array, weight: Array, bias: Array) -> Array:
    """Cross-correlation with zeros around, tap by tap."""
    B, _, H, W = x.shape
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((B, len(weight), H, W))
    for i in range(H):
        for j in range(W):
            window = padded[:, None, :, i : i + k, j : j + k]  # (b, 1, c, k, k)
            out[:, :, i, j] = (window * weight).sum((2, 3, 4)) + bias
    return out


def resnet_block(state: dict[str, Array], x: Array, temb: Array, groups: int) -> Array:
    """ResnetBlock in evaluation mode, from its state dict."""
    weight, bias = (
        [state[f"{name}.{part}"] for name in ("norm1", "conv1", "norm2", "conv2")]
        for part in ("weight", "bias")
    )
    h = conv(silu(group_norm(x, groups, weight[0], bias[0])), weight[1], bias[1])
    h = h + (silu(temb) @ state["temb_proj.weight"].T + state["temb_proj.bias"])[:, :, None, None]
    h = conv(silu(group_norm(h, groups, weight[2], bias[2])), weight[3], bias[3])
    if "shortcut.weight" in state:
        x = conv(x, state["shortcut.weight"], state["shortcut.bias"])
    return x + h


def unet_shapes(
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    resolution: int,
    attention: Sequence[int],
    image_channels: int,
) -> list[tuple[int, ...]]:
    """The shape of every parameter of the U-Net, by walking a tensor's channels through it."""
    shapes: list[tuple[int, ...]] = []

    def layer(*weight: int) -> int:
        shapes.extend([weight, weight[:1]])
        return weight[0]

    def norm(c: int) -> None:
        shapes.extend([(c,), (c,)])

    def block(i: int, o: int, attended: bool) -> int:
        norm(i)
        layer(o, i, 3, 3)
        layer(o, 4 * channels)
        norm(o)
        layer(o, o, 3, 3)
        if i != o:
            layer(o, i, 1, 1)
        if attended:
            norm(o)
            for _ in ("query", "key", "value", "output"):
                layer(o, o, 1, 1)
        return o

    layer(4 * channels, channels)
    layer(4 * channels, 4 * channels)
    skips = [layer(channels, image_channels, 3, 3)]
    for level, multiplier in enumerate(multipliers):
        if level > 0:
            skips.append(layer(skips[-1], skips[-1], 3, 3))
            resolution //= 2
        for _ in range(blocks):
            skips.append(block(skips[-1], channels * multiplier, resolution in attention))
    width = block(skips[-1], skips[-1], attended=True)
    width = block(width, width, attended=False)
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            width = block(width + skips.pop(), channels * multiplier, resolution in attention)
        if level > 0:
            layer(width, width, 3, 3)
            resolution *= 2
    norm(width)
    layer(image_channels, width, 3, 3)
    assert not skips
    return shapes


def unet_parameter_count(**settings: Any) -> int:
    """All entries of all parameters."""
    paper = dict(
        channels=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        resolution=32,
        attention=(16,),
        image_channels=3,
    )
    return sum(math.prod(shape) for shape in unet_shapes(**{**paper, **settings}))
