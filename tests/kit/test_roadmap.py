"""The roadmap: the plan agrees with the catalogue, progress opens papers, and the pages show it."""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import pytest

from paperlings import catalogue, expected, layout, stubs
from paperlings.learner import graph, plan
from paperlings.learner.roadmap import LEGEND, screen
from paperlings.learner.standing import STATES, UNWRITTEN, Standing, Standings
from paperlings.progress import Done

PLAN = """
[[phases]]
name = "First"
about = "a"
[[phases.months]]
title = "One"
papers = ["softmax", "after"]
asks = [
    {{ derive = "Derive it.", paper = "softmax" }},
    {{ build = "Build it.", paper = "softmax"{tasks} }},
    {{ show = "Show it.", paper = "softmax" }},
]
[[phases]]
name = "Second"
about = "b"
[[phases.months]]
title = "Two"
papers = ["unwritten", "far"]
asks = [{{ build = "Go on.", paper = "unwritten" }}]
"""
TABLE = """
[demo.{name}]
title = "{name}"
authors = "A"
year = 2000
url = "none"
phase = {phase}
difficulty = 1
hours = 1.5
lists = []
needs = ["{need}"]
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> catalogue.Catalogue:
    """The papers of the catalogue, without kernels."""
    copy = tmp_path_factory.mktemp("real") / "papers.toml"
    shutil.copy(layout.CATALOGUE, copy)
    return catalogue.load(copy)


def standing_at(papers: catalogue.Catalogue, state: str) -> Standings:
    """All papers in one state."""
    done = Done(tasks={"a": "passed", "b": "failed"})
    return Standings(
        {key: Standing(paper, state, done, None, paper.needs) for key, paper in papers.items()}
    )


# ---- the plan


def test_the_plan_reads_every_paper_once(real) -> None:
    """Six phases, twelve months of 5 to 40 hours; what a month asks is about what it reads."""
    phases = plan.load(real)
    months = [month for phase in phases for month in phase.months]
    assert (len(phases), [m.number for m in months]) == (6, list(range(1, 13)))
    assert sorted(key for m in months for key in m.papers) == sorted(real)
    for month in months:
        assert 5 < sum(real[key].hours for key in month.papers) < 40
        assert {ask.key for ask in month.asks} <= set(month.papers)
        assert plan.DERIVE in {ask.kind for ask in month.asks}
        assert plan.BUILD in {ask.kind for ask in month.asks}


def test_what_the_plan_asks_of_a_written_paper_is_there(real) -> None:
    """Every task it names is a task, and a claim that it wants to see is tested."""
    asks = [ask for phase in plan.load(real) for month in phase.months for ask in month.asks]
    for ask in asks:
        if ask.key in layout.written():
            assert set(ask.tasks) <= set(stubs.groups(ask.key)), ask
            claims = [test for test in expected.of(ask.key).values() if test.claim]
            assert claims or ask.kind != plan.SHOW, ask


SMALL = PLAN.format(tasks="")
SWAPPED = SMALL.replace("far", "x").replace('"after"', '"far"').replace('"x"', '"after"')


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a = [", ("roadmap.toml cannot be read",)),
        ("", ("phases is a list",)),
        (SMALL + "colour = 1\n", ("month 2", "unknown key 'colour'")),
        (SMALL.replace('about = "a"\n', ""), ("phase 1", "about is a text")),
        (SMALL.replace('title = "Two"', "title = 2"), ("month 2", "title is a text, not 2")),
        (SMALL.replace('paper = "softmax"', 'paper = "sofmax"', 1), ("ask 1", "mean 'softmax'")),
        (SMALL.replace("derive", "guess"), ("month 1, ask 1", "one of derive, build, show")),
        (SMALL.replace("show =", 'build = "x", show ='), ("ask 3", "exactly one")),
        (SMALL.replace('it.", paper', 'it.", tasks = ["a"], paper', 1), ("unknown key 'tasks'",)),
        (SMALL.replace('"far"', '"softmax"'), ("softmax is read twice, in months 1 and 2",)),
        (SMALL.replace(', "far"', ""), ("no month reads far",)),
        (SWAPPED, ("month 1 is of phase 1", "demo/far of phase 2")),
    ],
)
def test_an_error_in_the_plan_is_refused_and_named(tmp_path, content: str, words) -> None:
    """The message says where it is and what was expected."""
    papers = TABLE.format(name="softmax", phase=1, need="")
    papers = papers.replace('[""]', "[]") + TABLE.format(name="after", phase=1, need="softmax")
    papers += TABLE.format(name="unwritten", phase=2, need="softmax")
    papers += TABLE.format(name="far", phase=2, need="unwritten")
    (tmp_path / "papers.toml").write_text(papers, encoding="utf-8")
    (tmp_path / "roadmap.toml").write_text(content, encoding="utf-8")
    known = catalogue.load(tmp_path / "papers.toml")
    with pytest.raises(catalogue.CatalogueError) as error:
        plan.load(known, tmp_path / "roadmap.toml")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_paper_is_not_read_before_what_it_needs(real, tmp_path) -> None:
    """Swapping two months is refused, by name."""
    text = plan.FILE.read_text(encoding="utf-8")
    swapped = text.replace('"bahdanau_attention", ', "", 1).replace(
        'papers = ["neural', 'papers = ["bahdanau_attention", "neural'
    )
    (tmp_path / "roadmap.toml").write_text(swapped, encoding="utf-8")
    with pytest.raises(catalogue.CatalogueError, match="is read before bahdanau_attention"):
        plan.load(real, tmp_path / "roadmap.toml")


# ---- where a learner stands


@pytest.fixture(scope="module")
def planned(build, tmp_path_factory: pytest.TempPathFactory):
    """A house with a plan, where softmax opens `after` and, by way of a paper that is not written,
    `far`.
    """
    house = build(tmp_path_factory.mktemp("planned") / "house", "softmax", "after", "far")
    catalogued = house.home / "papers.toml"
    text = catalogued.read_text(encoding="utf-8").split("[demo.after]")[0]
    text += TABLE.format(name="after", phase=1, need="softmax")
    text += TABLE.format(name="unwritten", phase=2, need="softmax")
    text += TABLE.format(name="far", phase=2, need="unwritten")
    catalogued.write_text(text, encoding="utf-8")
    tasks = ', tasks = ["softmax"]'
    (house.home / "roadmap.toml").write_text(PLAN.format(tasks=tasks), encoding="utf-8")
    return house


@pytest.fixture
def house(planned, tmp_path: Path):
    """The same, where nothing was done yet."""
    for name in ("progress.json", "my", "reports"):
        path = planned.home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    planned.file("exercises").write_bytes(planned.file("exercises", "demo/after").read_bytes())
    return planned


def judged(house, **more: object) -> None:
    """Softmax as it is was judged, and passed."""
    from hashlib import sha256

    done = {"hash": sha256(house.file("exercises").read_bytes()).hexdigest()[:16]}
    done |= {"tasks": {"softmax": "passed", "entropy": "passed"}, "claim": "passed"}
    done |= {"judged": "2026-01-02 03:04", "passed": "2026-01-02 03:04"}
    record = {"version": 1, "papers": {"demo/softmax": done | more}}
    (house.home / "progress.json").write_text(json.dumps(record), encoding="utf-8")


def roadmap(house) -> str:
    """What it prints, on one line; no line is too long."""
    done = house.run("paperlings", "roadmap")
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    return " ".join((done.stdout + done.stderr).split())


def test_at_first_only_what_needs_nothing_is_open(house) -> None:
    """What is not written holds nothing up; what it needs does, in its place."""
    said = roadmap(house)
    assert "0 of 4 papers complete, 0 begun, 0 logged; 0 of 5.5 hours" in said
    assert "month 1 of 2: One [ ] Derive it. (softmax, by hand) [ ] Build it. (softmax)" in said
    assert "open softmax (1 h, 1/5)" in said
    assert "opens next after (after softmax), far (after softmax)" in said


def test_a_verdict_of_the_grader_counts(house) -> None:
    """A whole round: the solution as an answer, graded, is complete and opens what it should."""
    house.file("exercises").write_text(house.solution(), encoding="utf-8")
    house.grade("softmax")
    said = roadmap(house)
    assert "1 of 4 papers complete" in said
    assert "[ ] Derive it. (softmax, by hand) [x] Build it. (softmax) [x] Show it." in said
    assert "complete softmax open after (1.5 h, 1/5) elsewhere far" in said
    portfolio = house.home / "reports" / "portfolio.html"
    assert 'src="data:image/png;base64,' in portfolio.read_text(encoding="utf-8")
    house.file("exercises").write_text(house.solution() + "# edited\n", encoding="utf-8")
    roadmap(house)
    assert "data:image" not in portfolio.read_text(encoding="utf-8"), "it is of an older file"


def test_what_is_done_by_hand_is_ticked_in_the_log(house) -> None:
    """The third pass is the learner's word, and the only thing a tick stands for."""
    house.says("log", "softmax")
    log = house.home / "my" / "log" / "demo" / "softmax.md"
    text = log.read_text(encoding="utf-8")
    log.write_text(text.replace("[ ] First", "[x] First"), encoding="utf-8")
    assert "[ ] Derive it." in roadmap(house)
    log.write_text(text.replace("[ ] Third", "[x] Third"), encoding="utf-8")
    said = roadmap(house)
    assert "[x] Derive it. (softmax, by hand) [ ] Build it. (softmax) [ ] Show it." in said


