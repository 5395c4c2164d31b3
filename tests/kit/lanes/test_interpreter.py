"""What the faithful interpreter promises, each on a small kernel, against NumPy and torch."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from paperlings.lanes import interpreter, libdevice, rounding, sanitizer
from paperlings.lanes.traffic import traffic
from paperlings.loading import load
from paperlings.outcomes import Unverified

K = load(Path(__file__).with_name("planted.py"), "planted")
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _faithful():
    with interpreter.faithful():
        yield


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def one_step(exact, dtype):
    """A float64 result rounded once, as a GPU does."""
    return exact.float().to(dtype)


# bfloat16

OPERATIONS = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda x, y: torch.where(x < y, x, y),
    "clamp": lambda x, y: x.clamp(-y.abs(), y.abs()),
    "negate": lambda x, y: -x,
    "fma": lambda x, y: x * y + y,
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
def test_an_operation_of_two_blocks_rounds_once(name, dtype):
    """The result is the exact one in float64, rounded to the operands' dtype."""
    x, y, out = (
        normal(256, dtype=dtype),
        normal(256, seed=1, dtype=dtype),
        torch.empty(256).to(dtype),
    )
    K.binary[(1,)](x, y, out, name, 256)
    expected = one_step(OPERATIONS[name](x.double(), y.double()), dtype)
    assert torch.equal(out, expected), "exact, but for one rounding"


def test_comparisons_of_bfloat16_compare_values_not_bits():
    """Negative numbers have larger bit patterns than positive ones."""
    x, y = torch.tensor([-1.0, 2.0] * 8).to(BF16), torch.tensor([1.0, -2.0] * 8).to(BF16)
    out = torch.empty(16, dtype=BF16)
    K.binary[(1,)](x, y, out, "where", 16)
    assert torch.equal(out, torch.minimum(x, y))


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.int32])
def test_a_comparison_is_one_bit(dtype):
    """It becomes 0 or 1 in any dtype, and two of them add up to none."""
    x, y = (torch.randint(-3, 3, (64,)).to(dtype) for _ in range(2))
    less, both = torch.empty(64), torch.empty(64, dtype=torch.int32)
    K.compared[(1,)](x, y, less, both, 64)
    assert torch.equal(less, (x < y).float())
    assert torch.equal(both, (x == y).int())


def test_integers_wrap_around():
    """As on a GPU, which asks nobody."""
    x, out = torch.tensor([2**31 - 1, -(2**31)] * 8).int(), torch.empty(16, dtype=torch.int32)
    K.binary[(1,)](x, x, out, "add", 16)
    assert out.tolist() == [-2, 0] * 8


EDGES = [
    0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1 + 2**-8 - 2**-20, -(1 + 2**-8),
    math.inf, -math.inf, 3.4e38, -3.4e38, 1e-40, 9.2e-41, 2.0**-126, math.pi,
]  # fmt: skip


def test_float32_becomes_bfloat16_to_nearest_even():
    """Ties go to the even neighbour, what is too large to infinity; nothing is cut off."""
    x = torch.cat([torch.tensor(EDGES), normal(1008)])
    out = torch.empty(1024, dtype=BF16)
    K.cast[(1,)](x, out, 1024)
    assert torch.equal(out.view(torch.int16), x.to(BF16).view(torch.int16))


def test_not_a_number_stays_one_in_bfloat16():
    """Adding to the bits of a NaN must not carry into the sign or make it infinite."""
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7FC00000] * 4, dtype=torch.int32)
    out = torch.empty(16, dtype=BF16)
    K.cast[(1,)](bits.view(torch.float32), out, 16)
    assert out.isnan().all()


def test_who_asks_for_truncation_gets_it():
    """As in `x.to(tl.bfloat16, fp_downcast_rounding="rtz")`."""
    x, out = normal(256), torch.empty(256, dtype=BF16)
    K.cut[(1,)](x, out, 256)
    assert torch.equal(out.view(torch.int16), (x.view(torch.int32) >> 16).to(torch.int16))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *itertools.permutations((BF16, torch.float16, torch.float32, torch.float64), 2),
        (BF16, torch.int32),
        (torch.int32, BF16),
        (torch.int8, BF16),
        (torch.int64, torch.float32),
        (torch.float32, torch.int16),
    ],
)
def test_casts_agree_with_torch(source, target):
    """Every pair of dtypes that a kernel of ours casts between."""
    x = (normal(256) * 100).to(source)
    out = torch.empty(256).to(target)
    K.cast[(1,)](x, out, 256)
    assert torch.equal(out, x.float().to(target) if source != torch.float64 else x.to(target))


