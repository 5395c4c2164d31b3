"""The learner's own log: made once, never written over, and counted as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paperlings import catalogue, layout
from paperlings.learner import reading

ANSWERS = {
    "Problem": "Scores grow with the size. Gradients vanish.",
    "Approach": "Divide by its square root, cf. Sec. 3.2.",
    "Result": "28.4 BLEU in 3.5 days.",
    "Limitation": "Memory is quadratic.",
}


def answered(text: str, answers: dict[str, str]) -> str:
    """The log with answers below its headings."""
    for heading, answer in answers.items():
        text = text.replace(f"## {heading}\n", f"## {heading}\n\n{answer}\n")
    return text


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str | bytes) -> reading.Log:
        path = tmp_path / "log.md"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return reading.read(path)

    return read


def test_a_log_is_made_once_and_never_changed(house) -> None:
    """It holds the citation, three passes and four questions; whatever is written there stays."""
    status, said = house.says("log", "softmax")
    path = house.home / "my" / "log" / "demo" / "softmax.md"
    text = path.read_text(encoding="utf-8")
    assert status == 0
    assert "my/log/demo/softmax.md, new" in said
    assert "still empty problem, approach, result, limitation" in said
    assert "# softmax\n\nA, 2000. none\n" in text
    assert text.count("- [ ]") == 3
    path.write_bytes(b"mine\xff\r\n")
    assert house.says("log", "softmax")[0] == 0
    assert path.read_bytes() == b"mine\xff\r\n"


def test_it_says_what_is_missing_and_what_is_too_much(house) -> None:
    """Empty questions by name, ticked passes, and the sentences against three to five."""
    house.says("log", "softmax")
    path = house.home / "my" / "log" / "demo" / "softmax.md"
    text = answered(path.read_text(encoding="utf-8"), ANSWERS).replace("[ ] First", "[x] First")
    path.write_text(text, encoding="utf-8")
    said = house.says("log", "softmax")[1]
    assert "passes first of three ticked sentences 5 then" in said
    assert "empty" not in said
    path.write_text(text.replace("28.4 BLEU", "Better. 28.4 BLEU"), encoding="utf-8")
    assert "sentences 6; 3 to 5 are wanted: what can go?" in house.says("log", "softmax")[1]


def test_a_paper_without_an_exercise_can_be_logged(house) -> None:
    """The catalogue is a reading list; what is not written yet is read all the same."""
    house.announce("far")
    assert house.says("log", "far")[0] == 0
    status, said = house.says("log", "demo")
    assert status == 2
    assert "'demo' means 2 papers; name one of demo/softmax, demo/far" in said


def test_a_log_that_cannot_be_read_or_made_is_one_line(house) -> None:
    """A folder in its place, or a file in place of its folder: status 2, and nothing is lost."""
    folder = house.home / "my" / "log" / "demo" / "softmax.md"
    folder.mkdir(parents=True)
    status, said = house.says("log", "softmax")
    assert (status, "softmax.md cannot be read" in said) == (2, True)
    folder.rmdir()
    folder.parent.rmdir()
    folder.parent.write_text("mine", encoding="utf-8")
    status, said = house.says("log", "softmax")
    assert (status, "cannot be" in said) == (2, True)
    assert folder.parent.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("One. Two! Three? Four", 4),
        ("It costs 3.5 h, e.g. on a laptop (cf. Fig. 2, Eq. 3, arXiv:1706.03762).", 1),
        ("As Vaswani et al. Say it. Twice.", 2),
        ("It is O(n). Memory is not.", 2),
        ('"Why?" they ask. Nobody knows...', 2),
        ("See https://a.example/x.html. It works.", 2),
        ("- one\n- two\n- three", 3),
        ("A line\nthat goes on.\n\nAnother.", 2),
        ("Code `a.b. C. D.` counts as a word.", 1),
        ("```\nx = 1. Y = 2.\n```", 0),
        ("<!-- A hint. Two. -->Mine.", 1),
        ("<!-- never closed. Or is it?", 0),
        ("\u6ce8\u610f\u529b\u3002\u5f88\u597d\u3002", 2),
    ],
)
def test_sentences_are_counted_honestly(read, text: str, count: int) -> None:
    """Points in numbers, abbreviations, addresses and code end nothing; a bullet is a sentence."""
    assert read(f"# Problem\n\n{text}\n").sentences == count


def test_headings_are_found_however_they_are_written(read) -> None:
    """Any level, any case, two questions in one; a deleted one is missed by name."""
    log = read("### PROBLEM and approach:\nBoth.\n\nResult\n------\nThis.\n# Own\nNot counted.\n")
    assert log.sentences == 2
    assert log.empty == log.gone == ("limitation",)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf## Passes\r\n\r\n- [X] a\r\n* [ ] b\r\n", b"## passes\n1. [x] a\n\xff\n"],
)
def test_passes_are_read_from_any_editor(read, content: bytes) -> None:
    """A mark at the front, Windows' line ends, a broken letter: the ticks are seen."""
    assert read(content).passes == (True, False, False)
    elsewhere = b"## Result\n- [x] no pass\n" + content.lstrip(b"\xef\xbb\xbf")
    assert read(elsewhere).passes == (True, False, False)


