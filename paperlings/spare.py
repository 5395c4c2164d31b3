"""Doing without torch's compiler, whose import takes a second of every cold verdict.

The first optimizer or dispatch mode of a process imports torch._dynamo only to be left out of
compilation.
Until something really wants to compile, a stand-in answers that;
anything else asked of it loads the real module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """Leaves functions as they are; becomes the real module as soon as it is asked for more."""

    def disable(self, function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        return function if function is not None else lambda decorated: decorated

    def graph_break(self, *_: Any, **__: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        # whoever goes through all modules asks for such; only an import of a submodule needs
        # __path__
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)


def spare_the_compiler() -> None:
    """Put the stand-in in place, unless the real module is there already."""
    sys.modules.setdefault(NAME, _StandIn(NAME))