# reductions


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_a_sum_of_16_bits_rounds_after_every_addition(dtype):
    """A GPU adds 16-bit floats in 16 bits, in a tree: the kernel asks for more, or gets this."""
    x, out = normal(256, dtype=dtype).abs() + 1, torch.empty(1, dtype=dtype)
    K.reduced[(1,)](x, out, "sum", 256)
    tree = x
    while len(tree) > 1:
        tree = tree[0::2] + tree[1::2]
    assert torch.equal(out, tree)
    error = (out.double() - x.double().sum()).abs() / x.double().sum()
    assert 0 < error < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32, torch.int32, torch.int8])
@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_extremes_are_those_of_the_values(dtype, name):
    """Also of bfloat16, whose bit patterns are in another order; of equals, the first."""
    x = (normal(256) * 10).to(dtype)
    out = torch.empty(1, dtype=torch.int32 if "arg" in name else dtype)
    K.reduced[(1,)](x, out, name, 256)
    assert out.item() == getattr(np, name)(x.double().numpy())


@pytest.mark.parametrize(("name", "ends"), [("argmax", [5, 1, 5, 5]), ("argmin", [1, 5, 1, 1])])
def test_of_equals_the_first_is_the_extreme(name, ends):
    """Unless the kernel says that any will do."""
    x, out = torch.tensor([3, *ends, 3, 3, 3]), torch.empty(1, dtype=torch.int32)
    K.reduced[(1,)](x, out, name, 8)
    assert out.item() == 1


def test_a_sum_of_float32_is_as_exact_as_a_tree():
    """65536 numbers added one by one would lose more."""
    x, out = normal(65536).abs(), torch.empty(1)
    K.reduced[(1,)](x, out, "sum", 65536)
    torch.testing.assert_close(out[0].double(), x.double().sum(), rtol=1e-6, atol=0)


def test_a_sum_of_small_integers_does_not_overflow():
    """int8 is summed in int32, and a function with two arguments may be anything."""
    x, out = torch.full((256,), 100, dtype=torch.int8), torch.empty(1, dtype=torch.int32)
    K.reduced[(1,)](x, out, "sum", 256)
    assert out.item() == 25600
    K.reduced[(1,)](torch.arange(256, dtype=torch.int32), out, "xor", 256)
    assert out.item() == 0


def test_a_maximum_ignores_what_is_not_a_number():
    """As the GPU's does, unless it is asked to propagate NaN; so a maximum can hide one."""
    x, out = torch.tensor([math.nan, 1.0, 5.0, 2.0]), torch.empty(1)
    K.reduced[(1,)](x, out, "max", 4)
    assert out.item() == 5.0
    out = torch.empty(4)
    K.binary[(1,)](x, torch.zeros(4), out, "maximum", 4)
    assert torch.equal(out, torch.tensor([0.0, 1.0, 5.0, 2.0]))


def test_reductions_take_any_axis():
    """One of two, the last but one, all of them, or one that is kept."""
    x = normal(4, 8)
    rows, columns, total, kept = torch.empty(4), torch.empty(8), torch.empty(1), torch.empty(4, 8)
    K.reduced_axes[(1,)](x, rows, columns, total, kept, 4, 8)
    torch.testing.assert_close(rows, x.sum(1))
    torch.testing.assert_close(columns, x.sum(0))
    torch.testing.assert_close(total[0], x.sum())
    torch.testing.assert_close(kept, x - x.amax(1, keepdim=True))
    x = normal(16384, 2).abs()
    rows, columns, kept = torch.empty(16384), torch.empty(2), torch.empty(16384, 2)
    K.reduced_axes[(1,)](x, rows, columns, total, kept, 16384, 2)
    torch.testing.assert_close(columns.double(), x.double().sum(0), rtol=3e-7, atol=0)


def test_a_reduction_of_pairs_takes_any_function():
    """The largest and the sum of exponentials, merged two by two."""
    x, out = normal(1024) * 20, torch.empty(1)
    K.log_sum_exp[(1,)](x, out, 1024)
    torch.testing.assert_close(out[0], x.logsumexp(0))


