"""Scaling laws: how loss falls with size, data and compute, and how to fit such a law honestly.

*Paper*  Kaplan, McCandlish, Henighan, Brown, Chess, Child, Gray, Radford, Wu, Amodei (2020),
Scaling Laws for Neural Language Models, arXiv:2001.08361.
Read sections 1.2 and 2.1 first, then 4 to 6 and appendix B.

*Why*  Over many decades the loss of a language model is a power law in its size, in its data and in
the compute spent on it: a straight line in log-log axes. What small models cost then says what
a large one will, before it is trained, and how to split a budget between size, batch and steps.
A line through a handful of points is worth as much as its error bars, so they come with the fit.

*Names*
    N                  parameters, without the tables of tokens and positions
    D, B, B_crit, B*   tokens: of data, in a batch; `b_crit` and `b_star`, the one at a loss of 1
    S, S_min           `S`, `s_min`, steps of the optimiser, and the fewest, with huge batches
    E, E_min           `E`, tokens seen in training, and the fewest, with tiny batches
    C                  `C`, FLOPs of training, here all of them; a PF-day is 8.64e19
    L                  `loss`, nats per token
    alpha_X, X_c       `alpha_n`, `n_c`, ...: exponents and scales of N, D, S, B and C
    d_attn             width of queries, keys and values, all heads together
    x, y               what was measured, both (n,); in logs a power law is a line

*Tasks*  transformer_counts, log_line, fit_power_law, power_law_interval, prediction_interval,
loss_n_d, overfit_fraction, data_needed, critical_batch, steps_min, compute_min, noise_tradeoff,
loss_n_s, early_stop_bound, optimal_exponents, compute_optimal, train_and_measure.

*Differs*  The paper has no intervals; ours are the textbook's, for normal errors of log y.
Appendix B writes S for S_min. At B_crit a run takes twice as many steps (Eq. 5.4), and
compute_optimal pays for them. Our models are no Transformers: they see eight bytes.

*Limits*  An interval knows of scatter, not of a bend: it holds only as far as the law does.
The constants belong to one tokenizer and one data set.
"""

from __future__ import annotations

import functools
import inspect
import math
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Number = float | Tensor
P = ParamSpec("P")
R = TypeVar("R")


