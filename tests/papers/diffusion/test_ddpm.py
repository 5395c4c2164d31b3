"""What judges exercises/diffusion/ddpm.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlings.testing import (
    Example,
    assert_close,
    distinct,
    driver,
    fill,
    indices,
    rejects,
    seeded,
    tensors,
)

STEEP = [0.3, 0.05, 0.5, 0.2]  # a short chain with no two steps alike
GENTLE = [1e-5, 1e-3, 1e-5, 2e-4]  # one whose first steps float32 tables would blur
TABLES = (
    "betas",
    "alphas",
    "alpha_bars",
    "alpha_bars_prev",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "coef_x0",
    "coef_xt",
)


# ---- what the tests hand over


def tables(betas: list[float]) -> dict[str, Tensor]:
    """The tables of a chain, so that no other task waits for make_schedule."""
    beta = torch.tensor(betas, dtype=torch.float64)
    bar = (1.0 - beta).cumprod(0)
    prev = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    variance = beta * (1.0 - prev) / (1.0 - bar)
    log = torch.cat([variance[1:2] if len(betas) > 1 else beta, variance[1:]]).log()
    x0, xt = prev.sqrt() * beta / (1.0 - bar), (1.0 - beta).sqrt() * (1.0 - prev) / (1.0 - bar)
    return dict(zip(TABLES, (beta, 1.0 - beta, bar, prev, variance, log, x0, xt), strict=True))


def chain(impl, betas):
    """The candidate's Schedule, which is given, with our tables in it."""
    return impl.Schedule(**tables(betas))


def draws(
    seed: int, shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """The first `count` normal draws of a generator."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


def after(
    seed: int, shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The state of a generator after `count` normal draws."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        torch.randn(shape, generator=generator, dtype=dtype)
    return generator.get_state()


def over(t, x):
    """t as a number of x's own dtype beside every entry of x; for tensors and for arrays."""
    return x * 0 + t.reshape((-1,) + (1,) * (x.ndim - 1))


def bend(x, t):
    """A model that is wrong in its own way at every point and step; for tensors and for arrays."""
    return x / (1 + x * x / 4) - 0.25 * over(t, x) + 0.3


def largest(*values: Tensor) -> float:
    return max(float(v.abs().max()) for v in values)


class Affine(nn.Module):
    """eps = x w + t v / 10 + b, with b frozen."""

    def __init__(self, width: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, width))
        self.v = nn.Parameter(torch.zeros(width))
        self.b = nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x @ self.w + t[:, None].to(x.dtype) * self.v / 10.0 + self.b


class Descent:
    """torch.optim.SGD with momentum, without the second that importing it takes."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.9):
        self.param_groups = [{"params": parameters, "lr": 1.0}]
        self.momentum = momentum
        self.velocity = [torch.zeros_like(p) for p in parameters]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None if set_to_none else torch.zeros_like(p)

    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for p, v in zip(self.param_groups[0]["params"], self.velocity, strict=True):
                v.mul_(self.momentum).add_(p.grad)
                p.sub_(self.param_groups[0]["lr"] * v)
        return loss


@driver
def trained(impl, x0, betas, seed, rates, dtype=torch.float64):
    """Steps of SGD with the rates given: losses, parameters, generator state, and whether the model
    is in training mode and its frozen parameter thawed.
    """
    model = fill(Affine(x0.shape[1])).to(dtype).eval()
    optimizer = Descent([model.w, model.v])
    model.w.grad = torch.ones_like(model.w)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        losses.append(
            impl.train_step(model, optimizer, x0.to(dtype), chain(impl, betas), generator)
        )
    state = {name: p.detach() for name, p in model.named_parameters()}
    return losses, state, generator.get_state(), [model.training, model.b.requires_grad]


@driver
def call_loss(impl, x0, noise, t, weighting):
    return impl.diffusion_loss(bend, x0, t, noise, chain(impl, STEEP), weighting=weighting)


def call_train(impl, x0, seed):
    losses, state, _, _ = trained(impl, x0, STEEP, seed, [0.1, 0.3])
    return {"losses": losses, **state}


@driver
def call_p_sample(impl, x_t, generator):
    return impl.p_sample(
        bend, x_t, 2, chain(impl, STEEP), generator, variance="posterior", clip=1.5
    )


@driver
def call_sample(impl, generator):
    return impl.sample(
        bend, (3, 2), chain(impl, STEEP), generator, return_trajectory=True, dtype=torch.float64
    )


@driver
def call_vlb(impl, x0, generator):
    return impl.vlb_bits_per_dim(bend, x0, chain(impl, STEEP), generator)


@driver
def call_schedule(impl, betas):
    made = impl.make_schedule(betas)
    return {name: getattr(made, name) for name in TABLES}


def block(impl, in_ch, out_ch, temb_dim, groups, scale=0.5):
    """A block with weights that are nowhere neutral, in evaluation mode and float64."""
    with torch.random.fork_rng(devices=[]):  # torch draws the weights that are then filled
        return fill(impl.ResnetBlock(in_ch, out_ch, temb_dim, groups=groups), scale=scale).eval()


T3 = torch.tensor([3, 0, 1])
X = torch.tensor([[0.5, -2.0], [1.25, 3.0], [-1.0, 0.75]], dtype=torch.float64)
Y = torch.tensor([[1.0, 0.5], [-0.25, 2.0], [-3.0, 1.5]], dtype=torch.float64)
PIXELS = (
    torch.tensor([[0, 3, 200], [255, 90, 128], [60, 254, 0]], dtype=torch.float64) / 127.5 - 1.0
)
LOG_SCALES = torch.tensor(
    [[-1.0, -2.0, 0.5], [0.25, -3.0, -1.5], [-0.5, -2.5, 0.0]], dtype=torch.float64
)
IMAGE = torch.linspace(-2.0, 3.0, 24, dtype=torch.float64).sin().reshape(3, 4, 2, 1) * 2.0

EXAMPLES = {
    "linear_betas": Example(
        (5,), call=lambda impl, T: impl.linear_betas(T, start=0.1, end=0.3), float32=False
    ),
    "make_schedule": Example(
        (torch.tensor(STEEP, dtype=torch.float64),), call=call_schedule, float32=False
    ),
    "extract": Example(
        (X, T3), call=lambda impl, x, t: impl.extract(tables(STEEP)["betas"], t, x), batch=(0, 1)
    ),
    "q_sample": Example(
        (X, T3, Y),
        call=lambda impl, x0, t, noise: impl.q_sample(x0, t, noise, chain(impl, STEEP)),
        gradient=(0, 2),
        batch=(0, 1, 2),
    ),
    "q_posterior": Example(
        (X, Y, T3),
        call=lambda impl, x0, x_t, t: impl.q_posterior(x0, x_t, t, chain(impl, STEEP)),
        gradient=(0, 1),
        batch=(0, 1, 2),
    ),
    "predict_x0": Example(
        (X, Y, T3),
        call=lambda impl, x_t, eps, t: impl.predict_x0(x_t, eps, t, chain(impl, STEEP)),
        gradient=(0, 1),
        batch=(0, 1, 2),
    ),
    "reverse_mean": Example(
        (X, Y, T3),
        call=lambda impl, x_t, eps, t: impl.reverse_mean(x_t, eps, t, chain(impl, STEEP)),
        gradient=(0, 1),
        batch=(0, 1, 2),
    ),
    "diffusion_loss": Example((X, Y, T3, "vlb"), call=call_loss, gradient=(0, 1)),
    "train_step": Example((X, 5), call=call_train, float32=False),
    "p_sample": Example((X, torch.Generator().manual_seed(3)), call=call_p_sample, float32=False),
    "sample": Example((torch.Generator().manual_seed(4),), call=call_sample, float32=False),
    "discretized_gaussian_nll": Example(
        (PIXELS, X[:, :1] / 4, LOG_SCALES), gradient=(1, 2), batch=(0, 1, 2)
    ),
    "vlb_bits_per_dim": Example(
        (PIXELS, torch.Generator().manual_seed(6)), call=call_vlb, float32=False
    ),
    "timestep_embedding": Example(
        (torch.tensor([0.0, 2.5, 7.0], dtype=torch.float64), 7), gradient=(0,), batch=(0,)
    ),
    "ResnetBlock": Example(
        (IMAGE, Y.repeat(1, 2)),
        module=lambda impl: block(impl, 4, 6, 4, 2),
        gradient=(0, 1),
        batch=(0, 1),
    ),
    "unet_parameter_count": Example(
        kwargs={"channels": 6, "multipliers": (1, 3), "resolution": 8, "attention": (4,)},
        float32=False,
    ),
}


# ---- what hypothesis draws


variances = st.sampled_from([0.5, 0.2, 0.05, 0.3, 0.01, 0.9, 1e-3, 1e-5])
chains = st.lists(variances, min_size=1, max_size=6)


@st.composite
def noisings(draw):
    """A chain, and a batch with two tensors of one shape and a step for every example."""
    betas = draw(chains)
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 3), max_size=3)))
    families = ("plain", "tiny", "large", "rows", "spike")
    x, y = draw(tensors(shape, families)), draw(tensors(shape, families))
    return betas, draw(indices(shape[:1], len(betas))), x, y


@st.composite
def batches(draw):
    """A chain, the shape of a batch of any rank, and a seed."""
    betas = draw(st.lists(st.sampled_from([0.5, 0.2, 0.05, 0.3]), min_size=1, max_size=4))
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 3), max_size=2)))
    return betas, shape, draw(st.integers(0, 99))


@st.composite
def pixels(draw):
    """Grid values, means on and off the grid, and log scales, which broadcast now and then."""
    shape = draw(distinct(2, 1, 4))
    k = draw(indices(shape, 256))
    k[0, 0] = draw(st.sampled_from([0, 255, 1, 254, 128]))
    mean = draw(tensors(shape, ("plain", "rows", "tiny"))) / 4.0
    log_scale = draw(tensors((shape[0], draw(st.sampled_from([1, shape[1]])))))
    return k.double() / 127.5 - 1.0, mean, log_scale


@st.composite
def networks(draw):
    """Settings of a U-Net whose sizes all differ now and then."""
    levels = draw(st.integers(1, 4))
    settings = {
        "channels": draw(st.integers(1, 9)),
        "multipliers": tuple(draw(st.lists(st.integers(1, 4), min_size=levels, max_size=levels))),
        "blocks": draw(st.integers(1, 3)),
        "resolution": 2 ** draw(st.integers(3, 6)),
        "image_channels": draw(st.integers(1, 4)),
    }
    at = [settings["resolution"] >> i for i in range(levels)]
    settings["attention"] = tuple(r for r in at if draw(st.booleans()))
    return settings


# ---- 1 linear_betas, make_schedule, extract


@given(T=st.integers(1, 9), start=variances, end=variances)
def test_betas_go_from_start_to_end_in_equal_steps(impl, reference, T, start, end):
    """linear_betas has both ends among its T values and equal steps between them."""
    expected = reference.linear_betas(T, start=start, end=end)
    assert_close(
        impl.linear_betas(T, start=start, end=end),
        expected,
        "Are both ends included, in float64, in T values?",
    )


def test_the_paper_s_betas_are_the_default(impl, reference):
    """Section 4: T = 1000 steps from 1e-4 to 0.02."""
    assert_close(
        impl.linear_betas(1000),
        reference.linear_betas(1000),
        "What does section 4 set beta_1 and beta_T to?",
    )


@given(betas=chains)
def test_every_table_is_that_of_the_joint_gaussian(impl, reference, betas):
    """The tables are those of the chain's joint Gaussian, conditioned on x_0 and x_t."""
    expected = reference.make_schedule(betas)
    made = call_schedule(impl, torch.tensor(betas, dtype=torch.float64))
    for name in TABLES:
        assert_close(
            made[name],
            expected[name],
            f"Which equation gives {name}, and from which step on?",
        )


