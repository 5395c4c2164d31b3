"""Whatever a candidate replies, the judge gets an answer, an error of the candidate's, or word that
its process has ended: never an error of the judge's own, and never late.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlings.outcomes import KitFault
from paperlings.sealed import candidate, proxy, wire
from paperlings.sealed.wire import Channel
from paperlings.testing import driver, measure
from paperlings.testing.close import Mismatch
from paperlings.testing.effects import effects

PATH = Path("demo/hostile.py")
TEXT = """
import pytest
import torch
from torch import nn

CONSTANT = {"a": (1, 2.5, slice(1, None), 1j, torch.float32)}

def twice(x):
    return 2 * x

def cube(x):
    return x**3

def drawn(n, generator):
    return torch.randn(n, generator=generator)

def called(function, x):
    return [function(x), function(x + 1)]

def counted(n):
    for i in range(n):
        yield torch.full((2,), float(i))

def zeroed(x):
    x.detach().zero_()
    return x

def refused(x):
    raise ValueError(f"not {x}")

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(n, n), nn.Tanh())
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += 1
        return self.inner(x)
"""
# what may stand in the place of anything
STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 1 << 40, 1 << 4000, 0.5, 1e308, float("nan"), float("-inf")),
    *("", "x", "é\x1b[2J", "x" * 5000, "__class__", "_held", "forward", "0.0.0", ".", "training"),
    *([], {}, [[]], [None, None], ["l"] * 3, ["t", 0], ["t", 1], ["t", -1], ["t", True]),
    *(["g", 0, 0], ["h", 0], ["m", 1, "", [], []], ["f", "x"], ["b"], ["y", "object"], ["v"]),
    *(["d", 1], ["d", ["l"], 2], ["s", 1], ["c", 1e999, "x"], ["c", 1 << 4000, 0], ["e"]),
    *(["n", "def", ["x"], 1], ["n", "A", ["__class__"], 1], ["n", "A", ["x", "x"], 1, 2]),
    *(["o", 1, "call", "f"], ["o", -1, "thing", "a b"], ["o", 1, "module", "M"], ["o"]),
    ["o", 7, "module", "M", [["", True], ["a", 1], ["a.__len__", 1]], [["a.w", 0, 1]], []],
    ["o", 8, "module", "M", [["", True]], [["w", 0, True], ["v", 0, True]], [["u", 0, 1]]],
    ["o", 9, "module", "M", [["", True]], [["_held", 0, True]], [["forward", 0, 1]]],
]
KEYS = ["is", "value", "kinds", "text", "places", "printed", "states", "chance", "written", "asks"]
KEYS += ["call", "changed", "seen", "measured", "of", "syntax", "question", "name", "bare", "code"]


class Liar(Channel):
    """A candidate's end, of which one reply is not what it should be."""

    def __init__(self, end: socket.socket, chance: random.Random):
        super().__init__(end)
        self.chance, self.honest = chance, 1 + chance.randrange(20)  # replies before the lie

    def send(self, message: Any, tensors: Any = (), deadline: float = 0.0) -> None:
        self.honest -= 1
        if self.honest:
            return super().send(message, tensors)
        message, tensors = copy.deepcopy(message), [t.detach().clone() for t in tensors]
        for _ in range(self.chance.choice([1, 1, 1, 2, 5])):
            self._lie(message, tensors)
        if self.chance.random() < 0.1:
            self._garbage(message)
        else:
            with contextlib.suppress(wire.Uncrossable, TypeError, RecursionError):
                super().send(message, tensors)

    def _lie(self, message: dict[str, Any], tensors: list[Tensor]) -> None:
        draw = self.chance.choice
        how = self.chance.randrange(7)
        if how == 0:
            message[draw(KEYS)] = copy.deepcopy(draw(STRANGE))
        elif how == 1:
            message.pop(draw([*message]), None)
        elif how == 2:
            message["is"] = draw(["back", "error", "value", "raise"])
        elif how == 3 and tensors:
            place = self.chance.randrange(len(tensors))
            tensors[place] = draw(
                [
                    torch.zeros(0, 3),
                    torch.zeros(()).expand(999, 999),
                    torch.full((5,), float("nan"), dtype=torch.float16),
                    torch.ones(2, dtype=torch.bool),
                    torch.ones(2, dtype=torch.complex64),
                    torch.zeros(5056, dtype=torch.uint8),
                ]
            )
        elif how == 4 and tensors:
            tensors.pop()
        else:
            places = [*_places(message)]
            if places:
                inside, at = draw(places)
                inside[at] = copy.deepcopy(draw(STRANGE))

    def _garbage(self, message: Any) -> None:
        head = json.dumps([message, []]).encode()
        frame = bytearray(struct.pack("<QQ", len(head), 0) + head)
        for _ in range(3):
            frame[self.chance.randrange(len(frame))] = self.chance.randrange(256)
        self.end.sendall(frame)
        self.end.shutdown(socket.SHUT_WR)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Everything that lies in a tree, and where."""
    for at in range(len(node)) if isinstance(node, list) else [*node]:
        yield node, at
        if isinstance(node[at], (list, dict)):
            yield from _places(node[at])


@contextlib.contextmanager
def linked(make: Callable[[socket.socket], Channel]) -> Iterator[proxy.Impl]:
    """The module above, in a thread that answers through the channel made."""
    near, far = socket.socketpair()
    channel = make(far)

    def serve() -> None:
        there = candidate._Candidate(channel, candidate._Tail())
        with contextlib.suppress(Exception):
            while True:
                there.answer(*channel.receive())
        channel.close()

    thread = threading.Thread(target=serve)
    thread.start()

    def start() -> proxy.Link:
        link = proxy.Link(Channel(near), lambda ended: "", PATH)
        links.append(link)
        proxy.load(link, PATH, "candidate.hostile", TEXT, False)
        return link

    links: list[proxy.Link] = []
    try:
        impl = proxy.Impl(start, PATH, "hostile")
        impl.__dict__["MOST"] = 1
        yield impl
    finally:
        for link in links:
            link.close("it has ended")
        near.close()
        thread.join(10)
        assert not thread.is_alive()


@driver
def driven(impl: Any, x: Tensor) -> Any:
    """A driver, as tests have them."""
    return [impl.twice(x), float(x.sum())]


def everything(impl: Any) -> Iterator[Callable[[], Any]]:
    """All that tests do with a module, step by step."""
    x = torch.linspace(-1, 1, 3)
    yield lambda: impl.CONSTANT
    yield lambda: impl.twice(x)
    yield lambda: impl.refused(x)
    yield lambda: impl.drawn(3, torch.Generator().manual_seed(1))
    yield lambda: impl.called(lambda y: y * 2, x)
    yield lambda: impl.called(lambda *args, **kwargs: impl.twice(x), x)
    yield lambda: [item for _, item in zip(range(5), impl.counted(3), strict=False)]
    yield lambda: driven(impl, x)
    leaf = x.clone().requires_grad_(True)

    def differentiated(function: Any, times: int) -> Any:
        y = function(leaf)
        for _ in range(times):
            if not isinstance(y, Tensor) or not y.requires_grad:
                break
            with contextlib.suppress(IndexError):
                [y] = torch.autograd.grad(
                    y, leaf, torch.ones_like(y), create_graph=True, allow_unused=True
                )
        return y

    yield lambda: differentiated(impl.cube, 3)

    def watched() -> Any:
        with effects() as found:
            impl.zeroed(x.clone())
        return [found.changed, found.seen]

    yield watched
    yield lambda: vars(measure(lambda: differentiated(impl.cube, 1)))

    def trained() -> Any:
        model = impl.Net(3)
        if not isinstance(model, proxy.Mirror):
            return model
        repr(model), model.state_dict(), list(model.modules())
        y = model.train()(x)
        if isinstance(y, Tensor) and y.requires_grad:
            y.abs().sum().backward()
        model.eval()(x)
        return [model.inner, dict(model.named_buffers()), model.nothing]

    yield trained


def is_plain(value: Any) -> bool:
    """Whether it is data, or a thing of the candidate's, exactly; and not another's subclass."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    known = (int, float, bool, str, complex, slice, torch.dtype, torch.device, type(None))
    things = (
        Tensor,
        torch.nn.Parameter,
        proxy.Remote,
        proxy.Mirror,
        type(...),
        proxy.functools.partial,
    )
    return type(value) in (*known, *things)


