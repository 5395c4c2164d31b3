"""The judge's side: `impl` as a module whose functions, classes and objects live in the candidate's
process.

Nothing that comes back is believed but as an answer: it is data, or a handle on something there.
The judge's own tensors change only where a law asks what was written into them
(see paperlings.testing.effects), and its generators only to where drawing from them leads.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils._pytree import tree_leaves

from paperlings import layout, loading
from paperlings.limits import TimeLimit
from paperlings.outcomes import KitFault
from paperlings.sealed import chance, drivers, wire
from paperlings.sealed.candidate import COMPUTED, FROZEN, LEAF, PARAMETER, PLAIN
from paperlings.sealed.wire import Channel, Closed, Late, Parcel, Uncrossable, WireError
from paperlings.testing import effects, meter
from paperlings.testing.close import Mismatch

SECONDS = 900.0  # no answer takes longer, whatever limit the test has
SAID = 4000  # characters of an error that are shown
PARTS = 4096  # of a module
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError, KeyError),
        *(IndexError, LookupError, AttributeError, ArithmeticError, ZeroDivisionError),
        *(OverflowError, StopIteration, ImportError, ModuleNotFoundError, SyntaxError, NameError),
        *(RecursionError, MemoryError, OSError, PermissionError, FileNotFoundError, EOFError),
        torch.linalg.LinAlgError,  # type: ignore[attr-defined]
    )
}


class Gone(loading.Unloadable):
    """The candidate's process has ended, or no longer keeps to the protocol."""


