"""Bringing new papers and changed stubs into a learner's clone, whatever was edited there.

`git pull` refuses where the kit changes an exercise that was edited, and a merge would write its
marks into it. This does what a pull does, by a rule for whole files. Of each there are the version
that both sides had last, which is git's merge base and so the stub the learner was given; the kit's
version now; and the learner's, committed or not.

- What one side alone has changed is that side's.
- An exercise that both have changed stays as the learner has it, to the byte; what its new stub
  says otherwise is told, and the stub put into reports/stubs/ to take over from.
- Any other file that both have changed stops the update before anything is touched.

Commits of the learner's stay, below a merge commit. Exercises are replaced one by one, whole or not
at all, before git does the rest: who is stopped in between says `update` again.
"""

from __future__ import annotations

import ast
import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from paperlings import files, layout
from paperlings.learner import definitions, git
from paperlings.learner.git import GitError, Tree
from paperlings.lines import labelled, waiting

EXERCISES = f"{layout.EXERCISES.name}/"
AT_WORK = {"MERGE_HEAD": "merge", "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert"}
MESSAGE = "Update the kit; edited exercises stay"


class Refused(Exception):
    """The update cannot be made, and nothing was changed; the message says why and what to do."""


@dataclass
class Plan:
    """What an update does, by the paths of files.

    merged: the kit's new state, with what the learner has committed.
    disk: the blobs of the files that lie there.  writes: exercises to be replaced, and what an
    update that was stopped has left.  kept: exercises that the learner has edited.
    settled: what git is to take as it lies there.
    clashes: what both sides have changed besides.
    """

    merged: Tree
    disk: dict[str, str]
    writes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)


def update() -> int:
    """Bring the kit up to date and say what was left alone; returns the exit status, 1 where that
    cannot be done, and then nothing has changed.
    """
    try:
        _check_clone()
        remote, branch = _origin()
        new = _fetched(remote, branch)
        head = git.ask("rev-parse", "HEAD")
        base = _base(head, new, remote)
        mine, theirs = git.tree(head), git.tree(new)
        between = git.between(base, new)
        plan = _planned(git.tree(base), mine, theirs, between)
        _check(plan, mine, new, between)
        if base in (head, new):
            target = new if base == head else head
        else:
            parents = ("-p", head, "-p", new)
            target = git.ask("commit-tree", git.stored(plan.merged), *parents, "-m", MESSAGE)
        count = int(git.ask("rev-list", "--count", f"{head}..{new}"))
        _carry_out(plan, mine, head, target)
    except (Refused, GitError, OSError) as refusal:
        print(f"Nothing was changed. {refusal}", file=sys.stderr)
        return 1
    commits = f"{count} new commit{'s' * (count != 1)}" if count else "nothing new"
    print("\n".join([f"{commits} from {remote}", *_report(plan, mine, theirs)]))
    return 0


# ---- what there is


def _check_clone() -> None:
    """Refuse where the kit is no clone of its own, or git is in the middle of something."""
    try:
        trouble = git.ask("rev-parse", "--show-prefix") and "it lies inside another clone"
    except GitError as error:
        trouble = str(error)
    if trouble:
        raise Refused(
            f"{layout.HOME} is no git clone that can be updated:\n{trouble}\n"
            "Without git: download the kit anew and copy exercises/, my/ and progress.json into it."
        )
    for file, what in AT_WORK.items():
        if Path(layout.HOME, git.ask("rev-parse", "--git-path", file)).exists():
            raise Refused(
                f"git is in the middle of a {what}.\n"
                f"Finish it or say `git {what} --abort`, then update again."
            )


def _origin() -> tuple[str, str]:
    """The remote and the branch that the kit comes from: the main one of a remote called upstream,
    which forks have, else the one that is followed, else the main one of origin.
    """
    try:
        branch = git.ask("symbolic-ref", "--quiet", "--short", "HEAD")
    except GitError:
        raise Refused(
            "No branch is checked out, so there is none to update.\n"
            "`git switch -` goes back to the last one."
        ) from None
    remotes = git.ask("remote").split()
    remote = git.setting(f"branch.{branch}.remote")
    followed = git.setting(f"branch.{branch}.merge")
    if "upstream" in remotes and remote != "upstream":
        return "upstream", "HEAD"
    if remote and followed:
        return remote, followed
    if "origin" in remotes:
        return "origin", "HEAD"
    raise Refused(
        "This clone has no remote to update from.\n`git remote add origin ADDRESS` names one."
    )


def _fetched(remote: str, branch: str) -> str:
    """The newest commit there."""
    try:
        with waiting(f"asking {remote}"):
            git.run("fetch", "--quiet", remote, branch)
    except GitError as error:
        raise Refused(f"{remote} cannot be reached:\n{error}") from None
    return git.ask("rev-parse", "FETCH_HEAD")


def _base(head: str, new: str, remote: str) -> str:
    """The last commit that both sides have."""
    try:
        return git.ask("merge-base", head, new)
    except GitError:
        raise Refused(
            f"Your clone and {remote} have no commit in common.\n"
            "Clone the kit anew, and copy exercises/, my/ and progress.json into the clone."
        ) from None


# ---- what to do