def in_double(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of float64 tensors take Python numbers and other dtypes, too (given).

    Every argument that is not keyword-only arrives as a float64 tensor, a number as one without
    axes. Numbers alone are answered by Python floats, tensors by tensors of their widest dtype.
    """
    signature = inspect.signature(function)
    inner = [p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]

    @functools.wraps(function)
    def outer(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        tensors = [given[name] for name in inner if isinstance(given[name], Tensor)]
        floating = [x.dtype for x in tensors if x.is_floating_point()] or [torch.float64]
        dtype = functools.reduce(torch.promote_types, floating)

        def answer(out: Any) -> Any:
            if isinstance(out, dict):
                return {name: answer(value) for name, value in out.items()}
            if isinstance(out, tuple):
                return tuple(answer(value) for value in out)
            return out.to(dtype) if tensors else out.item()

        double = {name: torch.as_tensor(given[name], dtype=torch.float64) for name in inner}
        result: R = answer(function(**{**given, **double}))  # type: ignore[call-arg]
        return result

    return outer


def transformer_counts(
    *, n_layer: int, d_model: int, d_attn: int, d_ff: int, n_ctx: int, n_vocab: int
) -> dict[str, int]:
    """Parameters, and FLOPs per token, of a Transformer's shape  [Table 1, Eq. 2.1, 2.2].

    params          N, the weights of n_layer layers: queries, keys and values (d_model x d_attn
                    each), the output (d_attn x d_model), and a feed-forward network (d_model x d_ff
                    and back); no biases, no gains of the layer norms
    embedding       the tables of tokens and positions, (n_vocab + n_ctx) d_model; not part of N
    forward_flops   2 N + 2 n_layer n_ctx d_attn: a multiplication and an addition a weight, and
                    attention, where a token sees half of n_ctx on average; the tables are left out
    train_flops     three times as many: backward costs twice what forward does

    All exact ints. Raises ValueError, naming the argument, where one is below 1 or not an int; a
    bool is no int here.
    """
    # Task: check all six, then Table 1.
    sizes = {
        "n_layer": n_layer,
        "d_model": d_model,
        "d_attn": d_attn,
        "d_ff": d_ff,
        "n_ctx": n_ctx,
        "n_vocab": n_vocab,
    }
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} should be an int of at least 1, not {size!r}")
    params = 2 * d_model * n_layer * (2 * d_attn + d_ff)
    forward = 2 * params + 2 * n_layer * n_ctx * d_attn
    return {
        "params": params,
        "embedding": (n_vocab + n_ctx) * d_model,
        "forward_flops": forward,
        "train_flops": 3 * forward,
    }


@in_double
def log_line(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The least-squares line of log y on log x: (n,), (n,) -> dict of scalars  [section 1.2].

    log y ~ intercept + slope log x, with the least sum of squared residuals; natural logarithms

    `slope`, `intercept`; `centre`, the mean of log x; `spread`, the sum of (log x - centre)^2;
    `residual`, the sum of squares that is left, which is >= 0. The points come in any order. Right
    where all x lie within a thousandth of each other, and where next to nothing is left.

    Raises ValueError: x and y not both (n,) ("shape"), n < 2 ("points"), a value that is not
    positive and finite ("positive"), all x equal ("equal").
    """
    # Task: check, take logarithms, centre them, and divide one sum by another.
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError(f"x and y should be of one shape (n,), not {x.shape} and {y.shape}")
    if len(x) < 2:
        raise ValueError(f"a line needs at least two points, not {len(x)}")
    for values in (x, y):
        if not ((values > 0) & values.isfinite()).all():
            raise ValueError(f"values should be positive and finite: {values.tolist()}")
    if (x == x[0]).all():
        raise ValueError(f"all x are equal, {x[0].item()}: no line is steeper than another")
    u, v = x.log(), y.log()
    du, dv = u - u.mean(), v - v.mean()
    spread = du.square().sum()
    slope = (du * dv).sum() / spread
    return {
        "slope": slope,
        "intercept": v.mean() - slope * u.mean(),
        "centre": u.mean(),
        "spread": spread,
        "residual": (dv - slope * du).square().sum(),
    }


@in_double
def fit_power_law(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The power law through points, in the paper's form: (n,), (n,) -> alpha, x_c, r2  [Eq. 1.1].

    y = (x_c / x)^alpha    fitted by log_line

    alpha > 0 where y falls; a law that rises has alpha < 0. r2 is the share of the variation of
    log y that the line explains.

    Raises ValueError as log_line does, and where the line is level but for rounding, slope^2 spread
    < 1e-24, as it is where all y are equal ("flat"): flat data has no scale x_c.
    """
    # Task: write the line in the paper's letters.
    line = log_line(x, y)
    alpha = -line["slope"]
    explained = alpha.square() * line["spread"]
    if explained < 1e-24:
        raise ValueError("flat data has no scale: the slope is 0")
    return alpha, torch.exp(line["intercept"] / alpha), explained / (explained + line["residual"])


def t_quantile(level: float, freedom: int) -> float:
    """The t that |T| exceeds with probability 1 - level, T of Student's distribution (given).

    freedom: degrees of freedom, an int. The distribution function is a finite sum in the angle
    whose tangent is t / sqrt(freedom) (Abramowitz and Stegun 26.7.3, 26.7.4); bisection inverts it.

    Raises ValueError: a level not strictly between 0 and 1 ("level"), freedom < 1 ("points").
    """
    if not 0 < level < 1:
        raise ValueError(f"level should lie strictly between 0 and 1, not {level}")
    if freedom < 1:
        raise ValueError("an interval needs at least three points: two fit any line")

    def inside(angle: float) -> float:
        total, term = 0.0, math.cos(angle) ** (freedom % 2)
        for power in range(freedom % 2, freedom - 1, 2):
            total += term
            term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
        total *= math.sin(angle)
        return (total + angle) * 2 / math.pi if freedom % 2 else total

    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


@in_double
def power_law_interval(x: Tensor, y: Tensor, *, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """A confidence interval for the exponent alpha: (n,), (n,) -> low, high.

    alpha -+ t sqrt(residual / (n - 2) / spread)

    with t = t_quantile(level, n - 2): two parameters are fitted, so n - 2 degrees of freedom are
    left to estimate the errors from. If they are independent, normal and of one size in log y, the
    interval holds the true alpha in a share `level` of all experiments. Flat data are welcome.

    Raises ValueError as log_line does, and as t_quantile does: for n < 3 ("points") and for a level
    outside (0, 1) ("level").
    """
    # Task: the standard error of a slope, times Student's t.
    line = log_line(x, y)
    half = t_quantile(level, len(x) - 2) * (line["residual"] / (len(x) - 2) / line["spread"]).sqrt()
    return -line["slope"] - half, -line["slope"] + half


@in_double
def prediction_interval(
    x: Tensor, y: Tensor, x_new: Tensor, *, level: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Where a new measurement at x_new should fall: (n,), (n,), any shape -> low, high, that shape.

    exp(log f -+ t s sqrt(1 + 1 / n + (log x_new - centre)^2 / spread))

    f is the fitted law at x_new, s^2 = residual / (n - 2), t = t_quantile(level, n - 2). The three
    terms: the new point's own error, the height of the line, its slope. Far from the data the
    last one wins.

    Raises ValueError as power_law_interval does, and for an x_new that is not positive ("x_new").
    """
    # Task: an interval in logarithms, then back.
    if not (x_new > 0).all():
        raise ValueError(f"x_new should be positive, not {x_new.tolist()}")
    line, n = log_line(x, y), len(x)
    middle = line["intercept"] + line["slope"] * x_new.log()
    shares = 1 + 1 / n + (x_new.log() - line["centre"]).square() / line["spread"]
    half = t_quantile(level, n - 2) * (line["residual"] / (n - 2) * shares).sqrt()
    return torch.exp(middle - half), torch.exp(middle + half)


@in_double
def loss_n_d(
    N: Number,
    D: Number,
    *,
    alpha_n: float = 0.076,
    alpha_d: float = 0.103,
    n_c: float = 6.4e13,
    d_c: float = 1.8e13,
) -> Number:
    """The loss of N parameters, stopped in time on D tokens; N and D broadcast  [Eq. 1.5, Table 2].

    L = [(n_c / N)^(alpha_n / alpha_d) + d_c / D]^alpha_d

    D = math.inf gives (n_c / N)^alpha_n, N = math.inf gives (d_c / D)^alpha_d, both give 0.
    """
    # Task: one line.
    return ((n_c / N) ** (alpha_n / alpha_d) + d_c / D) ** alpha_d


@in_double
def overfit_fraction(
    N: Number,
    D: Number,
    *,
    alpha_n: float = 0.076,
    alpha_d: float = 0.103,
    n_c: float = 6.4e13,
    d_c: float = 1.8e13,
) -> Number:
    """How much higher the loss is for want of data; N and D broadcast  [Eq. 4.2, 4.3].

    L(N, D) / L(N, inf) - 1 = [1 + (N / n_c)^(alpha_n / alpha_d) d_c / D]^alpha_d - 1

    Right to all digits where it is as small as 1e-14, or less. 0 for D = math.inf; N is finite.
    """
    # Task: do not add 1 to what is small: there are functions for log(1 + x) and exp(x) - 1.
    return torch.expm1(alpha_d * torch.log1p((N / n_c) ** (alpha_n / alpha_d) * d_c / D))


@in_double
def data_needed(
    N: Number,
    tolerance: Number,
    *,
    alpha_n: float = 0.076,
    alpha_d: float = 0.103,
    n_c: float = 6.4e13,
    d_c: float = 1.8e13,
) -> Number:
    """The D whose overfit_fraction is `tolerance`; N and tolerance broadcast  [Eq. 4.4].

    D = d_c (N / n_c)^(alpha_n / alpha_d) / ((1 + tolerance)^(1 / alpha_d) - 1)

    Right to all digits for a tolerance of 1e-14. About 5e3 N^0.74 for 2 %, the noise between seeds.

    Raises ValueError: a tolerance that is not > 0 ("tolerance").
    """
    # Task: check, then solve Eq. 4.3 for D.
    if not (tolerance > 0).all():
        raise ValueError(f"tolerance should be positive, not {tolerance.tolist()}")
    return d_c * (N / n_c) ** (alpha_n / alpha_d) / torch.expm1(torch.log1p(tolerance) / alpha_d)


@in_double
def critical_batch(loss: Number, *, b_star: float = 2e8, alpha_b: float = 0.21) -> Number:
    """The batch at which time and compute are traded evenly, in tokens, any shape  [Eq. 1.4, 5.3].

    B_crit = b_star / loss^(1 / alpha_b)
    """
    # Task: one line.
    return b_star / loss ** (1 / alpha_b)


@in_double
def steps_min(S: Number, B: Number, b_crit: Number) -> Number:
    """What S steps at batch B would be with huge batches; all broadcast  [Eq. 5.4].

    S_min = S / (1 + b_crit / B)

    B = math.inf gives S.
    """
    # Task: small batches waste steps.
    return S / (1 + b_crit / B)


@in_double
def compute_min(C: Number, B: Number, b_crit: Number) -> Number:
    """What compute C at batch B would be with tiny batches; all broadcast  [Eq. 5.5].

    C_min = C / (1 + B / b_crit)

    B = 0 gives C.
    """
    # Task: large batches waste compute.
    return C / (1 + B / b_crit)


@in_double
def noise_tradeoff(S: Number, E: Number, s_min: Number, e_min: Number) -> Number:
    """1 on the frontier between steps S and tokens E to one loss; all broadcast  [Eq. 5.1].

    (S / s_min - 1) (E / e_min - 1)

    More than 1 is slower than need be, and nothing is below 1. B_crit = e_min / s_min (Eq. 5.2).
    """
    # Task: one line.
    return (S / s_min - 1) * (E / e_min - 1)


@in_double
def loss_n_s(
    N: Number,
    s_min: Number,
    *,
    alpha_n: float = 0.077,
    n_c: float = 6.5e13,
    alpha_s: float = 0.76,
    s_c: float = 2.1e3,
) -> Number:
    """The loss of N parameters after s_min steps, with data to spare  [Eq. 1.6, 5.6, Table 3].

    L = (n_c / N)^alpha_n + (s_c / s_min)^alpha_s

    N and s_min broadcast; s_min = math.inf leaves the first term.
    """
    # Task: one line.
    return (n_c / N) ** alpha_n + (s_c / s_min) ** alpha_s


@in_double
def early_stop_bound(
    N: Number,
    D: Number,
    *,
    alpha_n: float = 0.076,
    alpha_d: float = 0.103,
    n_c: float = 6.4e13,
    d_c: float = 1.8e13,
    alpha_s: float = 0.76,
    s_c: float = 2.1e3,
) -> Number:
    """The fewest steps before which stopping makes no sense; N, D broadcast  [Eq. 5.7].

    s_c / [L(N, D) - L(N, inf)]^(1 / alpha_s)    with L = loss_n_d

    D = math.inf gives inf. Right to all digits where the two losses agree to 1e-14, or closer:
    their difference is overfit_fraction of the second.
    """
    # Task: do not subtract one loss from the other.
    law = {"alpha_n": alpha_n, "alpha_d": alpha_d, "n_c": n_c, "d_c": d_c}
    gap = overfit_fraction(N, D, **law) * loss_n_d(N, math.inf, **law)
    return s_c / gap ** (1 / alpha_s)


@in_double
def optimal_exponents(alpha_n: Number, alpha_b: Number, alpha_s: Number) -> dict[str, Number]:
    """How a growing budget is best spent, as powers of C; all broadcast  [Eq. 1.7, 1.8, 6.4, 6.5].

    alpha_c = 1 / (1 / alpha_s + 1 / alpha_b + 1 / alpha_n)

    Returns a dict: `alpha_c`, of L ~ C^-alpha_c; `N` = alpha_c / alpha_n, of N ~ C^N, and likewise
    `B` and `S`. The last three sum to 1, since C = 6 N B S.
    """
    # Task: four numbers.
    alpha_c = 1 / (1 / alpha_s + 1 / alpha_b + 1 / alpha_n)
    return {
        "alpha_c": alpha_c,
        "N": alpha_c / alpha_n,
        "B": alpha_c / alpha_b,
        "S": alpha_c / alpha_s,
    }


@in_double
def compute_optimal(
    C: Number,
    *,
    alpha_n: float = 0.077,
    n_c: float = 6.5e13,
    alpha_s: float = 0.76,
    s_c: float = 2.1e3,
    alpha_b: float = 0.21,
    b_star: float = 2e8,
) -> dict[str, Number]:
    """The best use of C FLOPs, any shape -> dict of that shape  [appendix B].

    Minimises loss = loss_n_s(N, s_min) over N and s_min where C = 6 N B S. The batch is
    B = critical_batch(loss) at that very loss, and there S = 2 s_min steps are taken (Eq. 5.4).
    The minimum is where one more FLOP gains as much spent on N as on steps (Eq. B.4):

    (s_c / s_min)^alpha_s = (alpha_n / alpha_s) (n_c / N)^alpha_n

    so training stops alpha_n / alpha_s, 10 %, above what the model converges to. Returns `N`,
    `S_min`, `B`, `loss`, to 1e-10 of each: bisect log N, in which the cost grows, or use that
    everything is a power of N.

    Raises ValueError: a C that is not > 0 ("C").
    """
    # Task: check; from N follow the loss, s_min, B and the cost; find the N that costs C.
    if not (C > 0).all():
        raise ValueError(f"C should be positive, not {C.tolist()}")

    def plan(N: Tensor) -> dict[str, Number]:
        converged = (n_c / N) ** alpha_n
        s_min = s_c / (alpha_n / alpha_s * converged) ** (1 / alpha_s)
        loss = (1 + alpha_n / alpha_s) * converged
        batch = critical_batch(loss, b_star=b_star, alpha_b=alpha_b)
        return {"N": N, "S_min": s_min, "B": batch, "loss": loss}

    unit = plan(torch.ones_like(C))
    cost = 6 * unit["B"] * 2 * unit["S_min"]
    return plan((C / cost) ** optimal_exponents(alpha_n, alpha_b, alpha_s)["N"])


class NextByte(nn.Module):
    """A model of the next byte (given): bytes (b, context) -> logits (b, 128).

    A byte's vector, scaled channel by channel by its place, is summed over the context and goes
    through one residual layer. generator: draws the weights, so the global state is left alone.
    Parameters: `embedding` and `readout` (128, width), the tables; `place` (context, width),
    `widen` (2 width, width), `narrow` (width, 2 width), which make up N.
    """

    def __init__(
        self, width: int, context: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        super().__init__()

        def weights(rows: int, columns: int, size: int) -> nn.Parameter:
            drawn = torch.randn(rows, columns, generator=generator, dtype=dtype)
            return nn.Parameter(drawn / math.sqrt(size))

        self.embedding = weights(128, width, 1)
        self.place = weights(context, width, context)
        self.widen = weights(2 * width, width, width)
        self.narrow = weights(width, 2 * width, 2 * width)
        self.readout = weights(128, width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = (F.embedding(tokens, self.embedding) * self.place).sum(1)
        x = x + F.linear(F.relu(F.linear(x, self.widen)), self.narrow)
        return F.linear(x, self.readout)


def stdlib_bytes(limit: int) -> Tensor:
    """`limit` bytes of Python's standard library, clamped to 0 ... 127 (given): -> (limit,) int64.

    All modules of its top folder, sorted by name, are cut into blocks of 1000 bytes, and the blocks
    dealt out, every 64th first: each part of the text is a sample of the whole.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    source = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    blocks = torch.frombuffer(bytearray(source), dtype=torch.uint8)
    blocks = blocks[: len(blocks) // 1000 * 1000].reshape(-1, 1000)
    dealt = torch.cat([blocks[start::64] for start in range(64)]).flatten()
    return dealt[:limit].long().clamp(max=127)


def train_and_measure(
    width: int,
    text: Tensor,
    steps: int,
    generator: torch.Generator,
    *,
    context: int = 8,
    batch: int = 256,
    lr: float = 0.08,
    held_out: int = 20_000,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, float]:
    """One point of a scaling law: train NextByte, -> N, and its loss on text it has not seen.

    text: (n,) int64 in [0, 128). A window is `context` bytes and the one after, its target; the
    loss is the cross-entropy of the target, in nats. The last held_out bytes are for the
    measurement: the mean over every window within them. Training windows lie within the rest.

    The generator first draws the weights, NextByte(width, context, generator, dtype), and then, in
    each step, where its windows start: torch.randint(n - held_out - context, (batch,)).
    Steps of torch.optim.Adam, its other settings as torch has them, on the mean loss of the batch;
    the rate of step k = 0, 1, ... is lr / sqrt(width) (1 + cos(pi k / steps)) / 2: wide models need
    a lower one (appendix D.6), and all of them end near 0. steps = 0 measures the model as drawn.

    Returns N, an int that counts the parameters without the two tables, and the loss, a float.

    Raises ValueError: a training or held-out part of `context` bytes or fewer ("text").
    """
    # Task: check, two sets of windows (Tensor.unfold makes them), the loop, the measurement.
    if min(held_out, len(text) - held_out) <= context:
        raise ValueError(f"the text, {len(text)} bytes, leaves no window of {context} bytes")
    model = NextByte(width, context, generator, dtype)
    optimiser = torch.optim.Adam(model.parameters())
    seen, unseen = (part.unfold(0, context + 1, 1) for part in text.tensor_split([-held_out]))
    for k in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr / math.sqrt(width) * (1 + math.cos(math.pi * k / steps)) / 2
        rows = seen[torch.randint(len(seen), (batch,), generator=generator)]
        loss = F.cross_entropy(model(rows[:, :-1]), rows[:, -1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        measured = F.cross_entropy(model(unseen[:, :-1]), unseen[:, -1])
    tables = model.embedding.numel() + model.readout.numel()
    return sum(p.numel() for p in model.parameters()) - tables, measured.item()