class Link:
    """The connection to one candidate's process, and what is held of it.

    end: ends the process; told whether it may have ended by itself, it says how it did, or raises
    KitFault where that was not its own doing.
    dead: what is said to whoever asks for more, once it has been ended.  fault: the kit's part.
    """

    def __init__(self, channel: Channel, end: Callable[[bool], str], path: Path):
        self.channel, self.end, self.path = channel, end, path
        self.dead = self.fault = ""
        self.dropped: list[tuple[int, int]] = []
        self.released: list[int] = []
        self.modules: weakref.WeakValueDictionary[int, Mirror] = weakref.WeakValueDictionary()
        self.defined: set[str] = set()
        self.root: Any = None

    def request(
        self,
        message: dict[str, Any],
        tensors: Any = (),
        lent: list[Any] | None = None,
        seconds: float = SECONDS,
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """Ask, and wait for the answer, serving what the candidate asks meanwhile."""
        if self.dead:
            raise self.gone()
        self._take_leave(message)
        deadline = time.monotonic() + seconds
        pending: BaseException | None = None
        try:
            self.channel.send(message, tensors, deadline)
            while True:
                reply, got = self.channel.receive(deadline)
                kind = reply.get("is") if isinstance(reply, dict) else None
                if kind == "back":
                    pending = self._serve(reply, got, lent or [], deadline)
                    continue
                _print(reply)
                if kind == "value":
                    return reply, got
                if kind != "error":
                    raise WireError("a reply is neither a value nor an error")
                error = self._error(reply)
                break
        except Uncrossable:
            self.dropped += message["drop"]  # nothing was sent
            self.released += message["release"]
            raise
        except Late:
            self.close("it did not answer in time")
            raise TimeLimit(f"stopped after {seconds:g} s") from None
        except Exception as what:
            raise self._nonsense(what) from None
        except BaseException:
            self.close("it was stopped")
            raise
        if pending is not None:
            raise pending
        raise error

    def close(self, why: str, ended: bool = False) -> None:
        """End the process. why: what is said to whoever asks it for more, unless it has `ended` by
        itself, of which there is something better to say.
        """
        if not self.dead:
            where = f"{layout.shown(self.path)}: the process that runs it has ended: "
            self.dead = where + why
            try:
                self.dead = where + (self.end(ended) or why)
            except KitFault as fault:
                self.fault = str(fault)
            self.channel.close()

    def gone(self) -> Exception:
        """What is raised of a process that has ended."""
        return KitFault(self.fault) if self.fault else Gone(self.dead)

    @contextlib.contextmanager
    def sense(self) -> Iterator[None]:
        """What is read of a reply in the block makes sense, or the process is ended."""
        try:
            yield
        except (Gone, KitFault, Mismatch):
            raise
        except Exception as what:
            raise self._nonsense(what) from None

    def _nonsense(self, what: Exception) -> Exception:
        """End the process for a reply that led to an error of any kind."""
        said = str(what) if isinstance(what, WireError) else "a reply makes no sense"
        self.close(said, isinstance(what, Closed))
        return self.gone()

    def _take_leave(self, message: dict[str, Any]) -> None:
        message["drop"], self.dropped = self.dropped, []
        message["release"], self.released = self.released, []

    def _serve(
        self, reply: dict[str, Any], got: list[Tensor], lent: list[Any], deadline: float
    ) -> BaseException | None:
        """Answer a call of one of the judge's functions."""
        number = reply["of"]
        if type(number) is not int or not 0 <= number < len(lent):
            raise WireError("it calls a function that it was not given")
        args, kwargs = wire.unpack(reply["value"], got, self.thing)
        if type(args) is not list or not all(isinstance(name, str) for name in {**kwargs}):
            raise WireError("it calls a function with what are no arguments")
        packer = _Packing(self)
        try:
            answer = lent[number](*args, **kwargs)
            parcel = wire.pack(answer, packer.other)
            message = {"do": "return", "value": parcel.tree}
            self.channel.send(message, parcel.tensors, deadline)
        except WireError:
            raise
        except Exception as error:
            self.channel.send({"do": "raise"}, (), deadline)
            return error
        return None

    def define(self, thing: Callable[..., Any]) -> str:
        """Take a driver, or a class of the tests, there; the key under which it is known."""
        goods = drivers.shipment(thing)
        if goods.key not in self.defined:
            parcel = wire.pack(goods.values, _refuse)
            message = {
                **{"do": "define", "key": goods.key, "name": goods.name, "texts": goods.texts},
                **{"imports": goods.imports, "value": parcel.tree},
            }
            self.request(message, parcel.tensors)
            self.defined.add(goods.key)
        return goods.key

    # ---- what comes back

    def thing(self, tree: list[Any]) -> Any:
        """The proxy of a thing of the candidate's."""
        if tree[0] != "o" or len(tree) < 4 or type(tree[1]) is not int:
            raise WireError("a value of an unknown kind")
        if not wire.is_name(tree[3]):
            raise WireError("a thing has no name")
        if tree[2] == "call" or tree[2] == "thing":
            return Remote(_Held(self, tree[1]), tree[3])
        raise WireError("a thing of an unknown kind")

    def value(self, reply: dict[str, Any], tensors: list[Tensor]) -> Any:
        """The value of a reply; a module needs its tensors, so it is made here."""

        def other(tree: list[Any]) -> Any:
            if tree[0] == "o" and len(tree) == 7 and tree[2] == "module":
                return self._mirror(tree, tensors)
            return self.thing(tree)

        with self.sense():
            return wire.unpack(reply.get("value"), tensors, other)

    def _mirror(self, tree: list[Any], tensors: list[Tensor]) -> Mirror:
        _, number, _, name, modes, parameters, buffers = tree
        if type(number) is not int or not wire.is_name(name):
            raise WireError("a module has no name")
        known = self.modules.get(number)
        if known is not None:
            known._held.count += 1
            return known
        mirror = build(_Held(self, number), name, modes, parameters, buffers, tensors)
        self.modules[number] = mirror
        return mirror

    def _error(self, reply: dict[str, Any]) -> BaseException:
        """The exception that a reply tells of, as if it had been raised at its place in the
        submission.
        """
        kinds, text = reply["kinds"], _text(reply, "text")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise WireError("an error has no kind")
        kind = next((name for name in kinds if name in ERRORS or name == "Mismatch"), "")
        error: BaseException
        if kind == "Mismatch":
            error = Mismatch(_text(reply, "question"), _text(reply, "difference"))
        elif kind == "SyntaxError" and "syntax" in reply:
            said, line, code = (_text(reply["syntax"], i) for i in range(3))
            error = SyntaxError(said, (str(self.path), int(line[:9]), 1, code))
        elif kind == "ModuleNotFoundError":
            error = ModuleNotFoundError(text, name=_text(reply, "name"))
        elif kind:
            error = ERRORS[kind]() if reply.get("bare") else ERRORS[kind](text)
        elif "SystemExit" in kinds:
            error = RuntimeError(f"it calls sys.exit({_text(reply, 'code')})")
        else:
            error = RuntimeError(f"{str(kinds[0])[:100] if kinds else 'error'}: {text}")
        return error.with_traceback(_traceback(self.path, reply.get("places")))


def _text(reply: Any, name: Any) -> str:
    """What an error says; nothing that it says is longer, nor another thing than a text."""
    try:
        said = reply[name]
    except (LookupError, TypeError):
        return ""
    return str(said)[:SAID] if isinstance(said, (str, int, float)) else ""


def _print(reply: dict[str, Any]) -> None:
    """Show what the submission printed, as if it had printed here."""
    text = reply.get("printed") if isinstance(reply, dict) else ""
    if isinstance(text, str) and text:
        from paperlings.words import printable

        print(printable(text[-2000:]), end="")


def _traceback(path: Path, places: Any) -> TracebackType | None:
    """A traceback whose only frame is the innermost of the submission's."""
    if not isinstance(places, list) or not places:
        return None
    line, name = places[-1]
    if type(line) is not int or not 0 < line < 100_000:
        return None
    try:
        exec(_raises(str(path), line, name if wire.is_name(name) else "<module>"), {})
    except RuntimeError as error:
        inner = error.__traceback__
        return inner.tb_next if inner else None
    return None


@functools.lru_cache(maxsize=1 << 10)
def _raises(path: str, line: int, name: str) -> CodeType:
    """Code that raises at a place where there is none."""
    text = "\n" * (line - 1) + "raise RuntimeError"
    return compile(text, path, "exec", dont_inherit=True).replace(co_name=name)


class _Held:
    """A thing of the candidate's, which it keeps as long as this lives."""

    def __init__(self, link: Link, number: int):
        self.link, self.number, self.count = link, number, 1

    def __del__(self) -> None:
        self.link.dropped.append((self.number, self.count))


# ---- asking


class _Packing:
    """What a request is made of that is no plain data. given: what is packed."""

    def __init__(self, link: Link, given: Any = None):
        self.link, self.given = link, given
        self.mirrors: list[Mirror] = []
        self.lent: list[Any] = []

    @property
    def asks(self) -> bool:
        """Whether gradients are asked for."""
        leaves = tree_leaves(self.given) if torch.is_grad_enabled() else []
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)

    def other(self, value: Any, parcel: Parcel) -> Any:
        if isinstance(value, (Remote, Mirror, Impl)):
            return self._home(value, parcel)
        if isinstance(value, nn.Module) and (_is_torchs(value) or _learns(value)):
            return self._built(value, parcel)
        if isinstance(value, FunctionType) and self.asks:
            # gradients go through a function that is there, but not through a call back
            with contextlib.suppress(Uncrossable):
                return ["f", self.link.define(value)]
        if callable(value) and not isinstance(value, type):
            self.lent.append(value)
            return ["h", len(self.lent) - 1]
        raise Uncrossable(
            f"a {type(value).__name__} cannot cross to the candidate; tensors, numbers, strings, "
            "lists, dicts, modules of torch and functions can"
        )

    def _home(self, value: Any, parcel: Parcel) -> Any:
        """A thing of the candidate's own."""
        held = value._held if not isinstance(value, Impl) else value._root()
        if held.link is not self.link:
            raise held.link.gone() if held.link.dead else Gone("it belongs to another process")
        if not isinstance(value, Mirror):
            return ["o", held.number, ""]
        self.mirrors.append(value)
        whole = value._whole
        state = [[name, wire.number(parcel, t)] for name, t in whole._values()]
        modes = [[path, part.training] for path, part in whole.named_modules()]
        return ["m", held.number, value._path, modes, state]

    def _built(self, module: nn.Module, parcel: Parcel) -> Any:
        """A module of the judge's, part by part."""
        kind = type(module)
        name, key = (kind.__name__, "") if _is_torchs(module) else ("", self.link.define(kind))
        skip = set(nn.Module().__dict__)
        plain = {k: v for k, v in vars(module).items() if k not in skip}
        tree = wire.pack(plain, self.other, parcel).tree
        parts: list[Any] = []
        for table in (module._parameters, module._buffers):
            parts.append(
                [[k, None if t is None else wire.number(parcel, t)] for k, t in table.items()]
            )
        children = [
            [k, None if part is None else self.other(part, parcel)]
            for k, part in module._modules.items()
        ]
        if any(child and child[0] != "b" for _, child in children):
            raise Uncrossable("a module that holds one of the candidate's cannot cross")
        return ["b", name, key, tree, module.training, *parts, children]


