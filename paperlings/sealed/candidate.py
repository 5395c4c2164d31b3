"""The candidate's side: holds the submission, and answers what the judge asks of it.

Everything here runs beside the submission, which may replace any of it.
So nothing here protects anything: the judge believes no more than that an answer came,
and the sandbox, which the submission cannot take off, is put on before it is loaded.
"""

from __future__ import annotations
import __future__

import contextlib
import functools
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlings import loading
from paperlings.sealed import wire
from paperlings.sealed.wire import Channel, Parcel, Uncrossable, WireError
from paperlings.testing.effects import effects
from paperlings.testing.meter import Measurement, _Called, _Dispatched

SAID = 4000  # characters of a message that cross
PRINTED = 2000  # characters of what was printed that cross with an answer
# how a tensor is given: as a value, as a leaf, as something computed, as a parameter of a module
PLAIN, LEAF, COMPUTED, PARAMETER, FROZEN = range(5)


def serve(channel: Channel) -> None:
    """Answer the judge until it goes."""
    out = _Tail()
    sys.stdout = sys.stderr = out
    candidate = _Candidate(channel, out)
    with contextlib.suppress(WireError):
        while True:
            message, tensors = channel.receive()
            candidate.answer(message, tensors)


class _Tail(io.TextIOBase):
    """The end of what is printed."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text[-PRINTED:])[-PRINTED:]
        return len(text)

    def writable(self) -> bool:
        return True

    def take(self) -> str:
        text, self.text = self.text, ""
        return text


class _Lent:
    """A function of the judge's; calling it asks the judge."""

    def __init__(self, candidate: _Candidate, number: int):
        self._candidate, self._number = candidate, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._candidate.ask(self._number, args, kwargs)


