"""The oracle of neural_scaling_laws against transformers and torch's FLOP counter, scipy, NumPy and
torch.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from reference.scaling import neural_scaling_laws as oracle

# warnings of the libraries are theirs
pytestmark = pytest.mark.filterwarnings("ignore")

SEEDS = [0, 1, 2]
MODELS = {"small": (12, 768), "medium": (24, 1024), "large": (36, 1280), "xl": (48, 1600)}


def gpt2(layers, width, n_ctx=1024, n_vocab=50257):
    """transformers' GPT-2 of that shape, without memory, and our counts for it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=n_vocab,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        n_positions=n_ctx,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    ours = oracle.transformer_counts(
        n_layer=layers,
        d_model=width,
        d_attn=width,
        d_ff=4 * width,
        n_ctx=n_ctx,
        n_vocab=n_vocab,
    )
    return model.eval(), ours


def forward(model, n):
    """Logits of n tokens that hold nothing; with a mask given, no value is looked at."""
    with torch.device("meta"):
        tokens, mask = torch.zeros(1, n, dtype=torch.int64), torch.zeros(1, 1, n, n)
    return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("name", [*MODELS, "GPT-3"])
def test_parameters_are_those_of_gpt2(name, agrees):
    """N, the tables, and per layer 13 d for biases and layer norms, 2 d for the last one: exact."""
    layers, width = MODELS.get(name, (96, 12288))
    n_ctx = 2048 if name == "GPT-3" else 1024
    model, ours = gpt2(layers, width, n_ctx)
    rest = 13 * layers * width + 2 * width
    total = ours["params"] + ours["embedding"] + rest
    assert total == sum(p.numel() for p in model.parameters())
    assert ours["params"] == 12 * layers * width**2
    agrees(np.float64(total), np.float64(sum(p.numel() for p in model.parameters())), 0.0)