def _is_torchs(module: nn.Module) -> bool:
    kind = type(module)
    home = kind.__module__.startswith("torch.nn.modules.")
    return home and getattr(nn, kind.__name__, None) is kind


def _learns(module: nn.Module) -> bool:
    """Whether gradients must reach it, which they cannot through a call back to the judge."""
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())


def call(
    link: Link,
    of: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mirror: Mirror | None = None,
    driver: str = "",
) -> Any:
    """Call a function there, or a driver; its answer can be differentiated."""
    with _out_of_sight():
        packing, parcel = _Packing(link, (args, kwargs)), Parcel()
        given = [list(args), kwargs, *([mirror] if mirror is not None else [])]
        wire.pack(given, packing.other, parcel)
        tensors = list(parcel.tensors)
    watched, measured = effects.watching(), _measuring()
    message = {
        **({"do": "drive", "key": driver} if driver else {"do": "call"}),
        **{"of": of, "name": name, "value": parcel.tree},
        **{"kinds": [_kind(t) for t in tensors], "grad": torch.is_grad_enabled()},
        **{"inference": torch.is_inference_mode_enabled(), "effects": watched is not None},
        **{"measure": measured is not None},
    }
    reply, answers = _cross(link, message, len(tensors), tensors, measured, packing.lent)
    with link.sense():
        with _out_of_sight():
            for generator, place in zip(parcel.generators, _list(reply, "chance"), strict=True):
                chance.advance(generator, _at(answers, place))
            for i, state in zip(packing.mirrors, _list(reply, "states"), strict=True):
                i._whole._take(state, answers)
            if watched is not None:
                watched.changed += [str(x)[:100] for x in _list(reply, "changed")][:9]
                watched.seen += [str(x)[:1000] for x in _list(reply, "seen")][:9]
                for i, place in _list(reply, "written"):
                    _write(_at(tensors, i), _at(answers, place))
        return link.value(reply, answers)


