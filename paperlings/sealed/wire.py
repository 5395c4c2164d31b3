"""What crosses between judge and candidate: frames of JSON and raw tensor bytes, never a pickle.

A frame is two lengths, a JSON text of that length, and the bytes of the tensors it names.
Whatever arrives was perhaps made by an enemy, so every size, depth, count and name has a bound,
and is held to it before memory is taken for it.
What cannot cross is refused by a sentence that names it.
"""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import time
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# the largest that an honest answer to any paper's tests takes is a fourth of each
HEAD = 2 << 20  # bytes of JSON in a frame
BODY = 64 << 20  # bytes of tensors in a frame, and of any that is made of it
TENSORS = 1024  # in a frame
AXES = 16
NODES = 120_000  # values in a frame, counting each container
RECORDS = 16  # kinds of named tuples
FIELDS = 64  # of one
DEPTH = 24
TEXT = 1 << 20  # characters of a string
DIGITS = 4000  # of an integer, which Python would not read beyond
SPREAD = 16  # a strided tensor may lie in so many times the memory it fills
FEW = 4096  # elements of one of the judge's that may lie farther apart

LENGTHS = struct.Struct("<QQ")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.complex64, torch.complex128),
    )
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
SMALL = 1 << 16  # bytes that are cheaper copied than looked at where they are
# what is sent is a tree that `pack` made, so it has no circles
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class WireError(Exception):
    """The other side does not keep to the protocol, or has gone."""


class Uncrossable(TypeError):
    """A value that cannot cross; the message names it."""


class Closed(WireError):
    """The other side has gone."""


class Late(WireError):
    """The other side did not answer in time."""


@dataclass
class Parcel:
    """A value on its way: its tree, and the tensors and generators that it names by number."""

    tree: Any = None
    tensors: list[Tensor] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)


class Channel:
    """One end of the connection.

    Tensors may lie far apart in memory where they are the judge's, as the tests of kernels have
    them: one end sends those, and the other takes them.
    """

    def __init__(self, end: socket.socket, *, sends_far: bool = False, takes_far: bool = False):
        self.end = end
        self.sends_far, self.takes_far = sends_far, takes_far
        self.ahead = bytearray()  # what has arrived, and was not asked for yet

    def send(
        self, message: Any, tensors: Sequence[Tensor] = (), deadline: float = math.inf
    ) -> None:
        """Send one frame. Raises Uncrossable before anything is sent, WireError, Late."""
        if len(tensors) > TENSORS:
            raise Uncrossable(f"{len(tensors)} tensors cannot cross at once; {TENSORS} can")
        described, blobs = [], []
        for tensor in tensors:
            layout, raw = _flat(tensor, self.sends_far)
            described.append(layout)
            blobs.append(raw)
        head = _encode([message, described]).encode()
        size = sum(len(blob) for blob in blobs)
        whole = sum(tensor.nbytes for tensor in tensors)  # of those that repeat a place too
        if len(head) > HEAD or whole > BODY:
            raise Uncrossable(f"{len(head) + whole} bytes are too many to cross at once")
        parts: list[bytes | memoryview] = [LENGTHS.pack(len(head), size), head, *blobs]
        if len(head) + size < SMALL:
            parts = [b"".join(parts)]
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    self._wait(deadline)
                    left = left[self.end.send(left) :]
        except TimeoutError:
            raise Late("the other side does not read") from None
        except OSError as error:
            raise Closed(f"the connection is closed ({error})") from None

    def receive(self, deadline: float = math.inf) -> tuple[Any, list[Tensor]]:
        """One frame: its message, and its tensors. Raises WireError, Late."""
        head_size, body_size = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        if head_size > HEAD or body_size > BODY:
            raise WireError("a frame is larger than any frame may be")
        head = self._read(head_size, deadline)
        try:
            message, described = json.loads(bytes(head))
        except (ValueError, RecursionError, TypeError):
            raise WireError("a frame is no JSON of a message and its tensors") from None
        shapes = _shapes(described, self.takes_far)
        sizes = [shape.bytes for shape in shapes]
        if sum(sizes) != body_size:
            raise WireError("a frame holds more or fewer bytes than its tensors have")
        body = self._read(body_size, deadline)
        tensors, place = [], 0
        for shape, size in zip(shapes, sizes, strict=True):
            tensors.append(shape.tensor(body, place))
            place += size
        return message, tensors

    def _read(self, size: int, deadline: float) -> bytearray:
        """Exactly so many bytes; memory is taken as they arrive, not as they are promised."""
        data = self.ahead
        try:
            while len(data) < size:
                self._wait(deadline)
                part = self.end.recv(min(max(size - len(data), 1 << 16), 1 << 20))
                if not part:
                    raise Closed("the other side has gone")
                data += part
        except TimeoutError:
            raise Late("the other side does not answer") from None
        except OSError as error:
            raise Closed(f"the connection is closed ({error})") from None
        self.ahead = data[size:]
        del data[size:]
        return data

    def _wait(self, deadline: float) -> None:
        if deadline == math.inf:
            self.end.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.end.settimeout(left)

    def close(self) -> None:
        self.end.close()


