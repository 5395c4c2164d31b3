"""The catalogue: papers.toml, every paper in learning order, checked as it is read,
and after them the kernels.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paperlings import layout

TEXT = ("title", "authors")
NUMBERS = ("year", "phase", "difficulty")
HOURS = ("hours", "kernel_hours")  # the second where there is a kernel to write
WHERE = ("arxiv", "doi", "pmc", "url")  # a paper has exactly one of these
NAMES = ("lists", "needs")
HARDEST = 5


class CatalogueError(ValueError):
    """papers.toml, or a name that should be in it, is wrong;
    the message says what and how to mend it.
    """


@dataclass(frozen=True)
class Paper:
    """One paper; `needs` are the names of the papers to do first.

    hours: to read it and do its exercise.  kernel_hours: what its kernel takes besides, 0 where
    there is none to write.
    """

    track: str
    name: str
    title: str
    authors: str
    year: int
    phase: int
    difficulty: int  # 1 to HARDEST
    hours: float
    kernel_hours: float
    identifier: str  # "arXiv:1706.03762", "doi:...", "PMC..." or an address
    lists: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.track}/{self.name}"


class Catalogue(dict[str, Paper]):
    """Papers by key ("track/name"), in learning order."""

    @property
    def tracks(self) -> list[str]:
        return list(dict.fromkeys(paper.track for paper in self.values()))

    def select(self, names: list[str]) -> list[Paper]:
        """The papers that `names` mean, in learning order: a paper, track/paper, a track,
        or a paper's file.

        No names mean all. Raises CatalogueError for a name that means nothing.
        """
        chosen: set[str] = set()
        for name in names:
            chosen |= self._meant(name)
        return [paper for key, paper in self.items() if key in chosen or not names]

    def select_written(self, names: list[str]) -> list[Paper]:
        """Those of `select` that have a solution and tests.

        Raises CatalogueError where none has, too.
        """
        chosen, written = self.select(names), set(layout.written())
        found = [paper for paper in chosen if paper.key in written]
        if not found:
            kind = f"{chosen[0].key} is" if len(chosen) == 1 else f"these {len(chosen)} papers are"
            raise CatalogueError(f"{kind} in the catalogue, but not written yet")
        return found

    def select_one(self, name: str) -> Paper:
        """The one paper that `name` means among those of `select_written`.

        Raises CatalogueError where it means several, such as a track.
        """
        found = self.select_written([name])
        # a kernel may be called as its paper is, and then the name means the paper
        found = [paper for paper in found if layout.called(paper.key) == name] or found
        if len(found) > 1:
            keys = ", ".join(paper.key for paper in found)
            raise CatalogueError(f"{name!r} means {len(found)} papers; name one of {keys}")
        return found[0]

    def _meant(self, name: str) -> set[str]:
        plain = _without_root(name)
        found = {k for k, p in self.items() if plain in (k, p.name, p.track)}
        if not found:
            known = [*self, *(p.name for p in self.values()), *self.tracks]
            close = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
            close = close or [k for k in known if plain and plain in k][:3]
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            raise CatalogueError(f"no paper or track is called {name!r}.{guess}")
        return found


def load(path: Path = layout.CATALOGUE) -> Catalogue:
    """Read and check the catalogue. Raises CatalogueError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogueError(f"{path.name} is missing") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = " (is a paper listed twice?)" if "Cannot declare" in str(error) else ""
        raise CatalogueError(f"{path.name} cannot be read: {error}{hint}") from None
    catalogue = Catalogue()
    for track, papers in tables.items():
        if not isinstance(papers, dict):
            raise CatalogueError(f"{path.name}: {track!r} stands outside any paper's table")
        for name, table in papers.items():
            paper = _paper(track, name, table)
            twin = next((k for k, p in catalogue.items() if p.name == name), None)
            if twin:
                raise CatalogueError(
                    f"{paper.key}: the name {name!r} is taken by {twin}; names are unique"
                )
            catalogue[paper.key] = paper
    # tables of one track are grouped by TOML; learning order is the order of the file's headers
    order = {key: i for i, key in enumerate(_headers(path))}
    ordered = Catalogue(sorted(catalogue.items(), key=lambda item: order[item[0]]))
    _check_needs(ordered)
    if path == layout.CATALOGUE:
        ordered |= _kernels(ordered)
    return ordered