def _list(reply: dict[str, Any], name: str) -> list[Any]:
    found = reply.get(name, [])
    if not isinstance(found, list):
        raise WireError("a reply makes no sense")
    return found


def _at(tensors: list[Tensor], place: Any) -> Tensor:
    if type(place) is not int or not 0 <= place < len(tensors):
        raise WireError("a reply names a tensor that is not there")
    return tensors[place]


@torch.no_grad()
def _write(mine: Tensor, now: Tensor) -> None:
    """Do to a tensor of the judge's what was done to its copy."""
    if mine.shape == now.shape and mine.dtype == now.dtype:
        mine.detach().copy_(now)


def _kind(tensor: Tensor) -> int:
    if isinstance(tensor, nn.Parameter):
        return PARAMETER if tensor.requires_grad else FROZEN
    if not tensor.requires_grad:
        return PLAIN
    return LEAF if tensor.is_leaf else COMPUTED


def _cross(
    link: Link,
    message: dict[str, Any],
    sent: int,
    tensors: list[Tensor],
    measured: meter._Dispatched | None,
    lent: list[Any] | None = None,
) -> tuple[dict[str, Any], list[Tensor]]:
    """A request through which autograd goes."""
    box: list[dict[str, Any]] = []
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        apply: Any = _Crossing.apply
        answers = list(apply(link, message, sent, box, lent, *tensors))
    else:
        with _out_of_sight():
            reply, answers = link.request(message, tensors[:sent], lent)
            box.append(reply)
            with link.sense():
                link.released.append(_number(reply.get("call")))
    if measured is not None:
        with link.sense():
            _count(link, box[0], answers, measured)
    return box[0], answers


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise WireError("a reply has no number")
    return value


