"""What kernels move and compute, against closed forms."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from paperlings.lanes import interpreter, sanitizer
from paperlings.lanes.traffic import Record, recorded, traffic
from paperlings.loading import load
from paperlings.testing.close import Mismatch

K = load(Path(__file__).with_name("planted.py"), "planted")


def up(n: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-n // step) * step


def bytes_of(record: Record) -> dict[str, tuple[int, int]]:
    """Loaded and stored bytes by tensor, of the only launch."""
    (launch,) = record.launches
    return {access.name: (access.loaded, access.stored) for access in launch.tensors}


def sectors_of(record: Record) -> dict[str, tuple[int, int]]:
    """Bytes of sectors loaded and stored by tensor, of the only launch."""
    (launch,) = record.launches
    return {a.name: (a.sectors_loaded, a.sectors_stored) for a in launch.tensors}


def distinct_of(record: Record) -> dict[str, tuple[int, int]]:
    """Distinct bytes loaded and stored by tensor, of the only launch."""
    (launch,) = record.launches
    return {a.name: (a.distinct_loaded, a.distinct_stored) for a in launch.tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.int64])
@pytest.mark.parametrize("n", [1000, 256, 1])
def test_an_add_moves_each_tensor_once(dtype, n):
    """Masked lanes move nothing; a sector that is half used moves whole."""
    x, y, out = (torch.ones(n, dtype=dtype) for _ in range(3))
    record = traffic(lambda: K.add[(-(-n // 256),)](x, y, out, n, 256))
    size = n * x.element_size()
    assert bytes_of(record) == {"X": (size, 0), "Y": (size, 0), "OUT": (0, size)}
    assert distinct_of(record) == bytes_of(record)
    moved = up(size, 32)
    assert sectors_of(record) == {"X": (moved, 0), "Y": (moved, 0), "OUT": (0, moved)}
    assert (record.loaded, record.stored, record.sectors) == (2 * size, size, 3 * moved)
    assert record.distinct == 3 * size
    assert record.launches[0].kernel == "add"
    assert record.launches[0].programs == -(-n // 256)
    assert record.flops == 0
    assert record.dot_dtypes == set()


def test_rows_that_lie_apart_move_sectors_of_their_own():
    """80 bytes of a row are 2.5 sectors, which are 3."""
    x, out = torch.ones(8, 32)[:, :20], torch.empty(8, 20)
    record = traffic(lambda: K.softmax[(8,)](x, out, 20, 32, 20, 32))
    assert bytes_of(record) == {"X": (640, 0), "OUT": (0, 640)}
    assert sectors_of(record)["X"] == (8 * 96, 0)
    starts = [80 * row for row in range(8)]
    touched = sum((start + 79) // 32 - start // 32 + 1 for start in starts)
    assert sectors_of(record)["OUT"] == (0, 32 * touched)


def test_a_column_moves_a_sector_for_every_element():
    """That is why the order of a block's loads matters: eight times the bytes."""
    x, out = torch.ones(16, 16), torch.empty(16, 1)
    record = traffic(lambda: K.copy_block[(1,)](x, out, 16, 1, 1, 1, 16, 1))
    assert bytes_of(record) == {"X": (64, 0), "OUT": (0, 64)}
    assert sectors_of(record) == {"X": (16 * 32, 0), "OUT": (0, 64)}
    far, out = torch.ones(16, 4096)[:, 0], torch.empty(16, 1)
    record = traffic(lambda: K.copy_block[(1,)](far, out, 4096, 1, 1, 1, 16, 1))
    assert sectors_of(record)["X"] == (16 * 32, 0), "also where they lie far apart"


def test_a_transposed_block_moves_whole_sectors():
    """A block of 16 by 16 uses all of every sector, whichever way it is stored."""
    x, out = torch.randn(16, 16), torch.empty(16, 16)
    record = traffic(lambda: K.copy_block[(1,)](x, out, 16, 1, 1, 16, 16, 16))
    assert sectors_of(record) == {"X": (1024, 0), "OUT": (0, 1024)}
    assert torch.equal(out, x.T)


