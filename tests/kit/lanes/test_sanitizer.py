"""What the sanitizer reports of planted faults, and that it lets right kernels pass."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import min_dot_size

from paperlings.lanes import interpreter, sanitizer
from paperlings.loading import load
from paperlings.testing.close import Mismatch

K = load(Path(__file__).with_name("planted.py"), "planted")
X = torch.linspace(-3, 3, 1000)
Y = torch.linspace(5, -2, 1000)


@pytest.fixture(autouse=True)
def _faithful():
    """Each test begins without findings, and shall not leave any for the next."""
    sanitizer.clear()
    with interpreter.faithful():
        yield
    sanitizer.clear()


def found(launch) -> str:
    """The one thing that a launch is reported for."""
    with pytest.raises(Mismatch) as error:
        launch()
    assert sanitizer.findings == [error.value], "a finding is kept"
    return f"{error.value.difference} | {error.value.question}"


# right kernels


def test_a_masked_add_is_clean():
    """A right kernel of one axis has no finding, and the right values."""
    out = torch.empty(1000)
    K.add[(4,)](X, Y, out, 1000, 256)
    assert torch.equal(out, X + Y)


@pytest.mark.parametrize("function", ["flash_attention", "naive_attention"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_with_a_ragged_end_is_clean(function, dtype):
    """One launch with a loop, or three, of which each loads what the one before stored."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 40, 16, generator=generator).to(dtype) for _ in range(3))
    out = getattr(K, function)(q, k, v, 16)
    right = torch.softmax(q.double() @ k.double().mT / 4, -1) @ v.double()
    allowed = 0.02 if dtype == torch.bfloat16 else 3e-3
    torch.testing.assert_close(out.double(), right, atol=allowed, rtol=0)


def test_a_matmul_of_odd_sizes_is_clean():
    """Two axes of programs, each with its own part of the output."""
    x, y = torch.randn(37, 50), torch.randn(50, 23)
    out = torch.empty(37, 23)
    K.matmul[(3, 2)](x, y, out, 37, 23, 50, 16, 16, 16)
    torch.testing.assert_close(out, x @ y, atol=0.05, rtol=0)


def test_a_softmax_of_strided_rows_is_clean():
    """Rows that lie apart are a view that skips elements; touching only its own is right."""
    x, out = torch.randn(8, 32)[:, :20], torch.empty(8, 48)[:, :20]
    K.softmax[(8,)](x, out, 20, 32, 48, 32)
    torch.testing.assert_close(out, x.softmax(-1))


def test_a_layer_norm_is_clean():
    """Every program loads the same weights."""
    x, w, out = torch.randn(5, 20), torch.randn(20), torch.empty(5, 20)
    K.layer_norm[(5,)](x, w, out, 20, 1e-5, 32)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x, (20,), w))


def test_a_histogram_of_atomics_is_clean():
    """Atomic additions of several programs and lanes to one address are no race."""
    x, counts = torch.arange(1000) % 7, torch.zeros(7, dtype=torch.int32)
    K.histogram[(4,)](x, counts, 1000, 256)
    assert torch.equal(counts, x.bincount().int())


@pytest.mark.parametrize("out", ["the same tensor", "another view of it"])
def test_a_change_in_place_is_clean(out):
    """A program may load what only it stores, later."""
    x = X.clone()
    K.double_in_place[(4,)](x, x if out == "the same tensor" else x.view(10, 100), 1000, 256)
    assert torch.equal(x, X * 2)


def test_views_of_one_buffer_are_clean():
    """Query, key and value that lie side by side in one tensor are three tensors."""
    buffer = torch.zeros(3, 1000)
    x, y, out = buffer
    x.copy_(X), y.copy_(Y)
    K.add[(4,)](x, y, out, 1000, 256)
    assert torch.equal(out, X + Y)
    rows = torch.zeros(8, 96)
    x, out = rows[:, :20], rows[:, 48:68]
    x.copy_(X[:160].view(8, 20))
    K.softmax[(8,)](x, out, 20, 96, 96, 32)
    assert not sanitizer.findings