@dataclass(slots=True)
class _Shape:
    """How a tensor of a frame lies in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # () where it is contiguous

    @property
    def sent(self) -> tuple[int, ...]:
        """The shape of what is sent: an axis that repeats one place is sent once."""
        if not self.strides:
            return self.shape
        return tuple(
            min(n, 1) if s == 0 else n for n, s in zip(self.shape, self.strides, strict=True)
        )

    @property
    def bytes(self) -> int:
        return math.prod(self.sent) * self.dtype.itemsize

    def tensor(self, body: bytearray, place: int) -> Tensor:
        """The tensor, in memory of its own."""
        sent = self.sent
        count = math.prod(sent)
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.dtype is torch.bool:  # a byte that is neither 0 nor 1 would be no bool
            flat = torch.frombuffer(body, dtype=torch.uint8, count=count, offset=place) != 0
        else:
            size = count * self.dtype.itemsize
            raw = torch.frombuffer(body, dtype=torch.uint8, count=size, offset=place)
            flat = raw.clone().view(
                self.dtype
            )  # aligned as torch's own are, on which traffic depends
        value = flat.view(sent)
        if not self.strides:
            return value
        extent = 1 + sum((n - 1) * s for n, s in zip(sent, self.strides, strict=True))
        if extent > _room(sent):
            from paperlings.testing.spread import spread

            return spread(value, self.strides).expand(self.shape)
        lying = torch.zeros(extent, dtype=self.dtype).as_strided(sent, self.strides)
        return lying.copy_(value).expand(self.shape)


def _room(sent: Sequence[int]) -> int:
    """In how many entries of memory a tensor of that shape may lie."""
    return SPREAD * (math.prod(sent) + 1)


def _shapes(described: Any, far: bool) -> list[_Shape]:
    if not isinstance(described, list) or len(described) > TENSORS:
        raise WireError("a frame describes its tensors wrongly")
    shapes, whole = [], 0
    for item in described:
        if not isinstance(item, list) or len(item) != 3 or item[0] not in DTYPES:
            raise WireError("a frame holds a tensor of no known dtype")
        shape, strides = item[1], item[2]
        for sizes in (shape, strides):
            if not isinstance(sizes, list) or len(sizes) > AXES:
                raise WireError("a frame holds a tensor of no shape")
            most = 1 << 40 if far and sizes is strides else BODY
            if any(type(n) is not int or not 0 <= n <= most for n in sizes):
                raise WireError("a frame holds a tensor of an impossible size")
        found = _Shape(DTYPES[item[0]], tuple(shape), tuple(strides))
        # an axis that repeats one place, or that has none, costs nothing to send; but its reader
        # may copy it, or sum over another
        size = math.prod(n or 1 for n in shape)
        if strides:
            span = _span(found)
            if not span or (span > _room(found.sent) and not far):
                raise WireError("a frame holds a tensor that lies in memory impossibly")
            size = size if far else max(size, span)
        whole += size * found.dtype.itemsize
        if whole > BODY:
            raise WireError("a frame holds tensors larger than any may be")
        shapes.append(found)
    return shapes


def _span(shape: _Shape) -> int:
    """How many entries a tensor spans in memory; 0 where two of them share a place, but on axes of
    stride 0.
    """
    if len(shape.strides) != len(shape.shape) or not math.prod(shape.shape):
        return 0
    extent = 1
    for stride, size in sorted(zip(shape.strides, shape.sent, strict=True)):
        if size > 1:
            if stride < extent:
                return 0
            extent = (size - 1) * stride + extent
    return extent


def _flat(tensor: Tensor, far: bool) -> tuple[list[Any], bytes | memoryview]:
    """The description of a tensor, and its bytes."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise Uncrossable(f"a tensor of the layout {tensor.layout} cannot cross; a dense one can")
    if tensor.device.type != "cpu":
        raise Uncrossable(f"a tensor on {tensor.device} cannot cross; one on the CPU can")
    name = NAMES.get(tensor.dtype)
    if name is None:
        raise Uncrossable(f"a tensor of the dtype {tensor.dtype} cannot cross")
    if tensor.dim() > AXES:
        raise Uncrossable(f"a tensor of {tensor.dim()} axes cannot cross")
    value = tensor.detach().resolve_conj().resolve_neg()
    shape = tuple(value.shape)
    strides: tuple[int, ...] = ()
    if not value.is_contiguous():
        lying = _Shape(value.dtype, shape, tuple(value.stride()))
        span = _span(lying)
        if span and (span <= _room(lying.sent) or (far and math.prod(lying.sent) <= FEW)):
            strides = lying.strides
            value = value[tuple(slice(0, n) for n in lying.sent)]
    return [name, list(shape), list(strides)], _raw(value)


