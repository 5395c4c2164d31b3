"""The record of progress: what it keeps, and what becomes of one that cannot be read."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from paperlings import layout, progress
from paperlings.verdict import PASSED, TODO, PaperVerdict, TaskVerdict

KEY = layout.written()[0]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of its own, which does not exist yet."""
    path = tmp_path / "progress.json"
    monkeypatch.setattr(progress, "FILE", path)
    return path


def verdict(*statuses: str, **options) -> PaperVerdict:
    tasks = [TaskVerdict(f"task_{i}", status, 0, 0) for i, status in enumerate(statuses)]
    return PaperVerdict(KEY, tasks, TODO, {}, **options)


def record(*statuses: str, **options) -> progress.Done:
    """What is known after a verdict on the exercise as it is."""
    progress.record([verdict(*statuses, **options)], {KEY: progress.content_hash(KEY)})
    return progress.load(progress.FILE).of(KEY)


def test_verdicts_are_kept_by_content(file) -> None:
    """A verdict is about the text that was judged; of another text nothing is finished."""
    assert record(PASSED, TODO).tasks == {"task_0": PASSED, "task_1": TODO}
    assert not progress.load().is_finished(KEY)
    first = record(PASSED, PASSED)
    assert first.passed
    assert progress.load().is_finished(KEY)
    progress.record([verdict(PASSED, PASSED)], {KEY: "another"})
    assert not progress.load().is_current(KEY)
    assert record(TODO).passed == first.passed, "what once passed is not forgotten"


def test_other_code_is_no_progress(file) -> None:
    """Neither the solutions nor a verdict on some of the tests are kept."""
    record(PASSED, root=layout.SOLUTIONS)
    record(PASSED, partial=True)
    assert not file.exists()


def test_the_file_can_be_read_by_a_person(file) -> None:
    """One entry a paper, indented, without what is empty."""
    record(PASSED)
    with progress.changing() as known:
        known.of(KEY).hints["task_0"] = 2
        known.of("alignment/none")
    data = json.loads(file.read_text())
    assert list(data["papers"]) == [KEY]
    assert data["papers"][KEY]["hints"] == {"task_0": 2}
    assert "gave_up" not in data["papers"][KEY]
    assert file.read_text().count("\n") > 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[]", "is no record of progress"),
        (b'{"version": "1", "papers": {}}', "is no record of progress"),
        (b'{"version": 1}', "is no record of progress"),
        (b'{"version": 2, "papers": {}}', "by a newer version of the kit (2, not 1)"),
        (b'{"version": 1, "papers": {"a/b": 3}}', "an entry for 'a/b' that makes no sense"),
        (b'{"version": 1, "papers": {"a/b": {"tasks": []}}}', "makes no sense"),
        (b'{"version": 1, "papers": {"a/b": {"tasks": {"t": 1}}}}', "makes no sense"),
        (b'{"version": 1, "papers": {"a/b": {"hints": {"t": "1"}}}}', "makes no sense"),
        (b'{"version": 1, "papers": {"a/b": {"color": ""}}}', "makes no sense"),
    ],
)
def test_what_cannot_be_read_is_kept_aside(file, content, words) -> None:
    """A damaged or newer file is kept under a dated name, that is said, and a new one begins."""
    file.write_bytes(content)
    known = progress.load()
    assert known == {}
    assert words in known.notes[0]
    kept = next(file.parent.glob("progress.json.*.bak"))
    assert kept.name in known.notes[0]
    assert kept.read_bytes() == content
    assert record(PASSED).tasks == {"task_0": PASSED}


def _count(path: str, times: int) -> None:
    for _ in range(times):
        with progress.changing(Path(path)) as known:
            known.of(KEY).hints["task"] = known.of(KEY).hints.get("task", 0) + 1


def test_two_that_write_at_once_wait_for_each_other(file) -> None:
    """Nothing that one process counts is lost to another."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(str(file), 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert progress.load()[KEY].hints == {"task": 60}