class _Graph:
    """What the candidate keeps for a derivative, as long as this lives."""

    def __init__(self, link: Link, number: int):
        self.link, self.number = link, number

    def __del__(self) -> None:
        self.link.released.append(self.number)


class _Crossing(torch.autograd.Function):
    """A request and its derivative, which is a request too, and so has one itself."""

    @staticmethod
    def forward(
        ctx: Any,
        link: Link,
        message: dict[str, Any],
        sent: int,
        box: list[dict[str, Any]],
        lent: list[Any] | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        with _out_of_sight():
            reply, answers = link.request(message, tensors[:sent], lent)
        with link.sense():
            asks = _list(reply, "asks")
            ctx.graph = _Graph(link, _number(reply.get("call")))
        ctx.link = link
        ctx.asks = [
            i < len(asks) and asks[i] is True and (t.is_floating_point() or t.is_complex())
            for i, t in enumerate(answers)
        ]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(t for t, asked in zip(answers, ctx.asks, strict=True) if not asked)
        )
        box.append(reply)
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> Any:
        inputs = list(ctx.saved_tensors)
        have = [i for i, g in enumerate(slopes) if g is not None and ctx.asks[i]]
        arriving = [g for i, g in enumerate(slopes) if i in have and g is not None]
        if not have:
            return (None,) * (5 + len(inputs))
        measured = _measuring()
        message = {
            **{"do": "slope", "call": ctx.graph.number, "answers": have},
            **{"kinds": [1] * len(arriving), "grad": torch.is_grad_enabled()},
            **{"measure": measured is not None},
        }
        reply, found = _cross(ctx.link, message, len(arriving), [*arriving, *inputs], measured)
        with ctx.link.sense():
            places = [None if p is None else _at(found, p) for p in _list(reply, "value")]
            if len(places) != len(inputs):
                raise WireError("a derivative has another number of inputs than its function")
        answers = []
        for slope, x in zip(places, inputs, strict=True):
            if slope is not None and (slope.shape != x.shape or slope.dtype != x.dtype):
                raise Mismatch(
                    "Does a backward of your own return a gradient like its input?",
                    f"a gradient has the shape {tuple(slope.shape)}, its input {tuple(x.shape)}",
                )
            answers.append(slope)
        return (None, None, None, None, None, *answers)


# ---- measuring


def _out_of_sight() -> contextlib.AbstractContextManager[None]:
    """What the crossing itself computes is no part of what is measured."""
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return _hidden()
    return _NOTHING


_NOTHING = contextlib.nullcontext()


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _measuring() -> meter._Dispatched | None:
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, meter._Dispatched):
            return mode
    return None


class _There:
    """A storage of the candidate's; asked whether it is in use as a StorageWeakRef is."""

    def __init__(self, number: int, ask: Callable[[], set[int]]):
        self.number, self.ask = number, ask

    def expired(self) -> bool:
        return self.number not in self.ask()


def _count(
    link: Link, reply: dict[str, Any], answers: list[Tensor], measured: meter._Dispatched
) -> None:
    """Add what a call made there to what is measured here."""
    largest, made, operators, storages = _list(reply, "measured")
    m = measured.measurement
    m.largest = max(m.largest, _number(largest))
    m.made += _number(made)
    for name, count in dict(operators).items():
        m.operators[str(name)[:100]] = m.operators.get(str(name)[:100], 0) + _number(count)
    number = _number(reply.get("call"))
    mine = [StorageWeakRef(t.untyped_storage()) for t in answers]  # type: ignore[no-untyped-call]
    numbers = [_number(n) for n, _ in storages]

    @functools.cache
    def living() -> set[int]:
        gone = [[number, i] for i, storage in enumerate(mine) if storage.expired()]  # type: ignore[no-untyped-call]
        message = {"do": "living", "gone": gone, "storages": numbers, "calls": [number]}
        reply, tensors = link.request(message)
        with link.sense():
            return set(link.value(reply, tensors))

    for n, elements in storages:
        measured.storages[_There(n, living)] = _number(elements)  # type: ignore[index]


