"""What judges scaling/neural_scaling_laws: Kaplan, McCandlish et al. 2020, arXiv:2001.08361."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlings.testing import Example, assert_close, distinct, driver, rejects, sizes, tensors

INF = math.inf
LEVELS = (0.95, 0.5, 0.8, 0.99)
# constants near 1, so that a difference of 1e-5 in an argument of about 1 is seen
JOINT = {"alpha_n": 0.4, "alpha_d": 0.7, "n_c": 3.0, "d_c": 2.0}
CURVES = {"alpha_n": 0.4, "n_c": 3.0, "alpha_s": 0.6, "s_c": 2.5}


def column(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def example_text(n: int, seed: int = 0) -> Tensor:
    """n bytes below 128, with some order in them: a byte is often the one before, plus one."""
    generator = torch.Generator().manual_seed(seed)
    jump = torch.randint(4, (n,), generator=generator) // 3 * 17
    return (jump + 1).cumsum(0) % 128


SIZES = {"n_layer": 3, "d_model": 5, "d_attn": 7, "d_ff": 11, "n_ctx": 2, "n_vocab": 13}
POINTS = column(3.0, 1.0, 8.0, 2.0, 5.0), column(0.9, 1.6, 0.5, 1.1, 0.8)
SMALL = {"context": 2, "batch": 5, "lr": 0.3, "held_out": 9}

EXAMPLES = {
    "transformer_counts": Example(kwargs=SIZES),
    "log_line": Example(args=POINTS, gradient=(0, 1)),
    "fit_power_law": Example(args=POINTS, gradient=(0, 1)),
    "power_law_interval": Example(args=POINTS, kwargs={"level": 0.8}, gradient=(0, 1)),
    "prediction_interval": Example(
        args=(*POINTS, column(1.5, 20.0, 4.0)),
        kwargs={"level": 0.8},
        gradient=(0, 1, 2),
    ),
    "loss_n_d": Example(
        args=(column(0.5, 2.0, 9.0), column(3.0, 0.7, 1.3)),
        kwargs=JOINT,
        gradient=(0, 1),
        batch=(0, 1),
    ),
    "overfit_fraction": Example(
        args=(column(0.5, 2.0, 9.0), column(3.0, 0.7, 1.3)),
        kwargs=JOINT,
        gradient=(0, 1),
        batch=(0, 1),
    ),
    "data_needed": Example(
        args=(column(0.5, 2.0, 9.0), column(0.3, 0.7, 1.3)),
        kwargs=JOINT,
        gradient=(0, 1),
        batch=(0, 1),
    ),
    "critical_batch": Example(
        args=(column(0.5, 2.0, 4.0),),
        kwargs={"b_star": 3.0, "alpha_b": 0.4},
        gradient=(0,),
        batch=(0,),
    ),
    "steps_min": Example(
        args=(column(5.0, 2.0, 4.0), column(3.0, 0.7, 1.3), column(0.6, 2.5, 1.1)),
        gradient=(0, 1, 2),
        batch=(0, 1, 2),
    ),
    "compute_min": Example(
        args=(column(5.0, 2.0, 4.0), column(3.0, 0.7, 1.3), column(0.6, 2.5, 1.1)),
        gradient=(0, 1, 2),
        batch=(0, 1, 2),
    ),
    "noise_tradeoff": Example(
        args=(column(5.0, 2.0, 4.0), column(3.0, 7.0, 6.0), column(2.0, 1.5, 1.1), column(2, 3, 5)),
        gradient=(0, 1, 2, 3),
        batch=(0, 1, 2, 3),
    ),
    "loss_n_s": Example(
        args=(column(0.5, 2.0, 9.0), column(3.0, 0.7, 1.3)),
        kwargs=CURVES,
        gradient=(0, 1),
        batch=(0, 1),
    ),
    "early_stop_bound": Example(
        args=(column(0.5, 2.0, 9.0), column(3.0, 0.7, 1.3)),
        kwargs=JOINT | {"alpha_s": 0.6, "s_c": 2.5},
        gradient=(0, 1),
        batch=(0, 1),
    ),
    "optimal_exponents": Example(
        args=(column(0.1, 0.5, 0.9), column(0.3, 0.2, 1.3), column(0.8, 0.7, 0.4)),
        gradient=(0, 1, 2),
        batch=(0, 1, 2),
    ),
    "compute_optimal": Example(
        args=(column(0.5, 200.0, 4e4),),
        kwargs=CURVES | {"alpha_b": 0.3, "b_star": 1.5},
        batch=(0,),
    ),
    "train_and_measure": Example(
        args=(3, example_text(60), 2, torch.Generator().manual_seed(5)), kwargs=SMALL
    ),
}


@st.composite
def points(draw: st.DrawFn, least: int = 2) -> dict[str, Tensor]:
    """x and y, (n,), around a falling power law, over a few octaves and in any order."""
    n = draw(st.integers(least, 7))
    gaps = 1.0 + draw(tensors((n,))).abs()
    x = 2.0 ** (gaps.cumsum(0) + draw(st.sampled_from([-2.0, 7.0, 20.0])))
    noise = draw(tensors((n,))) / 32.0
    noise[-1] += 0.01  # never wholly without scatter
    order = torch.tensor(draw(st.permutations(range(n))))
    return {"x": x[order], "y": (x**-0.3 * torch.exp(noise))[order]}


@st.composite
def predictions(draw: st.DrawFn) -> dict[str, Tensor]:
    """At least three points, and places x_new of any shape."""
    shape = draw(st.sampled_from([(), (2,), (2, 3), (1, 1)]))
    return draw(points(least=3)) | {"x_new": 2.0 ** (draw(tensors(shape)) + 5.0)}


@st.composite
def positives(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor | float:
    """Values from 1 to 5 times a power of ten, with axes or, where shape is (), as a float."""
    values = 1.0 + draw(tensors(shape)).abs()
    values = values * 10.0 ** draw(st.sampled_from([0, 3, 13, -2]))
    return values if shape else values.item()


@st.composite
def broadcasting(draw: st.DrawFn, count: int) -> list[Any]:
    """`count` positive arguments, numbers or tensors whose shapes broadcast."""
    a, b = draw(distinct(2, high=4))
    shapes = [(a, 1), (b,), (), (a, b), (1,)]
    return [draw(positives(draw(st.sampled_from(shapes)))) for _ in range(count)]


def of_kind(expected: Any, arguments: list[Any]) -> Any:
    """What numbers alone are answered by is a float."""
    if any(isinstance(x, Tensor) for x in arguments):
        return expected
    if isinstance(expected, dict):
        return {name: float(value) for name, value in expected.items()}
    return float(expected)


joint_laws = st.fixed_dictionaries(
    {
        "alpha_n": st.sampled_from([0.076, 0.25, 0.5]),
        "alpha_d": st.sampled_from([0.103, 0.5, 1.25]),
        "n_c": st.sampled_from([6.4e13, 3.0, 1e6]),
        "d_c": st.sampled_from([1.8e13, 2.0, 5e4]),
    }
)
curve_laws = st.fixed_dictionaries(
    {
        "alpha_n": st.sampled_from([0.077, 0.25, 0.5]),
        "n_c": st.sampled_from([6.5e13, 3.0, 1e6]),
        "alpha_s": st.sampled_from([0.76, 0.3, 1.25]),
        "s_c": st.sampled_from([2.1e3, 2.0, 5e4]),
    }
)

# ---- transformer_counts


@given(drawn=distinct(6, high=7) | sizes(6, high=3))
def test_every_matrix_of_every_layer_is_counted(impl, reference, drawn):
    """N is the sum of all weight matrices, and each weight costs two FLOPs a token (Table 1)."""
    shape = dict(zip(SIZES, drawn, strict=True))
    assert_close(
        impl.transformer_counts(**shape),
        reference.transformer_counts(**shape),
        "Which matrices does a layer have, and from which width to which? What costs 2, what 3?",
    )


MODELS = {
    "GPT-2 small": (12, 768, 84_934_656),
    "GPT-2 medium": (24, 1024, 301_989_888),
    "GPT-2 large": (36, 1280, 707_788_800),
    "GPT-2 XL": (48, 1600, 1_474_560_000),
    "GPT-3": (96, 12288, 173_946_175_488),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_exist_have_the_size_they_have(impl, name):
    """From GPT-2 small, 84,934,656, to GPT-3, 173,946,175,488: N without tables, exactly."""
    layers, width, params = MODELS[name]
    n_ctx = 2048 if name == "GPT-3" else 1024
    got = impl.transformer_counts(
        n_layer=layers,
        d_model=width,
        d_attn=width,
        d_ff=4 * width,
        n_ctx=n_ctx,
        n_vocab=50257,
    )
    forward = 2 * params + 2 * layers * n_ctx * width
    expected = {
        "params": params,
        "embedding": (50257 + n_ctx) * width,
        "forward_flops": forward,
        "train_flops": 3 * forward,
    }
    assert_close(got, expected, "Are tables in N, or biases, or layer norms?")


@given(drawn=distinct(4, high=9))
def test_the_usual_shape_has_twelve_squares_a_layer(impl, drawn):
    """With d_attn = d_model and d_ff = 4 d_model, N = 12 n_layer d_model^2, and forward_flops is
    2 N (1 + n_ctx / (12 d_model)), exactly.
    """
    layers, width, n_ctx, n_vocab = drawn
    got = impl.transformer_counts(
        n_layer=layers,
        d_model=width,
        d_attn=width,
        d_ff=4 * width,
        n_ctx=n_ctx,
        n_vocab=n_vocab,
    )
    params = 12 * layers * width**2
    assert_close(got["params"], params, "4 squares for attention, and how many for d_ff?")
    assert_close(
        got["forward_flops"] * 12 * width,
        2 * params * (12 * width + n_ctx),
        "How many multiplications does attention itself take, for each token?",
    )


def test_counts_are_exact_beyond_the_digits_of_a_float(impl, reference):
    """Counts above 2^53 are exact ints."""
    shape = SIZES | {"d_model": 10**9 + 7, "d_attn": 10**9 + 9, "d_ff": 10**10 + 19}
    assert_close(
        [str(value) for value in impl.transformer_counts(**shape).values()],
        [str(value) for value in reference.transformer_counts(**shape).values()],
        "Does a float, or a tensor, come in between? And is the order as in the docstring?",
    )


@pytest.mark.parametrize("value", [0, -3, 4.0, True, "8"], ids=repr)
@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_no_positive_int_is_refused(impl, name, value):
    """Each of the six is an int of at least 1; a bool is none."""
    with rejects(name):
        impl.transformer_counts(**{**SIZES, name: value})


# ---- log_line


@given(case=points(), scale=st.sampled_from([1.0, 1e-3, 1e6]))
def test_the_line_has_the_least_squares_in_logarithms(impl, reference, case, scale):
    """Slope and intercept minimise the squared residuals of log y; the rest describes the fit."""
    x, y = case["x"], case["y"] * scale
    # logarithms of about 10 cancel
    assert_close(
        impl.log_line(x, y),
        reference.log_line(x, y),
        "Is it log y on log x, about both means? Which of the sums is squared?",
        scale=10.0,
    )


def test_two_points_lie_on_their_line(impl):
    """From (1, 8) to (4, 2): slope -1, intercept log 8, nothing left over."""
    got = impl.log_line(column(1.0, 4.0), column(8.0, 2.0))
    log2 = math.log(2.0)
    expected = {
        "slope": np.float64(-1.0),
        "intercept": np.float64(3 * log2),
        "centre": np.float64(log2),
        "spread": np.float64(2 * log2**2),
        "residual": np.float64(0.0),
    }
    assert_close(got, expected, "Are the logarithms natural ones?", scale=1.0)


def test_the_residual_is_right_where_the_fit_is_good(impl):
    """Scatter of 1e-6 about a steep line leaves a residual of 4e-12, to six digits."""
    x = column(1.0, 2.0, 4.0, 8.0)
    noise = 1e-6 * column(1.0, -1.0, -1.0, 1.0)  # at right angles to a constant and to log x
    residual = impl.log_line(x, x**-2.0 * torch.exp(noise))["residual"]
    assert_close(
        residual,
        np.float64(4e-12),
        "Is the residual the difference of two large sums?",
        rtol=1e-6,  # a residual of 1e-6 in logarithms of about 1 has 9 digits, its square 8
    )


def test_narrow_data_has_a_slope_too(impl):
    """Where all x lie within a thousandth of each other the slope is right to nine digits."""
    x = 1e12 * (1.0 + 2.5e-4 * torch.arange(5, dtype=torch.float64))
    slope = impl.log_line(x, (x / 1e12) ** -0.5)["slope"]
    assert_close(slope, np.float64(-0.5), "Are the logarithms centred before they are squared?")


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (column(1, 2, 3), column(1, 2)),
        (column(1, 2, 3, 4).reshape(2, 2), column(1, 2, 3, 5).reshape(2, 2)),
        (column(2)[0], column(3)[0]),
        (column(1, 2, 3), column(2)),
    ],
    ids=["of different lengths", "a matrix", "a scalar", "one y for all x"],
)
def test_points_of_the_wrong_shape_are_refused(impl, x, y):
    """x and y are both (n,)."""
    with rejects("shape"):
        impl.log_line(x, y)


@pytest.mark.parametrize("n", [0, 1])
def test_a_line_needs_two_points(impl, n):
    """Through one point there are many lines."""
    with rejects("points"):
        impl.log_line(torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, INF])
@pytest.mark.parametrize("side", ["x", "y"])
def test_what_has_no_logarithm_is_refused(impl, side, bad):
    """Every value is positive and finite, in x and in y."""
    good, wrong = column(1.0, 2.0, 3.0), column(2.0, bad, 5.0)
    with rejects("positive"):
        impl.log_line(*((wrong, good) if side == "x" else (good, wrong)))


@pytest.mark.parametrize("n", [2, 5, 7])
def test_a_vertical_line_is_refused(impl, n):
    """All x equal is no line, however the mean is rounded."""
    for value in (1.1, 6.0, 7.0, 1e9):
        with rejects("equal"):
            impl.log_line(torch.full((n,), value, dtype=torch.float64), 1.0 + torch.arange(n))


# ---- fit_power_law


@given(case=points())
def test_the_fit_is_the_line_in_the_papers_letters(impl, reference, case):
    """alpha is minus the slope, x_c where the law crosses 1, r2 the squared correlation of logs."""
    x, y = case["x"], case["y"]
    assert_close(
        impl.fit_power_law(x, y),
        reference.fit_power_law(x, y),
        "At which x is y = 1? Which sign has alpha? What share of the variation is explained?",
        rtol=1e-8,  # x_c is an exponential of log y / alpha, which may be in the hundreds
    )


@pytest.mark.parametrize("alpha", [0.076, 0.5, 2.0, -0.3])
@pytest.mark.parametrize("x_c", [8.8e13, 2.0, 1e-4])
def test_data_without_scatter_give_the_law_back(impl, alpha, x_c):
    """Of y = (x_c / x)^alpha the fit finds alpha and x_c, and r2 = 1."""
    x = column(3.0, 1e3, 40.0, 2e7)
    alpha_, x_c_, r2 = np.float64(alpha), np.float64(x_c), np.float64(1.0)
    assert_close(
        impl.fit_power_law(x, (x_c / x) ** alpha),
        (alpha_, x_c_, r2),
        "Which way round is the fraction in the brackets?",
    )


def test_units_of_x_move_only_the_scale(impl, reference):
    """x in other units multiplies x_c and nothing else; y in other units leaves alpha and r2."""
    x, y = POINTS
    alpha, x_c, r2 = reference.fit_power_law(x, y)
    question = "Does alpha, or r2, depend on units?"
    assert_close(impl.fit_power_law(1e6 * x, y), (alpha, 1e6 * x_c, r2), question)
    got = impl.fit_power_law(x, 1e3 * y)
    assert_close((got[0], got[2]), (alpha, r2), question)


def test_an_error_counts_the_same_at_every_scale(impl):
    """10 % too much at the smallest x steepens a law as 10 % too little does at the largest."""
    x = column(1.0, 10.0, 100.0, 1e3, 1e4)
    fits = []
    for place, factor in ((0, 1.1), (-1, 1 / 1.1)):
        y = x**-0.5
        y[place] *= factor
        fits.append(impl.fit_power_law(x, y)[0])
    steeper = 0.5 + 2 * math.log(1.1) / (10 * math.log(10.0))
    assert_close(
        fits,
        [np.float64(steeper)] * 2,
        "Are the squares taken of log y? In y itself the largest values decide alone.",
    )


@pytest.mark.parametrize("n", [2, 5, 7])
@pytest.mark.parametrize("y", [1.0, 6.0, 7.0, 3e5])
def test_flat_data_has_no_scale(impl, n, y):
    """Where all y are equal no x_c gives them, however the slope is rounded."""
    x = 3.0 ** torch.arange(n, dtype=torch.float64)
    with rejects("flat"):
        impl.fit_power_law(x, torch.full((n,), y, dtype=torch.float64))


def test_data_that_fall_and_rise_evenly_are_flat(impl):
    """Where the slope is 0, to rounding, there is no scale, though the values differ."""
    with rejects("flat"):
        impl.fit_power_law(column(1.0, 2.0, 4.0), column(3.0, 1.0, 3.0))
    with rejects("flat"):
        impl.fit_power_law(column(3.0, 30.0, 300.0, 3e3), column(0.7, 2.0, 2.0, 0.7))


def test_a_law_that_hardly_falls_has_a_scale(impl):
    """An exponent of 1e-4 over one octave is no rounding: x_c = 3."""
    alpha, x_c, _ = impl.fit_power_law(column(2.0, 4.0), (3.0 / column(2.0, 4.0)) ** 1e-4)
    assert_close(
        (alpha, x_c),
        (np.float64(1e-4), np.float64(3.0)),
        "When is a slope 0, and when only small?",
        rtol=1e-8,  # log y is 1e-4 here, and has lost four digits
    )


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (column(1, 2, 3), column(1, 2), "shape"),
        (column(1), column(2), "points"),
        (column(1, -2), column(3, 2), "positive"),
        (column(1, 2), column(3, 0), "positive"),
        (column(2, 2, 2), column(3, 2, 1), "equal"),
    ],
    ids=["shape", "points", "negative x", "zero y", "equal"],
)
def test_a_fit_refuses_what_a_line_does(impl, x, y, named):
    """What log_line refuses fit_power_law refuses too."""
    with rejects(named):
        impl.fit_power_law(x, y)


# ---- power_law_interval


@given(case=points(least=3), level=st.sampled_from(LEVELS))
def test_the_interval_is_students(impl, reference, case, level):
    """alpha -+ t standard errors, of a slope whose variance is residual / (n - 2) / spread."""
    x, y = case["x"], case["y"]
    assert_close(
        impl.power_law_interval(x, y, level=level),
        reference.power_law_interval(x, y, level=level),
        "How many degrees of freedom are left after two parameters? Which sum is the spread?",
        scale=1.0,
    )


def trials(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """300 experiments of n points each on y = x^-0.3, with normal errors of 0.2 in log y."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 ** torch.arange(n, dtype=torch.float64)
    noise = torch.randn(300, n, generator=generator, dtype=torch.float64)
    return x, x**-0.3 * torch.exp(0.2 * noise)