@given(exponents=st.lists(st.integers(0, 47), min_size=1, max_size=40))
def test_one_step_kernels_compose_to_the_jump(impl, exponents):
    """Steps sqrt(alpha) x + sqrt(beta) z add up to sqrt(alpha_bar) x + sqrt(1 - alpha_bar) z"""
    betas = [0.5 * 10.0 ** (-e / 10.0) for e in exponents]
    signal, noise, signals, noises = 1.0, 0.0, [], []
    for beta in betas:
        signal, noise = math.sqrt(1.0 - beta) * signal, (1.0 - beta) * noise + beta
        signals.append(signal)
        noises.append(noise)
    bars = call_schedule(impl, torch.tensor(betas, dtype=torch.float64))["alpha_bars"]
    assert_close(bars.sqrt(), np.array(signals), "Is alpha_bar the running product of the alphas?")
    assert_close(1.0 - bars, np.array(noises), "Is alpha_bar the running product of the alphas?")


@given(betas=st.lists(variances, min_size=2, max_size=6))
def test_precisions_of_the_posterior_add(impl, betas):
    """Bayes: 1 / posterior variance = alpha_t / beta_t + 1 / (1 - alpha_bar_{t-1}) after the
    first step.
    """
    beta = np.array(betas)
    prev = np.cumprod(1.0 - beta)[:-1]
    precision = (1.0 - beta[1:]) / beta[1:] + 1.0 / (1.0 - prev)
    s = call_schedule(impl, torch.tensor(betas, dtype=torch.float64))
    assert_close(
        1.0 / s["posterior_variance"][1:],
        precision,
        "Does equation 7 use alpha_bar of t - 1 above the line?",
    )
    assert_close(s["posterior_variance"][:1], np.zeros(1), "Is alpha_bar 1 before the first step?")


def test_tables_are_double_whatever_the_betas(impl, reference):
    """float32 betas give float64 tables: 1 - alpha_bar_0 is beta_0 to twelve digits."""
    betas = torch.tensor([1e-4, 3e-4, 0.02])
    made, expected = call_schedule(impl, betas), reference.make_schedule(betas)
    for name in TABLES:
        assert_close(
            made[name],
            expected[name],
            "Is everything after the check computed in float64?",
        )
    # eleven digits above rounding: float32 would leave three
    assert_close(
        1.0 - made["alpha_bars"][:1], betas[:1].double(), "Are the tables float64?", rtol=1e-12
    )