@pytest.mark.parametrize(
    ("layers", "width", "n_ctx"),
    [(2, 64, 16), (3, 96, 40), (12, 768, 128), (12, 768, 1024), (24, 1024, 512), (48, 1600, 256)],
)
def test_flops_are_those_that_torch_counts(layers, width, n_ctx, agrees):
    """A forward pass of n tokens is n (forward_flops + 2 L n d + 2 d V) FLOPs, exactly.

    torch multiplies queries with all keys, 4 L n d a token, where Table 1 has the causal half, and
    counts the de-embedding, 2 d V, which forward_flops leaves out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model, ours = gpt2(layers, width, n_ctx)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model, n_ctx)
    rest = 2 * layers * n_ctx * width + 2 * width * 50257
    total = n_ctx * (ours["forward_flops"] + rest)
    assert total == counter.get_total_flops()
    agrees(np.float64(total), np.float64(counter.get_total_flops()), 0.0)


def test_backward_costs_twice_what_forward_does(agrees):
    """torch counts three times the forward FLOPs for forward and backward together."""
    from torch.utils.flop_counter import FlopCounterMode

    model, ours = gpt2(3, 96, 40)
    with FlopCounterMode(display=False) as counter:
        forward(model, 40).sum().backward()
    rest = 2 * 3 * 40 * 96 + 2 * 96 * 50257
    total = 40 * (ours["train_flops"] + 3 * rest)
    assert total == counter.get_total_flops()
    agrees(np.float64(total), np.float64(counter.get_total_flops()), 0.0)


def measured(seed, n):
    """Points about a power law over six decades."""
    generator = np.random.default_rng(seed)
    x = 10 ** generator.uniform(2, 8, n)
    return x, 3.0 * x**-0.076 * np.exp(0.05 * generator.normal(size=n))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [3, 6, 30])
def test_the_fit_is_that_of_linregress_and_polyfit(seed, n, agrees):
    """Exponent, intercept and r2 are scipy.stats.linregress's, the line numpy.polyfit's."""
    x, y = measured(seed, n)
    theirs = stats.linregress(np.log(x), np.log(y))
    alpha, x_c, r2 = oracle.fit_power_law(x, y)
    agrees(np.array([alpha, r2]), np.array([-theirs.slope, theirs.rvalue**2]), 1e-11)
    agrees(alpha * np.log(x_c), theirs.intercept, 1e-11)
    line = oracle.log_line(x, y)
    fitted = np.polyfit(np.log(x), np.log(y), 1)
    agrees(np.array([line["slope"], line["intercept"]]), fitted, 1e-11)
    agrees(line["centre"], np.log(x).mean(), 1e-11)
    agrees(line["spread"], n * np.log(x).var(), 1e-11)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "level"), [(3, 0.95), (6, 0.8), (30, 0.99)])
def test_the_interval_is_that_of_linregress(seed, n, level, agrees):
    """Its half-width is Student's t times linregress's standard error."""
    x, y = measured(seed, n)
    theirs = stats.linregress(np.log(x), np.log(y))
    half = stats.t(n - 2).interval(level)[1] * theirs.stderr
    low, high = oracle.power_law_interval(x, y, level=level)
    agrees(np.array([low, high]), np.array([-theirs.slope - half, -theirs.slope + half]), 1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [6, 30])
def test_the_prediction_is_that_of_polyfits_covariance(seed, n, agrees):
    """np.polyfit's covariance gives the variance of the line, the residuals that of a point."""
    x, y = measured(seed, n)
    u, v = np.log(x), np.log(y)
    (slope, intercept), covariance = np.polyfit(u, v, 1, cov=True)
    own = np.sum((v - slope * u - intercept) ** 2) / (n - 2)
    x_new = np.array([1e3, 1e9])
    rows = np.stack([np.log(x_new), np.ones(2)], axis=1)
    half = stats.t(n - 2).ppf(0.9) * np.sqrt(own + np.einsum("ni,ij,nj->n", rows, covariance, rows))
    middle = rows @ [slope, intercept]
    low, high = oracle.prediction_interval(x, y, x_new, level=0.8)
    agrees(np.stack([low, high]), np.exp(np.stack([middle - half, middle + half])), 1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_curve_fit_in_logarithms_finds_the_law_and_its_error(seed, agrees):
    """A nonlinear fit of log y, by Levenberg-Marquardt, has the same alpha and standard error."""
    x, y = measured(seed, 12)

    def law(u, alpha, log_scale):
        return alpha * (log_scale - u)

    found, covariance = optimize.curve_fit(law, np.log(x), np.log(y), p0=[0.1, 10.0], xtol=1e-14)
    agrees(oracle.fit_power_law(x, y)[0], found[0], 1e-7)
    low, high = oracle.power_law_interval(x, y, level=0.95)
    error = (high - low) / 2 / stats.t(10).ppf(0.975)
    # its Jacobian is made of finite differences
    agrees(error / np.sqrt(covariance[0, 0]), np.float64(1.0), 1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_overfitting_is_a_box_cox_transform(seed, agrees):
    """((1 + u)^a - 1) / a is scipy.special.boxcox1p, and data_needed its inverse."""
    generator = np.random.default_rng(seed)
    N, D = 10 ** generator.uniform(5, 12, 8), 10 ** generator.uniform(7, 30, 8)
    u = (N / 6.4e13) ** (0.076 / 0.103) * 1.8e13 / D
    fraction = oracle.overfit_fraction(N, D)
    agrees(fraction / (0.103 * special.boxcox1p(u, 0.103)), np.ones(8))
    again = special.inv_boxcox1p(fraction / 0.103, 0.103)
    agrees(oracle.data_needed(N, fraction) / D, again / u)
    loss = oracle.loss_n_d(N, D) / oracle.loss_n_d(N, np.full(8, math.inf))
    agrees(loss, 1 + 0.103 * special.boxcox1p(u, 0.103))


@pytest.mark.parametrize("C", [1e18, 1e21, 1e24])
def test_slsqp_finds_no_better_plan(C, agrees):
    """Minimising over N, S_min and the loss, under the budget and Eq. 1.6, ends at the plan."""

    def over(z):  # log of what the plan costs, over C
        return math.log(12) + z[0] + z[1] + math.log(2e8) - z[2] / 0.21 - math.log(C)

    def gap(z):
        size, steps = 0.077 * (math.log(6.5e13) - z[0]), 0.76 * (math.log(2.1e3) - z[1])
        return z[2] - np.logaddexp(size, steps)

    found = optimize.minimize(
        lambda z: z[2],
        [math.log(1e9), math.log(1e4), 1.0],
        method="SLSQP",
        constraints=[{"type": "eq", "fun": over}, {"type": "eq", "fun": gap}],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    ours = oracle.compute_optimal(C)
    agrees(np.log(ours["loss"]), np.float64(found.x[2]), 1e-9)
    # at a minimum the loss is flat: N is known to the root of the loss's rounding
    agrees(np.log([ours["N"], ours["S_min"]]), found.x[:2], 1e-5)


@pytest.mark.parametrize("C", [1e20, 1e22])
def test_the_frontier_is_that_of_appendix_b(C, agrees):
    """Eq. B.8 and B.9, which have no 2 in the cost, give N and the loss of half the budget."""
    a_n, a_s, a_b, n_c, s_c, b_star = 0.077, 0.76, 0.21, 6.5e13, 2.1e3, 2e8
    a_c = float(oracle.optimal_exponents(a_n, a_b, a_s)["alpha_c"])
    c_c = 6 * n_c * b_star * s_c
    c_c *= (1 + a_n / a_s) ** (1 / a_s + 1 / a_n) * (a_s / a_n) ** (1 / a_s)
    loss = (2 * c_c / C) ** a_c
    N = n_c * (C / 2 / c_c) ** (a_c / a_n) * (1 + a_n / a_s) ** (1 / a_n)
    ours = oracle.compute_optimal(C)
    agrees(np.float64(ours["loss"]), np.float64(loss), 1e-10)
    agrees(np.log(ours["N"]), np.log(N), 1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("width", "context"), [(3, 2), (5, 4)])
def test_training_is_that_of_torch(seed, width, context, agrees):
    """Twelve steps by torch.optim.Adam, a cosine scheduler and autograd have the same loss."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = {
        "embedding": drawn(128, width),
        "place": drawn(context, width),
        "widen": drawn(2 * width, width),
        "narrow": drawn(width, 2 * width),
        "readout": drawn(128, width),
    }
    text = torch.randint(128, (80,), generator=generator)
    starts = torch.randint(80 - 20 - context, (12, 6), generator=generator)
    ours = oracle.train_and_measure(
        {name: value.numpy() for name, value in weights.items()},
        text.numpy(),
        starts.numpy(),
        lr=0.2,
        held_out=20,
    )

    model = {name: value.clone().requires_grad_(True) for name, value in weights.items()}
    optimizer = torch.optim.Adam(model.values(), lr=0.2 / math.sqrt(width))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    def loss_of(rows):
        x = torch.nn.functional.embedding(rows[:, :-1], model["embedding"])
        x = torch.einsum("btw,tw->bw", x, model["place"])
        x = x + torch.relu(x @ model["widen"].T) @ model["narrow"].T
        return torch.nn.functional.cross_entropy(x @ model["readout"].T, rows[:, -1])

    windows = text.unfold(0, context + 1, 1)
    for places in starts:
        optimizer.zero_grad()
        loss_of(windows[places]).backward()
        optimizer.step()
        scheduler.step()
    agrees(np.float64(ours[1]), loss_of(windows[80 - 20 :]), 1e-10)
    assert ours[0] == sum(model[name].numel() for name in ("place", "widen", "narrow"))