def test_what_an_earlier_launch_stored_may_be_loaded():
    """A launch ends before the next one begins."""
    a, b = torch.empty(1000), torch.empty(1000)
    K.double_in_place[(4,)](X, a, 1000, 256)
    K.double_in_place[(3,)](a, b, 1000, 512)
    assert torch.equal(b, X * 4)


def test_an_expanded_tensor_is_clean():
    """A stride of zero repeats elements that are there."""
    x, out = torch.randn(1, 16).expand(16, 16), torch.empty(16, 16)
    K.copy_block[(1,)](x, out, 0, 1, 16, 1, 16, 16)
    assert torch.equal(out, x)


def test_lanes_that_agree_may_share_an_address():
    """Which of two equal values wins cannot be seen."""
    place, out = torch.arange(64) // 2, torch.empty(32)
    K.scatter[(1,)](torch.ones(64), place, out, 64)
    assert torch.equal(out, torch.ones(32))


def test_a_barrier_between_store_and_load_is_clean():
    """tl.debug_barrier() makes the threads of a program wait for each other."""
    out = torch.empty(256)
    K.reversed_with_barrier[(1,)](X[:256], torch.empty(256), out, 256)
    assert torch.equal(out, X[:256].flip(0))


# wrong ones


def test_a_load_without_mask_is_reported():
    """24 lanes of the fourth block go beyond 1000 elements, and all of the fifth."""
    said = found(lambda: K.add_load_unmasked[(5,)](X, Y, torch.empty(1000), 1000, 256))
    assert "kernel add_load_unmasked: program 4 loads element 1024 of `X`" in said
    assert "whose shape is [1000] (280 such lanes in this launch)" in said
    assert "tl.load without a mask" in said


def test_a_store_without_mask_is_reported_and_not_done():
    """What lies behind the tensor stays as it was."""
    behind = torch.zeros(1024)
    said = found(lambda: K.add_store_unmasked[(4,)](X, Y, behind[:1000].clone(), 1000, 256))
    assert "program 3 stores to element 1000 of `OUT`" in said
    assert "tl.store without a mask" in said
    assert not behind.any()


def test_an_access_beyond_its_tensor_is_known_where_it_lands_in_another():
    """What matters is which pointer an address was made from."""
    buffer = torch.zeros(2048)
    x, y = buffer[:1000], buffer[1000:2000]
    said = found(lambda: K.add_load_unmasked[(4,)](x, y, torch.empty(1000), 1000, 256))
    assert "element 1000 of `X`" in said


def test_a_load_before_the_first_element_is_reported():
    """Element -1 is outside, whatever lies there."""
    said = found(lambda: K.before_the_first[(1,)](X[10:26], torch.empty(16), 16))
    assert "program 0 loads element -1 of `X`, whose shape is [16]" in said


def test_a_load_of_what_lies_between_rows_is_reported():
    """The storage is there, but it is not part of the view."""
    x, out = torch.zeros(8, 32)[:, :20], torch.empty(8)
    said = found(lambda: K.row_sums[(8,)](x, out, 32, 32, 32))
    assert "element [7, 20] of `X`, whose shape is [8, 20]" in said or "20] of `X`" in said
    assert "Where does a row's data end" in said
    sanitizer.clear()
    K.row_sums[(8,)](x, out, 20, 32, 32)


def test_an_address_that_belongs_to_nothing_is_reported_and_not_touched():
    """A number made a pointer may point anywhere."""
    address, out = torch.tensor([64]), torch.empty(16)
    said = found(lambda: K.wild[(1,)](X, out, address, 16))
    assert "an address that belongs to none of its tensors" in said
    sanitizer.clear()
    K.wild[(1,)](X, out, torch.tensor([X.data_ptr()]), 16)
    assert torch.equal(out, X[:16] * 2), "a number may also be the address of an argument"