def _kernels(papers: Catalogue) -> Catalogue:
    """The kernels that are written, as papers of their own track, in the order of their papers.

    Each names its paper in the first line of its .toml: `paper = "track/name"`.
    """
    found = Catalogue()
    for key in filter(layout.is_kernel, layout.written()):
        file = layout.knowledge(key)
        try:
            home = tomllib.loads(file.read_text(encoding="utf-8")).get("paper")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CatalogueError(f"{layout.shown(file)} cannot be read: {error}") from None
        if not isinstance(home, str) or home not in papers:
            raise CatalogueError(f"{layout.shown(file)}: paper = {home!r} is no paper's key")
        track, name = key.split("/")
        found[key] = replace(
            papers[home],
            track=track,
            name=name,
            title=f"{name}, a kernel of: {papers[home].title}",
            hours=papers[home].kernel_hours,
            kernel_hours=0.0,
            needs=(papers[home].name,),
        )
    order = list(papers)
    names = {paper.name: key for key, paper in papers.items()}
    return Catalogue(sorted(found.items(), key=lambda item: order.index(names[item[1].needs[0]])))


def _without_root(name: str) -> str:
    """exercises/alignment/dpo.py and tests/papers/alignment/test_dpo.py both mean alignment/dpo."""
    path = Path(name)
    if path.suffix != ".py":
        return name.strip("/")
    return f"{path.parent.name}/{path.stem.removeprefix('test_')}".removeprefix("/")


def _headers(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line[1 : line.index("]")].replace(".", "/") for line in lines if line.startswith("[")]


def _paper(track: str, name: str, table: Any) -> Paper:
    key = f"{track}/{name}"
    if not isinstance(table, dict):
        raise CatalogueError(f"{key}: expected a table [{track}.{name}], found {table!r}")
    known = {*TEXT, *NUMBERS, *HOURS, *WHERE, *NAMES}
    for field in table:
        if field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            guess = (
                f"; did you mean {close[0]!r}?"
                if close
                else f"; known are {', '.join(sorted(known))}"
            )
            raise CatalogueError(f"{key}: unknown key {field!r}{guess}")
    for field in (*TEXT, *NUMBERS, HOURS[0], *NAMES):
        if field not in table:
            raise CatalogueError(f"{key}: the field {field!r} is missing")
    for fields, kind, word in (
        (TEXT, str, "text"),
        (NUMBERS, int, "a whole number"),
        (WHERE, str, "text"),
    ):
        for field in fields:
            if field in table and (not isinstance(table[field], kind) or table[field] == ""):
                raise CatalogueError(f"{key}: {field} is {word}, not {table[field]!r}")
    for field in HOURS:
        hours = table.get(field, 1)
        if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < 100:
            raise CatalogueError(f"{key}: {field} is a number of hours, not {hours!r}")
    if not 1 <= table["difficulty"] <= HARDEST:
        raise CatalogueError(
            f"{key}: difficulty is a number from 1 to {HARDEST}, not {table['difficulty']}"
        )
    for field in NAMES:
        if not isinstance(table[field], list) or not all(isinstance(x, str) for x in table[field]):
            raise CatalogueError(f"{key}: {field} is a list of names, not {table[field]!r}")
    places = [field for field in WHERE if field in table]
    if len(places) != 1:
        raise CatalogueError(
            f"{key}: give exactly one of {', '.join(WHERE)}; found {places or 'none'}"
        )
    prefix = {"arxiv": "arXiv:", "doi": "doi:"}.get(places[0], "")
    return Paper(
        track=track,
        name=name,
        title=table["title"],
        authors=table["authors"],
        year=table["year"],
        phase=table["phase"],
        difficulty=table["difficulty"],
        hours=float(table["hours"]),
        kernel_hours=float(table.get("kernel_hours", 0)),
        identifier=prefix + table[places[0]],
        lists=tuple(table["lists"]),
        needs=tuple(table["needs"]),
    )


def _check_needs(catalogue: Catalogue) -> None:
    """Refuse a prerequisite that does not exist, and papers that need each other in a circle."""
    by_name = {paper.name: paper for paper in catalogue.values()}
    for paper in catalogue.values():
        for need in paper.needs:
            if need not in by_name:
                close = difflib.get_close_matches(need, by_name, n=1)
                guess = f"; did you mean {close[0]!r}?" if close else ""
                raise CatalogueError(f"{paper.key}: needs {need!r}, which is no paper{guess}")
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " -> ".join([*trail[trail.index(name) :], name])
            raise CatalogueError(
                f"{by_name[name].key}: papers need each other in a circle: {circle}"
            )
        if name not in done:
            for need in by_name[name].needs:
                visit(need, (*trail, name))
            done.add(name)

    for name in by_name:
        visit(name, ())
