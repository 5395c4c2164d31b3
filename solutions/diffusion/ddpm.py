"""Denoising diffusion: drown data in noise step by step, learn to undo a step, then undo them all.

*Paper*  Ho, Jain, Abbeel (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
Read sections 2 and 3 with Algorithms 1 and 2 first; appendix B describes the network.

*Why*  A chain of T small Gaussian steps turns data into noise, and its marginals and posteriors are
known in closed form. Its reverse is a chain of Gaussians too, if the steps are small, so the
variational bound falls apart into T regressions; predicting the noise, all steps weighted
alike, is the regression that gives good samples.

*Names*
    beta_t, alpha_t     s.betas, s.alphas     (T,)    variance added in step t, and 1 - beta_t
    alpha-bar_t         s.alpha_bars          (T,)    product of alphas up to t: signal that is left
    beta-tilde_t        s.posterior_variance  (T,)    variance of q(x_{t-1} | x_t, x_0)
    t                   t                     (B,)    index of the step, counted from 0
    x_0, x_t            x0, x_t               (B, ...) data, and data after step t
    epsilon             noise, eps            (B, ...) noise drawn, and noise predicted
    epsilon_theta       model(x_t, t)         (B, ...) the network; t is int64 of shape (B,)

*Tasks*  linear_betas, make_schedule, extract, q_sample, q_posterior, predict_x0, reverse_mean,
diffusion_loss, train_step, p_sample, sample, discretized_gaussian_nll, vlb_bits_per_dim,
timestep_embedding, ResnetBlock, unet_parameter_count.

*Differs*  t = 0 is the paper's t = 1, and x_{-1} is the paper's x_0; alpha-bar_{-1} is 1.
Losses are means over the dimensions of an example where equations 12 and 14 have sums.
The decoder of equation 13 uses the exact normal distribution function, the authors' code
an approximation of it, and clips the predicted x_0 there, which we do not.

*Limits*  No exponential moving average, no attention block and no whole U-Net: see appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = Callable[[Tensor, Tensor], Tensor]


class Schedule(NamedTuple):
    """What the chain knows about step t, each table (T,) and float64."""

    betas: Tensor
    alphas: Tensor
    alpha_bars: Tensor
    alpha_bars_prev: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    coef_x0: Tensor
    coef_xt: Tensor


def same_shape(a: Tensor, b: Tensor) -> None:
    """Refuse two tensors of different shapes, which would broadcast in silence."""
    if a.shape != b.shape:
        raise ValueError(f"the shapes {tuple(a.shape)} and {tuple(b.shape)} should be equal")


def linear_betas(T: int, *, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """T variances in equal steps from start to end, both included -> (T,) float64  [Sec. 4]

    T = 1 gives start alone. Raises ValueError for T < 1, naming T's value.
    """
    # Task: the paper's schedule, in float64.
    if T < 1:
        raise ValueError(f"a schedule needs at least one step, not T = {T}")
    return torch.linspace(start, end, T, dtype=torch.float64)


def make_schedule(betas: Tensor) -> Schedule:
    """Every table of the chain from its variances, (T,) -> Schedule  [Eq. 4, 7]

    With alpha = 1 - beta, the tables are, all (T,) and float64 whatever the dtype of betas:
    alpha_bars, the running product of the alphas; alpha_bars_prev, the same one step earlier, which
    starts with 1; and those of the posterior q(x_{t-1} | x_t, x_0), which is the Gaussian
    N(coef_x0 x_0 + coef_xt x_t, posterior_variance):

        coef_x0 = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t)
        coef_xt = sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)
        posterior_variance = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)

    The posterior variance of t = 0 is 0 and has no logarithm: posterior_log_variance_clipped has
    at t = 0 the value of t = 1 instead, or log beta_0 where T = 1.
    Raises ValueError where betas is not one-dimensional or is empty, and at the first entry that is
    NaN, <= 0 or >= 1, naming its index and value.
    """
    # Task: check betas, then the tables, every one of them in float64.
    if betas.dim() != 1 or len(betas) == 0:
        raise ValueError(f"betas should be (T,) with T >= 1, not {tuple(betas.shape)}")
    for index, beta in enumerate(betas.tolist()):
        if not 0.0 < beta < 1.0:
            raise ValueError(f"betas[{index}] = {beta} should lie strictly between 0 and 1")
    betas = betas.to(torch.float64)
    alphas = 1.0 - betas
    alpha_bars = torch.cumprod(alphas, dim=0)
    alpha_bars_prev = torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
    variance = betas * (1.0 - alpha_bars_prev) / (1.0 - alpha_bars)
    first = variance[1:2] if len(betas) > 1 else betas
    return Schedule(
        betas=betas,
        alphas=alphas,
        alpha_bars=alpha_bars,
        alpha_bars_prev=alpha_bars_prev,
        posterior_variance=variance,
        posterior_log_variance_clipped=torch.log(torch.cat([first, variance[1:]])),
        coef_x0=alpha_bars_prev.sqrt() * betas / (1.0 - alpha_bars),
        coef_xt=alphas.sqrt() * (1.0 - alpha_bars_prev) / (1.0 - alpha_bars),
    )


def extract(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The entry of step t[b] for every example x[b], (T,), (B,), (B, ...) -> (B, 1, ..., 1)

    The answer has as many axes as x, which may be one, and takes its dtype and device.
    Raises ValueError where t is not of an integer dtype (naming the dtype) or not of shape (B,)
    (naming the shape), and where an entry of t lies outside [0, T) (naming the entry): -1 must not
    wrap around to the last step.
    """
    # Task: check t, look its entries up, and shape them so that they broadcast against x.
    if t.is_floating_point() or t.dtype == torch.bool:
        raise ValueError(f"t should be of an integer dtype, not {t.dtype}")
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t should be {tuple(x.shape[:1])}, one step an example, not {tuple(t.shape)}"
        )
    t = t.long()
    outside = t[(t < 0) | (t >= len(table))]
    if len(outside):
        raise ValueError(f"t = {outside[0].item()} lies outside [0, {len(table)})")
    values = table.to(x.device)[t].to(x.dtype)
    return values.reshape(-1, *[1] * (x.dim() - 1))  # (b, 1, ..., 1)