def test_an_access_askew_is_reported():
    """Four bytes begin at a multiple of four."""
    x, out = torch.zeros(16, dtype=torch.int8), torch.empty(1, dtype=torch.int32)
    said = found(lambda: K.askew[(1,)](x, out))
    assert "loads element 1 of `X` in 4 bytes that begin at no multiple of 4" in said


def test_a_sum_without_atomics_is_a_race():
    """Every program loads and stores one address."""
    with pytest.raises(Mismatch) as error:
        K.total_without_atomic[(4,)](X, torch.zeros(1), 1000, 256)
    assert "stores to element 0 of `OUT`, which program" in error.value.difference
    assert "writes, too" in error.value.difference
    assert "Which program owns each element?" in error.value.question
    loads = sanitizer.findings[1].difference
    assert "loads element 0 of `OUT`, which" in loads
    assert loads.count("program") == 2


def test_blocks_that_overlap_are_a_race():
    """Two programs store to one element, though they store the same."""
    said = found(lambda: K.blocks_overlap[(3,)](X, torch.empty(1000), 1000, 256))
    assert "program" in said
    assert "stores to element" in said
    assert "writes, too" in said


@pytest.mark.parametrize("seed", range(4))
def test_a_scan_that_relies_on_the_order_is_reported_in_any_order(seed):
    """It is found whether the order happens to be right or not."""
    with interpreter.order(seed):
        said = found(lambda: K.scan_in_order[(4,)](X, torch.empty(1000), 1000, 256))
    assert "loads element" in said
    assert "of `OUT`, which program" in said
    assert "Programs run in any order" in said


def test_a_load_that_comes_before_another_programs_store_is_reported():
    """The first element of the next block may be old or new."""
    said = found(lambda: K.shifted_in_place[(4,)](X.clone(), 1000, 256))
    assert "of `X`, which program" in said


@pytest.mark.parametrize("seed", range(4))
def test_a_load_beside_the_owners_own_is_reported(seed):
    """An element that its owner loads and stores, and its neighbour loads, too."""
    with interpreter.order(seed):
        said = found(lambda: K.neighbours_in_place[(2,)](X[:512].clone(), 512, 256))
    assert "loads element 256 of `X`, which program 1 writes" in said


@pytest.mark.parametrize("seed", range(4))
def test_a_store_beside_atomics_is_a_race(seed):
    """Zeroing in one program and adding in the others needs two launches."""
    with interpreter.order(seed):
        said = found(lambda: K.zeroed_by_one[(4,)](X, torch.empty(1), 1000, 256))
    assert "element 0 of `OUT`, which program" in said
    assert "writes, too" in said


def test_a_load_beside_atomics_is_a_race():
    """A total is not there before the launch ends."""
    said = found(lambda: K.looks_at_the_total[(4,)](X, torch.zeros(1), torch.empty(4)))
    assert "loads element 0 of `OUT`, which program" in said
    sanitizer.clear()
    K.looks_at_the_total[(1,)](X, torch.zeros(1), torch.empty(1))


def test_a_missing_barrier_is_reported():
    """A lane that loads what another one stored must wait for it."""
    arguments = (X[:256], torch.empty(256), torch.empty(256), 256)
    said = found(lambda: K.reversed_without_barrier[(1,)](*arguments))
    assert "program 0 loads element 255 of `SCRATCH`, which it has stored itself" in said
    assert "tl.debug_barrier()" in said


def test_a_scatter_to_one_address_twice_is_reported():
    """Two lanes of one store have different values for one element."""
    place, out = torch.arange(64) // 2, torch.empty(32)
    said = found(lambda: K.scatter[(1,)](X[:64], place, out, 64))
    assert "stores different values in one tl.store to element 0 of `OUT` (32 such lanes" in said