@pytest.mark.parametrize(("n", "level"), [(3, 0.8), (4, 0.9), (8, 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(impl, n, level):
    """Of 300 experiments a share `level`, within four standard errors, has alpha inside."""
    x, experiments = trials(n, seed=n)
    inside = 0
    for y in experiments:
        low, high = impl.power_law_interval(x, y, level=level)
        inside += bool(low <= 0.3 <= high)
    error = math.sqrt(level * (1 - level) / 300)
    share = inside / 300
    assert abs(share - level) <= 4 * error, (
        f"{share:.1%} of the intervals hold the true exponent, and they claim {level:.0%}: "
        "is it Student's t, with n - 2 degrees of freedom?"
    )


def test_the_interval_is_of_95_percent_unless_given(impl, reference):
    """The default of level is 0.95."""
    assert_close(
        impl.power_law_interval(*POINTS),
        reference.power_law_interval(*POINTS, level=0.95),
        "What is the default of level?",
    )


def test_more_of_the_same_data_narrow_the_interval(impl, reference):
    """Four copies of n points have the same alpha, and standard errors of the residual over 4 n - 2
    and four times the spread.
    """
    x, y = POINTS
    low, high = reference.power_law_interval(x.repeat(4), y.repeat(4), level=0.8)
    assert_close(
        impl.power_law_interval(x.repeat(4), y.repeat(4), level=0.8),
        (low, high),
        "Does n enter twice, once by the degrees of freedom and once by the sums?",
    )


def test_data_without_scatter_leave_no_doubt(impl):
    """On y = x^-0.3 both ends are 0.3; on flat data both are 0."""
    x = 2.0 ** torch.arange(4, dtype=torch.float64)
    for alpha in (0.3, 0.0):
        end = np.float64(alpha)
        got = impl.power_law_interval(x, x**-alpha * 0.7)
        assert_close(got, (end, end), "How large is the residual here?", scale=1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_a_level_is_a_share(impl, level):
    """A level lies strictly between 0 and 1."""
    with rejects("level"):
        impl.power_law_interval(*POINTS, level=level)


def test_an_interval_needs_three_points(impl):
    """Two points lie on their line and say nothing about errors."""
    with rejects("points"):
        impl.power_law_interval(column(1, 2), column(3, 2))


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [(column(1, 2, 3), column(1, 2), "shape"), (column(1, 2, 0), column(1, 2, 3), "positive")],
    ids=["shape", "positive"],
)
def test_an_interval_refuses_what_a_line_does(impl, x, y, named):
    """What log_line refuses power_law_interval refuses too."""
    with rejects(named):
        impl.power_law_interval(x, y)


# ---- prediction_interval


@given(case=predictions(), level=st.sampled_from(LEVELS))
def test_a_prediction_knows_three_errors(impl, reference, case, level):
    """A new point has the variance of a point, of the line's height and of its slope."""
    assert_close(
        impl.prediction_interval(case["x"], case["y"], case["x_new"], level=level),
        reference.prediction_interval(**case, level=level),
        "What is under the root: 1, 1 / n, and the distance from the centre, in logarithms?",
        rtol=1e-8,  # an exponential of t residuals, which may be in the tens
    )


def test_a_prediction_at_a_number_is_two_numbers(impl, reference):
    """x_new may be a Python number: the answers have no axes."""
    assert_close(
        impl.prediction_interval(*POINTS, 20.0, level=0.8),
        reference.prediction_interval(*POINTS, column(20.0)[0], level=0.8),
        "Is x_new indexed?",
    )


def test_the_fitted_law_is_in_the_middle(impl, reference):
    """The geometric mean of both ends is (x_c / x_new)^alpha."""
    x_new = column(0.5, 4.0, 1e3)
    alpha, x_c, _ = reference.fit_power_law(*POINTS)
    low, high = impl.prediction_interval(*POINTS, x_new, level=0.5)
    assert_close(
        (low * high).sqrt(), (x_c / x_new.numpy()) ** alpha, "Is the interval built in log y?"
    )


def test_doubt_is_least_at_the_centre_and_grows_with_distance(impl, reference):
    """Half-widths squared grow by the square of the distance from the mean of log x, both ways."""
    x, y = POINTS
    centre = float(np.exp(reference.log_line(x, y)["centre"]))
    steps = column(0.0, 1.0, -1.0, 2.0, -2.0, 10.0)
    low, high = impl.prediction_interval(x, y, centre * torch.exp(steps), level=0.8)
    squares = (high / low).log().square()
    rise = (squares[1] - squares[0]).detach()
    assert_close(
        squares - squares[0],
        (rise * steps.square()).numpy(),
        "From where is the distance measured, and in which units?",
        scale=float(squares[0]),
    )
    n, line = len(x), reference.log_line(x, y)
    ratio = rise / squares[0]
    wanted = np.float64(1 / line["spread"] / (1 + 1 / n))
    assert_close(ratio, wanted, "How many errors are there at the centre?")


@pytest.mark.parametrize("far", [1.0, 1e3])
def test_new_points_fall_inside_as_often_as_they_should(impl, far):
    """Of 300 experiments 90 %, within four standard errors, have the next point inside."""
    x, experiments = trials(5, seed=50)
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for y in experiments:
        new = far**-0.3 * math.exp(0.2 * torch.randn((), generator=generator).item())
        low, high = impl.prediction_interval(x, y, far, level=0.9)
        inside += bool(low <= new <= high)
    assert abs(inside / 300 - 0.9) <= 4 * math.sqrt(0.09 / 300), (
        f"{inside / 300:.1%} of new points fall inside, and 90 % should: "
        "does a point err beside the line, and the line farther out?"
    )


def test_a_prediction_is_of_95_percent_unless_given(impl, reference):
    """The default of level is 0.95."""
    x_new = column(2.0, 30.0)
    assert_close(
        impl.prediction_interval(*POINTS, x_new),
        reference.prediction_interval(*POINTS, x_new, level=0.95),
        "What is the default of level?",
    )


@pytest.mark.parametrize("x_new", [0.0, -2.0, math.nan])
def test_a_prediction_is_made_at_positive_places(impl, x_new):
    """Every x_new is positive."""
    with rejects("x_new"):
        impl.prediction_interval(*POINTS, column(1.0, x_new))


@pytest.mark.parametrize(
    ("count", "level", "named"), [(2, 0.5, "points"), (5, 1.0, "level"), (1, 0.5, "points")]
)
def test_a_prediction_refuses_what_an_interval_does(impl, count, level, named):
    """Fewer than three points, and a level outside (0, 1), give no prediction."""
    x, y = POINTS
    with rejects(named):
        impl.prediction_interval(x[:count], y[:count], 2.0, level=level)


# ---- loss_n_d


@given(arguments=broadcasting(2), law=joint_laws)
def test_size_and_data_share_one_bracket(impl, reference, arguments, law):
    """L = [(n_c / N)^(alpha_n / alpha_d) + d_c / D]^alpha_d, for numbers and for tensors."""
    assert_close(
        impl.loss_n_d(*arguments, **law),
        of_kind(reference.loss_n_d(*arguments, **law), arguments),
        "Eq. 1.5: which exponent is inside the bracket, on which of its terms?",
    )


@given(arguments=broadcasting(1), law=joint_laws)
def test_without_end_of_data_the_loss_is_that_of_the_size(impl, arguments, law):
    """L(N, inf) = (n_c / N)^alpha_n and L(inf, D) = (d_c / D)^alpha_d, with nothing like NaN."""
    amount = arguments[0]
    question = "What is left of a term whose denominator is infinite?"
    size, data = (law["n_c"] / amount) ** law["alpha_n"], (law["d_c"] / amount) ** law["alpha_d"]
    assert_close(impl.loss_n_d(amount, INF, **law), size, question)
    assert_close(impl.loss_n_d(INF, amount, **law), data, question)


def test_infinite_size_and_data_leave_no_loss(impl):
    """L(inf, inf) = 0, among finite ones in one tensor too."""
    assert_close(impl.loss_n_d(INF, INF), 0.0, "Is something divided by zero?")
    got = impl.loss_n_d(column(INF, 1e9), column(INF, INF))
    assert_close(got, column(0.0, 6.4e4**0.076), "Is something divided by zero?", scale=1.0)


@given(arguments=broadcasting(2), law=joint_laws, k=st.sampled_from([0.1, 0.5, 3.0, 10.0]))
def test_size_and_data_can_be_traded(impl, reference, arguments, law, k):
    """k times N with k^(alpha_n / alpha_d) times D is k^-alpha_n times the loss."""
    N, D = arguments
    more = impl.loss_n_d(k * N, k ** (law["alpha_n"] / law["alpha_d"]) * D, **law)
    assert_close(
        more,
        of_kind(k ** -law["alpha_n"] * reference.loss_n_d(N, D, **law), arguments),
        "To which power does each of N and D enter the bracket?",
    )


def test_the_joint_fit_has_constants_of_its_own(impl, reference):
    """Table 2: .076, .103, 6.4e13 and 1.8e13, not those of the laws in one variable."""
    assert_close(
        impl.loss_n_d(1.5e9, 2.2e10),
        float(reference.loss_n_d(1.5e9, 2.2e10)),
        "The fit to N and D together differs from the two fits to one of them: Table 2.",
    )


def test_more_of_anything_lowers_the_loss(impl):
    """The loss falls in N and in D over ten decades."""
    N = 10.0 ** torch.arange(4, 15, dtype=torch.float64)
    table = impl.loss_n_d(N[:, None], 100.0 * N)
    falls = [bool((table.diff(dim=axis) < 0).all()) for axis in (0, 1)]
    assert_close(falls, [True, True], "Does a term grow with N, or with D?")


# ---- overfit_fraction


@given(arguments=broadcasting(2), law=joint_laws)
def test_overfitting_is_loss_above_that_of_endless_data(impl, reference, arguments, law):
    """L(N, D) / L(N, inf) - 1, by Eq. 4.3, to all digits."""
    assert_close(
        impl.overfit_fraction(*arguments, **law),
        of_kind(reference.overfit_fraction(*arguments, **law), arguments),
        "Is 1 added and taken away again? What are expm1 and log1p for?",
    )


def test_the_smallest_overfitting_keeps_its_digits(impl, reference):
    """At D = 1e20 to 1e30 the fraction is 1e-13 to 1e-22, not 0."""
    N, D = 1e6, column(1e20, 1e22, 1e25, 1e30)
    question = "1 + 1e-17 is 1: is the fraction the difference of two numbers near 1?"
    # each member by itself: in one comparison the largest would set the scale
    got = impl.overfit_fraction(N, D)
    expected = reference.overfit_fraction(N, D)
    assert_close(got / torch.from_numpy(expected), np.ones(4), question)


def test_overfitting_falls_as_one_over_the_data(impl):
    """The law is analytic in 1 / D: D times the fraction tends to a constant (section 4.1)."""
    small, large = (D * impl.overfit_fraction(1e9, D) for D in (1e20, 1e21))
    constant = 0.103 * (1e9 / 6.4e13) ** (0.076 / 0.103) * 1.8e13
    assert_close(
        [small, large],
        [constant] * 2,
        "Which power of 1 / D comes first?",
        rtol=1e-6,  # the next power of 1 / D
    )


def test_endless_data_leave_no_overfitting(impl):
    """D = inf gives exactly 0."""
    assert_close(impl.overfit_fraction(1e9, INF), 0.0, "What is L(N, inf) / L(N, inf) - 1?")
    got = impl.overfit_fraction(column(1e9, 3.0), INF)
    assert_close(got, column(0.0, 0.0), "What is L(N, inf) / L(N, inf) - 1?")


def test_overfitting_is_that_of_the_joint_fit(impl, reference):
    """Without constants those of Table 2 hold."""
    assert_close(
        impl.overfit_fraction(1.5e9, 2.2e10),
        float(reference.overfit_fraction(1.5e9, 2.2e10)),
        "Which constants are the defaults?",
    )


# ---- data_needed


@given(
    arguments=broadcasting(1),
    tolerance=st.sampled_from([1e-6, 0.02, 0.5, 1.0, 7.0]),
    law=joint_laws,
)
def test_the_data_needed_solve_for_a_tolerance(impl, reference, arguments, tolerance, law):
    """D is where the bracket has grown by (1 + tolerance)^(1 / alpha_d)."""
    assert_close(
        impl.data_needed(arguments[0], tolerance, **law),
        of_kind(reference.data_needed(arguments[0], tolerance, **law), arguments),
        "Solve Eq. 4.3 for D: what undoes the power alpha_d, and what the sum with 1?",
    )


def test_the_data_needed_overfit_by_the_tolerance(impl, reference):
    """overfit_fraction(N, data_needed(N, t)) = t for t of 1e-14 to 1, and N of 1e5 to 1e11."""
    N, tolerance = 10.0 ** column(5, 8, 11)[:, None], 10.0 ** column(-14, -6, -2, 0)
    D = impl.data_needed(N, tolerance)
    again = torch.from_numpy(reference.overfit_fraction(N, D)) / tolerance
    assert_close(again, np.ones((3, 4)), "Is (1 + t)^(1 / alpha_d) - 1 exact for a tiny t?")


def test_eight_times_the_model_needs_five_times_the_data(impl):
    """D grows as N^(alpha_n / alpha_d) = N^0.738: 8 times N takes 4.64 times D (section 4.2)."""
    ratio = impl.data_needed(8e9, 0.02) / impl.data_needed(1e9, 0.02)
    assert_close(ratio, 8 ** (0.076 / 0.103), "As which power of N does D grow?")
    near = impl.data_needed(1e9, 0.02) / (5e3 * 1e9**0.74)
    assert 0.8 < near < 1.2, (
        f"Eq. 4.4 says about 5e3 N^0.74 for 2 %; yours is {near:.3g} times that"
    )


@pytest.mark.parametrize("tolerance", [0.0, -0.25, math.nan])
def test_a_tolerance_is_positive(impl, tolerance):
    """Without any overfitting no amount of data will do; as a number and in a tensor."""
    with rejects("tolerance"):
        impl.data_needed(1e9, tolerance)
    with rejects("tolerance"):
        impl.data_needed(1e9, column(0.5, tolerance))


# ---- critical_batch


@given(
    arguments=broadcasting(1),
    alpha_b=st.sampled_from([0.21, 0.5, 2.0]),
    b_star=st.sampled_from([2e8, 3.0]),
)
def test_the_critical_batch_grows_as_the_loss_falls(impl, reference, arguments, alpha_b, b_star):
    """B_crit = b_star / loss^(1 / alpha_b)."""
    assert_close(
        impl.critical_batch(arguments[0], b_star=b_star, alpha_b=alpha_b),
        of_kind(reference.critical_batch(arguments[0], b_star=b_star, alpha_b=alpha_b), arguments),
        "Eq. 1.4: is the loss raised to alpha_b, or to its reciprocal?",
    )


def test_half_the_loss_is_27_times_the_batch(impl):
    """B_crit goes as L^-4.76: b_star = 2e8 tokens at a loss of 1, 2^4.76 times that at a half."""
    assert_close(
        impl.critical_batch(column(1.0, 0.5)),
        column(2e8, 2e8 * 2 ** (1 / 0.21)),
        "Eq. 1.4: B_crit grows as L^(-1 / 0.21), about L^-4.8; and at a loss of 1?",
    )


# ---- steps_min and compute_min


@given(arguments=broadcasting(3))
def test_small_batches_waste_steps(impl, reference, arguments):
    """S_min = S / (1 + b_crit / B)."""
    assert_close(
        impl.steps_min(*arguments),
        of_kind(reference.steps_min(*arguments), arguments),
        "Eq. 5.4: when are S and S_min the same, for small batches or for large ones?",
    )


@given(arguments=broadcasting(3))
def test_large_batches_waste_compute(impl, reference, arguments):
    """C_min = C / (1 + B / b_crit)."""
    assert_close(
        impl.compute_min(*arguments),
        of_kind(reference.compute_min(*arguments), arguments),
        "Eq. 5.5: when are C and C_min the same, for small batches or for large ones?",
    )


def test_the_fewest_steps_are_taken_by_huge_batches(impl):
    """S_min is S at B = inf, half of S at B_crit, and 0 at B = 0."""
    got = impl.steps_min(6e3, column(INF, 2e6, 0.0), 2e6)
    assert_close(got, column(6e3, 3e3, 0.0), "Which of the two batches is on top of the fraction?")


def test_the_least_compute_is_spent_by_tiny_batches(impl):
    """C_min is C at B = 0, half of C at B_crit, and 0 at B = inf."""
    got = impl.compute_min(6e20, column(0.0, 2e6, INF), 2e6)
    question = "Which of the two batches is on top of the fraction?"
    assert_close(got, column(6e20, 3e20, 0.0), question)


# ---- noise_tradeoff


@given(arguments=broadcasting(4))
def test_the_tradeoff_is_a_product_of_excesses(impl, reference, arguments):
    """(S / s_min - 1) (E / e_min - 1), whatever the four."""
    slower, hungrier, s_min, e_min = arguments
    S, E = (1.0 + slower) * s_min, (1.0 + hungrier) * e_min
    assert_close(
        impl.noise_tradeoff(S, E, s_min, e_min),
        of_kind(reference.noise_tradeoff(S, E, s_min, e_min), arguments),
        "Eq. 5.1: of what is each excess a fraction?",
    )


def test_training_at_any_batch_lies_on_the_frontier(impl, reference):
    """With S = s_min (1 + b_crit / B), E = B S and e_min = b_crit s_min it is 1, whatever B."""
    s_min, b_crit, B = 3e3, 2e6, column(2e4, 1e6, 2e6, 5e7)
    S = s_min * (1 + b_crit / B)
    assert_close(
        impl.noise_tradeoff(S, B * S, s_min, b_crit * s_min),
        np.ones(4),
        "Eq. 5.1: on the frontier what is the product of both excesses?",
    )


# ---- loss_n_s


@given(arguments=broadcasting(2), law=curve_laws)
def test_size_and_steps_each_have_a_term(impl, reference, arguments, law):
    """L = (n_c / N)^alpha_n + (s_c / s_min)^alpha_s."""
    assert_close(
        impl.loss_n_s(*arguments, **law),
        of_kind(reference.loss_n_s(*arguments, **law), arguments),
        "Eq. 1.6: which exponent belongs to which term?",
    )


def test_learning_curves_have_constants_of_their_own(impl, reference):
    """Table 3: .077, 6.5e13, .76 and 2.1e3, not those of Table 2."""
    assert_close(
        impl.loss_n_s(1.5e9, 3e4),
        float(reference.loss_n_s(1.5e9, 3e4)),
        "Which constants are the defaults? Table 3 is a fit of its own.",
    )


def test_endless_training_leaves_the_loss_of_the_size(impl):
    """s_min = inf gives (n_c / N)^alpha_n, N = inf gives (s_c / s_min)^alpha_s."""
    question = "What is left of a term whose denominator is infinite?"
    assert_close(impl.loss_n_s(6.5e13 / 2, INF), 2**0.077, question)
    assert_close(impl.loss_n_s(INF, 2.1e3 / 2), 2**0.76, question)


# ---- early_stop_bound


@given(
    arguments=broadcasting(2),
    law=joint_laws,
    alpha_s=st.sampled_from([0.76, 0.3, 2.0]),
    s_c=st.sampled_from([2.1e3, 2.0]),
)
def test_stopping_makes_sense_only_after_so_many_steps(
    impl, reference, arguments, law, alpha_s, s_c
):
    """The bound is s_c over the loss for want of data, to the power 1 / alpha_s, to all digits."""
    law = law | {"alpha_s": alpha_s, "s_c": s_c}
    assert_close(
        impl.early_stop_bound(*arguments, **law),
        of_kind(reference.early_stop_bound(*arguments, **law), arguments),
        "Eq. 5.7: L(N, D) - L(N, inf) is a product of two things you have. To which power is it?",
    )


def test_the_bound_keeps_its_digits_where_data_abound(impl, reference):
    """At D of 1e20 to 1e30 both losses agree to a dozen digits and more; the bound is finite."""
    N, D = 1e6, column(1e20, 1e22, 1e25, 1e30)
    # each member by itself: in one comparison the largest would set the scale
    got = impl.early_stop_bound(N, D) / torch.from_numpy(reference.early_stop_bound(N, D))
    assert_close(got, np.ones(4), "Is one loss subtracted from another that is almost the same?")


def test_endless_data_never_call_for_a_stop(impl):
    """D = inf gives inf."""
    assert_close(impl.early_stop_bound(1e9, INF), INF, "What is s_c over nothing?")


def test_the_bound_is_that_of_both_fits(impl, reference):
    """Without constants alpha_n to d_c are Table 2's, alpha_s and s_c Table 3's."""
    assert_close(
        impl.early_stop_bound(1.5e9, 2.2e10),
        float(reference.early_stop_bound(1.5e9, 2.2e10)),
        "Which constants are the defaults?",
    )


def test_at_the_bound_the_steps_cost_what_the_data_do(impl, reference):
    """After so many steps of endless data the loss is L(N, D) (appendix D.1)."""
    N, D = 1e8, column(1e8, 1e9, 1e10)
    size = {"alpha_n": 0.076, "n_c": 6.4e13}
    steps = impl.early_stop_bound(N, D)
    assert_close(
        torch.from_numpy(reference.loss_n_s(N, steps, **size)),
        reference.loss_n_d(N, D),
        "Which gap do the steps have to close?",
    )


# ---- optimal_exponents


@given(
    arguments=st.lists(
        st.sampled_from([0.077, 0.21, 0.76, 0.5, 2.0, torch.tensor([[0.3], [1.5]]).double()]),
        min_size=3,
        max_size=3,
    )
)
def test_exponents_of_a_budget_add_as_reciprocals(impl, reference, arguments):
    """1 / alpha_c is the sum of 1 / alpha_n, 1 / alpha_b and 1 / alpha_s."""
    assert_close(
        impl.optimal_exponents(*arguments),
        of_kind(reference.optimal_exponents(*arguments), arguments),
        "Eq. 1.8: what is added up? And Eq. 1.7: what is divided by what?",
    )


def test_most_of_a_budget_goes_into_size(impl):
    """With the exponents of the fits: alpha_c .05245, N ~ C^.6812, B ~ C^.2498, S ~ C^.0690."""
    got = impl.optimal_exponents(0.077, 0.21, 0.76)
    expected = {"alpha_c": 0.052453, "N": 0.681207, "B": 0.249776, "S": 0.069017}
    assert_close(
        got,
        expected,
        "Which exponent is alpha_b and which alpha_s? The order is that of the signature.",
        rtol=1e-5,  # as many digits as are written here
    )


def test_shares_of_a_budget_sum_to_one(impl):
    """C = 6 N B S: the powers of C are shares, and alpha_c is below every exponent."""
    for alphas in itertools.permutations((0.077, 0.21, 0.76)):
        got = impl.optimal_exponents(*alphas)
        assert_close(got["N"] + got["B"] + got["S"], 1.0, "What do the three powers multiply to?")
        assert got["alpha_c"] < min(alphas), "Can a budget be worth more than each of its parts?"


# ---- compute_optimal

BUDGETS = (1e20, 1e22, 1e24)
laws = st.fixed_dictionaries(
    {
        "alpha_n": st.sampled_from([0.077, 0.2, 0.5]),
        "n_c": st.sampled_from([6.5e13, 1e4]),
        "alpha_s": st.sampled_from([0.76, 0.3, 1.25]),
        "s_c": st.sampled_from([2.1e3, 40.0]),
        "alpha_b": st.sampled_from([0.21, 0.5]),
        "b_star": st.sampled_from([2e8, 30.0]),
    }
)


@settings(max_examples=8)  # a search costs 20 ms
@given(C=st.sampled_from(BUDGETS), law=laws)
def test_the_best_use_of_a_budget_is_the_one_that_searching_finds(impl, reference, C, law):
    """Of all N whose loss C pays for, at the batch critical for that loss, it is the best one."""
    assert_close(
        impl.compute_optimal(C, **law),
        reference.compute_optimal(C, **law),
        "Is B critical at the optimal loss, and are 2 s_min steps paid for?",
        rtol=1e-4,  # at a minimum the loss is flat: a search knows N to the root of its rounding
    )


@given(C=positives((3,)), law=laws)
def test_the_plan_is_consistent_and_stationary(impl, reference, C, law):
    """loss = loss_n_s(N, S_min) = (1 + alpha_n / alpha_s) (n_c / N)^alpha_n,
    B = critical_batch(loss), C = 12 N B S_min.
    """
    C = C * 1e18
    plan = impl.compute_optimal(C, **law)
    curves = {name: law[name] for name in ("alpha_n", "n_c", "alpha_s", "s_c")}
    batch = {name: law[name] for name in ("alpha_b", "b_star")}
    N, s_min, B, loss = (plan[name] for name in ("N", "S_min", "B", "loss"))
    converged = reference.loss_n_s(N, INF, **curves)
    question = "Which of the conditions in the docstring does the plan miss?"
    assert_close(loss, reference.loss_n_s(N, s_min, **curves), question)
    assert_close(loss, (1 + law["alpha_n"] / law["alpha_s"]) * converged, question)
    assert_close(B, reference.critical_batch(loss, **batch), question)
    assert_close(12 * N * B * s_min, C.numpy(), question)


@pytest.mark.parametrize(("C", "N"), [(1e20, 4.162e8), (1e22, 9.588e9), (1e24, 2.209e11)])
def test_a_hundredfold_budget_is_for_a_model_23_times_as_large(impl, C, N):
    """With the constants of Tables 2 and 3: 4.162e8 parameters for 1e20 FLOPs, 9.588e9 for 1e22,
    2.209e11 for 1e24.
    """
    assert_close(
        impl.compute_optimal(C)["N"],
        N,
        "Is C split as 6 N B S, with S = 2 s_min, at the default constants?",
        rtol=2e-4,  # as many digits as are written here
    )


def test_no_other_size_makes_better_use_of_the_budget(impl, reference):
    """At the same C, N 1 % above or below loses; so does any N up to ten times off."""
    for C in BUDGETS:
        plan = impl.compute_optimal(C)
        steps = np.log([0.1, 0.5, 0.99, 1.01, 2.0, 10.0])
        others = reference.loss_at(math.log(plan["N"]) + steps, C)
        assert (others > plan["loss"]).all(), (
            f"At C = {C:.0e} another N reaches {others.min():.6f}, yours {plan['loss']:.6f}: "
            "does the batch follow the loss?"
        )


def test_the_plan_grows_by_the_optimal_exponents(impl, reference):
    """N, B, S_min and 1 / loss are powers of C, those of optimal_exponents."""
    low, high = (impl.compute_optimal(C) for C in (1e20, 1e21))
    exponents = reference.optimal_exponents(0.077, 0.21, 0.76)
    wanted = [float(exponents[name]) for name in ("N", "B", "S")] + [-float(exponents["alpha_c"])]
    slopes = [math.log10(high[name] / low[name]) for name in ("N", "B", "S_min", "loss")]
    assert_close(
        slopes,
        wanted,
        "Is the batch held at that of one loss? It grows along the frontier (Eq. 1.7).",
        scale=1.0,
    )


def test_training_stops_ten_percent_above_convergence(impl):
    """loss / (n_c / N)^alpha_n = 1 + alpha_n / alpha_s = 1.1013 (appendix B.2)."""
    plan = impl.compute_optimal(column(*BUDGETS))
    assert_close(
        plan["loss"] / (6.5e13 / plan["N"]) ** 0.077,
        np.full(3, 1 + 0.077 / 0.76),
        "Is the model trained to convergence, or too little?",
    )


@pytest.mark.parametrize("C", [0.0, -1e20, math.nan])
def test_a_budget_is_positive(impl, C):
    """Nothing is trained for nothing."""
    with rejects("C"):
        impl.compute_optimal(C)
    with rejects("C"):
        impl.compute_optimal(column(1e20, C))


# ---- train_and_measure


@driver
def start_of(
    impl: Any, width: int, context: int, seed: int, shape: list[int], below: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor]:
    """The weights a generator draws first, and the (steps, batch) windows it draws after them."""
    generator = torch.Generator().manual_seed(seed)
    model = impl.NextByte(width, context, generator, dtype)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    steps, batch = shape
    starts = [torch.randint(below, (batch,), generator=generator) for _ in range(steps)]
    return weights, torch.stack(starts) if starts else torch.zeros(0, batch, dtype=torch.int64)


@driver
def chance_is_left_alone(impl: Any, text: Tensor) -> bool:
    """Whether torch's global random state, set to something unusual, survives a training run."""
    kept = torch.random.get_rng_state()
    try:
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        impl.train_and_measure(
            2, text, 1, torch.Generator(), context=2, batch=2, lr=0.1, held_out=9
        )
        return bool((torch.random.get_rng_state() == before).all())
    finally:
        torch.random.set_rng_state(kept)


def both(impl, reference, text, width, steps, seed=0, dtype=torch.float64, **settings):
    """What train_and_measure answers, and what it should."""
    context, batch = settings["context"], settings["batch"]
    held_out, below = settings["held_out"], len(text) - settings["held_out"] - context
    weights, starts = start_of(impl, width, context, seed, [steps, batch], below, dtype)
    expected = reference.train_and_measure(
        weights, text, starts, lr=settings["lr"], held_out=held_out
    )
    generator = torch.Generator().manual_seed(seed)
    return impl.train_and_measure(width, text, steps, generator, dtype=dtype, **settings), expected


@pytest.mark.parametrize(
    ("width", "steps", "settings"),
    [
        (3, 0, {"context": 2, "batch": 5, "lr": 0.3, "held_out": 9}),
        (3, 1, {"context": 2, "batch": 5, "lr": 0.3, "held_out": 9}),
        (2, 5, {"context": 3, "batch": 4, "lr": 0.2, "held_out": 30}),
        (5, 4, {"context": 1, "batch": 1, "lr": 0.5, "held_out": 2}),
        (4, 7, {"context": 8, "batch": 16, "lr": 0.1, "held_out": 12}),
        (1, 3, {"context": 4, "batch": 3, "lr": 0.1, "held_out": 46}),
    ],
)
def test_a_few_steps_are_those_taken_by_hand(impl, reference, width, steps, settings):
    """N and the unseen text's loss are those of a network trained by the chain rule, in NumPy."""
    got, expected = both(impl, reference, example_text(60), width, steps, seed=width, **settings)
    assert_close(
        got,
        expected,
        "Are tables in N? Is the loss in nats, over every window of the last bytes and no other? "
        "Which rate has step k?",
    )


def test_training_is_in_float32_unless_asked(impl, reference):
    """By default weights are drawn, and trained, in float32."""
    settings = {"context": 2, "batch": 5, "lr": 0.3, "held_out": 9}
    got, expected = both(impl, reference, example_text(60), 3, 3, dtype=torch.float32, **settings)
    assert_close(
        got,
        expected,
        "Which dtype do the weights have?",
        rtol=2e-5,  # of float32
    )
    generator = torch.Generator()
    got = impl.train_and_measure(3, example_text(60), 3, generator.manual_seed(0), **settings)
    assert_close(got, expected, "Which dtype do the weights have unless asked?", rtol=2e-5)


def test_the_usual_settings_hold_unless_others_are_given(impl, reference):
    """Eight bytes of context, batches of 256, a peak rate of 0.08, 20,000 bytes held out."""
    text = example_text(20_300, seed=1)
    got = impl.train_and_measure(2, text, 2, torch.Generator().manual_seed(3), dtype=torch.float64)
    usual = {"context": 8, "batch": 256, "lr": 0.08, "held_out": 20_000}
    weights, starts = start_of(impl, 2, 8, 3, [2, 256], 20_300 - 20_008, torch.float64)
    expected = reference.train_and_measure(
        weights, text, starts, lr=usual["lr"], held_out=usual["held_out"]
    )
    assert_close(got, expected, "What are the defaults?")


def test_training_seeds_nothing(impl):
    """Nothing is drawn from, and nothing done to, the global random state."""
    got = chance_is_left_alone(impl, example_text(30))
    assert_close(got, True, "Chance enters by the generator: is a global seed set?")


@pytest.mark.parametrize(("n", "held_out"), [(12, 9), (12, 3), (12, 12), (3, 9)])
def test_a_text_too_short_for_a_window_is_refused(impl, n, held_out):
    """Both parts hold at least one window of context + 1 bytes."""
    settings = {"context": 3, "batch": 2, "held_out": held_out}
    with rejects("text"):
        impl.train_and_measure(2, example_text(n), 1, torch.Generator(), **settings)


def test_the_shortest_texts_have_one_window_each(impl, reference):
    """context + 1 bytes in both parts are enough."""
    settings = {"context": 3, "batch": 2, "lr": 0.1, "held_out": 4}
    got, expected = both(impl, reference, example_text(8), 2, 2, **settings)
    assert_close(got, expected, "How many windows are there in context + 1 bytes?")


# ---- the claim

WIDTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
LARGEST = 128


@pytest.mark.claim(seconds=20)
def test_small_models_predict_a_larger_one(impl, reference, figure):
    """Loss is a power law in the number of parameters without tables (section 1.2).

    Models of the next byte with 96 to 37,632 parameters, trained on 2 MB of Python's library, lie
    on a line in log-log axes, r2 >= .95, with alpha in [.04, .14]; the line predicts the loss of
    one with 66,560 within 5 %, and its 99 % prediction interval holds it.
    """
    text = impl.stdlib_bytes(2_000_000)
    measured = [
        # the larger the model, the longer until it has learned what it can
        impl.train_and_measure(width, text, 450 + width, torch.Generator().manual_seed(0))
        for width in (*WIDTHS, LARGEST)
    ]
    counted = [n for n, _ in measured]
    assert_close(
        counted,
        [reference.parameters(width, 8) for width in (*WIDTHS, LARGEST)],
        "Are tables counted in N?",
    )
    x, y = column(*counted), column(*(loss for _, loss in measured))
    alpha, x_c, r2 = (float(value) for value in impl.fit_power_law(x[:-1], y[:-1]))
    interval = [float(end) for end in impl.power_law_interval(x[:-1], y[:-1])]
    low, high = impl.prediction_interval(x[:-1], y[:-1], x[-1], level=0.99)
    predicted, found = (x_c / counted[-1]) ** alpha, float(y[-1])
    left, right = figure(
        "Loss against size: the law of the small models, and the large one; "
        "what a budget buys, and the best use of it"
    ).subplots(1, 2)
    draw_sizes(left, impl, x, y, alpha, x_c, interval)
    draw_budgets(right, impl)
    assert r2 >= 0.95, f"r2 is {r2:.3f}; measured .999. Is the line fitted to logarithms?"
    assert 0.04 <= alpha <= 0.14, f"alpha is {alpha:.4f}; measured .053. Is it minus the slope?"
    assert abs(predicted / found - 1) <= 0.05, (
        f"The line says {predicted:.3f} and the large model has {found:.3f}: "
        "is the rate lowered to 0, and the loss that of unseen text?"
    )
    assert 0.0 < interval[0] <= alpha <= interval[1] <= interval[0] + 0.02, (
        f"alpha is {alpha:.4f}, its interval {interval}; measured +-.0014. What is its variance?"
    )
    assert low <= found <= high, (
        f"The large model's {found:.3f} is outside [{low:.3f}, {high:.3f}]: "
        "does a prediction know all three errors?"
    )
    assert 1.2 <= found <= 2.4, f"The large model's loss is {found:.3f}; measured 1.75 nats."


def draw_sizes(axes, impl, x, y, alpha, x_c, interval):
    """Loss against N: points, the fitted law with its band, the held-out model."""
    grid = torch.logspace(math.log10(60), math.log10(1.5e5), 80, dtype=torch.float64)
    low, high = impl.prediction_interval(x[:-1], y[:-1], grid)
    axes.fill_between(grid, low, high, alpha=0.2, label="95 % for a new model")
    name = f"alpha = {alpha:.4f}, 95 %: {interval[0]:.4f} to {interval[1]:.4f}"
    axes.loglog(grid, (x_c / grid) ** alpha, label=name)
    axes.loglog(x[:-1], y[:-1], "o", color="black", label="fitted")
    axes.loglog(x[-1:], y[-1:], "*", color="crimson", markersize=13, label="held out")
    ticks = [1.6, 1.8, 2.0, 2.2, 2.4, 2.6]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title("Small models predict a larger one")
    axes.set_xlabel("N, parameters without tables")
    axes.set_ylabel("loss on unseen text, nats a byte")
    axes.legend(fontsize=8)


def draw_budgets(axes, impl):
    """Loss against C at the critical batch: a curve a size, and the plan that touches them all."""
    steps = torch.logspace(2.5, 6, 100, dtype=torch.float64)
    for power in range(6, 13):
        loss = impl.loss_n_s(10.0**power, steps)
        budget = 12 * 10.0**power * impl.critical_batch(loss) * steps
        axes.loglog(budget, loss, linewidth=1, label=f"N = 1e{power}")
    budgets = torch.logspace(15, 26, 60, dtype=torch.float64)
    plan = impl.compute_optimal(budgets)
    axes.loglog(budgets, plan["loss"], "k--", label="compute-optimal")
    axes.set(xlim=(1e15, 1e26), ylim=(1.3, 8))
    ticks = [1.5, 2, 3, 4, 6]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title("A budget has its best size (Kaplan's constants)")
    axes.set_xlabel("C, FLOPs of training")
    axes.set_ylabel("loss, nats a token")
    axes.legend(fontsize=7)
