"""What crosses comes out as it went in, and nothing that arrives can do more than be refused."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import threading
import time
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlings.sealed import wire
from paperlings.sealed.wire import Channel, Late, Uncrossable, WireError
from paperlings.testing.spread import spread

Ends = tuple[Channel, Channel]
Point = namedtuple("Point", ["x", "y"])


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The two ends of a connection."""
    one, other = (Channel(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def refuse(value: Any, parcel: wire.Parcel) -> Any:
    raise Uncrossable(f"a {type(value).__name__}")


def crossed(ends: Ends, value: Any) -> Any:
    """A value after its way."""
    parcel = wire.pack(value, refuse)
    thread = threading.Thread(target=ends[0].send, args=(parcel.tree, parcel.tensors))
    thread.start()
    tree, tensors = ends[1].receive(time.monotonic() + 20)
    thread.join()
    return wire.unpack(tree, tensors)


def raw(ends: Ends, head: bytes, body: bytes = b"", sizes: tuple[int, int] | None = None) -> Any:
    """What comes of bytes that somebody else has written."""
    lengths = struct.pack("<QQ", *(sizes or (len(head), len(body))))
    ends[0].end.sendall(lengths + head + body)
    return ends[1].receive(time.monotonic() + 5)


@pytest.mark.parametrize("dtype", wire.DTYPES.values(), ids=wire.DTYPES)
def test_tensors_of_every_dtype_cross(ends: Ends, dtype: torch.dtype) -> None:
    """Values, shape and dtype are the same, for no entries and no axes too."""
    for shape in ((2, 3), (), (0, 4), (1,)):
        x = (torch.arange(math.prod(shape)) % 2).reshape(shape).to(dtype)
        y = crossed(ends, x)
        assert y.dtype == dtype
        assert y.shape == x.shape
        assert torch.equal(x, y)


def test_only_the_judges_tensors_may_lie_far_apart(ends: Ends) -> None:
    """They keep their strides one way; the other way they are sent close together, and one that
    claims to lie far apart is refused.
    """
    judge, candidate = (
        Channel(ends[0].end, sends_far=True),
        Channel(ends[1].end, takes_far=True),
    )
    x = spread(torch.arange(6.0).reshape(2, 3), (2**31 + 5, 2))
    there = crossed((judge, candidate), x)
    assert there.stride() == x.stride()
    assert torch.equal(there, x)
    back = crossed((candidate, judge), there)
    assert back.is_contiguous()
    assert torch.equal(back, x)
    described = [["float32", [2, 3], [2**31 + 5, 2]]]
    with pytest.raises(WireError, match="impossibl"):
        raw((candidate, judge), json.dumps([None, described]).encode(), bytes(24))


def test_numbers_that_are_none_cross(ends: Ends) -> None:
    """Infinities, NaN and the sign of zero, in tensors and alone."""
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0])
    y = crossed(ends, [x, math.inf, math.nan, -0.0])
    assert x.numpy().tobytes() == y[0].numpy().tobytes()
    assert y[1] == math.inf
    assert math.isnan(y[2])
    assert math.copysign(1, y[3]) == -1


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(2**80),
        0.1,
        "a\u2028\x00é",
        [],
        (),
        (1, [2, (3,)]),
        {"a": 1, 2: (3,), None: []},
        torch.float16,
        2 - 1j,
        slice(1, None, 2),
        Ellipsis,
        torch.device("cpu"),
    ],
    ids=repr,
)
def test_plain_data_comes_out_as_it_went_in(ends: Ends, value: Any) -> None:
    """Equal, and of the same type."""
    found = crossed(ends, value)
    assert found == value
    assert type(found) is type(value)


def test_what_is_nearly_plain_becomes_plain(ends: Ends) -> None:
    """An ordered dict, a shape and a number of NumPy."""
    found = crossed(ends, [OrderedDict(a=1), torch.Size([2]), torch.ones(()).double().numpy()[()]])
    assert found == [{"a": 1}, (2,), 1.0]
    assert [type(x) for x in found] == [dict, tuple, float]


def test_a_named_tuple_keeps_its_names(ends: Ends) -> None:
    """It is a tuple, and its items have names."""
    found = crossed(ends, Point(1, "b"))
    assert found == (1, "b")
    assert (found.x, found.y) == (1, "b")


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(3, 4),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[1:, 1:],
    ],
    ids=["transposed", "strided", "expanded", "stacked", "cut"],
)
def test_a_view_lies_in_memory_as_it_did(ends: Ends, view: Any) -> None:
    """Strides cross, within reason, so that a call can be tested on them."""
    x = view(torch.arange(12.0).reshape(3, 4))
    y = crossed(ends, x)
    assert torch.equal(x, y)
    assert x.is_contiguous() == y.is_contiguous()
    assert x.stride() == y.stride()


def test_one_tensor_in_two_places_stays_one(ends: Ends) -> None:
    """Within one message, what is one thing comes out as one."""
    x = torch.ones(2)
    y = crossed(ends, [x, {"again": x}])
    assert y[0] is y[1]["again"]