@pytest.mark.parametrize(
    ("dtype", "k", "refused"),
    [
        (torch.float16, 8, True),
        (torch.float16, 16, False),
        (torch.bfloat16, 8, True),
        (torch.bfloat16, 16, False),
        (torch.float32, 4, True),
        (torch.float32, 8, False),
        (torch.int8, 16, True),
        (torch.int8, 32, False),
    ],
)
@pytest.mark.parametrize("edge", [1, 16])
def test_a_dot_that_no_compiler_takes_is_reported(dtype, k, refused, edge):
    """The known versions refuse a short K, by the dtype; of M and N they refuse nothing."""
    x, y = torch.ones(edge, k, dtype=dtype), torch.ones(k, edge, dtype=dtype)
    out = torch.empty(edge, edge, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
    if refused:
        said = found(lambda: K.dot[(1,)](x, y, out, edge, edge, k, "tf32"))
        assert f"tl.dot along K = {k} in " in said
        assert "a GPU takes no K under" in said
    else:
        K.dot[(1,)](x, y, out, edge, edge, k, "tf32")
    assert (out == k).all()


@pytest.mark.parametrize("dtype", [tl.int8, tl.float16, tl.bfloat16, tl.float32, tl.float64])
def test_the_compiler_takes_no_less_than_the_table_says(dtype):
    """And, as the table says, any M and N."""
    least = min_dot_size(GPUTarget("cuda", 90, 32))(dtype, dtype)
    assert least[:2] == (1, 1)
    assert least[2] >= sanitizer.LEAST_K[dtype.primitive_bitwidth]


# how they are kept


def test_findings_are_kept_where_the_exception_is_swallowed():
    """The judge looks after the test, whatever the candidate did with the exception."""
    with pytest.raises(Mismatch):
        K.add_load_unmasked[(4,)](X, Y, torch.empty(1000), 1000, 256)
    with pytest.raises(Mismatch, match="element 1000 of `X`"):
        sanitizer.raise_if_any()
    sanitizer.clear()
    sanitizer.raise_if_any()


def test_a_lock_needs_a_waiver_and_is_clean_with_one():
    """What an atomic guards is not followed, so its author says why there is no race."""
    total, lock = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(Mismatch):
        K.through_a_lock[(4,)](X, total, lock, 1000, 256)
    sanitizer.clear()
    total.zero_()
    with sanitizer.waived(race="a lock guards the total"):
        K.through_a_lock[(4,)](X, total, lock, 1000, 256)
    torch.testing.assert_close(total[0], X.sum(), atol=1e-3, rtol=0)
    assert not sanitizer.findings


def test_a_waiver_lets_nothing_else_pass_and_ends():
    """It names one kind, for one block."""
    with sanitizer.waived(race="no reason"):
        found(lambda: K.add_load_unmasked[(4,)](X, Y, torch.empty(1000), 1000, 256))
    sanitizer.clear()
    found(lambda: K.blocks_overlap[(3,)](X, torch.empty(1000), 1000, 256))


@pytest.mark.parametrize("waiver", [{"luck": "it works here"}, {"race": ""}])
def test_a_waiver_needs_a_kind_and_a_reason(waiver):
    """Who waives something says what and why."""
    with pytest.raises(ValueError, match=next(iter(waiver))), sanitizer.waived(**waiver):
        pass


def test_programs_of_several_axes_are_named_by_their_index():
    """As tl.program_id counts them."""
    x, y, out = torch.randn(32, 16), torch.randn(16, 48), torch.empty(32, 32)
    said = found(lambda: K.matmul[(2, 3)](x, y, out, 32, 48, 16, 16, 16, 16))
    assert "program (1, " in said
    assert "stores to element [" in said
    assert "of `OUT`" in said


def test_a_finding_does_not_hide_what_a_kernel_raises():
    """The exception comes out as it is, and the finding is kept."""
    with pytest.raises(NotImplementedError, match="the rest"):
        K.load_and_give_up[(1,)](X[:16], 32)
    assert "loads element 16 of `X`" in sanitizer.findings[0].difference
