"""Loading one file of code freshly, and saying in words why it cannot be."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from paperlings import layout
from paperlings.limits import TimeLimit

LARGEST = 1 << 18  # bytes of a file that is judged sealed


class Unloadable(Exception):
    """The code under test cannot be imported; the message says where and why."""

    timed_out = False


def load(path: Path, name: str, source: str | None = None) -> ModuleType:
    """Execute the file at `path`, or `source` in its place, as a new module called `name`.

    Who looks up the source of a function, as triton does, finds the text that was executed.

    Nothing is taken from or written to the bytecode cache, which cannot tell two saves within one
    second apart.
    Whatever the code raises passes through; see `load_candidate`.
    """
    file = str(path)
    if source is not None:
        file += f":{name}"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    code = compile(path.read_bytes() if source is None else source, file, "exec", dont_inherit=True)
    module = ModuleType(name)
    module.__file__ = str(path)
    # dataclasses look their module up by name
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module


def load_candidate(
    root: Path, key: str, load: Callable[[Path, str], ModuleType] = load
) -> ModuleType:
    """The module of paper `key` under `root`. Raises Unloadable, whatever the file does.

    load: who executes the file, raising what it raises.
    """
    path = layout.source(root, key)
    shown = layout.shown(path)
    if not path.is_file():
        mend = " (`nox -s stubs` writes it again)" if root == layout.EXERCISES else ""
        raise Unloadable(f"{shown} is missing{mend}")
    try:
        return load(path, "candidate." + key.replace("/", "."))
    except Unloadable:
        raise
    except TimeLimit:
        error = Unloadable(f"{shown} does not come to an end while it is imported{_place(path)}")
        error.timed_out = True
        raise error from None
    except SyntaxError as error:
        code = f"\n    {error.text.strip()}" if error.text else ""
        raise Unloadable(f"{shown}, line {error.lineno}: {error.msg}{code}") from None
    except SystemExit as error:
        raise Unloadable(
            f"{shown} calls sys.exit({error.code!r}) while it is imported{_place(path)}"
        ) from None
    except ModuleNotFoundError as error:
        raise Unloadable(
            f"{shown} imports {error.name!r}, which is not installed{_place(path)}; "
            "every task can do without it"
        ) from None
    except Exception as error:
        said = f": {error}" if str(error) else ""
        raise Unloadable(
            f"{shown} raises {type(error).__name__} while it is imported{_place(path)}{said}"
        ) from None


def _place(path: Path) -> str:
    """ ", line n" of the innermost frame of `path` in the exception being handled."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