def test_an_edited_paper_is_not_complete_but_closes_nothing(house) -> None:
    """An old verdict is not shown as that of the new text; what it opened stays open."""
    judged(house, hash="old")
    said = roadmap(house)
    assert "0 of 4 papers complete, 1 begun" in said
    assert "begun softmax (edited since it passed) open after (1.5 h, 1/5)" in said
    assert "[ ] Build it." in said


def test_a_paper_with_some_tasks_is_begun(house) -> None:
    """One that is still a stub is not, nor one of which nothing could be verified."""
    judged(house, tasks={"softmax": "passed", "entropy": "todo"}, passed="", claim="todo")
    assert "begun softmax (1 of 2 tasks)" in (said := roadmap(house))
    assert "[x] Build it. (softmax) [ ] Show it." in said
    for status in ("todo", "unverified"):
        judged(house, tasks={"softmax": "todo", "entropy": status}, passed="", claim="todo")
        assert "open softmax" in roadmap(house)


def test_a_damaged_record_is_kept_and_told(house) -> None:
    """The roadmap goes on without it."""
    (house.home / "progress.json").write_text("{", encoding="utf-8")
    assert "progress.json cannot be read" in roadmap(house)
    assert len(list(house.home.glob("progress.json.*.bak"))) == 1


def test_the_page_shows_states_needs_and_checkpoints(house) -> None:
    """Every paper by name, state and mark, every prerequisite by name and line, with nothing from
    elsewhere; a solution that was seen first is marked as such.
    """
    judged(house, gave_up="2026-01-01 00:00")
    roadmap(house)
    text = (house.home / "reports" / "roadmap.html").read_text(encoding="utf-8")
    wide = text[text.index('<svg class="map wide"') : text.index('<svg class="map narrow"')]
    nodes = re.findall(r'<g class="(\w+)" transform.*?<text x="27"[^>]*>(\w+)<', wide, re.DOTALL)
    assert nodes == [
        ("complete", "softmax"),
        ("open", "after"),
        ("unwritten", "unwritten"),
        ("open", "far"),
    ]
    assert re.findall(r"\u2190 (\w+)<", wide) == ["softmax", "softmax", "unwritten"]
    assert wide.count('class="line') == 3
    assert "solution seen" in wide
    assert text.count('class="here"') == 1
    assert not re.search(r"<script|<link|src=\"http|@import", text)


