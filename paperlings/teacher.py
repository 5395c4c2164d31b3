"""What a teacher knows of a paper, from solutions/<track>/<paper>.toml: hints,
mistakes and equivalents.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from paperlings import layout, stubs

HINTS = 3  # a task
MISTAKES = 8  # a paper, at least
EQUIVALENTS = 2  # a paper, at least


class KnowledgeError(ValueError):
    """A paper's .toml is wrong; the message names the file and the entry."""


@dataclass(frozen=True)
class Edit:
    """A change of the solution's text: a mistake, which `says` what is wrong, or an equivalent,
    which says nothing.
    """

    before: str
    after: str
    says: str = ""


@dataclass(frozen=True)
class Knowledge:
    """hints: three a task.  mistakes: wrong solutions.  equivalents: right ones,
    written another way.
    """

    hints: dict[str, list[str]]
    mistakes: list[Edit]
    equivalents: list[Edit]


def load(key: str) -> Knowledge:
    """Read and check what is known of the paper `key`. Raises KnowledgeError."""
    path = layout.knowledge(key)
    name = layout.shown(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KnowledgeError(f"{name} is missing") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{name} cannot be read: {error}") from None
    unknown = sorted(set(tables) - {"hints", "mistakes", "equivalents"})
    if unknown:
        raise KnowledgeError(f"{name}: unknown table {unknown[0]!r}")
    return Knowledge(
        hints=tables.get("hints", {}),
        mistakes=[
            _edit(t, f"{name}: mistake {i}", says=True) for i, t in _numbered(tables, "mistakes")
        ],
        equivalents=[
            _edit(t, f"{name}: equivalent {i}", says=False)
            for i, t in _numbered(tables, "equivalents")
        ],
    )


def source(key: str) -> str:
    """The text of the solution."""
    return layout.source(layout.SOLUTIONS, key).read_bytes().decode("utf-8").replace("\r\n", "\n")


def apply(text: str, edit: Edit, name: str) -> str:
    """The solution's text with one edit made. Raises KnowledgeError unless its place occurs exactly
    once.
    """
    times = text.count(edit.before)
    if times != 1:
        raise KnowledgeError(
            f"{name}: {_first_line(edit.before)!r} occurs {times} times in the solution, not once"
        )
    if edit.before == edit.after:
        raise KnowledgeError(f"{name}: {_first_line(edit.before)!r} is changed into itself")
    return text.replace(edit.before, edit.after)


def complaints(key: str) -> list[str]:
    """What is missing of hints, mistakes and equivalents; a whole paper has no complaint."""
    known, name, found = load(key), layout.shown(layout.knowledge(key)), []
    tasks = stubs.groups(key)
    for task in tasks:
        hints = known.hints.get(task, [])
        if len(hints) != HINTS or not all(isinstance(hint, str) and hint.strip() for hint in hints):
            found.append(f"{name}: {task} has {len(hints)} hints; a task has exactly {HINTS}")
    found += [
        f"{name}: hints for {task!r}, which is no task" for task in known.hints if task not in tasks
    ]
    if len(known.mistakes) < MISTAKES:
        found.append(f"{name}: {len(known.mistakes)} mistakes; a paper has at least {MISTAKES}")
    if len(known.equivalents) < EQUIVALENTS:
        found.append(
            f"{name}: {len(known.equivalents)} equivalents; a paper has at least {EQUIVALENTS}"
        )
    return found


def _numbered(tables: dict[str, Any], kind: str) -> list[tuple[int, Any]]:
    return list(enumerate(tables.get(kind, []), start=1))


def _edit(table: Any, name: str, says: bool) -> Edit:
    wanted = {"in", "as", "says"} if says else {"in", "as"}
    if (
        not isinstance(table, dict)
        or set(table) != wanted
        or not all(isinstance(v, str) for v in table.values())
    ):
        raise KnowledgeError(
            f"{name}: give the texts {', '.join(sorted(wanted))}, and nothing else"
        )
    if not table["in"] or (says and not table["says"].strip()):
        raise KnowledgeError(f"{name}: a text is empty")
    return Edit(table["in"], table["as"], table.get("says", ""))


def _first_line(text: str) -> str:
    lines = text.strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else lines[0] + " ..."