def test_the_paper_s_schedule_has_its_known_values(impl):
    """T = 1000: at the end 4.0358e-5 of the power is signal, and noise wins from index 259 on."""
    s = call_schedule(impl, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    known = [0.9999, 4.0358e-5, 5.4532e-5]
    found = torch.stack([s["alpha_bars"][0], s["alpha_bars"][-1], s["posterior_variance"][1]])
    for value, number in zip(found, known, strict=True):
        # the numbers are known to five digits
        assert_close(
            value, np.float64(number), "Is alpha_bar a product over all steps so far?", rtol=1e-5
        )
    first = int((s["alpha_bars"] < 0.5).nonzero()[0])
    assert_close(first, 259, "Is alpha_bar a product over all steps so far?")


@pytest.mark.parametrize("T", [0, -3])
def test_no_steps_make_no_schedule(impl, T):
    """linear_betas refuses T < 1 and names it."""
    with rejects(T):
        impl.linear_betas(T)


@pytest.mark.parametrize(
    ("betas", "named"),
    [
        ([0.1, float("nan"), 2.0], ("1", "nan")),
        ([0.1, 0.2, 0.0, -0.5], ("2", "0.0")),
        ([1.0], ("0", "1.0")),
        ([0.5, -0.25], ("1", "-0.25")),
        ([0.5, 0.5, 0.5, 1.75, 0.0], ("3", "1.75")),
        ([], ()),
        ([[0.1, 0.2]], ()),
    ],
)
def test_impossible_variances_are_refused(impl, betas, named):
    """make_schedule refuses betas that are no list of numbers in (0, 1) and names the first bad
    one.
    """
    with rejects(*named, question="Are NaN, 0 and 1 refused, with index and value of the first?"):
        impl.make_schedule(torch.tensor(betas, dtype=torch.float64))
    with rejects(question="What if betas has no axis at all?"):
        impl.make_schedule(torch.tensor(0.5, dtype=torch.float64))


@given(case=noisings())
def test_every_example_gets_its_own_entry(impl, reference, case):
    """extract reads entry t[b] for example b, whatever the rank of x."""
    betas, t, x, _ = case
    table = torch.arange(1.0, len(betas) + 1.0, dtype=torch.float64) / 3.0
    question = "Is there one axis of length 1 for every axis of x after the first?"
    assert_close(impl.extract(table, t, x), reference.extract(table, t, x), question)
    assert_close(
        impl.extract(table, t.to(torch.int32), x), reference.extract(table, t, x), question
    )
    assert_close(
        impl.extract(table, t.to(torch.uint8), x),
        reference.extract(table, t, x),
        "Is a uint8 t an index?",
    )


def test_an_entry_is_rounded_once(impl):
    """extract looks the float64 entry up and gives it the dtype of x."""
    table = tables(GENTLE)["alpha_bars"]
    for dtype in (torch.float32, torch.float16, torch.float64):
        entry = impl.extract(table, T3, torch.zeros(3, 2, dtype=dtype))
        assert_close(entry, table[T3][:, None].to(dtype), "Does the answer take the dtype of x?")


BAD_STEPS = [
    (torch.tensor([0, -1, 2]), -1),
    (torch.tensor([0, 1, 4]), 4),
    (torch.tensor([2.0, 0.0, 1.0]), "float"),
    (torch.tensor([True, False, True]), "bool"),
    (torch.tensor([1, 2]), "2"),
    (torch.tensor([1]), "1"),
    (torch.tensor([[1], [2], [0]]), "1"),
    (torch.tensor(1), "()"),
]
STEP_QUESTION = "Is t checked for dtype, shape and range, so that -1 does not wrap around?"


def test_steps_that_do_not_exist_are_refused(impl):
    """extract refuses a t of another dtype or shape, and an entry outside [0, T), and names it."""
    for t, named in BAD_STEPS:
        with rejects(named, question=STEP_QUESTION):
            impl.extract(torch.tensor(STEEP, dtype=torch.float64), t, X)


# ---- 2 q_sample, q_posterior


@given(case=noisings())
def test_the_jump_has_the_chain_s_mean_and_variance(impl, reference, case):
    """q_sample draws from the chain's own marginal: its mean, plus its standard deviation times
    the noise.
    """
    betas, t, x0, noise = case
    expected = reference.q_sample(x0, t, noise, betas)
    assert_close(
        impl.q_sample(x0, t, noise, chain(impl, betas)),
        expected,
        "Does equation 4 weigh the signal by sqrt(alpha_bar) and the noise by sqrt(1 - alpha_bar)?",
        scale=largest(x0, noise),
    )


def test_first_steps_keep_their_digits_in_single(impl, reference):
    """sqrt(1 - alpha_bar) is formed in float64 and cast last, so float32 keeps its digits at t =
    0.
    """
    noise = Y.float()
    for t in (torch.tensor([0, 0, 0]), torch.tensor([2, 1, 0])):
        expected = reference.q_sample(torch.zeros_like(noise), t, noise, GENTLE)
        got = impl.q_sample(torch.zeros_like(noise), t, noise, chain(impl, GENTLE))
        assert_close(
            got, expected, "Is 1 - alpha_bar taken before the cast to float32?", dtype=torch.float32
        )


@given(case=noisings())
def test_the_posterior_is_the_joint_gaussian_conditioned(impl, reference, case):
    """q_posterior is what the joint Gaussian of the chain says of x_{t-1} once x_0 and x_t are
    known.
    """
    betas, t, x0, x_t = case
    got = impl.q_posterior(x0, x_t, t, chain(impl, betas))
    mean, variance = reference.q_posterior(x0, x_t, t, betas)
    assert_close(
        got,
        (mean, variance),
        "Which coefficient of equation 7 goes with x_0, which with x_t?",
        scale=largest(x0, x_t),
    )
    assert_close(
        got[1], variance, "Is the variance (B, 1, ..., 1), one number an example, and no logarithm?"
    )


def test_before_the_first_step_is_the_data(impl):
    """At t = 0 the posterior has the mean x_0 and the variance 0."""
    mean, variance = impl.q_posterior(X, Y, torch.tensor([0, 0, 0]), chain(impl, STEEP))
    assert_close(mean, X, "Is t = 0 the first step, and x_{-1} the data?")
    assert_close(
        variance, np.zeros((3, 1)), "Is the variance of t = 0 exactly 0, not the clipped one?"
    )


def test_a_single_posterior_is_as_exact_as_a_double_one(impl, reference):
    """q_posterior in float32 has coefficients that were rounded once."""
    t = torch.tensor([2, 1, 3])
    got = impl.q_posterior(X.float(), Y.float(), t, chain(impl, GENTLE))
    expected = reference.q_posterior(X, Y, t, GENTLE)
    assert_close(
        got,
        expected,
        "Are the coefficients read from the float64 tables?",
        dtype=torch.float32,
        scale=3.0,
    )
    assert_close(
        got[1],
        expected[1],
        "Are the coefficients read from the float64 tables?",
        dtype=torch.float32,
    )


def test_the_jump_refuses_steps_that_do_not_exist(impl):
    """q_sample refuses a t that is not (B,) integers in [0, T)."""
    for t, named in BAD_STEPS:
        with rejects(named, question=STEP_QUESTION):
            impl.q_sample(X, t, Y, chain(impl, STEEP))


def test_the_posterior_refuses_steps_that_do_not_exist(impl):
    """q_posterior refuses a t that is not (B,) integers in [0, T)."""
    for t, named in BAD_STEPS:
        with rejects(named, question=STEP_QUESTION):
            impl.q_posterior(X, Y, t, chain(impl, STEEP))


SHAPES = [(3, 1), (1, 2), (2,), (4, 2), (3, 2, 1)]
SHAPE_QUESTION = "Tensors of other shapes would broadcast: are they compared?"


def test_noise_of_another_shape_is_refused(impl):
    """q_sample refuses noise that is not of the shape of x_0."""
    for shape in SHAPES:
        with rejects(question=SHAPE_QUESTION):
            impl.q_sample(X, T3, torch.ones(shape, dtype=torch.float64), chain(impl, STEEP))


def test_ends_of_different_shapes_are_refused(impl):
    """q_posterior refuses an x_t that is not of the shape of x_0."""
    for shape in SHAPES:
        with rejects(question=SHAPE_QUESTION):
            impl.q_posterior(X, torch.ones(shape, dtype=torch.float64), T3, chain(impl, STEEP))


# ---- 3 predict_x0, reverse_mean


@given(case=noisings())
@example(case=(STEEP, T3, 1e6 * X, Y))
def test_the_data_are_found_again(impl, reference, case):
    """predict_x0 undoes q_sample, whatever the noise."""
    betas, t, x0, noise = case
    x_t = torch.from_numpy(reference.q_sample(x0, t, noise, betas))
    scale = largest(x0, x_t) / math.prod(1.0 - beta for beta in betas)
    assert_close(
        impl.predict_x0(x_t, noise, t, chain(impl, betas)),
        x0,
        "Is equation 4 solved for x_0?",
        scale=scale,
    )


@given(case=noisings())
def test_any_noise_predicts_some_data(impl, reference, case):
    """predict_x0 is equation 15 for an eps that did not make x_t, too."""
    betas, t, x_t, eps = case
    expected = reference.predict_x0(x_t, eps, t, betas)
    scale = largest(x_t, eps)
    assert_close(
        impl.predict_x0(x_t, eps, t, chain(impl, betas)),
        expected,
        "Is eps scaled before it is taken off?",
        scale=scale,
    )


@given(case=noisings())
def test_the_reverse_mean_is_the_posterior_s_at_the_predicted_data(impl, reference, case):
    """Equation 11 is equation 7 with the predicted x_0 put in."""
    betas, t, x_t, eps = case
    expected = reference.reverse_mean(x_t, eps, t, betas)
    assert_close(
        impl.reverse_mean(x_t, eps, t, chain(impl, betas)),
        expected,
        "Is it beta_t / sqrt(1 - alpha_bar_t) within, and sqrt(alpha_t), no product, below?",
        scale=largest(x_t, eps),
    )


def test_standard_normal_data_lose_what_the_noise_adds(impl):
    """Section 3.2: for data from N(0, 1) the exact step multiplies by k_t with k_t^2 + beta_t =
    1.
    """
    beta = tables(STEEP)["betas"]
    t = torch.arange(4)
    x = torch.tensor([1.0, -2.0, 1e6, 0.5], dtype=torch.float64)
    eps = (1.0 - tables(STEEP)["alpha_bars"]).sqrt() * x
    gain = impl.reverse_mean(x, eps, t, chain(impl, STEEP)) / x
    assert_close(
        gain.square() + beta, torch.ones(4, dtype=torch.float64), "Does one step undo one step?"
    )


@pytest.mark.parametrize("t", [[0, 0, 0], [2, 1, 3]])
def test_prediction_in_single_is_as_exact_as_in_double(impl, reference, t):
    """predict_x0 in float32 has coefficients that were rounded once."""
    t, x_t = torch.tensor(t), torch.zeros(3, 2)
    got = impl.predict_x0(x_t, Y.float(), t, chain(impl, GENTLE))
    assert_close(
        got,
        reference.predict_x0(x_t, Y, t, GENTLE),
        "Is 1 - alpha_bar taken in float64?",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("t", [[0, 0, 0], [2, 1, 3]])
def test_one_step_in_single_is_as_exact_as_in_double(impl, reference, t):
    """reverse_mean in float32 has coefficients that were rounded once."""
    t, x_t = torch.tensor(t), torch.zeros(3, 2)
    got = impl.reverse_mean(x_t, Y.float(), t, chain(impl, GENTLE))
    assert_close(
        got,
        reference.reverse_mean(x_t, Y, t, GENTLE),
        "Is 1 - alpha_bar taken in float64?",
        dtype=torch.float32,
    )


def test_prediction_refuses_steps_that_do_not_exist(impl):
    """predict_x0 refuses a t that is not (B,) integers in [0, T)."""
    for t, named in BAD_STEPS:
        with rejects(named, question=STEP_QUESTION):
            impl.predict_x0(X, Y, t, chain(impl, STEEP))


def test_the_reverse_mean_refuses_steps_that_do_not_exist(impl):
    """reverse_mean refuses a t that is not (B,) integers in [0, T)."""
    for t, named in BAD_STEPS:
        with rejects(named, question=STEP_QUESTION):
            impl.reverse_mean(X, Y, t, chain(impl, STEEP))


def test_prediction_refuses_noise_of_another_shape(impl):
    """predict_x0 refuses an eps that is not of the shape of x_t."""
    for shape in SHAPES:
        with rejects(question=SHAPE_QUESTION):
            impl.predict_x0(X, torch.ones(shape, dtype=torch.float64), T3, chain(impl, STEEP))


def test_the_reverse_mean_refuses_noise_of_another_shape(impl):
    """reverse_mean refuses an eps that is not of the shape of x_t."""
    for shape in SHAPES:
        with rejects(question=SHAPE_QUESTION):
            impl.reverse_mean(X, torch.ones(shape, dtype=torch.float64), T3, chain(impl, STEEP))


# ---- 4 diffusion_loss


@given(case=noisings(), weighting=st.sampled_from(["simple", "vlb"]))
def test_the_loss_is_the_mean_squared_error_of_the_noise(impl, reference, case, weighting):
    """An example costs its mean squared error in the noise, times w_t for "vlb"; the batch costs
    the mean.
    """
    betas, t, x0, noise = case
    expected = reference.diffusion_loss(bend, x0, t, noise, betas, weighting=weighting)
    loss = impl.diffusion_loss(bend, x0, t, noise, chain(impl, betas), weighting=weighting)
    assert_close(
        loss, np.float64(expected), "Is every example weighed by its own step, and then averaged?"
    )


def test_every_step_counts_alike_unless_told(impl):
    """L_simple is the default."""
    loss = impl.diffusion_loss(lambda x, t: 0 * x, X, T3, Y, chain(impl, STEEP))
    assert_close(loss, Y.square().mean(), "Which weighting does equation 14 use?")


def test_a_model_that_knows_the_noise_pays_nothing(impl):
    """The noise itself is the answer: its loss is 0 under both weightings."""
    for weighting in ("simple", "vlb"):
        loss = impl.diffusion_loss(
            lambda x, t: Y.clone(), X, T3, Y, chain(impl, STEEP), weighting=weighting
        )
        assert_close(loss, np.float64(0.0), "Is the model's answer compared with the noise?")


def test_the_bound_weighs_a_step_by_its_own_weight(impl):
    """For a batch of one step, "vlb" is "simple" times beta^2 / (2 sigma^2 alpha (1 -
    alpha_bar)).
    """
    s = tables(STEEP)
    weights = s["betas"] ** 2 / (2.0 * s["betas"] * s["alphas"] * (1.0 - s["alpha_bars"]))
    for step in range(4):
        t = torch.full((3,), step)
        simple, vlb = (
            impl.diffusion_loss(bend, X, t, Y, chain(impl, STEEP), weighting=w)
            for w in ("simple", "vlb")
        )
        assert_close(
            vlb / simple,
            weights[step],
            "What stands before the norm in equation 12, at sigma^2 = beta?",
        )


def test_the_model_is_asked_once(impl, reference):
    """The model is called once, with x_t and the int64 t of the batch."""
    calls = []

    def model(x, t):
        calls.append((x.detach().clone(), t.clone()))
        return 0.5 * x

    impl.diffusion_loss(model, X, T3, Y, chain(impl, STEEP), weighting="vlb")
    assert_close(len(calls), 1, "How often is the model called?")
    expected = torch.from_numpy(reference.q_sample(X, T3, Y, STEEP))
    assert_close(calls[0], (expected, T3), "Does the model see x_t, and t as it is?")


def test_every_parameter_learns(impl, reference):
    """The loss has the gradient of the mean squared error in every parameter of the model."""
    twins = [fill(Affine(2)), fill(Affine(2))]
    loss = impl.diffusion_loss(twins[0], X, T3, Y, chain(impl, STEEP))
    x_t = torch.from_numpy(reference.q_sample(X, T3, Y, STEEP))
    expected = (Y - twins[1](x_t, T3)).square().mean()
    assert_close(loss, expected, "Is it a mean over dimensions and batch?")
    grads = [
        torch.autograd.grad(value, [m.w, m.v])
        for value, m in zip((loss, expected), twins, strict=True)
    ]
    assert_close(
        list(grads[0]), list(grads[1]), "Does the gradient pass through the model's answer?"
    )


@pytest.mark.parametrize("weighting", ["simple", "vlb"])
def test_images_may_lie_in_memory_in_any_order(impl, reference, weighting):
    """Channels last, as image files have them, cost the same."""
    x0, noise = draws(2, (3, 2, 3, 2), 2)
    expected = reference.diffusion_loss(bend, x0, T3, noise, STEEP, weighting=weighting)
    x0, noise = (x.to(memory_format=torch.channels_last) for x in (x0, noise))
    loss = impl.diffusion_loss(bend, x0, T3, noise, chain(impl, STEEP), weighting=weighting)
    assert_close(loss, np.float64(expected), "Does a line need contiguous memory, such as .view()?")


def test_the_bound_keeps_its_digits_in_single(impl, reference):
    """The weight of the first of 1000 steps is taken from the float64 tables, and then cast."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    t = torch.tensor([0, 0, 1])
    expected = reference.diffusion_loss(bend, X, t, Y, betas, weighting="vlb")
    loss = impl.diffusion_loss(bend, X.float(), t, Y.float(), chain(impl, betas), weighting="vlb")
    question = "How many digits has 1 - alpha_bar in float32?"
    assert_close(loss, np.float64(expected), question, dtype=torch.float32)


@pytest.mark.parametrize("weighting", ["sum", "Simple", "", None])
def test_unknown_weightings_are_refused(impl, weighting):
    """diffusion_loss names a weighting that it does not know."""
    with rejects(weighting, question="Is any other weighting refused by name?"):
        impl.diffusion_loss(bend, X, T3, Y, chain(impl, STEEP), weighting=weighting)


def test_answers_of_another_shape_are_refused(impl):
    """A model whose answer would broadcast against the noise is refused."""
    for shape in SHAPES:
        with rejects(question="A (B, 1) answer broadcasts in silence: is its shape compared?"):
            answer = torch.ones(shape, dtype=torch.float64)
            impl.diffusion_loss(lambda x, t, a=answer: a, X, T3, Y, chain(impl, STEEP))


def test_a_loss_refuses_what_the_jump_refuses(impl):
    """Noise of another shape and steps that do not exist are refused by the loss, too."""
    s = chain(impl, STEEP)
    with rejects(question=SHAPE_QUESTION):
        impl.diffusion_loss(bend, X, T3, Y[:, :1], s)
    with rejects(-1, question=STEP_QUESTION):
        impl.diffusion_loss(bend, X, torch.tensor([0, -1, 2]), Y, s)


# ---- 5 train_step


def replayed(reference, x0, betas, seed, rates, dtype=torch.float64):
    """What `trained` should return, by autograd of our own."""
    model = fill(Affine(x0.shape[1])).to(dtype)
    optimizer = Descent([model.w, model.v])
    generator = torch.Generator().manual_seed(seed)
    x0, losses = x0.to(dtype), []
    for rate in rates:
        t = torch.randint(0, len(betas), x0.shape[:1], generator=generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=dtype)
        x_t = torch.from_numpy(reference.q_sample(x0, t, noise, betas)).to(dtype)
        loss = (noise - model(x_t, t)).square().mean()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in model.named_parameters()}, generator.get_state()


@given(shape=distinct(2, 1, 5), betas=chains, seed=st.integers(0, 99))
def test_training_replays_algorithm_1(impl, reference, shape, betas, seed):
    """Three steps draw, descend and report as Algorithm 1 does, with the learning rate of the
    moment.
    """
    x0 = draws(seed + 100, shape, 1)[0]
    losses, state, _, _ = trained(impl, x0, betas, seed, [0.1, 0.3, 0.05])
    expected, wanted, _ = replayed(reference, x0, betas, seed, [0.1, 0.3, 0.05])
    assert_close(
        losses[:1],
        expected[:1],
        "Is t drawn first, one for every example, then the noise, for L_simple?",
    )
    assert_close(
        state,
        wanted,
        "Are gradients zeroed, then made, then used once, without touching what is frozen?",
    )
    assert_close(losses, expected, "Is the loss that of before the step, as a Python float?")


def test_training_in_single_draws_in_single(impl, reference):
    """train_step takes float32 data, and draws noise of their dtype."""
    x0 = draws(7, (5, 4), 1)[0]  # torch draws 16 numbers or more otherwise than fewer
    losses, state, drawn, _ = trained(impl, x0, STEEP, 8, [0.1, 0.2], torch.float32)
    expected, wanted, left = replayed(reference, x0, STEEP, 8, [0.1, 0.2], torch.float32)
    # float32 rounding of a loss
    assert_close(losses, expected, "Is the noise drawn in the dtype of x0?", rtol=2e-5)
    assert_close(state, wanted, "Is the noise drawn in the dtype of x0?")
    assert_close(drawn, left, "Are there two draws in a step, and no other?")


def test_training_draws_twice_and_leaves_the_mode(impl, reference):
    """A step draws t and the noise, no more, and leaves a model in evaluation mode there."""
    x0 = draws(9, (4, 2), 1)[0]
    _, _, drawn, flags = trained(impl, x0, STEEP, 3, [0.1])
    assert_close(
        drawn,
        replayed(reference, x0, STEEP, 3, [0.1])[2],
        "Are there two draws in a step, and no other?",
    )
    assert_close(flags, [False, False], "Who decides what is trained, and in which mode?")


class Scale(nn.Module):
    """eps = x w, which remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.detach().clone(), t.clone()))
        return self.w * x


