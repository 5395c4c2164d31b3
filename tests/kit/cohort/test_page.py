"""The pages, as a teacher and a student meet them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paperlings import expected, loading, stubs
from paperlings.cohort import exports, page

made = loading.load(Path(__file__).with_name("made.py"), "cohort.made")
unit, DPO, LORA, KERNEL = made.unit, made.DPO, made.LORA, made.KERNEL
GATE = "test_newton_schulz_beats_a_loop_of_products"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x00\ud800{{ 7*7 }}"


class Page(HTMLParser):
    """A page as a browser reads it: its words, and everything it links to or loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.words, self.links, self.tags, self.styled = "", [], set(), False
        self.feed(file.read_text(encoding="utf-8"))
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.styled = tag == "style"
        self.links += [str(value) for name, value in attributes if name in ("src", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += "" if self.styled else f" {data}"
        self.styled = False


def failing(task: str) -> str:
    """The first test of a task."""
    return next(test.name for test in expected.of(DPO).values() if task in test.tasks)


def cohort(out: Path, results: list[dict]) -> Page:
    page.write(out, results)
    return Page(out / "cohort.html")


def test_a_cohort_on_one_page(tmp_path: Path) -> None:
    """How many, how well, which laws and mistakes, who needs help, what was not judged and why."""
    name, says = failing("optimal_policy"), "The reward is not divided by beta."
    results = [
        unit("ada", failing=[name], behaves_like=[says]),
        unit("bob", failing=[name], behaves_like=[says], todo=stubs.groups(DPO)[3:]),
        unit("cy", outcome="rejected", reason="it has no alignment/dpo.py"),
        unit("dee", outcome="infra_error", reason="worker 3 was killed"),
    ]
    shown = cohort(tmp_path, results)
    for text in (
        "4 submissions, 1 paper ",
        "2 graded 1 wholly rejected 1 with infra errors",
        f"100 % {expected.of(DPO)[name].law} 2 in {DPO} · optimal_policy",
        f"2 {says} {DPO} · for example ada",
        "2 of 3 have fewer than 50 % of the 10 points",
        f"bob {DPO}: {expected.of(DPO)[name].law}",
        f"1 it has no alignment/dpo.py {DPO} · cy",
        f"1 worker 3 was killed {DPO} · dee",
        "sandbox: bubblewrap",
        "2026-11-20 17:00 UTC",
        "kit c0ffeec0ffee",
        "Linux, Python 3.11.7, torch 2.13.0, no GPU",
        "optimal_policy 0 %",
        "sequence_logprob 100 %",
    ):
        assert text in shown.words
    assert "nsandboxed" not in shown.words


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    """It links to its neighbours, which are there, and to nothing else."""
    results = [unit(name, todo=stubs.groups(DPO)) for name in ("ada", "Zoë / ..", "100%?#")]
    shown = cohort(tmp_path, results)
    exports.write(tmp_path, results)
    assert len([link for link in shown.links if link.startswith("submissions/")]) == 3
    assert all((tmp_path / link).is_file() for link in shown.links)
    assert not shown.tags & {"script", "link", "iframe", "img"}
    text = (tmp_path / "cohort.html").read_text()
    assert "url(" not in text
    assert 'name="viewport"' in text


def test_nothing_of_a_strangers_acts_on_a_page(tmp_path: Path) -> None:
    """Names, reasons, and what code prints and raises are shown as they are, and harmless."""
    test = failing("optimal_policy")
    results = [
        unit(HOSTILE, failing=[test], what=HOSTILE, printed=HOSTILE, behaves_like=[HOSTILE]),
        unit(HOSTILE, LORA, outcome="rejected", reason=HOSTILE),
        unit("dee", outcome="infra_error", reason=HOSTILE),
        unit("dee", LORA, todo=stubs.groups(LORA)),
    ]
    shown = cohort(tmp_path, results)
    student = Page(tmp_path / "submissions" / exports.folder(HOSTILE) / "feedback.html")
    for found in (shown, student):
        assert not found.tags & {"script", "img"}
        assert "<script>alert(1)</script>" in found.words
        assert "{{ 7*7 }}" in found.words


@pytest.mark.parametrize("sandbox", ["none", "landlock"])
def test_without_a_sandbox_the_page_says_so_in_words(tmp_path: Path, sandbox: str) -> None:
    """Grades that are not to be trusted say it themselves."""
    shown = cohort(tmp_path, [unit("ada", sandbox=sandbox), unit("bob")])
    assert ("Unsandboxed: 1 of 2 units" in shown.words) == (sandbox == "none")
    assert ("landlock (1)" in shown.words) == (sandbox == "landlock")


def test_many_are_as_readable_as_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lists are folded and cut, with a count, so the page does not grow with the cohort."""
    monkeypatch.setattr(page, "_feedback", lambda *_: "")  # this is about the teacher's page
    test = failing("optimal_policy")
    sizes = []
    for many in (120, 400):
        results = [
            unit(f"s{i}", failing=[test], todo=stubs.groups(DPO)[2:], behaves_like=[f"{i % 99}."])
            if i % 2
            else unit(f"s{i}", outcome="rejected", reason=f"reason {i}")
            for i in range(many)
        ]
        shown = cohort(tmp_path / str(many), results)
        sizes.append((tmp_path / str(many) / "cohort.html").stat().st_size)
    assert "42 more, and 150 that are not listed" in shown.words
    assert sizes[1] < 1.1 * sizes[0]


def test_feedback_is_one_students_own(tmp_path: Path) -> None:
    """The look of grade.html, the first failure of each paper, and the next thing to do in the
    student's own copy.
    """
    name = failing("optimal_policy")
    results = [
        unit("ada", failing=[name]),
        unit("ada", LORA, outcome="rejected", reason="lora.py is no UTF-8 text"),
        unit("bob"),
        unit("bob", LORA, outcome="infra_error", reason="worker 3 of /srv was killed"),
    ]
    page.write(tmp_path, results)
    ada, bob = (Page(tmp_path / "submissions" / n / "feedback.html") for n in ("ada", "bob"))
    points = results[0]["points"]
    assert f"{points} of 26 tasks pass" in ada.words
    assert expected.of(DPO)[name].law in ada.words
    assert f"pytest tests/papers/alignment/test_dpo.py -k {name}" in ada.words
    assert "rejected lora.py is no UTF-8 text" in ada.words
    assert "10 of 10 tasks pass" in bob.words
    assert "This is no score, and will be tried again." in bob.words
    for found in (ada, bob):
        assert not re.search("somewhere of the grader|/srv", found.words)
    assert "bob" not in ada.words


def test_a_kernel_shows_its_lanes(tmp_path: Path) -> None:
    """A lane that could not be verified takes no point, and the student reads which, and why."""
    results = [unit("ada", KERNEL, unverified=[GATE]), unit("bob", KERNEL, failing=[GATE])]
    for result in results:
        made.is_valid(result)
        assert result["points"] == result["max_points"] == 4
    shown = cohort(tmp_path, results)
    assert "interpreter 100 % compiled 100 % gate 0 %" in shown.words
    assert "claim:" not in shown.words
    ada, bob = (Page(tmp_path / "submissions" / n / "feedback.html") for n in ("ada", "bob"))
    assert "4 of 4 tasks pass" in ada.words
    assert "passed interpreter passed compiled unverified gate" in ada.words
    assert f"This is no failure. {KERNEL}, gate: no NVIDIA GPU" in ada.words
    assert "failed gate" in bob.words
    assert "Not verified" not in bob.words


def test_a_page_is_there_from_the_first_result_on(tmp_path: Path) -> None:
    """Nothing graded, nothing but rejections, and a paper that some have no result in yet."""
    assert "0 submissions" in cohort(tmp_path, []).words
    rejected = [unit(outcome="rejected", reason="no file")]
    assert "1 wholly rejected" in cohort(tmp_path, rejected).words
    half = [unit("ada"), unit("bob"), unit("bob", LORA)]
    shown = cohort(tmp_path, half)
    assert "1 not finished" in shown.words
    assert "The 1 without a total are not in it." in shown.words