def test_a_large_tensor_crosses(ends: Ends) -> None:
    """Larger than any buffer."""
    x = torch.arange(3_000_000, dtype=torch.float64)
    assert torch.equal(crossed(ends, x), x)


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2).as_subclass(Sub), "Sub"),
        (object(), "object"),
        ({1, 2}, "set"),
        ("x" * (wire.TEXT + 1), "string"),
        (1 << 100_000, "integer"),
        ([0] * (wire.NODES + 1), str(wire.NODES)),
    ],
    ids=["sparse", "meta", "subclass", "object", "set", "string", "integer", "list"],
)
def test_what_cannot_cross_is_named(ends: Ends, value: Any, named: str) -> None:
    """Nothing is sent, and the message says what it was."""
    with pytest.raises(Uncrossable, match=named):
        ends[0].send(None, wire.pack(value, refuse).tensors)


def test_what_holds_itself_cannot_cross() -> None:
    """It would have no end."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(Uncrossable, match="deep"):
        wire.pack(value, refuse)


@pytest.mark.parametrize(
    ("head", "body", "sizes"),
    [
        (b"", b"", (1 << 62, 0)),
        (b"", b"", (2, 1 << 62)),
        (b"{}", b"", None),
        (b"[" * 100_000, b"", None),
        (b"[1,2]", b"", None),
        (b"[1,[],3]", b"", None),
        (b"\x80\x04N.", b"", None),
        (b'[0,[["object",[1],[]]]]', b"", None),
        (b'[0,[["float64",[2],[]]]]', bytes(8), None),
        (b'[0,[["float64",[1],[]]]]', bytes(16), None),
        (b'[0,[["float64",[-1],[]]]]', b"", None),
        (b'[0,[["float64",[true],[]]]]', bytes(8), None),
        (b'[0,[["float64",[1.0],[]]]]', bytes(8), None),
        (b'[0,[["float64",[1e9],[]]]]', bytes(8), None),
        (b'[0,[["float64",[268435456,268435456],[0,0]]]]', bytes(8), None),
        (b'[0,[["float64",[2],[1000000]]]]', bytes(16), None),
        (b'[0,[["float64",[2,2],[1,1]]]]', bytes(32), None),
        (b'[0,[["float64",[2],[1,1]]]]', bytes(16), None),
        (b"[0,[" + b"[]," * 5000 + b"[]]]", b"", None),
        (json.dumps([0, [["uint8", [1] * 20, []]]]).encode(), bytes(1), None),
        (b'[0,[["float64",[0,268435456],[]]]]', b"", None),
        (json.dumps([0, [["uint8", [1 << 20], [0]]] * 100]).encode(), b"", None),
        (json.dumps([0, [["uint8", [1 << 20], [15]]] * 5]).encode(), b"", None),
    ],
)
def test_a_frame_that_is_none_is_refused(
    ends: Ends, head: bytes, body: bytes, sizes: tuple[int, int] | None
) -> None:
    """By one kind of error, before memory is taken for what it promises."""
    with pytest.raises(WireError):
        raw(ends, head, body, sizes)


@given(data=st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    """Whatever arrives is a frame, or a WireError."""
    one, other = (Channel(end) for end in socket.socketpair())
    one.end.sendall(data)
    one.close()
    with pytest.raises(WireError):
        _all(other)
    other.close()


def _all(end: Channel) -> None:
    while True:
        end.receive(time.monotonic() + 5)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["t", "g", "l", "u", "d", "n", "y", "c", "s", "o", "m", "h", "v", "e"]),
)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5), max_leaves=20)


@given(tree=TREES)
def test_no_tree_does_more_than_be_refused(tree: Any) -> None:
    """Whatever the JSON says, it is a value or a WireError."""
    with contextlib.suppress(WireError):
        wire.unpack(tree, [torch.ones(2), torch.zeros(())])


def test_bytes_that_are_no_bools_become_bools(ends: Ends) -> None:
    """A byte of 7 would be neither true nor false to whoever compares."""
    _, [x] = raw(ends, b'[0,[["bool",[3],[]]]]', bytes([0, 7, 1]))
    assert x.tolist() == [False, True, True]
    assert x.view(torch.uint8).tolist() == [0, 1, 1]


def test_open_files_do_not_cross(ends: Ends) -> None:
    """A frame that comes with some is read as it is, and they are closed unseen."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        head = b"[1,[]]"
        frame = struct.pack("<QQ", len(head), 0) + head
        socket.send_fds(ends[0].end, [frame], [0, 1, ends[0].end.fileno()])
        assert ends[1].receive(time.monotonic() + 5) == (1, [])
    assert len(os.listdir("/proc/self/fd")) == before


def test_kinds_of_named_tuples_are_few() -> None:
    """To make one takes as long as a thousand numbers do."""
    many = ["l", *(["n", f"Kind{i}", []] for i in range(wire.RECORDS + 1))]
    with pytest.raises(WireError, match="named tuples"):
        wire.unpack(many, [])
    with pytest.raises(WireError, match="named tuple"):
        wire.unpack(["n", "Kind", [f"f{i}" for i in range(99)], *range(99)], [])


def test_an_answer_has_a_deadline(ends: Ends) -> None:
    """For the whole of it: who sends a byte now and then gains nothing."""
    begun = time.monotonic()
    ends[0].end.sendall(b"\x01")
    with pytest.raises(Late):
        ends[1].receive(begun + 0.2)
    assert time.monotonic() - begun < 2


def test_who_does_not_read_has_a_deadline_too(ends: Ends) -> None:
    """A judge that writes does not wait for ever."""
    with pytest.raises(Late):
        ends[0].send(None, [torch.zeros(1 << 22)], time.monotonic() + 0.2)


def test_the_end_of_the_other_side_is_seen(ends: Ends) -> None:
    """As an error of the connection."""
    ends[0].close()
    with pytest.raises(WireError):
        ends[1].receive()