def q_sample(x0: Tensor, t: Tensor, noise: Tensor, s: Schedule) -> Tensor:
    """Data after step t, in one jump, (B, ...), (B,), (B, ...) -> (B, ...)  [Eq. 4]

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise

    Here and in all that follows a coefficient is computed from the float64 tables, and only
    then takes the dtype of x: in float32 1 - alpha_bar_0 has three digits left.
    Raises ValueError where x0 and noise differ in shape, and for t as `extract` does.
    """
    # Task: the forward process in closed form.
    same_shape(x0, noise)
    signal = extract(s.alpha_bars.sqrt(), t, x0)
    return signal * x0 + extract((1.0 - s.alpha_bars).sqrt(), t, x0) * noise


def q_posterior(x0: Tensor, x_t: Tensor, t: Tensor, s: Schedule) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), -> (B, ...), (B, 1, ..., 1)  [Eq. 6, 7]

    Where t = 0 the mean is x_0 and the variance 0.
    Raises ValueError where x0 and x_t differ in shape, and for t as `extract` does.
    """
    # Task: where the chain was one step earlier, if both its ends are known.
    same_shape(x0, x_t)
    mean = extract(s.coef_x0, t, x_t) * x0 + extract(s.coef_xt, t, x_t) * x_t
    return mean, extract(s.posterior_variance, t, x_t)


def predict_x0(x_t: Tensor, eps: Tensor, t: Tensor, s: Schedule) -> Tensor:
    """The data that x_t comes from if its noise is eps, -> (B, ...)  [Eq. 15]

        x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)

    Raises ValueError where x_t and eps differ in shape, and for t as `extract` does.
    """
    # Task: solve q_sample for x_0.
    same_shape(x_t, eps)
    sigma = extract((1.0 - s.alpha_bars).sqrt(), t, x_t)
    return (x_t - sigma * eps) / extract(s.alpha_bars.sqrt(), t, x_t)


def reverse_mean(x_t: Tensor, eps: Tensor, t: Tensor, s: Schedule) -> Tensor:
    """Mean of p_theta(x_{t-1} | x_t) if the noise in x_t is eps, -> (B, ...)  [Eq. 11]

        mu = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t)

    Raises ValueError where x_t and eps differ in shape, and for t as `extract` does.
    """
    # Task: one step back.
    same_shape(x_t, eps)
    step = extract(s.betas / (1.0 - s.alpha_bars).sqrt(), t, x_t)
    return (x_t - step * eps) / extract(s.alphas.sqrt(), t, x_t)


def diffusion_loss(
    model: Model, x0: Tensor, t: Tensor, noise: Tensor, s: Schedule, *, weighting: str = "simple"
) -> Tensor:
    """How badly the model recognises the noise, (B, ...), (B,), (B, ...) -> ()  [Eq. 12, 14]

    Each example costs the mean of (noise - model(x_t, t))^2 over its dimensions; the loss is the
    mean over the batch. weighting "simple" leaves it at that; "vlb" multiplies each cost by

        w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t))    with sigma_t^2 = beta_t

    The model is called once, with x_t and the t given here. Gradients flow into it, x0 and noise.
    Raises ValueError for another weighting (naming it), for an answer of the model that is not of
    the shape of x0, where x0 and noise differ in shape, and for t as `extract` does.
    """
    # Task: noise the data, ask the model once, weigh the squared errors.
    if weighting not in ("simple", "vlb"):
        raise ValueError(f"weighting should be 'simple' or 'vlb', not {weighting!r}")
    eps = model(q_sample(x0, t, noise, s), t)
    same_shape(eps, noise)
    cost = (noise - eps).square().reshape(len(x0), -1).mean(dim=1)  # (b,)
    if weighting == "vlb":
        weights = s.betas / (2.0 * s.alphas * (1.0 - s.alpha_bars))
        cost = cost * extract(weights, t, cost)
    return cost.mean()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x0: Tensor,
    s: Schedule,
    generator: torch.Generator,
) -> float:
    """One step of gradient descent on L_simple; returns the loss it started from  [Alg. 1]

    Two draws, in this order: t, a uniform integer in [0, T) for every example on its own, by
    torch.randint with shape (B,); then the noise, by torch.randn with the shape and dtype of x0.
    Gradients left over from before the call do not count. The training mode is left as it is.
    """
    # Task: draw t, draw the noise, zero the gradients, backward, step.
    t = torch.randint(0, len(s.betas), x0.shape[:1], generator=generator, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    loss = diffusion_loss(model, x0, t, noise, s)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def p_sample(
    model: Model,
    x_t: Tensor,
    t: int,
    s: Schedule,
    generator: torch.Generator,
    *,
    variance: str = "beta",
    clip: float | None = None,
) -> Tensor:
    """One step back for a whole batch: a draw of x_{t-1} given x_t, (B, ...) -> (B, ...)  [Alg. 2]

        x_{t-1} = mu(x_t, model(x_t, t)) + sigma_t z

    mu is reverse_mean. With clip = c it is the mean of q_posterior instead, at the predicted x_0
    clamped to [-c, c]. sigma_t^2 is beta_t for variance "beta", posterior_variance for "posterior".
    z is one torch.randn with the shape and dtype of x_t; at t = 0 there is no noise, and nothing is
    drawn. The model is called once, its t is the int64 (B,) full of t, and no graph is kept.
    Raises ValueError for another variance or for a clip that is not > 0, naming it, for an answer
    of the model that is not of the shape of x_t, and for t outside [0, T), naming it.
    """
    # Task: the mean, clipped or not, then the noise, unless it is the last step.
    if variance not in ("beta", "posterior"):
        raise ValueError(f"variance should be 'beta' or 'posterior', not {variance!r}")
    if clip is not None and not clip > 0.0:
        raise ValueError(f"clip should be positive, not {clip}")
    x_t = x_t.detach()
    steps = torch.full(x_t.shape[:1], t, dtype=torch.int64, device=x_t.device)
    with torch.no_grad():
        eps = model(x_t, steps)
    if clip is None:
        mean = reverse_mean(x_t, eps, steps, s)
    else:
        x0 = predict_x0(x_t, eps, steps, s).clamp(-clip, clip)
        mean, _ = q_posterior(x0, x_t, steps, s)
    if t == 0:
        return mean
    z = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)
    sigma = (s.betas if variance == "beta" else s.posterior_variance).sqrt()
    return mean + extract(sigma, steps, x_t) * z


def sample(
    model: Model,
    shape: tuple[int, ...],
    s: Schedule,
    generator: torch.Generator,
    *,
    variance: str = "beta",
    clip: float | None = None,
    return_trajectory: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """From noise to data, all T steps -> `shape`, or the trajectory (T + 1, *shape)  [Alg. 2]

    Draws x_T by one torch.randn with `shape` and `dtype`, on the generator's device, then steps
    back from t = T - 1 to 0 as `p_sample` does, T draws in all. The trajectory is x_T and the state
    after each step, in that order, so its last entry is the sample. No graph is kept.
    Raises ValueError as `p_sample` does.
    """
    # Task: Algorithm 2.
    x = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    trajectory = [x]
    for t in range(len(s.betas) - 1, -1, -1):
        x = p_sample(model, x, t, s, generator, variance=variance, clip=clip)
        if return_trajectory:
            trajectory.append(x)
    return torch.stack(trajectory) if return_trajectory else x


def discretized_gaussian_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Cost in nats of pixels under a Gaussian cut into 256 bins, -> like x  [Eq. 13]

    x is on the grid k / 127.5 - 1, k = 0..255. Its bin is [x - 1/255, x + 1/255], but the first one
    starts at -infinity and the last one ends at +infinity. The cost is -log of the probability of
    that bin under N(mean, exp(log_scale)^2), with a probability below 1e-12 counted as 1e-12.
    mean and log_scale broadcast against x. Both tails keep their digits, in float32 too: x, mean
    and -x, -mean cost the same, although 1 - 1e-9 rounds to 1. (In float32 torch.special.ndtr is 0
    below -5.5, where erfc still has all its digits.) Costs and gradients are finite for any mean
    and for log_scale of -12 and more.
    """

    # Task: differences of the normal distribution function, open at the edges.
    def phi(z: Tensor) -> Tensor:
        return 0.5 * torch.special.erfc(-z * math.sqrt(0.5))

    centred, inverse = x - mean, torch.exp(-log_scale)
    upper, lower = (centred + 1.0 / 255.0) * inverse, (centred - 1.0 / 255.0) * inverse
    # above the mean both ends are mirrored, into the tail where phi is small and exact
    above = centred > 0
    inner = phi(torch.where(above, -lower, upper)) - phi(torch.where(above, -upper, lower))
    probability = torch.where(x < -0.999, phi(upper), torch.where(x > 0.999, phi(-lower), inner))
    return -torch.log(probability.clamp_min(1e-12))