@pytest.mark.parametrize("reverse", [False, True])
def test_an_associative_scan_takes_any_function(reverse):
    """h[t] = a[t] h[t - 1] + b[t], or from the other end."""
    a, b, out = normal(4, 32).sigmoid(), normal(4, 32, seed=1), torch.empty(4, 32)
    K.recurrence[(1,)](a, b, out, reverse, 4, 32)
    h, steps = torch.zeros(4), reversed(range(32)) if reverse else range(32)
    for t in steps:
        h = a[:, t] * h + b[:, t]
        torch.testing.assert_close(out[:, t], h)


def test_cumulative_sums_and_products():
    """In either direction."""
    x, sums, products = normal(64), torch.empty(64), torch.empty(64)
    K.cumulated[(1,)](x, sums, products, 64)
    torch.testing.assert_close(sums, x.cumsum(0))
    torch.testing.assert_close(products, x.flip(0).cumprod(0).flip(0))


def test_sorting_counting_and_chance_work():
    """What the language offers and is made of other parts of it."""
    x = torch.randint(0, 16, (64,), dtype=torch.int32)
    ordered, counts = torch.empty_like(x), torch.empty(16, dtype=torch.int32)
    K.sorted_and_counted[(1,)](x, ordered, counts, 64, 16)
    assert torch.equal(ordered, x.sort().values)
    assert torch.equal(counts, x.bincount(minlength=16).int())
    out = torch.empty(1024)
    K.random[(1,)](out, 5, 1024)
    assert out.min() >= 0
    assert out.max() < 1
    assert abs(out.mean() - 0.5) < 0.05


# dots


def dot(x, y, precision="tf32", out=torch.float32):
    z = torch.empty(x.shape[0], y.shape[1]).to(out)
    K.dot[(1,)](x, y, z, x.shape[0], y.shape[1], x.shape[1], precision)
    return z


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_a_dot_of_16_bits_accumulates_in_float32(dtype):
    """Products of 16 bits are exact in float32; only the sum is rounded."""
    x, y = normal(16, 256, dtype=dtype), normal(256, 32, seed=1, dtype=dtype)
    torch.testing.assert_close(
        dot(x, y).double(), x.double() @ y.double(), rtol=0, atol=256 * 2**-24 * 8
    )
    x, y = torch.ones(16, 4096, dtype=dtype), torch.ones(4096, 16, dtype=dtype)
    assert (dot(x, y) == 4096).all(), "bfloat16 would stop at 256, float16 at 2048"


def test_a_dot_of_float32_reads_tf32_unless_it_is_told_otherwise():
    """A tensor core does not see the last 13 bits of its operands."""
    x, y = normal(32, 64), normal(64, 16, seed=1)
    exact = x.double() @ y.double()
    cut = [torch.from_numpy(rounding.truncated_to_tf32(z.numpy())).double() for z in (x, y)]
    torch.testing.assert_close(dot(x, y).double(), cut[0] @ cut[1], rtol=0, atol=1e-5)
    error = {
        p: (dot(x, y, p).double() - exact).abs().max().item() for p in ("tf32", "tf32x3", "ieee")
    }
    assert error["tf32"] > 1e-3
    assert error["tf32x3"] < 2e-5
    assert error["ieee"] < 1e-5


def test_what_tf32_keeps_is_multiplied_exactly():
    """Integers under 2048 have no bits that TF32 lacks."""
    x, y = torch.randint(-99, 99, (16, 16)).float(), torch.randint(-99, 99, (16, 16)).float()
    assert torch.equal(dot(x, y), x @ y)
    inf = torch.full((16, 16), math.inf)
    assert torch.equal(dot(inf, torch.ones(16, 16), "tf32x3"), inf)


def test_a_dot_of_int8_is_exact():
    """Sums of products of 8 bits go into 32."""
    x = torch.randint(-128, 128, (16, 1024), dtype=torch.int8)
    y = torch.randint(-128, 128, (1024, 16), dtype=torch.int8)
    assert torch.equal(dot(x, y, out=torch.int32), x.int() @ y.int())


# memory that nobody filled


def test_masked_lanes_without_other_are_poisoned():
    """NaN shows in a sum, the largest number in a maximum, the smallest in a minimum."""
    x = torch.ones(16)
    out = torch.empty(16)
    K.loaded[(1,)](x, out, 4, 16)
    largest = torch.finfo(torch.float32).max
    assert (out[:4] == 1).all()
    assert out[4:].isnan().sum() == 4
    assert (out[4:] == largest).sum() == 4
    assert (out[4:] == -largest).sum() == 4
    total = torch.empty(1)
    K.sum_unfilled[(1,)](x, total, 9, 16)
    assert total.isnan().all()
    K.max_unfilled[(1,)](x, total, 9, 16)
    assert total.item() == largest