def test_lanes_that_load_one_address_move_one_sector():
    """An expanded tensor has few bytes, which are asked for often."""
    x, out = torch.ones(1, 16).expand(16, 16), torch.empty(16, 16)
    record = traffic(lambda: K.copy_block[(1,)](x, out, 0, 1, 16, 1, 16, 16))
    assert bytes_of(record)["X"] == (1024, 0)
    assert sectors_of(record)["X"] == (64, 0)
    assert distinct_of(record)["X"] == (64, 0)


def test_weights_that_every_program_loads_count_every_time():
    """A layer norm of 5 rows asks 5 times for its weights, and moves them once if they stay."""
    x, w, out = torch.randn(5, 24), torch.randn(24), torch.empty(5, 24)
    record = traffic(lambda: K.layer_norm[(5,)](x, w, out, 24, 1e-5, 32))
    assert bytes_of(record) == {"X": (480, 0), "W": (480, 0), "OUT": (0, 480)}
    assert distinct_of(record) == {"X": (480, 0), "W": (96, 0), "OUT": (0, 480)}


@pytest.mark.parametrize(("m", "n", "k"), [(32, 48, 64), (37, 23, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_matmul_loads_each_operand_once_for_every_block_of_the_other(m, n, k, dtype):
    """Bytes end where the matrix ends, multiplications where the block does."""
    x, y, out = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.empty(m, n)
    grid = (-(-m // 16), -(-n // 16))
    record = traffic(lambda: K.matmul[grid](x, y, out, m, n, k, 16, 16, 16))
    size = x.element_size()
    loads = {"X": grid[1] * m * k * size, "Y": grid[0] * k * n * size}
    assert bytes_of(record) == {"X": (loads["X"], 0), "Y": (loads["Y"], 0), "OUT": (0, m * n * 4)}
    assert record.flops == 2 * up(m, 16) * up(n, 16) * up(k, 16)
    assert record.dot_dtypes == {"tf32" if dtype == torch.float32 else "fp16"}
    assert record.launches[0].flops == {record.dot_dtypes.pop(): record.flops}
    assert record.launches[0].programs == grid[0] * grid[1]


SHAPES = [(2, 64, 16, 16), (2, 64, 16, 32), (1, 40, 32, 16), (3, 33, 16, 32)]


@pytest.mark.parametrize(("heads", "n", "d", "block"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_attention_loads_keys_and_values_once_for_every_block_of_queries(
    heads, n, d, block, dtype
):
    """Queries once, keys and values as often as there are blocks, nothing in between."""
    q, k, v = (torch.randn(heads, n, d).to(dtype) for _ in range(3))
    record = traffic(lambda: K.flash_attention(q, k, v, block))
    size, blocks = heads * n * d * q.element_size(), -(-n // block)
    assert bytes_of(record) == {
        "Q": (size, 0),
        "K": (blocks * size, 0),
        "V": (blocks * size, 0),
        "OUT": (0, heads * n * d * 4),
    }
    assert distinct_of(record)["K"] == (size, 0)
    assert record.flops == heads * 4 * up(n, block) ** 2 * d
    assert record.sectors == record.loaded + record.stored, "rows are whole sectors"
    assert all(record.has_read(x) for x in (q, k, v))


@pytest.mark.parametrize(("heads", "n", "d", "block"), SHAPES)
def test_naive_attention_stores_and_loads_its_scores(heads, n, d, block):
    """Three launches; the scores and the weights go through memory in float32."""
    q, k, v = (torch.randn(heads, n, d).half() for _ in range(3))
    record = traffic(lambda: K.naive_attention(q, k, v, block))
    assert [launch.kernel for launch in record.launches] == ["scores", "softmax", "weighted"]
    size, square, blocks = heads * n * d * 2, heads * n * n * 4, -(-n // block)
    first, second, third = record.launches
    assert first.tensor("Q").loaded == first.tensor("K").loaded == blocks * size
    assert first.tensor("S").stored == square
    assert (second.tensor("X").loaded, second.tensor("OUT").stored) == (square, square)
    assert (third.tensor("P").loaded, third.tensor("V").loaded) == (square, blocks * size)
    assert third.tensor("OUT").stored == heads * n * d * 4
    assert record.loaded + record.stored == 3 * blocks * size + 4 * square + heads * n * d * 4
    assert record.flops == heads * 4 * up(n, block) ** 2 * d
    with pytest.raises(KeyError):
        third.tensor("S")


def test_packed_weights_are_half_a_byte_each():
    """Eight lanes ask for one word of eight 4-bit numbers; distinct bytes and sectors know."""
    n, k = 64, 128
    x, scale, out = torch.randn(k), torch.rand(n), torch.empty(n)
    numbers = torch.randint(0, 16, (k, n), dtype=torch.int64)
    shifts = (torch.arange(8) * 4).view(1, 8, 1)
    packed = (numbers.view(k // 8, 8, n) << shifts).sum(1).to(torch.int32)
    record = traffic(lambda: K.int4_product[(4,)](x, packed, scale, out, n, k, 16, 64))
    torch.testing.assert_close(out, (x @ (numbers - 8).float()) * scale, atol=1e-3, rtol=1e-4)
    assert bytes_of(record)["PACKED"] == (k * n * 4, 0)
    assert distinct_of(record)["PACKED"] == (k * n // 2, 0)
    assert sectors_of(record)["PACKED"] == (k * n // 2, 0)
    assert bytes_of(record)["X"] == (4 * k * 4, 0)
    assert record.flops == 0, "no tensor core multiplies anything"


def test_a_pointer_of_another_type_moves_bytes_of_its_own():
    """Sixteen words are 64 bytes, of which four belong together."""
    x, out = torch.arange(65, dtype=torch.int8), torch.empty(65, dtype=torch.int8)
    record = traffic(lambda: K.copy_words[(1,)](x, out, 16))
    assert bytes_of(record) == distinct_of(record) == {"X": (64, 0), "OUT": (0, 64)}
    assert torch.equal(x[:64], out[:64])
    assert record.has_read(x[:64])
    assert not record.has_read(x)


def test_atomics_count_as_stores():
    """Every lane asks; of one instruction, a sector counts once."""
    x, counts = torch.arange(1000) % 8, torch.zeros(8, dtype=torch.int32)
    record = traffic(lambda: K.histogram[(4,)](x, counts, 1000, 256))
    assert bytes_of(record) == {"X": (8000, 0), "COUNTS": (0, 4000)}
    assert sectors_of(record)["COUNTS"] == (0, 4 * 32)
    assert distinct_of(record)["COUNTS"] == (0, 32)
    assert record.has_written(counts)
    assert not record.has_read(counts)


def test_a_change_in_place_loads_and_stores_one_tensor():
    """By the two names under which the kernel knows it."""
    x = torch.ones(100)
    record = traffic(lambda: K.double_in_place[(1,)](x, x, 100, 128))
    assert bytes_of(record) == {"X": (400, 0), "OUT": (0, 400)}
    assert record.has_read(x)
    assert record.has_written(x)


def test_a_descriptor_moves_what_its_tensor_has():
    """Under the name of the argument; what lies outside its shape moves nothing."""
    x, out = torch.ones(12, 24), torch.empty(16, 32)
    descriptor = TensorDescriptor.from_tensor(x, [16, 32])
    record = traffic(lambda: K.given_descriptor[(1,)](descriptor, out, 16, 32))
    assert bytes_of(record) == {"x": (12 * 24 * 4, 0), "OUT": (0, 16 * 32 * 4)}


@pytest.mark.parametrize(
    ("precision", "name"), [("tf32", "tf32"), ("tf32x3", "tf32x3"), ("ieee", "fp32")]
)
def test_the_precision_of_a_dot_of_float32_is_its_dtype(precision, name):
    """Three ways to multiply the same numbers."""
    x = torch.randn(16, 16)
    record = traffic(lambda: K.dot[(1,)](x, x, torch.empty(16, 16), 16, 16, 16, precision))
    assert record.launches[0].flops == {name: 2 * 16**3}


def test_what_has_been_read_and_written_adds_up_over_launches():
    """Element by element, through any view of a tensor."""
    x, out = torch.ones(1000), torch.empty(1000)
    with recorded() as record:
        K.double_in_place[(1,)](x[:600], out[:600], 600, 1024)
        assert not record.has_read(x)
        assert not record.has_written(out)
        assert record.has_written(out[100:600:3])
        K.double_in_place[(1,)](x[599:], out[599:], 401, 512)
    assert record.has_read(x)
    assert record.has_written(out)
    assert record.has_written(out.view(torch.int16))
    assert not record.has_written(x)
    assert not record.has_read(torch.ones(1000))
    assert record.has_read(torch.empty(0)), "of nothing, everything"


def test_a_view_is_read_when_its_own_elements_are():
    """What lies between its rows does not matter."""
    x, out = torch.ones(8, 32), torch.empty(8, 20)
    record = traffic(lambda: K.softmax[(8,)](x[:, :20], out, 20, 32, 20, 32))
    assert record.has_read(x[:, :20])
    assert not record.has_read(x)
    assert not record.has_read(x[:, :21])


def test_a_tensor_that_reaches_far_is_watched_in_little_memory():
    """The last row lies 2^33 bytes behind the first, and nothing in between is looked at."""
    step = 2**31 + 16
    memory = mmap.mmap(-1, 4 * (step + 16), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    x = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 16), (step, 1))
    x.copy_(torch.randn(2, 16))
    out = x.clone()
    record = traffic(lambda: K.softmax[(2,)](x, x, 16, step, step, 16))
    torch.testing.assert_close(x, out.softmax(-1))
    assert bytes_of(record) == distinct_of(record) == {"X": (128, 0), "OUT": (0, 128)}
    assert record.has_read(x)
    assert record.has_written(x)
    assert not record.has_written(out)
    with interpreter.faithful(), pytest.raises(Mismatch, match=r"element \[0, 16\] of `X`"):
        K.softmax[(1,)](x, out, 17, step, 16, 32)
    sanitizer.clear()


def test_memory_that_is_used_again_is_another_tensor():
    """A temporary tensor that is gone does not stand for the next one in its place."""
    with recorded() as record:
        temporary = torch.empty(1000)
        K.double_in_place[(1,)](torch.ones(1000), temporary, 1000, 1024)
        del temporary
        assert not record.has_written(torch.empty(1000))


def test_operators_of_torch_are_counted_and_the_interpreters_own_are_not():
    """A launch copies nothing; what the host function runs beside it does count."""
    x = torch.ones(100)

    def host():
        out = torch.empty_like(x)
        K.add[(1,)](x, x.exp().exp(), out, 100, 128)
        return out

    record = traffic(host)
    assert record.torch_ops == {"aten.empty_like": 1, "aten.exp": 2}


def test_of_two_records_one_in_the_other_both_count():
    """The inner one only what is launched in it."""
    x, out = torch.ones(100), torch.empty(100)
    with recorded() as outer:
        K.add[(1,)](x, x, out, 100, 128)
        with recorded() as inner:
            K.double_in_place[(1,)](x.neg(), out, 100, 128)
        K.add[(1,)](x, x, out, 100, 128)
    assert [launch.kernel for launch in outer.launches] == ["add", "double_in_place", "add"]
    assert [launch.kernel for launch in inner.launches] == ["double_in_place"]
    assert outer.torch_ops == inner.torch_ops == {"aten.neg": 1}
    with recorded() as outer:
        with recorded() as inner:
            K.add[(1,)](x, x, out, 100, 128)
        K.add[(1,)](x, x, out, 100, 128)
    assert (len(outer.launches), len(inner.launches)) == (2, 1), "though they held the same"


def test_a_launch_with_a_finding_is_recorded():
    """What lies outside the storage is not moved."""
    x, out = torch.ones(1000), torch.empty(1000)
    with recorded() as record, pytest.raises(Mismatch):
        K.add_load_unmasked[(4,)](x, x, out, 1000, 256)
    assert bytes_of(record) == {"X": (4000, 0), "Y": (4000, 0), "OUT": (0, 4000)}


def test_nothing_is_counted_outside():
    """A record is closed when its block ends."""
    x, out = torch.ones(100), torch.empty(100)
    with interpreter.faithful():
        record = traffic(lambda: K.add[(1,)](x, x, out, 100, 128))
        K.add[(1,)](x, x, out, 100, 128)
    assert len(record.launches) == 1


def test_a_record_is_plain_data_for_a_report():
    """Names, numbers, lists and dicts, that JSON can hold."""
    x, out = torch.ones(100), torch.empty(100)
    plain = traffic(lambda: K.add[(1,)](x, x, out, 100, 128)).plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["launches"][0]["tensors"][0] == {
        "name": "X",
        "loaded": 400,
        "stored": 0,
        "sectors_loaded": 416,
        "sectors_stored": 0,
        "distinct_loaded": 400,
        "distinct_stored": 0,
    }