def vlb_bits_per_dim(
    model: Model, x0: Tensor, s: Schedule, generator: torch.Generator
) -> dict[str, Tensor]:
    """The terms of the variational bound in bits per dimension, (B, ...) -> dict  [Eq. 5]

        prior    (B,)        KL(q(x_T | x_0) || N(0, I))
        kl       (B, T - 1)  entry t - 1: KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t))
        decoder  (B,)        -log p_theta(x_0 | x_1), by discretized_gaussian_nll
        total    (B,)        their sum

    Each is a sum over the D dimensions of an example, divided by D log 2. The mean of p_theta is
    reverse_mean, its variance exp(posterior_log_variance_clipped), also for the decoder (t = 0).
    x_t is drawn anew for every t from T - 1 down to 0, each by one torch.randn with the shape and
    dtype of x0; the model is called once for each, with an int64 (B,) full of t. No graph is kept.
    """
    # Task: the prior, then one expectation after the other from the last step to the first.
    x0, last = x0.detach(), s.alpha_bars[-1]
    offset = (last + torch.log1p(-last)).to(x0)
    prior = 0.5 * (last.to(x0) * x0.square() - offset)
    kl = x0.new_zeros(len(x0), len(s.betas) - 1)
    for t in range(len(s.betas) - 1, -1, -1):
        steps = torch.full(x0.shape[:1], t, dtype=torch.int64, device=x0.device)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        x_t = q_sample(x0, steps, noise, s)
        with torch.no_grad():
            mean = reverse_mean(x_t, model(x_t, steps), steps, s)
        log_variance = extract(s.posterior_log_variance_clipped, steps, x0)
        if t > 0:
            target, _ = q_posterior(x0, x_t, steps, s)
            gap = 0.5 * (target - mean).square() * torch.exp(-log_variance)
            kl[:, t - 1] = gap.reshape(len(x0), -1).mean(dim=1) / math.log(2.0)
    decoder = discretized_gaussian_nll(x0, mean, 0.5 * log_variance)
    prior, decoder = (v.reshape(len(x0), -1).mean(dim=1) / math.log(2.0) for v in (prior, decoder))
    return {"prior": prior, "kl": kl, "decoder": decoder, "total": prior + kl.sum(dim=1) + decoder}


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of t at dim // 2 frequencies, (B,) -> (B, dim)  [App. B]

        freq_k = exp(-k log(10000) / (half - 1)),   k = 0..half - 1,   half = dim // 2

    which run from 1 down to 1/10000; half = 1 has the frequency 1 alone. An odd dim ends with a
    column of zeros. A floating t keeps its dtype, an integer t gives float32.
    Raises ValueError for dim < 2, naming it.
    """
    # Task: tell the network what time it is.
    if dim < 2:
        raise ValueError(f"an embedding needs dim >= 2, not {dim}")
    half = dim // 2
    k = torch.arange(half, dtype=torch.float64, device=t.device)
    angles = t.double()[:, None] * torch.exp(-k * math.log(10000.0) / max(half - 1, 1))  # (b, half)
    table = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
    return table.to(t.dtype if t.is_floating_point() else torch.float32)


class ResnetBlock(nn.Module):
    """The residual block, (B, in_ch, H, W), (B, temb_dim) -> (B, out_ch, H, W)  [App. B]

        h = conv1(SiLU(norm1(x)))                 conv1, conv2: 3 x 3, padded by zeros, with bias
        h = h + temb_proj(SiLU(temb))             the same shift at every pixel
        h = conv2(dropout(SiLU(norm2(h))))
        answer = shortcut(x) + h

    norm1 and norm2 are GroupNorm with `groups` groups and eps 1e-6, temb_proj is Linear; shortcut
    is a 1 x 1 convolution with bias if in_ch and out_ch differ, and the identity, without
    parameters, if they do not. These names are those of the parameters, too. Weight and bias of
    conv2 start at zero, the rest as torch makes it. Dropout has the rate `dropout` and draws from
    torch's global state, as nn.Dropout does, in training mode only.
    Raises ValueError where in_ch or out_ch is not a multiple of groups, naming that number.
    """

    def __init__(
        self, in_ch: int, out_ch: int, temb_dim: int, *, groups: int = 32, dropout: float = 0.0
    ) -> None:
        # Task: the layers. Until conv2 is trained the block is its shortcut and nothing else.
        super().__init__()
        for channels in (in_ch, out_ch):
            if channels % groups:
                raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.norm1 = nn.GroupNorm(groups, in_ch, eps=1e-6)
        self.conv1 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.temb_proj = nn.Linear(temb_dim, out_ch)
        self.norm2 = nn.GroupNorm(groups, out_ch, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_ch, out_ch, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)
        self.shortcut = nn.Identity() if in_ch == out_ch else nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        # Task: the four lines of the class's docstring.
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


def unet_parameter_count(
    *,
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 2, 2, 2),
    blocks: int = 2,
    resolution: int = 32,
    attention: tuple[int, ...] = (16,),
    image_channels: int = 3,
) -> int:
    """The number of weights and biases in the paper's U-Net  [App. B]

    Level i works at resolution / 2^i with channels * multipliers[i]. In order, "block" being
    ResnetBlock with temb_dim 4 * channels, and every convolution 3 x 3 with bias:

        time     Linear channels -> 4 channels, Linear 4 channels -> 4 channels
        in       a convolution image_channels -> channels, whose output is the first skip
        down     in each level: `blocks` blocks, each output a skip; then, except in the last level,
                 a convolution of stride 2 that keeps the channels, its output a skip too
        middle   block, attention, block, all keeping the channels
        up       in each level, last to first: `blocks` + 1 blocks, each taking its input joined
                 along the channels with the latest skip not yet used; then, except in the first
                 level, a convolution that keeps the channels, at twice the resolution
        out      GroupNorm, a convolution to image_channels

    A block of the way down or up is followed by attention if its resolution is one of `attention`:
    a GroupNorm and 1 x 1 convolutions with bias for query, key, value and output.
    """

    # Task: add them up; the paper says 35.7 million for CIFAR-10.
    def conv(i: int, o: int, k: int = 3) -> int:
        return i * o * k * k + o

    def block(i: int, o: int) -> int:
        shift, shortcut = conv(4 * channels, o, 1), conv(i, o, 1) if i != o else 0
        return 2 * i + conv(i, o) + shift + 2 * o + conv(o, o) + shortcut

    def attend(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    count = conv(channels, 4 * channels, 1) + conv(4 * channels, 4 * channels, 1)
    count += conv(image_channels, channels)
    width, skips, last = channels, [channels], len(multipliers) - 1
    for i, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            count += block(width, width := channels * multiplier)
            count += attend(width) if resolution >> i in attention else 0
            skips.append(width)
        if i < last:
            count += conv(width, width)
            skips.append(width)
    count += 2 * block(width, width) + attend(width)
    for i in range(last, -1, -1):
        for _ in range(blocks + 1):
            count += block(width + skips.pop(), width := channels * multipliers[i])
            count += attend(width) if resolution >> i in attention else 0
        count += conv(width, width) if i > 0 else 0
    return count + 2 * width + conv(width, image_channels)


def ring(n: int, generator: torch.Generator) -> Tensor:
    """Points of eight Gaussians of std 0.15 on a circle of radius 1.2, -> (n, 2)"""
    angle = torch.randint(0, 8, (n,), generator=generator) * (math.pi / 4.0)
    centres = 1.2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + 0.15 * torch.randn(n, 2, generator=generator)


class TinyEps(nn.Module):
    """A network for points in the plane, (B, 2), (B,) -> (B, 2), that takes seconds to train."""

    def __init__(self, T: int, generator: torch.Generator, *, width: int = 64) -> None:
        super().__init__()
        self.T = T
        self.layers = nn.ModuleList(nn.Linear(i, width) for i in (2, width))
        self.times = nn.ModuleList(nn.Linear(32, width) for _ in self.layers)
        self.out = nn.Linear(width, 2)
        for parameter in self.parameters():
            bound = 1.0 / math.sqrt(parameter.shape[-1])
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = timestep_embedding(1000.0 * t / self.T, 32).to(x.dtype)
        for layer, time in zip(self.layers, self.times, strict=True):
            x = F.silu(layer(x) + time(temb))
        return self.out(x)


def mixture_eps(x_t: Tensor, t: Tensor, s: Schedule, means: Tensor, std: float) -> Tensor:
    """What a perfect model answers for a mixture of Gaussians, (B, d), (B,), (K, d) -> (B, d)"""
    left = extract(s.alpha_bars, t, x_t)  # (b, 1)
    variance = left * std**2 + 1.0 - left
    gap = x_t[:, None] - left.sqrt()[:, None] * means  # (b, k, d)
    weights = torch.softmax(-gap.square().sum(dim=-1) / (2.0 * variance), dim=-1)
    return (1.0 - left).sqrt() * (weights[..., None] * gap).sum(dim=1) / variance