@pytest.mark.parametrize("state", STATES)
def test_the_screen_stays_a_screen(real, state: str) -> None:
    """When all 82 papers are written, names that do not fit are counted."""
    lines = screen(standing_at(real, state), plan.load(real))
    assert len(lines) <= 36
    assert all(len(line) <= 80 for line in lines), lines


# ---- the drawing


@pytest.mark.parametrize(("columns", "width", "margin"), [(6, 1248, 34), (1, 358, 110)])
def test_every_node_has_a_place_of_its_own(real, columns: int, width: int, margin: int) -> None:
    """Nodes lie inside the drawing, do not overlap, and phases go from left to right; there is a
    line for every prerequisite.
    """
    drawing = graph.draw(standing_at(real, UNWRITTEN), plan.load(real), columns, width, margin)
    assert len(drawing.nodes) == len(real)
    for node in drawing.nodes:
        assert 0 < node.x <= width - drawing.node_width
        assert 0 < node.y <= drawing.height - node.height
    for a, b in combinations(drawing.nodes, 2):
        first, second = sorted((a, b), key=lambda node: node.y)
        assert a.x != b.x or first.y + first.height < second.y
        if a.standing.paper.phase < b.standing.paper.phase:
            assert (a.x, a.y) < (b.x, b.y)
    assert len(drawing.lines) == sum(len(paper.needs) for paper in real.values())
    assert len({node.x for node in drawing.nodes}) == columns


def test_every_state_has_a_mark_and_a_word() -> None:
    """Colour is never all there is to tell states by."""
    assert set(LEGEND) == set(STATES)
    assert len(set(LEGEND.values())) == len(STATES)