@driver
def trained_on_images(impl, x0, seed):
    """What the model sees in one step."""
    model = Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    impl.train_step(model, optimizer, x0, chain(impl, STEEP), torch.Generator().manual_seed(seed))
    return model.seen


def test_images_can_be_trained_on(impl, reference):
    """train_step takes data of any rank and hands the model t of shape (B,) in int64."""
    x0 = draws(5, (4, 3, 1, 2), 1)[0]
    seen = trained_on_images(impl, x0, 11)
    generator = torch.Generator().manual_seed(11)
    t = torch.randint(0, 4, (4,), generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x_t = torch.from_numpy(reference.q_sample(x0, t, noise, STEEP))
    assert_close(seen, [(x_t, t)], "Is t (B,), uniform over all T steps, and the noise like x0?")


# ---- 6 p_sample, sample


@given(
    case=batches(),
    step=st.integers(0, 3),
    variance=st.sampled_from(["beta", "posterior"]),
    clip=st.sampled_from([None, 0.75, 2.0]),
)
def test_one_step_back_is_mean_plus_noise(impl, reference, case, step, variance, clip):
    """p_sample is the mean that the model implies plus sigma_t times one draw."""
    betas, shape, seed = case
    t = min(step, len(betas) - 1)
    x_t, z = 3.0 * draws(seed + 100, shape, 1)[0], draws(seed, shape, 1)[0]
    expected = reference.p_sample(bend, x_t, t, z, betas, variance=variance, clip=clip)
    got = impl.p_sample(
        bend,
        x_t,
        t,
        chain(impl, betas),
        torch.Generator().manual_seed(seed),
        variance=variance,
        clip=clip,
    )
    question = "Is the noise multiplied by a standard deviation?"
    if clip is not None:
        question = (
            "Is it the predicted x_0 that is clamped, and the posterior mean that is taken there?"
        )
    assert_close(got, expected, question, scale=largest(x_t))


def test_the_last_step_draws_nothing(impl):
    """At t = 0 two seeds give one answer, and the generator does not move."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    before = [g.get_state() for g in generators]
    for clip, variance in itertools.product((None, 1.5), ("beta", "posterior")):
        first, second = (
            impl.p_sample(bend, X, 0, chain(impl, STEEP), g, clip=clip, variance=variance)
            for g in generators
        )
        assert_close(first, second, "What is z at the last step of Algorithm 2?")
    assert_close([g.get_state() for g in generators], before, "Is anything drawn at t = 0?")


def test_other_steps_draw_once(impl):
    """For t > 0 there is one draw of the shape and dtype of x_t; beta and no clip are the
    default.
    """
    generator = torch.Generator().manual_seed(5)
    got = impl.p_sample(lambda x, t: 0 * x, X, 2, chain(impl, STEEP), generator)
    expected = X / math.sqrt(0.5) + math.sqrt(0.5) * draws(5, (3, 2), 1)[0]
    assert_close(got, expected, "Is sigma_t^2 = beta_t unless told?")
    assert_close(
        generator.get_state(), after(5, (3, 2), 1), "Is there one draw, for every entry its own?"
    )


def test_one_step_back_in_single(impl, reference):
    """p_sample in float32 draws and answers in float32."""
    x_t, z = X.repeat(1, 3), draws(5, (3, 6), 1, torch.float32)[0]
    for clip in (None, 1.0):
        got = impl.p_sample(
            bend,
            x_t.float(),
            3,
            chain(impl, STEEP),
            torch.Generator().manual_seed(5),
            variance="posterior",
            clip=clip,
        )
        expected = reference.p_sample(bend, x_t, 3, z, STEEP, variance="posterior", clip=clip)
        assert_close(
            got, expected, "Are the draw and the answer of the dtype of x_t?", dtype=torch.float32
        )


def test_data_at_one_point_are_reached_exactly(impl):
    """Section 3.2: for data at a point c the "posterior" choice gives x_{t-1} ~ q(x_{t-1} | x_0 =
    c).
    """
    bar, c = tables(STEEP)["alpha_bars"], 1.75

    def exact(x, t):
        return (x - bar[t].sqrt() * c) / (1.0 - bar[t]).sqrt()

    start, z, later = draws(20, (6,), 1)[0], draws(21, (6,), 1)[0], []
    for t in (3, 2, 1):
        # x_t = mean + std * start is a draw of q(x_t | c); the step keeps a share and adds z
        for noise in (start, 0 * start):
            x_t = bar[t].sqrt() * c + (1.0 - bar[t]).sqrt() * noise
            generator = torch.Generator().manual_seed(21)
            later.append(
                impl.p_sample(exact, x_t, t, chain(impl, STEEP), generator, variance="posterior")
            )
        share, added = (later[-2] - later[-1]) / start, (later[-1] - bar[t - 1].sqrt() * c) / z
        expected = (1.0 - bar[t - 1]).expand(6)
        assert_close(
            share**2 + added**2, expected, "Is sigma_t^2 the posterior's variance, beta-tilde?"
        )


def test_the_model_is_told_the_step(impl):
    """p_sample calls the model once, with x_t and an int64 (B,) full of t, and keeps no graph."""
    calls, scale = [], nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def model(x, t):
        calls.append((x.detach().clone(), t.clone()))
        return scale * x

    got = impl.p_sample(model, X, 2, chain(impl, STEEP), torch.Generator().manual_seed(0), clip=2.0)
    assert_close(
        calls,
        [(X, torch.tensor([2, 2, 2]))],
        "Is the model called once, with a t for every example?",
    )
    assert_close(got.requires_grad, False, "Is a graph kept that nobody will go back through?")
    wanted = X.clone().requires_grad_(True)
    got = impl.p_sample(bend, wanted, 0, chain(impl, STEEP), torch.Generator().manual_seed(0))
    assert_close(got.requires_grad, False, "Is a graph kept that nobody will go back through?")


@pytest.mark.parametrize("clip", [0.0, -1.5, float("nan")])
def test_a_clip_that_is_not_positive_is_refused(impl, clip):
    """p_sample names a clip that is not > 0."""
    with rejects(clip):
        impl.p_sample(bend, X, 1, chain(impl, STEEP), torch.Generator(), clip=clip)


@pytest.mark.parametrize("variance", ["fixed", "betas", "", None])
def test_unknown_variances_are_refused(impl, variance):
    """p_sample names a variance that it does not know."""
    for t in (0, 2):
        with rejects(variance, question="Is it refused at the last step as well?"):
            impl.p_sample(bend, X, t, chain(impl, STEEP), torch.Generator(), variance=variance)


@pytest.mark.parametrize("t", [-1, 4])
def test_one_step_back_refuses_steps_that_do_not_exist(impl, t):
    """p_sample refuses t outside [0, T)."""
    for clip in (None, 1.0):
        with rejects(t, question=STEP_QUESTION):
            impl.p_sample(bend, X, t, chain(impl, STEEP), torch.Generator(), clip=clip)


def test_one_step_back_refuses_answers_of_another_shape(impl):
    """p_sample refuses a model whose answer would broadcast."""
    for clip in (None, 1.0):
        with rejects(question=SHAPE_QUESTION):
            impl.p_sample(
                lambda x, t: x[:, :1], X, 2, chain(impl, STEEP), torch.Generator(), clip=clip
            )


@given(
    case=batches(),
    variance=st.sampled_from(["beta", "posterior"]),
    clip=st.sampled_from([None, 1.25]),
)
def test_sampling_replays_algorithm_2(impl, reference, case, variance, clip):
    """sample is x_T and then T steps back; its trajectory holds them all."""
    betas, shape, seed = case
    T = len(betas)
    expected = reference.sample(bend, draws(seed, shape, T), betas, variance=variance, clip=clip)

    def run(**more):
        generator = torch.Generator().manual_seed(seed)
        return impl.sample(
            bend,
            shape,
            chain(impl, betas),
            generator,
            variance=variance,
            clip=clip,
            dtype=torch.float64,
            **more,
        )

    question = "Is x_T drawn first, then a step for t = T - 1 down to 0?"
    assert_close(
        run(return_trajectory=True), expected, question, scale=largest(torch.from_numpy(expected))
    )
    assert_close(
        run(),
        expected[-1],
        "Is it the last state alone that is returned?",
        scale=largest(torch.from_numpy(expected)),
    )


def test_sampling_draws_once_a_step(impl):
    """T steps consume T draws: x_T, and one for every step but the last; the model is asked T
    times.
    """
    generator, seen = torch.Generator().manual_seed(9), []

    def model(x, t):
        seen.append(t.clone())
        return 0.5 * x

    impl.sample(model, (3, 2), chain(impl, STEEP), generator, dtype=torch.float64)
    assert_close(
        generator.get_state(), after(9, (3, 2), 4), "Is there a draw at t = 0, or one too few?"
    )
    assert_close(
        seen, [torch.full((3,), t) for t in (3, 2, 1, 0)], "Which steps are taken, in which order?"
    )


def test_samples_are_single_unless_told(impl, reference):
    """The default is float32, "beta", no clip, no trajectory and no graph."""
    scale = nn.Parameter(torch.tensor(0.5))
    got = impl.sample(
        lambda x, t: scale * x, (5, 4), chain(impl, STEEP), torch.Generator().manual_seed(2)
    )
    noise = draws(2, (5, 4), 4, torch.float32)
    expected = reference.sample(lambda x, t: 0.5 * x, noise, STEEP, variance="beta", clip=None)
    assert_close(
        got, expected[-1], "Are all draws float32?", dtype=torch.float32, scale=largest(*noise)
    )
    assert_close(got.requires_grad, False, "Is a graph kept that nobody will go back through?")


@pytest.mark.parametrize(("variance", "known"), [("beta", 0.99), ("posterior", 0.5858)])
def test_the_two_variances_are_the_two_extremes(impl, variance, known):
    """Section 3.2: data from N(0, 1) come out with the variance 0.99 under "beta", 0.5858 under
    "posterior".
    """
    betas = np.linspace(0.01, 0.999, 10).tolist()
    bar = tables(betas)["alpha_bars"]

    def exact(x, t):
        return (1.0 - bar[t]).sqrt() * x

    v = 1.0
    for t in range(9, -1, -1):
        step = [
            impl.p_sample(
                exact, x, t, chain(impl, betas), torch.Generator().manual_seed(0), variance=variance
            )
            for x in (torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
        ]
        gain = step[0] - step[1]
        sigma = step[1] / draws(0, (3,), 1)[0]
        v = gain**2 * v + sigma**2
    # known to four digits
    assert_close(
        v,
        torch.full((3,), known, dtype=torch.float64),
        "Which variance is which extreme?",
        rtol=1e-4,
    )


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_gaussian_data_come_out_with_their_mean_and_variance(impl, variance):
    """With the exact noise of N(m, s^2), 20 000 samples have the mean and variance of the linear
    recursion.
    """
    m, s2, n = 1.5, 0.25, 20_000
    betas = np.linspace(0.02, 0.4, 20).tolist()
    table = tables(betas)
    bar, beta = table["alpha_bars"], table["betas"]

    def exact(x, t):
        return (1.0 - bar[t]).sqrt() * (x - bar[t].sqrt() * m) / (bar[t] * s2 + 1.0 - bar[t])

    mean, v = 0.0, 1.0
    for t in range(19, -1, -1):
        share = float(
            beta[t] / (bar[t] * s2 + 1.0 - bar[t])
        )  # of the gap to the mean that one step closes
        gain, root = (1.0 - share) / math.sqrt(1.0 - betas[t]), math.sqrt(1.0 - betas[t])
        mean = gain * mean + share * float(bar[t].sqrt()) * m / root
        sigma2 = (
            0.0
            if t == 0
            else float(beta[t] if variance == "beta" else table["posterior_variance"][t])
        )
        v = gain**2 * v + sigma2
    generator = torch.Generator().manual_seed(1)
    x = impl.sample(
        exact, (n,), chain(impl, betas), generator, variance=variance, dtype=torch.float64
    )
    errors = [(x.mean() - mean) / math.sqrt(v / n), (x.var() - v) / (v * math.sqrt(2.0 / n))]
    for error in errors:
        # in standard errors, of which five are allowed
        assert_close(
            error,
            np.float64(0.0),
            "Is noise of variance sigma_t^2 added at every step but the last?",
            rtol=5.0,
            scale=1.0,
        )


def test_sampling_refuses_what_a_step_refuses(impl):
    """sample names an unknown variance and a clip that is not > 0."""
    s = chain(impl, STEEP)
    with rejects("both"):
        impl.sample(bend, (3, 2), s, torch.Generator(), variance="both")
    with rejects("-2"):
        impl.sample(bend, (3, 2), s, torch.Generator(), clip=-2.0)


# ---- 7 discretized_gaussian_nll, vlb_bits_per_dim


NLL_QUESTION = "Is the bin 2/255 wide, and open towards infinity at both edges of the grid?"


@given(case=pixels())
@example(case=(PIXELS, X[:, :1] / 4, LOG_SCALES))
@example(case=(PIXELS[2:, :1], PIXELS[2:, :1] + 0.0211, -6.0 * torch.ones(1, 1).double()))
def test_a_pixel_costs_the_log_of_its_bin(impl, reference, case):
    """The cost is -log of the probability of its bin, of which the outer two have no end."""
    x, mean, log_scale = case
    expected = reference.discretized_gaussian_nll(x, mean, log_scale)
    # near the floor a plain difference has lost five digits; the tails have their own test
    assert_close(
        impl.discretized_gaussian_nll(x, mean, log_scale),
        expected,
        NLL_QUESTION,
        rtol=1e-6,
        scale=1.0,
    )


@given(
    mean=st.floats(-2.0, 2.0, allow_subnormal=False).map(lambda m: round(m, 3)),
    log_scale=st.floats(-12.0, 2.0, allow_subnormal=False).map(lambda s: round(s, 3)),
)
@example(mean=-1.0, log_scale=0.0)
@example(mean=0.003, log_scale=-12.0)
def test_the_256_bins_are_all_there_is(impl, mean, log_scale):
    """The probabilities of the 256 values sum to 1."""
    grid = torch.arange(256, dtype=torch.float64) / 127.5 - 1.0
    full = [torch.full((256,), v, dtype=torch.float64) for v in (mean, log_scale)]
    total = torch.exp(-impl.discretized_gaussian_nll(grid, *full)).sum()
    # 256 probabilities below the floor add at most 2.6e-10
    assert_close(
        total, np.float64(1.0), "Do the first and the last bin reach to infinity?", rtol=1e-9
    )


def test_improbable_pixels_cost_a_finite_amount(impl):
    """A probability below 1e-12 counts as 1e-12, with finite gradients, however far the mean."""
    for dtype in (torch.float64, torch.float32):
        for distance, log_scale in ((1e3, 0.0), (-1e3, -12.0), (1.0, -12.0), (-1.0, -7.0)):
            x = torch.tensor([0, 51, 204, 255], dtype=dtype) / 127.5 - 1.0
            mean = (x - distance).requires_grad_(True)
            scale = torch.full_like(x, log_scale).requires_grad_(True)
            cost = impl.discretized_gaussian_nll(x, mean, scale)
            expected = torch.full_like(x, -math.log(1e-12))
            expected[0 if distance > 0 else 3] = 0.0  # all the mass lies beyond this edge
            assert_close(
                cost, expected, "Is the probability floored at 1e-12, in every bin?", scale=1.0
            )
            grads = torch.autograd.grad(cost.sum(), [mean, scale])
            assert_close(
                list(grads),
                [torch.zeros_like(x)] * 2,
                "Is infinity multiplied by zero on the way back?",
            )


def test_both_tails_keep_their_digits(impl, reference):
    """x, mean and -x, -mean cost the same in float32, though the distribution function is 1
    above.
    """
    k = torch.tensor([[10, 255, 100], [254, 0, 160], [200, 127, 30]])
    x = (k.double() / 127.5 - 1.0).float()
    mean = torch.tensor([[-0.5], [0.25], [0.75]])
    for log_scale in (-1.5, -0.75):
        scale = torch.full_like(x, log_scale)
        expected = reference.discretized_gaussian_nll(x, mean, scale)
        for sign in (1.0, -1.0):
            got = impl.discretized_gaussian_nll(sign * x, sign * mean, scale)
            # a bin is a difference of two numbers that agree in two digits or three
            assert_close(
                got,
                expected,
                "Is the bin measured in the tail that is small?",
                rtol=1e-3,
                dtype=torch.float32,
            )


@given(case=batches())
def test_the_bound_is_the_sum_of_its_terms(impl, reference, case):
    """prior, kl and decoder are the terms of equation 5, in bits per dimension, and total is
    their sum.
    """
    betas, shape, seed = case
    x0 = (
        torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).double() / 127.5
        - 1.0
    )
    expected = reference.vlb_bits_per_dim(bend, x0, draws(seed, shape, len(betas)), betas)
    generator = torch.Generator().manual_seed(seed)
    got = impl.vlb_bits_per_dim(bend, x0, chain(impl, betas), generator)
    for name in ("prior", "kl", "decoder", "total"):
        # the decoder is allowed what its own test allows
        assert_close(
            {name: got[name]},
            {name: expected[name]},
            f"Which Gaussians make the {name}, and what divides it?",
            rtol=1e-6,
        )
    assert_close(
        sorted(got),
        ["decoder", "kl", "prior", "total"],
        "Which four entries does the docstring promise?",
    )
    assert_close(
        generator.get_state(), after(seed, shape, len(betas)), "Is there one draw for every step?"
    )


def test_a_perfect_model_pays_for_the_grid_alone(impl):
    """For data at one point, an exact model has no kl and the decoder pays for the width of a
    bin: 0.905 nats.
    """
    betas = np.linspace(1e-4, 0.02, 1000)[:3].tolist()
    s = tables(betas)
    bar = s["alpha_bars"]
    c = torch.tensor([[30, 128, 200, 90]] * 3, dtype=torch.float64) / 127.5 - 1.0

    def exact(x, t):
        left = bar[t][:, None]
        return (x - left.sqrt() * c) / (1.0 - left).sqrt()

    got = impl.vlb_bits_per_dim(exact, c, chain(impl, betas), torch.Generator().manual_seed(0))
    assert_close(
        got["kl"], np.zeros((3, 2)), "Is the kl 0 where the means agree?", rtol=1e-10, scale=1.0
    )
    sigma = math.exp(0.5 * float(s["posterior_log_variance_clipped"][0]))
    nats = -math.log(math.erf(1.0 / 255.0 / sigma / math.sqrt(2.0)))
    # the paper's schedule, to three digits
    assert_close(nats, 0.905, "Is the constant in the docstring right?", rtol=1e-3)
    expected = np.full(3, nats / math.log(2.0))
    assert_close(
        got["decoder"],
        expected,
        "Is sigma_0^2 the clipped posterior variance, and log sigma half its log?",
    )
    prior = 0.5 * (bar[-1] * c**2 - bar[-1] - torch.log(1.0 - bar[-1])).mean(1) / math.log(2.0)
    assert_close(
        got["prior"],
        prior,
        "What is the KL between N(sqrt(alpha_bar) x, 1 - alpha_bar) and N(0, 1)?",
    )


def test_the_bound_in_single_keeps_no_graph(impl, reference):
    """vlb_bits_per_dim in float32 draws and answers in float32, asks once a step, and keeps no
    graph.
    """
    scale, seen = nn.Parameter(torch.tensor(0.5)), []

    def model(x, t):
        seen.append(t.clone())
        return scale * x

    x0 = PIXELS.repeat(1, 2).float()
    got = impl.vlb_bits_per_dim(model, x0, chain(impl, STEEP), torch.Generator().manual_seed(3))
    noises = draws(3, (3, 6), 4, torch.float32)
    expected = reference.vlb_bits_per_dim(lambda x, t: 0.5 * x, x0, noises, STEEP)
    # bins are differences of numbers that agree in two digits or three
    assert_close(got, expected, "Are all draws of the dtype of x0?", dtype=torch.float32, rtol=1e-3)
    assert_close([value.requires_grad for value in got.values()], [False] * 4, "Is a graph kept?")
    assert_close(
        seen,
        [torch.full((3,), t) for t in (3, 2, 1, 0)],
        "Which steps are visited, in which order?",
    )
    asked = impl.vlb_bits_per_dim(
        bend, x0.requires_grad_(True), chain(impl, STEEP), torch.Generator().manual_seed(3)
    )
    assert_close([value.requires_grad for value in asked.values()], [False] * 4, "Is a graph kept?")


# ---- 8 timestep_embedding, ResnetBlock, unet_parameter_count


@given(t=tensors((4,), ("plain", "rows", "large")), dim=st.integers(2, 9))
def test_time_turns_at_every_frequency(impl, reference, t, dim):
    """The embedding is sines, then cosines, at frequencies from 1 down to 1/10000."""
    expected = reference.timestep_embedding(t, dim)
    question = "Do the frequencies end at 1/10000, the sines come first, and an odd dim end with 0?"
    # an angle of 16384 has lost four digits
    assert_close(impl.timestep_embedding(t, dim), expected, question, rtol=1e-8, scale=1.0)


def test_whole_steps_are_embedded_in_single(impl, reference):
    """An int64 t gives float32, a float32 t keeps its dtype, up to the last of 1000 steps."""
    t = torch.tensor([0, 7, 500, 999])
    expected = reference.timestep_embedding(t, 10)
    for given_t in (t, t.float()):
        # an angle of 999 may be formed in float32
        assert_close(
            impl.timestep_embedding(given_t, 10),
            expected,
            "Is an integer t made floating?",
            rtol=5e-4,
            scale=1.0,
            dtype=torch.float32,
        )


def test_half_steps_keep_their_dtype(impl, reference):
    """A floating t of any dtype gives an embedding of that dtype."""
    for dtype in (torch.float16, torch.bfloat16):
        t = torch.tensor([0, 7, 100], dtype=dtype)
        question = "Which dtypes are floating?"
        assert_close(
            impl.timestep_embedding(t, 10),
            reference.timestep_embedding(t, 10),
            question,
            dtype=dtype,
            scale=1.0,
        )


@pytest.mark.parametrize("dim", [1, 0, -4])
def test_an_embedding_needs_a_sine_and_a_cosine(impl, dim):
    """timestep_embedding refuses dim < 2 and names it."""
    with rejects(dim):
        impl.timestep_embedding(torch.tensor([1, 2, 3]), dim)


@st.composite
def images(draw):
    """Channels in and out, groups that divide them, and images of any size down to one pixel."""
    groups = draw(st.integers(1, 3))
    in_ch, out_ch = (groups * draw(st.integers(1, 3)) for _ in range(2))
    B, H, W, temb_dim = (draw(st.integers(low, 3)) for low in (2, 1, 1, 1))
    x = draw(tensors((B, in_ch, H, W), ("plain", "rows", "tiny")))
    return in_ch, out_ch, groups, x, draw(tensors((B, temb_dim)))


@given(case=images())
def test_a_block_is_shortcut_plus_branch(impl, reference, case):
    """ResnetBlock is norm, SiLU, conv, shift by the time, norm, SiLU, conv, beside its shortcut."""
    in_ch, out_ch, groups, x, temb = case
    module = block(impl, in_ch, out_ch, temb.shape[1], groups)
    expected = reference.resnet_block(module.state_dict(), x, temb, groups)
    question = "Does the time enter between the convolutions, through a SiLU, as each norm does?"
    assert_close(module(x, temb), expected, question, scale=1.0)


def test_faint_images_are_not_blown_up(impl, reference):
    """GroupNorm has eps 1e-6 inside the root, in both norms; the default is 32 groups."""
    x = torch.linspace(0.0, 40.0, 2 * 64, dtype=torch.float64).cos().reshape(2, 64, 1, 1) * 1e-3
    temb = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(2, 3)
    module = fill(impl.ResnetBlock(64, 32, 3), scale=1e-3).eval()
    with torch.no_grad():
        module.norm1.weight += 1.0
    # weights of 1e-3, so that what reaches the second norm is faint, too
    expected = reference.resnet_block(module.state_dict(), x, temb, 32)
    small = impl.ResnetBlock(4, 2, 3, groups=2)
    fill(small, scale=2e-3).eval()
    faint = IMAGE[:2] * 1e-3
    other = reference.resnet_block(small.state_dict(), faint, temb, 2)
    assert_close(module(x, temb), expected, "Are there 32 groups, with eps 1e-6, unless told?")
    shortcut = small.state_dict()["shortcut.weight"][:, :, 0, 0]
    skip = (
        torch.einsum("oc,bchw->bohw", shortcut, faint)
        + small.state_dict()["shortcut.bias"][:, None, None]
    )
    assert_close(
        small(faint, temb) - skip, torch.from_numpy(other) - skip, "Is eps 1e-6 in both norms?"
    )


@pytest.mark.parametrize(("in_ch", "out_ch"), [(4, 6), (6, 6)])
def test_a_new_block_is_its_shortcut(impl, in_ch, out_ch):
    """Until it is trained, the block returns shortcut(x) exactly, whatever the time."""
    with torch.random.fork_rng(devices=[]):
        seeded(impl, 0)
        module = impl.ResnetBlock(in_ch, out_ch, 3, groups=2).double()
    state = module.state_dict()
    x = torch.linspace(-3.0, 5.0, 3 * in_ch * 2, dtype=torch.float64).reshape(3, in_ch, 2, 1)
    expected = x
    if in_ch != out_ch:
        expected = torch.einsum("oc,bchw->bohw", state["shortcut.weight"][:, :, 0, 0], x)
        expected = expected + state["shortcut.bias"][:, None, None]
    for size in (1.0, 1e3):
        temb = size * torch.linspace(-1.0, 1.0, 9, dtype=torch.float64).reshape(3, 3)
        assert_close(module(x, temb), expected, "Do weight and bias of conv2 start at zero?")


@pytest.mark.parametrize(("in_ch", "out_ch"), [(4, 6), (6, 6)])
def test_the_parameters_have_their_names(impl, in_ch, out_ch):
    """The state dict has norm1, conv1, temb_proj, norm2, conv2, and a shortcut only where
    channels differ.
    """
    state = impl.ResnetBlock(in_ch, out_ch, 5, groups=2).state_dict()
    expected = {
        "norm1": (in_ch,),
        "conv1": (out_ch, in_ch, 3, 3),
        "temb_proj": (out_ch, 5),
        "norm2": (out_ch,),
        "conv2": (out_ch, out_ch, 3, 3),
    }
    if in_ch != out_ch:
        expected["shortcut"] = (out_ch, in_ch, 1, 1)
    weights = {f"{name}.weight": list(shape) for name, shape in expected.items()}
    biases = {f"{name}.bias": list(shape[:1]) for name, shape in expected.items()}
    found = {name: list(value.shape) for name, value in state.items()}
    assert_close(
        found, weights | biases, "Which layers does the docstring name, and which have a bias?"
    )
    begun = [
        float(state[name].abs().max()) > 0
        for name in sorted(state)
        if name.endswith("weight") and name != "conv2.weight"
    ]
    assert_close(begun, [True] * len(begun), "Is more than conv2 zeroed?")


def test_dropout_drops_before_the_second_convolution(impl):
    """In training mode a share `dropout` of what conv2 sees is zero, the rest scaled up;
    otherwise nothing is.
    """
    rate = 0.25
    plain, dropping = (impl.ResnetBlock(4, 4, 3, groups=2, dropout=p) for p in (0.0, rate))
    for module in (plain, dropping):
        fill(module)
        with torch.no_grad():  # conv2 copies what it sees
            module.conv2.weight.zero_()
            module.conv2.weight[range(4), range(4), 1, 1] = 1.0
            module.conv2.bias.zero_()
    x = torch.linspace(0.0, 99.0, 3 * 4 * 64, dtype=torch.float64).sin().reshape(3, 4, 8, 8)
    temb = Y.repeat(1, 2)[:, :3]
    whole = plain(x, temb) - x
    assert_close(dropping.eval()(x, temb) - x, whole, "Does dropout stop in evaluation mode?")
    with torch.random.fork_rng(devices=[]):
        seeded(impl, 0)
        kept = dropping.train()(x, temb) - x
    dropped = (kept.abs() < 1e-12 * whole.abs()).double()
    # four standard errors, of 768 draws and of the 64 of one channel
    question = "Is `dropout` the share that is dropped, every entry on its own?"
    assert_close(dropped.mean(), np.float64(rate), question, rtol=0.25)
    assert_close(dropped.mean((2, 3)), np.full((3, 4), rate), question, rtol=0.87)
    expected = (1.0 - dropped) * whole / (1.0 - rate)
    assert_close(
        kept, expected, "Does dropout stand between the SiLU and conv2?", scale=largest(whole)
    )


@pytest.mark.parametrize(("in_ch", "out_ch", "named"), [(5, 6, 5), (6, 7, 7), (2, 9, 2)])
def test_channels_that_do_not_group_are_refused(impl, in_ch, out_ch, named):
    """ResnetBlock names the number of channels that its groups do not divide."""
    with rejects(named):
        impl.ResnetBlock(in_ch, out_ch, 4, groups=3)


@given(settings=networks())
def test_every_parameter_is_counted(impl, reference, settings):
    """The count is that of all parameters of the U-Net, layer by layer."""
    question = "Which block changes its width, which skip has which, and where is attention?"
    assert_close(
        impl.unet_parameter_count(**settings), reference.unet_parameter_count(**settings), question
    )


def test_the_paper_s_networks_have_their_sizes(impl):
    """Appendix B: 35.7 million parameters for CIFAR-10, 114 million for images of 256 x 256."""
    question = "Are there two blocks in the middle, and one block more a level on the way up?"
    assert_close(impl.unet_parameter_count(), 35_746_307, question)
    large = impl.unet_parameter_count(multipliers=(1, 1, 2, 2, 4, 4), resolution=256)
    assert_close(large, 113_673_219, question)


# ---- the claim


def energy(a: Tensor, b: Tensor) -> float:
    """The energy distance of two samples of equal size, unbiased: 0 for one distribution, below
    it by chance.
    """
    pairs = len(a) * (len(a) - 1)
    within = (torch.cdist(a, a).sum() + torch.cdist(b, b).sum()) / pairs
    return float(2.0 * torch.cdist(a, b).mean() - within)


def cosine(k: int, steps: int) -> float:
    return 2e-3 * 0.5 * (1.0 + math.cos(math.pi * k / steps))


@driver
def predicting_noise(impl, seed, T, steps, count):
    """Samples, as a trajectory, of the candidate trained to predict the noise."""
    generator = torch.Generator().manual_seed(seed)
    s = impl.make_schedule(impl.linear_betas(T, start=0.1 / T, end=20.0 / T))
    model = impl.TinyEps(T, generator)
    optimizer = torch.optim.Adam(model.parameters())
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = cosine(k, steps)
        impl.train_step(model, optimizer, impl.ring(512, generator), s, generator)
    return impl.sample(model, (count, 2), s, generator, return_trajectory=True)


@driver
def predicting_means(impl, seed, T, steps, count):
    """Samples of the same network trained by ourselves to predict the posterior mean, by
    unweighted MSE.
    """
    generator = torch.Generator().manual_seed(seed)
    s = {
        k: v.float()[:, None] for k, v in tables(np.linspace(0.1 / T, 20.0 / T, T).tolist()).items()
    }
    model = impl.TinyEps(T, generator)
    optimizer = torch.optim.Adam(model.parameters())
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = cosine(k, steps)
        x0 = impl.ring(512, generator)
        t = torch.randint(0, T, (512,), generator=generator)
        x_t = s["alpha_bars"][t].sqrt() * x0 + (1.0 - s["alpha_bars"][t]).sqrt() * torch.randn(
            512, 2, generator=generator
        )
        loss = (s["coef_x0"][t] * x0 + s["coef_xt"][t] * x_t - model(x_t, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(count, 2, generator=generator)
    with torch.no_grad():
        for t in range(T - 1, -1, -1):
            x = model(x, torch.full((count,), t))
            x = (
                x + s["betas"][t].sqrt() * torch.randn(count, 2, generator=generator)
                if t > 0
                else x
            )
    return x


@pytest.mark.claim(seconds=30)
def test_predicting_noise_works_and_predicting_means_does_not(impl, figure):
    """Table 2: by plain squared error, predicting noise samples well and predicting means does not.

    On a ring of eight Gaussians, 4000 samples lie within an energy distance of 0.008 of the data,
    80 % of them within three standard deviations of a mode, and every mode holds 8 % or more;
    the same network trained on the posterior mean is at least 4 times as far off.
    """
    real = impl.ring(4000, torch.Generator().manual_seed(100))
    angle = torch.arange(8) * (math.pi / 4.0)
    centres = 1.2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    trajectory = predicting_noise(impl, 0, 200, 4000, 4000)
    means = predicting_means(impl, 0, 200, 4000, 4000)
    noise, worse = energy(trajectory[-1], real), energy(means, real)
    distance, mode = torch.cdist(trajectory[-1], centres).min(1)
    held, near = (
        torch.bincount(mode, minlength=8).min().item() / 4000,
        (distance < 0.45).double().mean().item(),
    )
    draw_ring(
        figure(
            "Predicting noise finds the ring, predicting means fills it. "
            "So small a network does not part the eight modes."
        ),
        real,
        trajectory,
        means,
        noise,
        worse,
    )
    assert noise <= 0.008, (
        f"The samples are {noise:.4f} from the data: which part of Algorithm 1 or 2 is off?"
    )
    assert worse >= 4.0 * noise, (
        f"Predicting means is at {worse:.4f}, predicting noise at {noise:.4f}: why so close?"
    )
    assert near >= 0.8, (
        f"{near:.1%} of the samples are near a mode: is every step taken with the right variance?"
    )
    assert held >= 0.08, (
        f"A mode holds {held:.1%} of the samples: is every t trained, and every step taken?"
    )


def draw_ring(fig, real, trajectory, means, noise, worse):
    """Data and both samples above, the way from noise to data below."""
    grid = fig.add_gridspec(2, 6, height_ratios=[2, 1])
    shown = [
        (real, "data"),
        (trajectory[-1], f"predicting noise, E = {noise:.4f}"),
        (means, f"predicting means, E = {worse:.4f}"),
    ]
    axes = [fig.add_subplot(grid[0, 2 * i : 2 * i + 2]) for i in range(3)]
    frames = [0, 120, 160, 180, 190, 200]
    axes += [fig.add_subplot(grid[1, i]) for i in range(6)]
    shown += [(trajectory[i], f"{200 - i} steps to go") for i in frames]
    for ax, (points, title) in zip(axes, shown, strict=True):
        ax.scatter(*points[:2000].T.numpy(), s=1.0, alpha=0.5, linewidths=0)
        ax.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=8)