def _raw(value: Tensor) -> bytes | memoryview:
    if value.nbytes > SMALL or value.dtype is torch.bfloat16:  # which NumPy does not know
        return as_bytes(value).numpy().data if value.numel() else b""
    data: bytes = value.numpy().tobytes()
    return data


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's values, in order."""
    whole = tensor.detach().contiguous()
    # an axis of size 1 may have any stride, which a view of bytes does not forgive
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


# ---- values


def pack(value: Any, other: Callable[[Any, Parcel], Any], parcel: Parcel | None = None) -> Parcel:
    """A value as a tree of JSON and a list of tensors.

    other: what stands in the tree for a value that is no plain data, or Uncrossable.
    A tensor that occurs twice is sent once, and comes out as one tensor.
    """
    parcel = parcel or Parcel()
    parcel.tree = _Packer(other, parcel).pack(value, 0)
    return parcel


class _Packer:
    def __init__(self, other: Callable[[Any, Parcel], Any], parcel: Parcel):
        self.other, self.parcel, self.nodes = other, parcel, 0

    def pack(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > NODES:
            raise Uncrossable(f"more than {NODES} values cannot cross at once")
        if depth > DEPTH:
            raise Uncrossable(f"a {type(value).__name__} nested {depth} deep cannot cross")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is float:
            return value
        if kind is str:
            if len(value) > TEXT:
                raise Uncrossable(f"a string of {len(value)} characters cannot cross")
            return value
        if kind is int:
            if value.bit_length() > 3 * DIGITS:
                raise Uncrossable("an integer of thousands of digits cannot cross")
            return value
        if kind in (Tensor, torch.nn.Parameter):
            return ["t", number(self.parcel, value)]
        if kind in (list, tuple, torch.Size):
            return [
                "l" if kind is list else "u",
                *(self.pack(item, depth + 1) for item in value),
            ]
        if kind in (dict, OrderedDict):
            pairs = [part for pair in value.items() for part in pair]
            return ["d", *(self.pack(part, depth + 1) for part in pairs)]
        return self._unusual(value, depth)

    def _unusual(self, value: Any, depth: int) -> Any:
        if isinstance(value, torch.dtype):
            if value not in NAMES:
                raise Uncrossable(f"the dtype {value} cannot cross")
            return ["y", NAMES[value]]
        if isinstance(value, torch.Generator):
            if value.device.type != "cpu":
                raise Uncrossable(f"a generator on {value.device} cannot cross")
            if all(value is not known for known in self.parcel.generators):
                self.parcel.generators.append(value)
            which = [value is known for known in self.parcel.generators].index(True)
            return ["g", number(self.parcel, value.get_state()), which]
        if isinstance(value, torch.device) and value.type == "cpu":
            return ["v"]
        if isinstance(value, complex):
            return ["c", value.real, value.imag]
        if isinstance(value, slice):
            return ["s", *(self.pack(x, depth + 1) for x in (value.start, value.stop, value.step))]
        if value is Ellipsis:
            return ["e"]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = (self.pack(item, depth + 1) for item in value)
            return ["n", type(value).__name__, list(value._fields), *items]
        # NumPy's scalars are floats and ints too, and so is an enumeration
        for plain in (bool, int, float, str):
            if isinstance(value, plain) and not isinstance(value, type):
                return self.pack(plain(value), depth)
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            return self.pack(value.item(), depth + 1)
        return self.other(value, self.parcel)


def number(parcel: Parcel, tensor: Tensor) -> int:
    """The number of a tensor in a parcel, which it joins where it is new."""
    for i, known in enumerate(parcel.tensors):
        if known is tensor:
            return i
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise Uncrossable(f"a {type(tensor).__name__}, a subclass of Tensor, cannot cross")
    parcel.tensors.append(tensor)
    return len(parcel.tensors) - 1


def unpack(
    tree: Any, tensors: Sequence[Tensor], other: Callable[[list[Any]], Any] | None = None
) -> Any:
    """The value of a tree. Raises WireError where it is no tree that `pack` makes.

    other: the value for what is no plain data, ["tag", ...]. Without it there is none.
    """
    return _Unpacker(tensors, other).unpack(tree, 0)


class _Unpacker:
    def __init__(self, tensors: Sequence[Tensor], other: Callable[[list[Any]], Any] | None):
        self.tensors, self.other, self.nodes = tensors, other, 0
        self.records: set[tuple[str, ...]] = set()

    def unpack(self, tree: Any, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > NODES or depth > DEPTH:
            raise WireError("a value is larger than any value may be")
        if tree is None or isinstance(tree, (bool, int, float)):
            return tree
        if isinstance(tree, str):
            if len(tree) > TEXT:
                raise WireError("a string is longer than any may be")
            return tree
        if not isinstance(tree, list) or not tree or not isinstance(tree[0], str):
            raise WireError("a value has no kind")
        tag, rest = tree[0], tree[1:]
        if tag in ("l", "u", "d", "s"):
            items = [self.unpack(item, depth + 1) for item in rest]
            return _container(tag, items)
        if tag in ("t", "g"):
            return self._tensor(tag, rest)
        return self._unusual(tag, rest, tree, depth)

    def _tensor(self, tag: str, rest: list[Any]) -> Any:
        index = rest[0] if rest else None
        if type(index) is not int or not 0 <= index < len(self.tensors):
            raise WireError("a value names a tensor that is not there")
        tensor = self.tensors[index]
        if tag == "g" and self.other:
            return self.other(["g", *rest])
        return tensor

    def _unusual(self, tag: str, rest: list[Any], tree: list[Any], depth: int) -> Any:
        if tag == "y" and len(rest) == 1 and rest[0] in DTYPES:
            return DTYPES[rest[0]]
        if tag == "c" and len(rest) == 2 and all(type(x) is float for x in rest):
            return complex(*rest)
        if tag == "v":
            return torch.device("cpu")
        if tag == "e":
            return Ellipsis
        if tag == "n" and len(rest) >= 2:
            items = [self.unpack(item, depth + 1) for item in rest[2:]]
            return self._record(rest[0], rest[1], items)
        if self.other is None:
            raise WireError(f"a value of the kind {tag[:8]!r} is not expected here")
        return self.other(tree)

    def _record(self, name: Any, fields: Any, items: list[Any]) -> Any:
        known = isinstance(fields, list) and len(fields) == len(items) <= FIELDS
        if not known or not all(is_name(field) and field[0] != "_" for field in [name, *fields]):
            raise WireError("a named tuple has no names")
        self.records.add((name, *fields))  # to make one takes as long as a thousand other values
        if len(self.records) > RECORDS:
            raise WireError("a value holds more kinds of named tuples than any may")
        try:
            return _kind(name, tuple(fields))(*items)
        except ValueError:
            raise WireError("a named tuple has impossible names") from None


def _container(tag: str, items: list[Any]) -> Any:
    if tag == "l":
        return items
    if tag == "u":
        return tuple(items)
    try:
        return dict(zip(items[::2], items[1::2], strict=True)) if tag == "d" else slice(*items)
    except (TypeError, ValueError):
        raise WireError("a dict or a slice is none") from None


@lru_cache(maxsize=256)
def _kind(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)


def is_name(text: Any) -> bool:
    """Whether it is the name of something, as Python allows, and of reasonable length."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None