# ---- things of the candidate's


class Remote:
    """A function, a class or an object of the candidate's."""

    def __init__(self, held: _Held, name: str):
        self.__dict__.update(_held=held, __name__=name, __qualname__=name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call(self._held.link, [self._held.number, ""], "", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _get(self._held, "", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _set(self._held, "", name, value)

    def __iter__(self) -> Iterator[Any]:
        return _iterate(call(self._held.link, [self._held.number, ""], "__iter__", (), {}))

    def __getitem__(self, index: Any) -> Any:
        return call(self._held.link, [self._held.number, ""], "__getitem__", (index,), {})

    def __repr__(self) -> str:
        return f"<{self.__name__} of the candidate>"


def _iterate(iterator: Any) -> Iterator[Any]:
    if not isinstance(iterator, Remote):
        raise TypeError("iter() returned no iterator")
    held = iterator._held
    while True:
        try:
            item = call(held.link, [held.number, ""], "__next__", (), {})
        except StopIteration:
            return
        yield item


def _get(held: _Held, path: str, name: str) -> Any:
    with _out_of_sight():
        message = {"do": "get", "of": [held.number, path], "name": name}
        return held.link.value(*held.link.request(message))


def _set(held: _Held, path: str, name: str, value: Any) -> None:
    packing = _Packing(held.link)
    parcel = wire.pack(value, packing.other)
    message = {"do": "set", "of": [held.number, path], "name": name, "value": parcel.tree}
    held.link.request(message, parcel.tensors)


class Mirror(nn.Module):
    """A module of the candidate's. Parameters and buffers are the judge's own, and go with every
    call; so they can be set, saved, differentiated by and stepped here.
    """

    _held: _Held
    _path: str
    _whole: Mirror

    def __init__(self, held: _Held, path: str, name: str, whole: Mirror | None):
        super().__init__()
        whole = self if whole is None else whole
        # whole is no submodule of its parts
        self.__dict__.update(_held=held, _path=path, _name=name, _whole=whole, _ready=False)

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters(remove_duplicate=False)
        yield from self.named_buffers(remove_duplicate=False)

    @torch.no_grad()
    def _take(self, state: Any, tensors: list[Tensor]) -> None:
        """Follow what a call has changed there."""
        values, modes = state
        mine, parts = dict(self._values()), dict(self.named_modules(remove_duplicate=False))
        for name, place in values:
            if name not in mine:
                raise WireError("a module has changed what it has not")
            mine[name].data = _at(tensors, place).detach().clone()
        for path, mode in modes:
            if path in parts:
                parts[path].training = mode is True

    def _invoke(self, method: str, *args: Any, **kwargs: Any) -> Any:
        of = [self._held.number, self._path]
        return call(self._held.link, of, method, args, kwargs, mirror=self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._invoke("__call__", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not self.__dict__.get("_ready"):
                raise
        value = _get(self._held, self._path, name)
        return functools.partial(self._invoke, name) if isinstance(value, Remote) else value

    def __getitem__(self, index: Any) -> Any:
        """A part of a list, a sequence or a dict of modules."""
        parts = self._modules
        if type(index) is int and -len(parts) <= index < len(parts):
            return list(parts.values())[index]
        return parts[index] if index in parts else self._invoke("__getitem__", index)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._modules.values()))

    def _get_name(self) -> str:
        return str(self._name)


def build(
    held: _Held, name: str, modes: Any, parameters: Any, buffers: Any, tensors: list[Tensor]
) -> Mirror:
    """The mirror of a module and of all its parts."""
    parts: dict[str, Mirror] = {"": Mirror(held, "", name, None)}
    if max(len(modes), len(parameters), len(buffers)) > PARTS:
        raise WireError("a module has more parts than any may have")
    for path, mode in modes:
        if path:
            owner, label = _place_of(path)
            if owner not in parts:
                raise WireError("a module has a part that belongs to nothing")
            parts[path] = Mirror(held, path, label, parts[""])
            parts[owner].add_module(label, parts[path])
        parts[path].training = mode is True
    made: dict[int, nn.Parameter] = {}
    for full, place, asks in parameters:
        owner, label = _place_of(full)
        value = _at(tensors, place).detach()
        if place not in made:
            grows = asks is True and (value.is_floating_point() or value.is_complex())
            made[place] = nn.Parameter(value, requires_grad=grows)
        parts[owner].register_parameter(label, made[place])
    for full, place, kept in buffers:
        owner, label = _place_of(full)
        value = _at(tensors, place).detach()
        parts[owner].register_buffer(label, value, persistent=kept is True)
    for part in parts.values():
        part.__dict__["_ready"] = True
    return parts[""]


def _place_of(path: str) -> tuple[str, str]:
    """The path of the part that something belongs to, and its name there."""
    owner, _, label = path.rpartition(".")
    if not label or label.startswith("__") or not label.isprintable() or len(path) > 1000:
        raise WireError("a part of a module has no name")
    return owner, label


class Impl(ModuleType):
    """The submission's module. A process that has ended is followed by another, a few times in
    each test: whoever ends one in one task shall not be missed in another.

    start: starts a process with the module in it.  empty: one without.
    """

    MOST = 4  # processes for one test

    def __init__(
        self,
        start: Callable[[], Link],
        path: Path,
        name: str,
        source: str = "",
        empty: Callable[[], Link] | None = None,
    ):
        super().__init__(name)
        self.__file__ = str(path)
        self.__dict__.update(_start=start, _link=None, _cache={}, _begun=Counter())
        self.__dict__.update(_source=source, _empty=empty)
        self._root()

    def _root(self) -> _Held:
        link: Link | None = self.__dict__["_link"]
        if link is None or link.dead:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]  # without its phase
            begun: Counter[str] = self.__dict__["_begun"]
            if begun[test] >= self.MOST:
                raise link.gone() if link else Gone("it cannot be started")
            begun[test] += 1
            self.__dict__.update(_link=None, _cache={})
            self.__dict__["_link"] = link = self.__dict__["_start"]()
        held: _Held = link.root
        return held

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        held = self._root()
        cache: dict[str, Any] = self.__dict__["_cache"]
        if name not in cache:
            try:
                value = _get(held, "", name)
            except AttributeError as error:
                raise AttributeError(str(error), name=name, obj=self) from None
            if not isinstance(value, Remote):
                return value
            cache[name] = value
        return cache[name]

    def __drive__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a driver there."""
        held = self._root()
        key = held.link.define(function)
        return call(held.link, [held.number, ""], "", args, kwargs, driver=key)

    def __compile__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compile what one of its functions launches; see paperlings.lanes.compiled."""
        from paperlings.sealed import compiling

        return compiling.answer({**request, "text": self._source}, self._empty)

    def close(self) -> None:
        """End the process."""
        link: Link | None = self.__dict__["_link"]
        if link is not None:
            link.close("the tests have ended")


def _refuse(value: Any, parcel: Parcel) -> Any:
    raise Uncrossable(f"a driver reads a {type(value).__name__}, which cannot go with it")


def load(link: Link, path: Path, name: str, source: str, kernel: bool) -> ModuleType:
    """Load the submission's text there; raises what it raises. kernel: its launches are interpreted
    and watched.
    """
    message = {"do": "load", "file": str(path), "name": name, "source": source, "kernel": kernel}
    reply, _ = link.request(message)
    tree = reply.get("value")
    if not isinstance(tree, list) or len(tree) < 2 or type(tree[1]) is not int:
        link.close("a reply makes no sense")
        raise link.gone()
    link.root = _Held(link, tree[1])
    return ModuleType(name)
