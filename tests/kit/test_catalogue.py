"""The catalogue: every planted error is refused with a message that says what to mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from paperlings import catalogue, layout

PAPER = """
[{track}.{name}]
title = "T"
authors = "A"
year = 2020
arxiv = "2001.00001"
phase = 1
difficulty = 2
hours = 1.5
lists = ["roadmap"]
needs = {needs}
"""


def text(*papers: tuple[str, str, list[str]]) -> str:
    return "".join(PAPER.format(track=t, name=n, needs=needs) for t, n, needs in papers)


@pytest.fixture
def load(tmp_path: Path):
    def load(content: str | bytes) -> catalogue.Catalogue:
        path = tmp_path / "papers.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return catalogue.load(path)

    return load


GOOD = text(("a", "one", []), ("b", "two", ["one"]), ("a", "three", []))


def test_the_real_catalogue_holds_all_papers() -> None:
    """82 papers, in 15 tracks, in learning order: no paper stands before what it needs in an
    earlier phase.
    """
    found = catalogue.load()
    papers = {key: paper for key, paper in found.items() if not layout.is_kernel(key)}
    assert len(papers) == 82
    assert list(found) == [*papers, *filter(layout.is_kernel, found)]
    phases = {paper.name: paper.phase for paper in papers.values()}
    for paper in papers.values():
        assert 1 <= paper.phase <= 6
        assert 1990 < paper.year < 2030
        assert all(phases[need] <= paper.phase for need in paper.needs), paper.key
    hours = sum(paper.hours for paper in papers.values())
    assert 300 < hours < 400, "about seven hours a week for a year"


def test_learning_order_is_the_order_of_the_file(load) -> None:
    """A track may be left and come back to; the order of the papers is that of the file."""
    assert list(load(GOOD)) == ["a/one", "b/two", "a/three"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD + "colour = 1\n", ("a/three", "unknown key 'colour'")),
        (GOOD + "tilte = 'x'\n", ("a/three", "did you mean 'title'")),
        (GOOD.replace('title = "T"\n', "", 1), ("a/one", "'title' is missing")),
        (GOOD.replace("needs = []\n", "", 1), ("a/one", "'needs' is missing")),
        (GOOD.replace("year = 2020", 'year = "2020"', 1), ("a/one", "year is a whole number")),
        (GOOD.replace("phase = 1", "phase = 1.5", 1), ("a/one", "phase")),
        (GOOD.replace('title = "T"', 'title = ""', 1), ("a/one", "title")),
        (GOOD.replace("hours = 1.5\n", "", 1), ("a/one", "'hours' is missing")),
        (GOOD.replace("hours = 1.5", "hours = '2 h'", 1), ("a/one", "hours is a number of hours")),
        (GOOD.replace("hours = 1.5", "hours = true", 1), ("a/one", "hours is a number of hours")),
        (GOOD.replace("hours = 1.5", "hours = -1", 1), ("a/one", "not -1")),
        (GOOD + "kernel_hours = nan\n", ("a/three", "kernel_hours", "not nan")),
        (GOOD.replace("difficulty = 2", "difficulty = 6", 1), ("a/one", "from 1 to 5, not 6")),
        (GOOD.replace("difficulty = 2", "difficulty = 0", 1), ("a/one", "from 1 to 5, not 0")),
        (GOOD.replace("['one']", "'one'"), ("b/two", "needs is a list")),
        (GOOD.replace('arxiv = "2001.00001"\n', "", 1), ("a/one", "exactly one of")),
        (GOOD + 'doi = "1"\n', ("a/three", "exactly one of")),
        (GOOD.replace("['one']", "['oen']"), ("b/two", "'oen'", "did you mean 'one'")),
        (text(("a", "one", []), ("b", "one", [])), ("b/one", "taken by a/one")),
        (text(("a", "one", []), ("a", "one", [])), ("papers.toml", "listed twice")),
        (text(("a", "one", ["two"]), ("a", "two", ["one"])), ("circle", "one -> two -> one")),
        (text(("a", "one", ["one"])), ("circle", "one -> one")),
        ("a = [", ("cannot be read",)),
        ("loose = 1\n", ("loose", "outside")),
        ("[track]\npaper = 3\n", ("track/paper", "expected a table")),
        (b"\xff\xfe", ("cannot be read",)),
    ],
)
def test_an_error_is_refused_and_named(load, content: str, words: tuple[str, ...]) -> None:
    """The message names the paper and what is wrong with it."""
    with pytest.raises(catalogue.CatalogueError) as error:
        load(content)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dpo", ["alignment/dpo"]),
        ("alignment/dpo", ["alignment/dpo"]),
        ("exercises/alignment/dpo.py", ["alignment/dpo"]),
        ("tests/papers/alignment/test_dpo.py", ["alignment/dpo"]),
        ("retrieval", ["retrieval/rag_survey", "retrieval/self_route"]),
    ],
)
def test_a_paper_is_found_by_any_name(name: str, keys: list[str]) -> None:
    """A paper by its name, key or file, and a track by its name."""
    assert [paper.key for paper in catalogue.load().select([name])] == keys


@pytest.mark.parametrize(
    ("name", "guess"), [("dop", "dpo"), ("atention_is_all", "attention_is_all_you_need")]
)
def test_an_unknown_name_gets_a_guess(name: str, guess: str) -> None:
    """ "Did you mean" comes with what is near."""
    with pytest.raises(catalogue.CatalogueError, match=f"Did you mean .*{guess}"):
        catalogue.load().select([name])
