"""The plan of the reading: roadmap.toml, its phases, its months and what their checkpoints ask,
checked against the catalogue as it is read.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperlings import layout
from paperlings.catalogue import Catalogue, CatalogueError

FILE = layout.HOME / "roadmap.toml"
DERIVE, BUILD, SHOW = KINDS = ("derive", "build", "show")


@dataclass(frozen=True)
class Ask:
    """One thing that a checkpoint asks, of the paper `key`.

    kind: DERIVE, which learners tick in their own log; BUILD, these tasks of the paper pass,
    or all where none is named; or SHOW, its claim passes.
    """

    kind: str
    says: str
    key: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Month:
    """What is read in a month, by key, and what its checkpoint asks."""

    number: int
    title: str
    papers: tuple[str, ...]
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Phase:
    """One of the phases of the reading lists."""

    number: int
    name: str
    about: str
    months: tuple[Month, ...]


def load(papers: Catalogue, path: Path = FILE) -> list[Phase]:
    """Read the plan. Raises CatalogueError where it is wrong, or another than the catalogue's."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogueError(f"{path.name} is missing") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path.name} cannot be read: {error}") from None
    _check_table(tables, path.name, phases=list)
    names = {paper.name: key for key, paper in papers.items() if not layout.is_kernel(key)}
    phases: list[Phase] = []
    months = 0
    for table in tables["phases"]:
        where = f"{path.name}: phase {len(phases) + 1}"
        _check_table(table, where, name=str, about=str, months=list)
        found = []
        for month in table["months"]:
            months += 1
            found.append(_month(month, months, names, f"{path.name}: month {months}"))
        phases.append(Phase(len(phases) + 1, table["name"], table["about"], tuple(found)))
    _check_papers(phases, papers, path.name)
    return phases


def _month(table: Any, number: int, names: dict[str, str], where: str) -> Month:
    _check_table(table, where, title=str, papers=list, asks=list)
    keys = tuple(_key(name, names, where) for name in table["papers"])
    asks = []
    for i, ask in enumerate(table["asks"], start=1):
        place = f"{where}, ask {i}"
        kinds = [kind for kind in KINDS if isinstance(ask, dict) and kind in ask]
        if len(kinds) != 1:
            raise CatalogueError(f"{place}: give exactly one of {', '.join(KINDS)}")
        optional: dict[str, type] = {"tasks": list} if kinds[0] == BUILD and "tasks" in ask else {}
        _check_table(ask, place, **{kinds[0]: str, "paper": str}, **optional)
        key = _key(ask["paper"], names, place)
        asks.append(Ask(kinds[0], ask[kinds[0]], key, tuple(ask.get("tasks", ()))))
    return Month(number, table["title"], keys, tuple(asks))


def _check_table(table: Any, where: str, **kinds: type) -> None:
    """Refuse a table that has not exactly these fields, each filled."""
    if not isinstance(table, dict):
        raise CatalogueError(f"{where}: expected a table, found {table!r}")
    for field in table:
        if field not in kinds:
            known = ", ".join(kinds)
            raise CatalogueError(f"{where}: unknown key {field!r}; known are {known}")
    for field, kind in kinds.items():
        if not isinstance(table.get(field), kind) or not table[field]:
            word = "a list" if kind is list else "a text"
            raise CatalogueError(f"{where}: {field} is {word}, not {table.get(field)!r}")


def _key(name: Any, names: dict[str, str], where: str) -> str:
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise CatalogueError(f"{where}: {name!r} is no paper{guess}")
    return names[name]


def _check_papers(phases: list[Phase], papers: Catalogue, file: str) -> None:
    """Refuse a plan that leaves a paper out, names one twice, or reads it before what it needs."""
    month_of: dict[str, int] = {}
    for phase in phases:
        for month in phase.months:
            for key in month.papers:
                if key in month_of:
                    raise CatalogueError(
                        f"{file}: {key} is read twice, in months {month_of[key]} and {month.number}"
                    )
                if papers[key].phase != phase.number:
                    raise CatalogueError(
                        f"{file}: month {month.number} is of phase {phase.number}, "
                        f"and {key} of phase {papers[key].phase}"
                    )
                month_of[key] = month.number
    by_name = {paper.name: key for key, paper in papers.items() if not layout.is_kernel(key)}
    for name, key in by_name.items():
        if key not in month_of:
            raise CatalogueError(f"{file}: no month reads {name}")
        for need in papers[key].needs:
            if month_of.get(by_name[need], 0) > month_of[key]:
                raise CatalogueError(f"{file}: {name} is read before {need}, which it needs")