def is_the_candidates(error: Exception) -> bool:
    """Whether an error was raised as a reply says, or by the test, and by nothing in between."""
    if isinstance(error, (proxy.Gone, Mismatch)):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = {"request", "_serve", "_iterate", "__getattr__"}
    return last.filename in (__file__, str(PATH)) or (
        last.filename == proxy.__file__ and last.name in ours
    )


@settings(max_examples=250, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_reply_breaks_the_judge(seed: int) -> None:
    """One lie among honest replies, anywhere: it is an answer, an error, or the end."""
    begun = time.monotonic()
    chance = random.Random(seed)
    with (
        contextlib.suppress(proxy.Gone, *proxy.ERRORS.values()),  # it may lie when it is loaded
        linked(lambda end: Liar(end, chance)) as impl,
    ):
        for step in everything(impl):
            try:
                found = step()
            except Exception as error:
                if not is_the_candidates(error):
                    raise KitFault("an error of the judge's own") from error
            else:
                if not is_plain(found):
                    raise KitFault(f"what comes back is {type(found)}")
    assert time.monotonic() - begun < 10


class Actor(Channel):
    """A candidate's end that answers a call with one certain reply."""

    def __init__(self, end: socket.socket, reply: dict[str, Any]):
        super().__init__(end)
        self.reply, self.loaded = reply, 0

    def send(self, message: Any, tensors: Any = (), deadline: float = 0.0) -> None:
        self.loaded += 1  # the module, the function, and then its answer
        if self.loaded < 3:
            return super().send(message, tensors)
        super().send(self.reply, [torch.zeros(2)])


def module(modes: Any, parameters: Any = (), buffers: Any = ()) -> list[Any]:
    """A module as it crosses."""
    return ["o", 9, "module", "M", [["", True], *modes], [*parameters], [*buffers]]


ANSWER = {"is": "value", "value": ["t", 0], "asks": [], "call": 1, "states": [], "chance": []}
SENSELESS: dict[str, dict[str, Any]] = {
    "no kind": {"is": None},
    "no call": {"call": None},
    "a negative call": {"call": -1},
    "a call that is true": {"call": True},
    "a state too many": {"states": [[[], []]]},
    "a generator too many": {"chance": [0]},
    "a tensor that is not there": {"value": ["t", 1]},
    "a tensor before the first": {"value": ["t", -1]},
    "a function of the judge's": {"value": ["h", 0]},
    "a driver": {"value": ["f", "x"]},
    "a call back": {"is": "back", "of": 0, "value": ["l", ["l"], ["d"]]},
    "a million parts": {"value": module([["a", True]] * 5000)},
    "a million parameters": {"value": module([], [[f"w{i}", 0, True] for i in range(5000)])},
    "a part of nothing": {"value": module([["a.b", True]])},
    "a part called __class__": {"value": module([["__class__", True]])},
    "a part called forward": {"value": module([["forward", True]])},
    "a parameter called _held": {"value": module([], [["_held", 0, True]])},
    "a parameter called __deepcopy__": {"value": module([], [["__deepcopy__", 0, True]])},
    "a buffer called as a parameter": {"value": module([], [["w", 0, 1]], [["w", 0, True]])},
    "a name with an escape": {"value": module([], [["w\x1b[2J", 0, True]])},
    "an error of no kind": {"is": "error", "kinds": [1], "text": ""},
    "a place without a line": {"is": "error", "kinds": ["ValueError"], "text": "", "places": [1]},
}


@pytest.mark.parametrize("reply", SENSELESS.values(), ids=SENSELESS)
def test_what_makes_no_sense_ends_the_process(reply: dict[str, Any]) -> None:
    """It is no answer, and there is no second chance."""
    with linked(lambda end: Actor(end, {**ANSWER, **reply})) as impl:
        function = impl.twice
        for _ in range(2):
            with pytest.raises(proxy.Gone):
                function(torch.ones(2))


def test_what_an_error_says_is_bounded() -> None:
    """Whatever it is called, and however much there is of it."""
    long = "x" * 100_000
    for kind in ("Mismatch", "ValueError", "Own", "SyntaxError", "ModuleNotFoundError"):
        said = {"question": long, "difference": long, "syntax": [long, 1, long], "name": long}
        reply = {"is": "error", "kinds": [kind], "text": long, **said}
        with linked(lambda end, reply=reply: Actor(end, reply)) as impl:
            with pytest.raises((Mismatch, *proxy.ERRORS.values())) as caught:
                impl.twice(torch.ones(2))
            assert len(str(caught.value)) < 10_000
            assert len(repr(vars(caught.value))) < 20_000


def test_calls_to_and_fro_have_an_end() -> None:
    """A function that asks for itself is an error, as it is in one process."""
    with linked(Channel) as impl:

        def again(x: Tensor) -> Any:
            return impl.called(again, x)

        with pytest.raises((RecursionError, RuntimeError, proxy.Gone)):
            again(torch.ones(1))
