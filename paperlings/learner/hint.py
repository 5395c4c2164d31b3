"""Three hints a task, one at a time, from a nudge to nearly the code."""

from __future__ import annotations

import difflib

from paperlings import UsageError, catalogue, layout, progress, stubs, teacher
from paperlings.lines import labelled, wrapped
from paperlings.progress import Done, Progress
from paperlings.verdict import FAILED, PASSED


def hint(name: str, task: str | None = None) -> int:
    """Print the next hint for a task of a paper, by default for the first unfinished one;
    returns the exit status.

    Raises CatalogueError for a name that means no paper, UsageError for one that is no task.
    """
    print("\n".join(next_hint(catalogue.load().select_one(name).key, task)))
    return 0


def next_hint(key: str, task: str | None = None) -> list[str]:
    """The next hint, in lines; progress counts it.

    After the last one all are shown again, numbered: whoever comes back wants to read on, not to
    be sent away. Raises UsageError for a name that is no task, KnowledgeError where there is none.
    """
    hints = teacher.load(key).hints
    with progress.changing() as record:
        done = record.of(key)
        task = _called(task, key) if task else _unfinished(key, done)
        if task is None:
            return [*record.notes, *wrapped(_nothing_left(key, record.is_current(key)))]
        texts = hints.get(task, [])
        if not texts:
            raise teacher.KnowledgeError(f"{layout.shown(layout.knowledge(key))}: none for {task}")
        number = done.hints.get(task, 0) + 1
        done.hints[task] = min(number, len(texts))
    return [
        *record.notes,
        *_shown(task, texts, number, key),
        "",
        *_last_verdict(task, key, record),
        *labelled("next", f"pytest {_exercise(key)} --task {task}"),
    ]


def _shown(task: str, texts: list[str], number: int, key: str) -> list[str]:
    where = f"for {task} ({key})"
    if number <= len(texts):
        return [f"hint {number} of {len(texts)} {where}", "", *wrapped(texts[number - 1], "  ")]
    lines = [f"there are no more hints {where}; all {len(texts)} again:"]
    for i, text in enumerate(texts, start=1):
        lines += ["", *wrapped(text, f"  {i}  ")]
    return lines


def _last_verdict(task: str, key: str, record: Progress) -> list[str]:
    done = record[key]
    if task not in done.tasks:
        return []
    since = "" if record.is_current(key) else "; the file has changed since"
    return labelled("last verdict", f"{done.tasks[task]}, {done.judged}{since}")


def _unfinished(key: str, done: Done) -> str | None:
    """The first task that failed when it was judged last or whose stub is untouched, else the first
    that did not pass; None where all passed.

    What failed before an edit is most likely what the edit is about, so old verdicts count.
    """
    path = layout.source(layout.EXERCISES, key)
    text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
    untouched = {
        task.group
        for task in stubs.tasks(teacher.source(key))
        if f'raise NotImplementedError("{_raised(task)}")' in text
    }
    tasks = stubs.groups(key)
    pending = [t for t in tasks if done.tasks.get(t) == FAILED or t in untouched]
    pending += [t for t in tasks if done.tasks.get(t) != PASSED]
    return pending[0] if pending else None


def _raised(task: stubs.Task) -> str:
    return task.group if task.name.startswith("_") else task.name


def _called(name: str, key: str) -> str:
    """The task that a name means: its own, or that of a method or kernel judged with it."""
    known = {task.name: task.group for task in stubs.tasks(teacher.source(key))}
    known |= {group: group for group in stubs.groups(key)}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    close = close or [task for task in known if name.lower() in task.lower()][:3]
    guess = f"did you mean {' or '.join(close)}?" if close else f"there are {_tasks(key)}"
    raise UsageError(f"{key} has no task {name!r}; {guess}")


def _nothing_left(key: str, is_current: bool) -> str:
    said = (
        "every task passes" if is_current else "every task passed, and the file has changed since"
    )
    return f"{key}: {said}. Name one to see its hints all the same: {_tasks(key)}."


def _tasks(key: str) -> str:
    return ", ".join(stubs.groups(key))


def _exercise(key: str) -> str:
    return layout.shown(layout.source(layout.EXERCISES, key))