class _Candidate:
    """What one candidate's process knows.

    objects: what the judge holds, by number, and how often it was told so.
    graphs: of every call whose answer can be differentiated, its answers and its leaves.
    """

    def __init__(self, channel: Channel, out: _Tail):
        self.channel, self.out = channel, out
        self.file = ""
        self.objects: dict[int, tuple[Any, int]] = {}
        self.numbers: dict[int, int] = {}
        self.count = 0
        self.calls = 0
        self.graphs: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.answers: dict[int, list[Tensor | None]] = {}
        self.storages: dict[int, Any] = {}
        self.drivers: dict[str, Callable[..., Any]] = {}
        self.sent: list[tuple[nn.Module, dict[str, int]]] = []
        self.generators: dict[int, torch.Generator] = {}
        self.sanitizer: Any = None  # of kernels
        self.kept = contextlib.ExitStack()  # what goes on as long as the process does

    def answer(self, message: dict[str, Any], tensors: list[Tensor]) -> None:
        """Do what the judge asks, and reply."""
        for number, count in message.get("drop", []):
            self._forget(number, count)
        for call in message.get("release", []):
            self.graphs.pop(call, None)
        parcel = Parcel()
        outer = self.sent, self.generators
        self.sent, self.generators = [], {}
        try:
            reply = getattr(self, f"_{message['do']}")(message, tensors, parcel)
            reply = {"is": "value", **reply, "printed": self.out.take()}
            self.channel.send(reply, parcel.tensors)
        except WireError:
            raise
        except BaseException as error:
            self.channel.send({**self._failure(error), "printed": self.out.take()})
        finally:
            self.sent, self.generators = outer

    def ask(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the judge's."""
        parcel = wire.pack([list(args), kwargs], self._lend)
        self.channel.send({"is": "back", "of": number, "value": parcel.tree}, parcel.tensors)
        while True:
            message, tensors = self.channel.receive()
            if message["do"] == "raise":
                raise RuntimeError("the judge's function has failed")
            if message["do"] == "return":
                break
            self.answer(message, tensors)  # the judge's function asks something itself
        return self._values(message, tensors)

    # ---- what is asked

    def _load(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        path = Path(message["file"])
        self.file = f"{path}:{message['name']}"  # as the loader calls it
        watch = self._interpret(path) if message["kernel"] else None
        module = loading.load(path, message["name"], message["source"])
        if watch:
            watch.changed()  # what the import has replaced of the judge is put back at once
        return {"value": self._lend(module, parcel)}

    def _interpret(self, path: Path) -> Any:
        """Interpret kernels from here on, and watch what the file at `path` does."""
        os.environ["TRITON_INTERPRET"] = "1"
        from paperlings.lanes import interpreter, sanitizer, watch

        self.sanitizer = sanitizer
        self.kept.enter_context(interpreter.faithful())
        return self.kept.enter_context(watch.held(path))

    def _compile(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        """Compile what a function launches on a chip; the judge has a lent function assemble it."""
        from paperlings.lanes import compile_child, cubin, toolless
        from paperlings.lanes.recorder import Failure

        def assemble(ptx: bytes, fused: bool) -> Any:
            return self.ask(0, (torch.frombuffer(bytearray(ptx), dtype=torch.uint8), fused), {})

        toolless.install(message["cuda"], assemble)
        try:
            module = compile_child.load(message["request"])
            chip = cubin.CHIPS[message["sm"]]
            found = compile_child.launched(module, message["request"], chip)
        except Failure as error:
            found = {error.kind: str(error)}
        [[kind, value]] = found.items()
        if kind == "launched":
            value = [[int(code), *vars(kernel).values()] for kernel, code in value]
        wire.pack([kind, value], self._lend, parcel)
        return {"value": parcel.tree}

    def _get(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        value = getattr(self._object(message["of"]), message["name"])
        wire.pack(value, self._lend, parcel)
        return {"value": parcel.tree}

    def _set(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        value = self._values(message, tensors)
        setattr(self._object(message["of"]), message["name"], value)
        return {"value": None}

    def _call(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        function = self._object(message["of"])
        if message["name"]:
            function = getattr(function, message["name"])
        return self._run(function, message, tensors, parcel)

    def _drive(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        driver = functools.partial(self.drivers[message["key"]], self._object(message["of"]))
        return self._run(driver, message, tensors, parcel)

    def _run(
        self,
        function: Callable[..., Any],
        message: dict[str, Any],
        tensors: list[Tensor],
        parcel: Parcel,
    ) -> dict[str, Any]:
        """Call a function, and tell what came of it."""
        leaves = [_leaf(t, kind) for t, kind in zip(tensors, message["kinds"], strict=True)]
        given = [
            leaf.view_as(leaf) if kind == COMPUTED else leaf
            for leaf, kind in zip(leaves, message["kinds"], strict=True)
        ]
        before = [t.detach().clone() for t in leaves] if message["effects"] else []
        args, kwargs, *_ = self._values(message, given)
        # a parameter of a module of ours is differentiated by in the place of what came for it
        for module, places in self.sent:
            own = _values_of(module)
            for name, place in places.items():
                if message["kinds"][place] == PARAMETER:
                    leaves[place] = own[name]
        value, reply = self._watched(message, lambda: function(*args, **kwargs))
        wire.pack(value, self._lend, parcel)
        reply |= {"value": parcel.tree, **self._graph(message, list(parcel.tensors), leaves)}
        reply["states"] = [_changed(*sent, tensors, parcel) for sent in self.sent]
        reply["chance"] = [
            wire.number(parcel, g.get_state()) for _, g in sorted(self.generators.items())
        ]
        if message["effects"]:
            reply["written"] = [
                [i, wire.number(parcel, leaf.detach().clone())]
                for i, (leaf, old) in enumerate(zip(leaves, before, strict=True))
                if not _same(leaf, old)
            ]
        return reply

    def _slope(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        answers, leaves = self.graphs[message["call"]]
        arriving = [
            t.requires_grad_(bool(k)) for t, k in zip(tensors, message["kinds"], strict=True)
        ]
        asked = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]

        def differentiate() -> Any:
            return torch.autograd.grad(
                [answers[i] for i in message["answers"]],
                [leaves[i] for i in asked],
                arriving,
                retain_graph=True,
                create_graph=message["grad"],
                allow_unused=True,
            )

        found, seen = self._watched(message, differentiate)
        places: list[int | None] = [None] * len(leaves)
        for i, slope in zip(asked, found, strict=True):
            if slope is not None:
                parcel.tensors.append(slope)
                places[i] = len(parcel.tensors) - 1
        graph = self._graph(message, list(parcel.tensors), [*arriving, *leaves])
        return {"value": places, **seen, **graph}

    def _define(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        """Make a driver: the names it reads, then the text of each function and class it uses."""
        names: dict[str, Any] = {"__name__": "driver", "__builtins__": __builtins__}
        for name, (module, attribute) in message["imports"].items():
            found = importlib.import_module(module)
            names[name] = getattr(found, attribute) if attribute else found
        names.update(self._values(message, tensors))
        for text in message["texts"]:
            flags = __future__.annotations.compiler_flag
            exec(compile(text, "<driver>", "exec", flags, dont_inherit=True), names)
        self.drivers[message["key"]] = names[message["name"]]
        return {"value": None}

    def _living(
        self, message: dict[str, Any], tensors: list[Tensor], parcel: Parcel
    ) -> dict[str, Any]:
        """Of the storages that measured calls made, which are in use once the judge has let go of
        the answers it names.
        """
        for call, index in message["gone"]:
            self.answers[call][index] = None
        living = [i for i in message["storages"] if not self.storages.pop(i).expired()]
        for call in message["calls"]:
            self.answers.pop(call, None)
        return {"value": ["l", *living]}

    # ---- how it is done

    def _watched(
        self, message: dict[str, Any], call: Callable[[], Any]
    ) -> tuple[Any, dict[str, Any]]:
        """What a call answers, and what was seen of it by whom the judge asks to look."""
        seen: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(effects()) if message.get("effects") else None
            # what is so already is left alone, so that a call that changes it is seen to
            if torch.is_inference_mode_enabled() != message.get("inference", False):
                stack.enter_context(torch.inference_mode(message.get("inference", False)))
            if not message.get("inference") and torch.is_grad_enabled() != message["grad"]:
                stack.enter_context(torch.set_grad_enabled(message["grad"]))
            if message.get("measure"):
                measurement = Measurement()
                stack.enter_context(_Called(measurement))
                dispatched = stack.enter_context(_Dispatched(measurement))
            if self.sanitizer:
                self.sanitizer.clear()
            value = call()
            if self.sanitizer:  # the submission may have swallowed what was raised
                self.sanitizer.raise_if_any()
        if found is not None:
            seen |= {"changed": found.changed, "seen": [text[:SAID] for text in found.seen[:9]]}
        if message.get("measure"):
            made = []
            for storage, elements in dispatched.storages.items():
                self.count += 1
                self.storages[self.count] = storage
                made.append([self.count, elements])
            seen["measured"] = [
                measurement.largest,
                measurement.made,
                measurement.operators,
                made,
            ]
        return value, seen

    def _graph(
        self, message: dict[str, Any], answers: list[Tensor], leaves: list[Tensor]
    ) -> dict[str, Any]:
        """Keep what a derivative would need."""
        asks = [bool(t.requires_grad) for t in answers]
        self.calls += 1
        if message.get("measure"):
            self.answers[self.calls] = list(answers)
        if any(asks):
            self.graphs[self.calls] = (answers, leaves)
        return {"asks": asks, "call": self.calls}

    def _values(self, message: dict[str, Any], tensors: list[Tensor]) -> Any:
        return wire.unpack(message["value"], tensors, lambda tree: self._borrowed(tree, tensors))

    def _borrowed(self, tree: list[Any], tensors: list[Tensor]) -> Any:
        """What a tree of the judge's stands for that is no plain data."""
        tag = tree[0]
        if tag == "g":
            return self._generator(tree, tensors)
        if tag == "o":  # a thing of our own comes home
            return self._object(tree[1:])
        if tag == "m":
            return self._module(tree, tensors)
        if tag == "b":
            return self._built(tree, tensors)
        if tag == "f":
            return self.drivers[tree[1]]
        if tag == "h":
            return _Lent(self, tree[1])
        raise WireError("a value of an unknown kind")

    def _generator(self, tree: list[Any], tensors: list[Tensor]) -> torch.Generator:
        _, place, which = tree
        if which not in self.generators:
            made = self.generators[which] = torch.Generator()
            made.set_state(tensors[place].detach())
        return self.generators[which]

    def _module(self, tree: list[Any], tensors: list[Tensor]) -> nn.Module:
        """A module of ours, brought to the state in which the judge has it."""
        _, number, path, modes, state = tree
        whole = self._object([number, ""])
        places: dict[str, int] = dict(state)
        own = _values_of(whole)
        for name, place in places.items():
            given, mine = tensors[place], own[name]
            if mine.requires_grad != given.requires_grad and isinstance(mine, nn.Parameter):
                mine.requires_grad_(given.requires_grad)
            if not _same(mine, given):
                mine.data = given.detach().clone()
        for name, mode in modes:
            whole.get_submodule(name).training = mode
        self.sent.append((whole, places))
        module: nn.Module = whole.get_submodule(path)
        return module

    def _built(self, tree: list[Any], tensors: list[Tensor]) -> nn.Module:
        """A module of the judge's, made of torch's own layers, or of a class that was sent."""
        _, name, key, plain, training, parameters, buffers, children = tree
        kind: Any = self.drivers[key] if key else getattr(nn, name)
        module: nn.Module = kind.__new__(kind)
        nn.Module.__init__(module)
        module.__dict__.update(wire.unpack(plain, tensors, None))
        module.training = training
        for label, place in parameters:
            module.register_parameter(label, None if place is None else tensors[place])
        for label, place in buffers:
            module.register_buffer(label, None if place is None else tensors[place])
        for label, child in children:
            module.add_module(label, None if child is None else self._built(child, tensors))
        return module

    def _object(self, address: list[Any]) -> Any:
        number, path = address
        found = self.objects[number][0]
        return found.get_submodule(path) if path else found

    def _lend(self, value: Any, parcel: Parcel) -> list[Any]:
        """Let the judge hold a thing that is no plain data."""
        if isinstance(value, Tensor):
            raise Uncrossable(f"a {type(value).__name__}, a subclass of Tensor, cannot cross")
        number = self.numbers.get(id(value))
        if number is None:
            self.count += 1
            number = self.numbers[id(value)] = self.count
            self.objects[number] = (value, 0)
        self.objects[number] = (value, self.objects[number][1] + 1)
        name = getattr(value, "__name__", "")
        name = name if wire.is_name(name) else type(value).__name__
        if not isinstance(value, nn.Module):
            return ["o", number, "call" if callable(value) else "thing", name]
        # a tied parameter has two names and one place
        places: dict[int, int] = {}
        for tensor in _values_of(value).values():
            if id(tensor) not in places:
                places[id(tensor)] = wire.number(parcel, tensor.detach())
        modes = [[path, part.training] for path, part in _parts(value)]
        parameters = [
            [label, places[id(p)], p.requires_grad]
            for label, p in value.named_parameters(remove_duplicate=False)
        ]
        saved = value.state_dict(keep_vars=True)
        buffers = [
            [label, places[id(b)], label in saved]
            for label, b in value.named_buffers(remove_duplicate=False)
        ]
        return ["o", number, "module", name, modes, parameters, buffers]

    def _forget(self, number: int, count: int) -> None:
        value, held = self.objects[number]
        if held > count:
            self.objects[number] = (value, held - count)
        else:
            del self.objects[number]
            self.numbers.pop(id(value), None)

    def _failure(self, error: BaseException) -> dict[str, Any]:
        """An error in words, and where in the submission it was raised."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if frame.filename == self.file]
        said = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else error
        failure: dict[str, Any] = {
            "is": "error",
            "kinds": [kind.__name__ for kind in type(error).__mro__][:20],
            "text": str(said)[:SAID],
            "bare": not error.args,
            "places": [[f.lineno or 1, f.name] for f in ours[-5:]],
        }
        if isinstance(error, SyntaxError):
            failure["syntax"] = [
                str(error.msg)[:SAID],
                error.lineno or 1,
                (error.text or "")[:SAID],
            ]
        for name in ("name", "code", "question", "difference"):
            value = getattr(error, name, None)
            if isinstance(value, (str, int)):
                failure[name] = value[:SAID] if isinstance(value, str) else value
        return failure


def _leaf(tensor: Tensor, kind: int) -> Tensor:
    if kind in (PARAMETER, FROZEN):
        return nn.Parameter(tensor, requires_grad=kind == PARAMETER)
    return tensor.requires_grad_(True) if kind in (LEAF, COMPUTED) else tensor


def _values_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each under all of its names."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, each under all of its names."""
    yield from module.named_modules(remove_duplicate=False)


def _same(mine: Tensor, given: Tensor) -> bool:
    if mine.dtype != given.dtype or mine.shape != given.shape:
        return False
    return torch.equal(wire.as_bytes(mine), wire.as_bytes(given))  # NaN equals itself


def _changed(
    module: nn.Module, places: dict[str, int], tensors: list[Tensor], parcel: Parcel
) -> list[Any]:
    """What a call has changed of a module since the judge sent it: values, and modes."""
    own = _values_of(module)
    values = [
        [name, wire.number(parcel, own[name].detach().clone())]
        for name, place in places.items()
        if name in own and not _same(own[name], tensors[place])
    ]
    return [values, [[path, part.training] for path, part in _parts(module)]]