@pytest.mark.parametrize(
    ("dtype", "poison"),
    [(torch.int32, 0x5B5B5B5B), (torch.int8, 0x5B), (torch.int64, 0x5B5B5B5B5B5B5B5B)],
)
def test_masked_lanes_of_integers_are_poisoned(dtype, poison):
    """No count or index is likely to be that."""
    out = torch.empty(16, dtype=dtype)
    K.loaded[(1,)](torch.ones(16, dtype=dtype), out, 4, 16)
    assert (out[:4] == 1).all()
    assert (out[4:] == poison).all()


def test_masked_lanes_of_bfloat16_are_poisoned():
    """In its own bits."""
    out = torch.empty(16, dtype=BF16)
    K.loaded[(1,)](torch.ones(16, dtype=BF16), out, 4, 16)
    assert out[4:].isnan().sum() == 4
    assert (out[4:].abs() == torch.finfo(BF16).max).sum() == 8


def test_a_masked_number_takes_the_other_it_is_given():
    """Also where that is zero, which Python takes for nothing."""
    out = torch.empty(3)
    K.loaded_scalar[(1,)](torch.ones(1), out, 0)
    assert out[:2].tolist() == [0.0, 4.0]
    assert out[2].isnan()


def test_tensors_start_as_nan():
    """What a kernel does not write cannot be right by luck."""
    for empty in (
        torch.empty(5),
        torch.empty_like(torch.ones(5, dtype=BF16)),
        torch.ones(2).new_empty(5),
        torch.empty_strided((2, 3), (4, 1)),
    ):
        assert empty.isnan().all()
    assert (torch.empty(5, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


# atomics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16, torch.int32, torch.float64])
def test_atomic_additions_to_one_address_all_count(dtype):
    """Lanes of one instruction may meet."""
    x, out = torch.arange(8).to(dtype), torch.zeros(3, dtype=dtype)
    K.atomics[(1,)](x, out, 8)
    assert out.tolist() == [28, 0 + 2 + 4, 1 + 3 + 5]


def test_atomic_extremes():
    """Floats, too, which the language turns into integers."""
    x, out = normal(64), torch.zeros(2)
    K.extremes[(1,)](x, out, 64)
    assert out.tolist() == [x.max().item(), x.min().item()]


@pytest.mark.skipif(triton.__version__ < "3.9", reason="before triton 3.9 there are none")
def test_atomic_loads_and_stores():
    """All programs may do either; who waits for another one is not told to wait for ever."""
    x, flag, out = normal(4), torch.zeros(1, dtype=torch.int32), torch.empty(4)
    record = traffic(lambda: K.atomic_copies[(4,)](x, flag, out))
    assert torch.equal(out, x)
    assert (record.launches[0].tensor("FLAG").loaded, record.stored) == (16, 32)
    with pytest.raises(Unverified, match="waits"):
        K.polls[(1,)](flag)


# functions

EXTERNAL = {
    "tanh imported": torch.tanh,
    "tanh": torch.tanh,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "erf": torch.erf,
    "pow": lambda x: x**x,
    "isnan": lambda x: x.isnan().float(),
    "fast_expf": torch.exp,
    "fast_dividef": lambda x: x / 3,
    "div_rn": lambda x: x / 3,
    "round": torch.round,
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_functions_of_libdevice_work(name):
    """Through the module, and imported by name."""
    x, out = normal(64).abs() + 0.1, torch.empty(64)
    K.external[(1,)](x, out, name, 64)
    torch.testing.assert_close(out, EXTERNAL[name](x), rtol=1e-6, atol=1e-7)


def test_a_symbol_of_libdevice_means_one_function():
    """Of those whose names are longer by a letter, none is taken for another."""
    for symbol in ("logb", "logbf", "rhypot", "rhypotf", "rcp64h", "fmul_rz", "ilogb", "norm3d"):
        assert libdevice.find(symbol) is None, symbol
    for symbol in (
        "fabsf",
        "fabs",
        "isnand",
        "fsqrt_rn",
        "dsqrt_rn",
        "fast_powf",
        "fmaf_rn",
        "erff",
    ):
        assert libdevice.find(symbol) is not None, symbol


def test_an_unknown_function_of_libdevice_is_unverified():
    """What cannot be computed here is not called wrong."""
    with pytest.raises(Unverified, match="rcp64h"):
        K.external[(1,)](normal(16), torch.empty(16), "rcp64h", 16)


def test_inline_assembly_is_unverified():
    """Only a GPU can say."""
    with pytest.raises(Unverified, match="assembly"):
        K.assembly[(1,)](normal(16), torch.empty(16), 16)


def test_functions_of_the_language_agree_with_torch():
    """exp2, log2, sin, floor, erf, rsqrt, sigmoid and softmax."""
    x = normal(64).abs() + 0.1
    exp, erf, rsqrt, sigmoid, softmax = (torch.empty(64) for _ in range(5))
    K.in_language[(1,)](x, exp, erf, rsqrt, sigmoid, softmax, 64)
    torch.testing.assert_close(exp, x.exp2() + x.log2() + x.sin() + x.floor())
    torch.testing.assert_close(erf, x.erf())
    torch.testing.assert_close(rsqrt, x.rsqrt())
    torch.testing.assert_close(sigmoid, x.sigmoid())
    torch.testing.assert_close(softmax, x.softmax(0))


# programs


@pytest.mark.parametrize(
    "grid", [(5,), (3, 2), (2, 3, 4), (1, 1, 3), lambda meta: (triton.cdiv(9, 2),)]
)
def test_each_program_runs_once_and_knows_its_place(grid):
    """program_id and num_programs, for one, two and three axes."""
    sizes = (*(grid if isinstance(grid, tuple) else (5,)), 1, 1)[:3]
    out = torch.empty(*sizes, 4, dtype=torch.int32)
    K.identities[grid](out)
    for index in itertools.product(*map(range, sizes)):
        assert out[index].tolist() == [*index, sizes[0] * 100 + sizes[1] * 10 + sizes[2]]


def test_programs_run_in_an_order_that_the_seed_gives():
    """Not in that of their numbers; the same seed gives the same order."""

    def turns(programs=16):
        out, count = torch.empty(programs, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        K.turns[(programs,)](out, count)
        return out.tolist()

    assert turns() == turns() != list(range(16))
    assert sorted(turns()) == list(range(16))
    assert turns(2) == [1, 0], "two programs run the other way round"
    with interpreter.order(7):
        seventh = turns()
        with interpreter.order(8):
            assert turns() != seventh
        assert turns() == seventh
    assert turns() != seventh


def test_a_grid_of_nothing_launches_nothing():
    """As on a GPU."""
    K.turns[(0,)](torch.empty(1), torch.zeros(1))


@pytest.mark.parametrize("grid", [(2.5,), (1, 1, 1, 1), (), (1, 65536), (1, 1, 65536)])
def test_a_grid_that_a_gpu_refuses_is_refused(grid):
    """Whole numbers, one to three of them, and only the first may be large."""
    with pytest.raises((TypeError, ValueError)):
        K.turns[grid](torch.empty(1), torch.zeros(1))


@pytest.mark.parametrize("n", [0, 1, 7])
def test_loops_over_bounds_known_at_run_time(n):
    """range, tl.range, tl.static_range and while."""
    out = torch.empty(4, dtype=torch.int32)
    K.loops[(1,)](out, n, 4)
    rest = n
    while rest > 3:
        rest -= 2
    assert out.tolist() == [sum(range(0, n, 2)), sum(range(n)), 6, rest]


def test_a_loop_counts_in_numbers_of_the_language():
    """A counter has a dtype and can be cast, before it is multiplied beyond 32 bits."""
    out = torch.empty(4, dtype=torch.int64)
    K.counters[(1,)](out, 5, 2**40)
    assert out.tolist() == [4 * 2**30, 32, 2**40, 64]


def test_a_python_float_is_a_float32():
    """0.1 and 2 * 0.1 + 1 have other digits in float64."""
    out = torch.zeros(4, dtype=torch.float64)
    K.given[(1,)](out, 0.1, True, None, 1)
    one = np.float32(0.1)
    assert out.tolist() == [float(one), 7.0, float(one * np.float32(2) + np.float32(1)), 1]
    K.given[(1,)](out.zero_(), 0.1, False, None, 1)
    assert out[1] == 0


def test_a_tuple_of_arguments_is_one():
    """Its tensors are watched as pair[0], pair[1]."""
    x, out = normal(16), torch.empty(16)
    K.given_pair[(1,)]((x, 0.5), out, 16)
    assert torch.equal(out, x * 0.5)
    with pytest.raises(AssertionError, match=r"`pair\[0\]`"):
        K.given_pair[(1,)]((x[:8], 0.5), out, 16)
    sanitizer.clear()


def test_the_truth_of_a_block_is_refused():
    """`and` between blocks would quietly take the second one."""
    with pytest.raises(ValueError, match="write &"):
        K.truth_of_a_block[(1,)](normal(16), torch.empty(16), 16)


def test_a_tensor_elsewhere_is_refused():
    """The interpreter would copy it, and nothing could be watched."""
    with pytest.raises(ValueError, match="`X` is on meta"):
        K.add[(1,)](torch.empty(16, device="meta"), normal(16), normal(16), 16, 16)


def test_a_kernel_without_a_grid_is_refused():
    """As on a GPU, where only a kernel may call another."""
    with pytest.raises(RuntimeError, match=r"add\[grid\]"):
        K.add(normal(16), normal(16), normal(16), 16, 16)


# errors


@pytest.mark.parametrize(
    ("kernel", "error", "match"),
    [
        ("todo", NotImplementedError, "^todo$"),
        ("todo_inside", NotImplementedError, "^helper_todo$"),
        ("misspelt", NameError, "unheard_of"),
        ("not_imported", NameError, "math"),
    ],
)
def test_what_a_kernel_raises_comes_out_as_it_is(kernel, error, match):
    """Not as an InterpreterError with the name of an error in it; the line is the kernel's."""
    with pytest.raises(error, match=match) as raised:
        getattr(K, kernel)[(1,)](torch.zeros(1))
    line = raised.traceback[-1]
    assert Path(line.path) == Path(K.__file__)
    assert any(word in str(line.statement) for word in ("raise", "unheard_of", "math.pi"))


def test_a_hook_runs_before_the_programs():
    """With the arguments of the launch."""
    kernel, out = load(Path(K.__file__), "planted").add, torch.empty(16)
    kernel.add_pre_run_hook(lambda x, y, out, n, BLOCK: x.fill_(n))
    kernel[(1,)](torch.ones(16), torch.ones(16), out, 16, BLOCK=16)
    assert (out == 17).all()


def test_a_missing_argument_is_a_type_error():
    """As for any function."""
    with pytest.raises(TypeError, match="OUT"):
        K.add[(1,)](normal(16), normal(16))


# descriptors and block pointers


def test_tensor_descriptors_work():
    """Made in the kernel or given to it; what lies outside is zero, and not stored."""
    x, out = normal(12, 24), torch.empty(12, 24)
    K.descriptor[(2, 2)](x, out, 12, 24, 8, 16)
    assert torch.equal(out, x * 2)
    out = torch.empty(16, 32)
    K.given_descriptor[(1,)](TensorDescriptor.from_tensor(x, [16, 32]), out, 16, 32)
    assert torch.equal(out[:12, :24], x)
    assert not out[12:].any()
    assert not out[:, 24:].any()


@pytest.mark.skipif(triton.__version__ >= "3.9", reason="triton 3.9 has none")
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers_work():
    """With a check of both boundaries."""
    x, out = normal(12, 24), torch.empty(12, 24)
    K.block_pointer[(1,)](x, out, 12, 24, 16, 16)
    assert torch.equal(out, x * 2)


# autotuning and heuristics


@pytest.mark.parametrize(("kernel", "block"), [("tuned", 128), ("pruned", 512)])
def test_autotune_takes_the_first_configuration_that_is_left(kernel, block):
    """Nothing is timed, since times of an interpreter mean nothing."""
    x, out = normal(1000), torch.empty(1001)
    for _ in range(2):
        getattr(K, kernel)[lambda meta: (triton.cdiv(1000, meta["BLOCK"]),)](x, out, 1000)
        assert torch.equal(out[:1000], x)
        assert out[1000] == block


def test_autotune_resets_and_restores_what_it_is_told_to():
    """A sum starts at zero, a change in place happens once."""
    x, out = normal(1000), torch.full((1,), 5.0)

    def grid(meta):
        return (triton.cdiv(1000, meta["BLOCK"]),)

    K.tuned_sum[grid](x, out, 1000)
    torch.testing.assert_close(out[0], x.sum())
    y = x.clone()
    K.tuned_in_place[grid](y, 1000)
    assert torch.equal(y, x * 2)


def test_heuristics_work():
    """They are computed from the arguments."""
    x, out = normal(100), torch.empty(101)
    K.heuristic[(1,)](x, out, 100)
    assert torch.equal(out[:100], x)
    assert out[100] == 128
