"""The functions, methods and constants that the judge relies on: noted, compared, and put back."""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

# the judge: modules whose names begin so, with their classes and constants
OURS = ("paperlings", "tests", "oracle")  # of these, what functions and constants hold as well
JUDGES = (*OURS, "_pytest", "pytest", "hypothesis", "triton")
DESCRIPTORS = (staticmethod, classmethod, property)
# what it relies on: these modules, and the methods of their classes
RELIED_ON = (
    *("builtins", "time", "random", "gc", "inspect", "numpy", "numpy.testing"),
    *("torch", "torch.nn.functional", "torch.testing", "torch.cuda", "torch.cuda.streams"),
    *("torch.overrides", "torch.utils._python_dispatch", "torch.autograd"),
)


class Names:
    """The functions, methods and constants of the judge, as they are when this is made."""

    def __init__(self) -> None:
        self.known = [_Owner(owner, label) for label, owner in _owners().items()]

    def put_back(self) -> list[str]:
        """What is no longer what it was, by name, after putting it back."""
        return [name for owner in self.known for name in owner.put_back()]


class _Owner:
    """A module or a class, and what it held."""

    def __init__(self, owner: Any, label: str) -> None:
        self.owner, self.label = owner, label
        self.home = owner.__module__ if isinstance(owner, type) else label
        self.ours = label.partition(".")[0] in OURS
        self.names = frozenset(vars(owner))
        self.held = {n: value for n, value in vars(owner).items() if self._is_relied_on(n, value)}
        known = ((name, _inside(value)) for name, value in self.held.items() if self.ours)
        self.insides = {name: inside for name, inside in known if inside}

    def put_back(self) -> list[str]:
        now, changed = dict(vars(self.owner)), []
        for name, value in self.held.items():
            if now.get(name) is not value:
                setattr(self.owner, name, value)
                changed.append(name)
        for name, inside in self.insides.items():
            if not _same(_inside(self.held[name]), inside):
                _restore(self.held[name], inside)
                changed.append(name)
        for name in now.keys() - self.names:
            if callable(now[name]) and self._hides(name):
                delattr(self.owner, name)
                changed.append(name)
        return [f"{self.label}.{name}" for name in changed]

    def _is_relied_on(self, name: str, value: Any) -> bool:
        if self.ours and name.isupper():
            return True
        if not callable(value):
            return isinstance(value, DESCRIPTORS)
        # in a variable of pytest, functions of other modules come and go
        home = getattr(value, "__module__", None) or self.home
        return home == self.home or not self.home.startswith("_pytest.")

    def _hides(self, name: str) -> bool:
        """Whether a new name here is found in place of a builtin or an inherited method."""
        if isinstance(self.owner, type):
            return any(name in vars(base) for base in self.owner.__mro__[1:])
        return self.ours and name in vars(builtins)


def _inside(value: Any) -> dict[Any, Any]:
    """What can change within a function or a dict while it stays the same one."""
    if isinstance(value, types.FunctionType):
        parts = {"__code__": value.__code__, "__defaults__": value.__defaults__}
        return parts | (value.__kwdefaults__ or {})
    return dict(value) if isinstance(value, dict) else {}


def _same(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return now.keys() == before.keys() and all(now[key] is before[key] for key in before)


def _restore(value: Any, inside: dict[Any, Any]) -> None:
    if isinstance(value, dict):
        value.clear()
        value.update(inside)
    else:
        parts = dict(inside)
        value.__code__, value.__defaults__ = parts.pop("__code__"), parts.pop("__defaults__")
        value.__kwdefaults__ = parts or None


def _owners() -> dict[str, Any]:
    """The modules of the judge and of what it relies on, and the classes they define, by name."""
    found: dict[str, Any] = {}
    for label, module in list(sys.modules.items()):
        if label in RELIED_ON or label.partition(".")[0] in JUDGES:
            found[label] = module
            for name, value in vars(module).items():
                if isinstance(value, type) and value.__module__ == label:
                    found[f"{label}.{name}"] = value
    return found