def _planned(base: Tree, mine: Tree, new: Tree, between: set[str]) -> Plan:
    """What becomes of every file that is an exercise or changes.

    between: blobs that the kit has had since `base`.
    """
    merged, clashes = dict(new), []
    for path in sorted({*base, *mine}):
        if mine.get(path) in (base.get(path), new.get(path)):
            continue
        if new.get(path) != base.get(path) and not path.startswith(EXERCISES):
            clashes.append(path)
        merged.pop(path, None)
        merged |= {path: mine[path]} if path in mine else {}
    changed = {path for path in {*mine, *merged} if mine.get(path) != merged.get(path)}
    exercises = {path for path in {*mine, *merged} if path.startswith(EXERCISES)}
    plan = Plan(merged, git.on_disk(changed | exercises), clashes=clashes)
    for path in sorted(changed | exercises):
        here, before, after = plan.disk.get(path), git.blob(mine, path), git.blob(merged, path)
        left = here in between - {before}  # by an update that was stopped; git takes it for an edit
        untouched = here in (None, before) or left
        ours = path in exercises or left
        if here != after and untouched and ours:
            plan.writes.append(path)
        elif here != after and not untouched and path not in exercises:
            plan.clashes.append(path)
        elif path in exercises and here not in (None, git.blob(new, path)):
            plan.kept.append(path)
        if path in changed and (here == after or ours):
            plan.settled.append(path)
    return plan


def _check(plan: Plan, mine: Tree, new: str, between: set[str]) -> None:
    """Refuse what would lose something, or leave the kit half new."""
    if plan.clashes:
        names = "\n".join(f"  {path}" for path in plan.clashes)
        raise Refused(
            f"You and the kit have both edited what is no exercise:\n{names}\n"
            f"Put yours aside (git stash push {plan.clashes[0]}) or merge by hand "
            f"(git merge {new[:7]}), then update again."
        )
    for path, (_, staged) in git.staged(plan.settled).items():
        if staged not in {git.blob(mine, path), plan.disk.get(path), *between}:
            raise Refused(
                f"{path} is staged, and was edited since.\n"
                f"Commit it or say `git restore --staged {path}`, then update again."
            )


def _carry_out(plan: Plan, mine: Tree, head: str, target: str) -> None:
    """Replace exercises, then let git do the rest; where a step fails, all before it are undone."""
    # git compares what it has to do with a state in which all that is settled was so before
    settled = {path: plan.merged[path] for path in plan.settled if path in plan.merged}
    others = {path: entry for path, entry in mine.items() if path not in plan.settled}
    start, staged = git.stored(others | settled), git.staged(plan.settled)
    with contextlib.ExitStack() as undo:
        for path in plan.writes:
            file = layout.HOME / path
            undo.callback(_write, file, file.read_bytes() if file.is_file() else None)
            _write(file, git.content(plan.merged, path))
        undo.callback(git.stage, plan.settled, staged)
        git.stage(plan.settled, plan.merged)
        git.run("update-index", "-q", "--refresh", may_fail=True)  # as it does where files differ
        git.run("read-tree", "-m", "-u", start, target)
        undo.callback(git.run, "read-tree", "-m", "-u", target, start)
        git.run("update-ref", "-m", "paperlings update", "HEAD", target, head)
        undo.pop_all()


def _write(file: Path, data: bytes | None) -> None:
    if data is None:
        file.unlink(missing_ok=True)
    else:
        files.write(file, data)


# ---- what there is to say


def _report(plan: Plan, mine: Tree, new: Tree) -> list[str]:
    """The papers that came, changed and went, and those that were left alone."""
    kinds: dict[str, list[str]] = {}
    for path in filter(_is_paper, plan.writes):
        if path not in plan.merged:
            kind = "gone"
        elif path not in mine:
            kind = "new"
        else:
            kind = "new stub" if path in plan.disk else "put back"
        kinds.setdefault(kind, []).append(_key(path))
    lines = [line for kind, keys in kinds.items() for line in labelled(kind, ", ".join(keys))]
    same = []
    for path in filter(_is_paper, plan.kept):
        stub = git.content(new, path)
        if stub is None:
            lines += labelled("left alone", f"{_key(path)}, edited; the kit has it no more")
        elif said := differences(stub, (layout.HOME / path).read_bytes()):
            kept = layout.REPORTS / "stubs" / f"{_key(path)}.py"
            files.write(kept, stub)
            lines += labelled("left alone", f"{_key(path)}, edited. Its stub has {said}.")
            lines += labelled("", f"To take over from: {layout.shown(kept)}")
        else:
            same.append(_key(path))
    if same:
        lines += labelled("left alone", f"{', '.join(same)}: edited, with nothing to take over")
    return lines + (labelled("next", "nox -s grade") if plan.merged != mine else [])


def differences(stub: bytes, own: bytes) -> str:
    """What a stub has that the learner's file lacks, or says otherwise, in words.

    Of a task its signature and docstring count, of what is given everything.
    """
    wanted = dict(definitions.of(ast.parse(stub).body))
    try:
        found = dict(definitions.of(ast.parse(own).body))
    except (SyntaxError, ValueError):
        return "changed; your file is no Python as it is, so how cannot be said"

    def is_other(name: str) -> bool:
        text = definitions.promise if definitions.is_unwritten(wanted[name]) else ast.unparse
        return text(found[name]) != text(wanted[name])

    new = [name for name in wanted if name not in found]
    other = [name for name in wanted if name in found and is_other(name)]
    said = [f"new: {', '.join(new)}"] if new else []
    return "; ".join(said + ([f"other words for {', '.join(other)}"] if other else []))


def _is_paper(path: str) -> bool:
    return path.startswith(EXERCISES) and path.endswith(".py") and path.count("/") == 2


def _key(path: str) -> str:
    return path.removeprefix(EXERCISES).removesuffix(".py")
