"""What a teacher knows of a paper, from solutions/<track>/<paper>.toml: hints,
mistakes, equivalents and survivors.
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
    """A change of the solution's text: a mistake, which `says` what is wrong, an equivalent,
    which says nothing, or a survivor, which says why no test can notice it.
    """

    before: str
    after: str
    says: str = ""


@dataclass(frozen=True)
class Knowledge:
    """hints: three a task.  mistakes: wrong solutions.  equivalents: right ones,
    written another way.  survivors: mutants that are as right as the solution.
    """

    hints: dict[str, list[str]]
    mistakes: list[Edit]
    equivalents: list[Edit]
    survivors: list[Edit]


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
    known = {"hints", "mistakes", "equivalents", "survivors"}
    if layout.is_kernel(key):
        known |= {"paper", "compiled", "gate"}  # read by the catalogue and the lanes
    unknown = sorted(set(tables) - known)
    if unknown:
        raise KnowledgeError(f"{name}: unknown table {unknown[0]!r}")
    return Knowledge(
        hints=tables.get("hints", {}),
        mistakes=_edits(tables, "mistakes", name, "says"),
        equivalents=_edits(tables, "equivalents", name),
        survivors=_edits(tables, "survivors", name, "why"),
    )


def source(key: str) -> str:
    """The text of the solution."""
    return layout.source(layout.SOLUTIONS, key).read_bytes().decode("utf-8").replace("\r\n", "\n")


def apply(text: str, edits: list[Edit], name: str) -> str:
    """The solution's text with edits made. Raises KnowledgeError unless the place of each occurs
    exactly once.
    """
    for edit in edits:
        times = text.count(edit.before)
        if times != 1:
            raise KnowledgeError(
                f"{name}: {_first_line(edit.before)!r} occurs {times} times in the solution, "
                "not once"
            )
        if edit.before == edit.after:
            raise KnowledgeError(f"{name}: {_first_line(edit.before)!r} is changed into itself")
    # from the end, so that no edit moves the place of another
    whole = text
    for edit in sorted(edits, key=lambda edit: whole.index(edit.before), reverse=True):
        start = whole.index(edit.before)
        text = text[:start] + edit.after + text[start + len(edit.before) :]
    return text


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


def _edits(tables: dict[str, Any], kind: str, name: str, reason: str = "") -> list[Edit]:
    """The edits of one kind; `reason` is the name of the text that each must give."""
    edits = []
    for i, table in enumerate(tables.get(kind, []), start=1):
        where = f"{name}: {kind.removesuffix('s')} {i}"
        wanted = {"in", "as", reason} - {""}
        if (
            not isinstance(table, dict)
            or set(table) != wanted
            or not all(isinstance(text, str) for text in table.values())
        ):
            texts = ", ".join(sorted(wanted))
            raise KnowledgeError(f"{where}: give the texts {texts}, and nothing else")
        if not table["in"] or (reason and not table[reason].strip()):
            raise KnowledgeError(f"{where}: a text is empty")
        edits.append(Edit(table["in"], table["as"], table.get(reason, "")))
    return edits


def _first_line(text: str) -> str:
    lines = text.strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else lines[0] + " ..."
