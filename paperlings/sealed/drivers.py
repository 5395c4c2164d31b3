"""Taking a driver to the candidate: its own text, that of the helpers it reads, and nothing else
of the tests.

A driver reads libraries, plain constants, and functions and classes of its file that do the same
(see paperlings.testing.driver). So it is sent as the texts of these, without their comments,
and the constants by name. One of the kit's own is there already.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlings.sealed.wire import Uncrossable
from paperlings.testing.driver import LIBRARIES

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Shipment:
    """A driver on its way. imports: (module, attribute) of every name that comes from a library.
    values: the constants.  texts: functions and classes, in the order of their file.
    """

    name: str
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    @functools.cached_property
    def key(self) -> str:
        whole = [self.name, *self.imports.get(self.name, ()), *self.texts]
        return hashlib.sha256("\n".join(whole).encode()).hexdigest()


@functools.cache
def shipment(thing: Callable[..., Any]) -> Shipment:
    """What has to be sent for a driver, or for a class of the tests. Raises Uncrossable where it
    needs what cannot be sent.
    """
    plain: Any = inspect.unwrap(thing)
    if getattr(plain, "__closure__", None):
        raise Uncrossable(f"{plain.__qualname__} cannot cross: it closes over variables")
    found = Shipment(plain.__name__)
    if _is_of(plain.__module__):
        found.imports[found.name] = (plain.__module__, found.name)
        return found
    space = vars(sys.modules[plain.__module__]) if isinstance(plain, type) else plain.__globals__
    definitions = _definitions(str(space["__file__"]))
    if plain.__name__ not in definitions:
        raise Uncrossable(f"{plain.__qualname__} cannot cross: it is not at the top of its file")
    waiting, needed = [plain.__name__], {plain.__name__}
    while waiting:
        for name in sorted(_read(definitions[waiting.pop()])):
            if name not in space or name in needed or hasattr(builtins, name):
                continue
            needed.add(name)
            if name in definitions:
                waiting.append(name)
            else:
                _take(found, name, space)
    found.texts = [
        ast.unparse(definition) for name, definition in definitions.items() if name in needed
    ]
    return found


def _take(found: Shipment, name: str, space: Mapping[str, Any]) -> None:
    value = space[name]
    if isinstance(value, types.ModuleType):
        home, attribute = value.__name__, ""
    else:
        home, attribute = str(getattr(value, "__module__", "")), getattr(value, "__name__", "")
    if _is_of(home):
        found.imports[name] = _public(home, attribute, value)
    elif home in ("typing", "collections.abc", "dataclasses", "collections"):
        found.imports[name] = (home, attribute or str(getattr(value, "_name", "")))
    elif callable(value) or isinstance(value, types.ModuleType):
        raise Uncrossable(f"{found.name} reads {name}, which cannot go with it to the candidate")
    else:
        found.values[name] = value


def _is_of(home: str) -> bool:
    """Whether a module is a library's, or the kit's, which is where the candidate is too."""
    return any(home == library or home.startswith(library + ".") for library in LIBRARIES)


def _public(home: str, attribute: str, value: Any) -> tuple[str, str]:
    """Where a thing of a library is imported from: its module may only say where it was built."""
    if not attribute:
        return home, ""
    parts = home.split(".")
    for end in range(len(parts), 0, -1):
        module = __import__(".".join(parts[:end]), fromlist=["_"])
        if getattr(module, attribute, None) is value:
            return ".".join(parts[:end]), attribute
    raise Uncrossable(f"{attribute} of {home} is not to be found there")


@functools.cache
def _definitions(file: str) -> dict[str, Definition]:
    tree = ast.parse(Path(file).read_bytes())
    return {node.name: node for node in tree.body if isinstance(node, Definition)}


def _read(definition: Definition) -> set[str]:
    """Names that a definition reads of its module, in functions inside it too."""
    flags = __import__("__future__").annotations.compiler_flag
    module = ast.Module([definition], type_ignores=[])
    return _loaded(compile(module, "<driver>", "exec", flags, dont_inherit=True))


def _loaded(code: types.CodeType) -> set[str]:
    found = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _loaded(constant)
    return found