def test_what_a_log_holds_is_shown_and_never_run(read, tmp_path: Path) -> None:
    """HTML is text, scripts are no links, pictures are not fetched, comments stay out."""
    (tmp_path / "papers.toml").write_bytes(layout.CATALOGUE.read_bytes())
    paper = catalogue.load(tmp_path / "papers.toml")["alignment/dpo"]
    text = reading.HEADER.format(paper=paper) + "## Problem\n<script>x</script> **b** <!-- c -->\n"
    page = reading.as_html(read(text + "[l](javascript:x) ![p](http://a.example/p.png)\n"), paper)
    assert "<h3>Problem</h3>" in page
    assert "&lt;script&gt;x&lt;/script&gt; <strong>b</strong>" in page
    for bad in ("<script", "<img", 'href="javascript', "c --", "Rafailov"):
        assert bad not in page


def test_the_portfolio_shows_work_and_owns_up_to_help(house) -> None:
    """Logs, verdicts and hints are there; a solution seen first is said, an old verdict too."""
    plan = '[[phases]]\nname = "P"\nabout = "a"\n[[phases.months]]\ntitle = "t"\n'
    plan += 'papers = ["softmax"]\nasks = [{ derive = "d", paper = "softmax" }]\n'
    (house.home / "roadmap.toml").write_text(plan, encoding="utf-8")
    page = house.home / "reports" / "portfolio.html"
    assert house.says("roadmap")[0] == 0
    assert "Nothing yet" in page.read_text(encoding="utf-8")

    house.says("log", "softmax")
    done = {"hash": "old", "judged": "2026-01-02 03:04", "claim": "passed"}
    done |= {"tasks": {"softmax": "passed", "entropy": "failed"}, "hints": {"softmax": 2}}
    done |= {"gave_up": "2026-01-01 00:00"}
    record = {"version": 1, "papers": {"demo/softmax": done}}
    (house.home / "progress.json").write_text(json.dumps(record), encoding="utf-8")
    (house.home / "my" / "log" / "demo" / "stray.md").write_text("x", encoding="utf-8")
    assert "my/log/demo/stray.md is the log of no paper" in house.says("roadmap")[1]
    text = " ".join(page.read_text(encoding="utf-8").split())
    for words in (
        "1 of 2 pass, judged 2026-01-02 03:04; the file has been edited since",
        "passed; of an older file",
        "2 for softmax",
        "seen 2026-01-01 00:00, before all tasks passed",
        "0 sentences, 0 of 3 passes; still empty: problem, approach, result, limitation",
    ):
        assert words in text
    assert "<dt>tasks passed</dt><dd>0</dd>" in text
    assert "data:image" not in text

    shutil.rmtree(house.home / "my")
    record["papers"]["demo/softmax"] = {"hints": {"entropy": 1}}
    (house.home / "progress.json").write_text(json.dumps(record), encoding="utf-8")
    house.says("roadmap")
    assert "1 for entropy" in page.read_text(encoding="utf-8"), "help without work is owned up to"
