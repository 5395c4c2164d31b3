"""Updating a learner's clone: everything new arrives, and nothing that was edited is touched."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paperlings.learner.update import differences

HOME = Path(__file__).resolve().parents[2]
EDITED = "# mine\n"
NEW_TASK = '''

def perplexity(p: Tensor) -> Tensor:
    """exp of the entropy: (..., n) -> (...)"""
    # Task: one line.
    return entropy(p).exp()
'''


@pytest.fixture
def clones(build, tmp_path, monkeypatch):
    """The kit's own repository and a learner's clone of it, with the papers softmax and other."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A. Learner")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@learner")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    kit = build(tmp_path / "kit", "softmax", "other")
    shutil.copy(HOME / ".gitignore", kit.home)
    (kit.home / "README.md").write_text("The kit.\n")
    git(kit, "init", "--quiet", "--initial-branch=main")
    commit(kit, "first")
    learner = type(kit)(tmp_path / "learner")
    git(kit, "clone", "--quiet", str(kit.home), str(learner.home))
    return kit, learner


def git(house, *arguments):
    done = subprocess.run(["git", *arguments], cwd=house.home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(house, message):
    git(house, "add", "--all")
    git(house, "commit", "--quiet", "--message", message)


def publish(kit):
    """A new version of the kit: other words in softmax and a new task, and a new paper."""
    solution = kit.file("solutions")
    text = solution.read_text().replace("Finite for any finite x.", "Finite for every finite x.")
    solution.write_text(text + NEW_TASK)
    kit.add("fresh")
    assert kit.run("paperlings", "stubs").returncode == 0
    (kit.home / "README.md").write_text("The kit, second edition.\n")
    commit(kit, "second")


def state(house):
    """Everything in a clone that a learner could miss: files, the branch and what is staged."""
    files = [p for p in house.home.rglob("*") if p.is_file() and ".git" not in p.parts]
    contents = {p: p.read_bytes() for p in files if "__pycache__" not in p.parts}
    if not (house.home / ".git").exists():
        return contents, "", ""
    return contents, git(house, "rev-parse", "HEAD"), git(house, "ls-files", "--stage")


def is_the_kit(kit, learner, *but):
    """Whether the clone has every file of the kit, but for some exercises."""
    differ = git(learner, "diff", "--name-only", git(kit, "rev-parse", "HEAD")).split()
    assert differ == sorted(f"exercises/{key}.py" for key in but)
    assert git(learner, "ls-files", "--others", "--exclude-standard") == ""


def test_an_unedited_clone_becomes_the_kit(clones) -> None:
    """New papers, new stubs and the rest of the kit arrive, and are named."""
    kit, learner = clones
    publish(kit)
    status, said = learner.says("update")
    assert status == 0, said
    assert "1 new commit from origin" in said
    assert "new demo/fresh" in said
    assert "new stub demo/softmax" in said
    assert "left alone" not in said
    is_the_kit(kit, learner)
    assert git(learner, "status", "--porcelain") == ""
    assert learner.says("update") == (0, "nothing new from origin")


def test_an_edited_exercise_is_not_touched_where_git_pull_refuses(clones) -> None:
    """The learner's file stays to the byte, all the rest is new, and what its stub has is told."""
    kit, learner = clones
    exercise = learner.file("exercises")
    exercise.write_text(exercise.read_text() + EDITED)
    os.utime(exercise, (1e9, 1e9))
    before, stat = exercise.read_bytes(), exercise.stat()
    publish(kit)
    with pytest.raises(AssertionError, match="would be overwritten"):
        git(learner, "pull", "--quiet", "--ff-only")
    status, said = learner.says("update")
    assert status == 0, said
    assert "left alone demo/softmax, edited. Its stub has new: perplexity;" in said
    assert "other words for softmax." in said
    assert "To take over from: reports/stubs/demo/softmax.py" in said
    assert exercise.read_bytes() == before
    assert (exercise.stat().st_mtime, exercise.stat().st_ino) == (stat.st_mtime, stat.st_ino)
    is_the_kit(kit, learner, "demo/softmax")
    assert git(learner, "status", "--porcelain") == "M exercises/demo/softmax.py"
    stub = learner.home / "reports/stubs/demo/softmax.py"
    assert stub.read_bytes() == kit.file("exercises").read_bytes()
    assert "left alone demo/softmax" in learner.says("update")[1], "it is said until it is done"


def test_an_edited_exercise_whose_stub_is_as_it_was_needs_nothing(clones) -> None:
    """It is named, and nothing is to be taken over."""
    kit, learner = clones
    exercise = learner.file("exercises", "demo/other")
    exercise.write_text(exercise.read_text().replace("raise NotImplementedError", "return 1  #"))
    before = exercise.read_bytes()
    publish(kit)
    status, said = learner.says("update")
    assert status == 0
    assert "left alone demo/other: edited, with nothing to take over" in said
    assert exercise.read_bytes() == before
    is_the_kit(kit, learner, "demo/other")


def test_commits_of_the_learner_stay_below_a_merge(clones) -> None:
    """A committed answer stays, in the file and in the history, and so does a file of theirs."""
    kit, learner = clones
    exercise = learner.file("exercises")
    exercise.write_text(learner.solution())
    (learner.home / "notes.md").write_text("hard\n")
    commit(learner, "my answer")
    mine = git(learner, "rev-parse", "HEAD")
    publish(kit)
    status, said = learner.says("update")
    assert status == 0, said
    assert "left alone demo/softmax, edited. Its stub has new: perplexity" in said
    assert exercise.read_text() == learner.solution()
    assert (learner.home / "notes.md").read_text() == "hard\n"
    assert git(learner, "log", "-1", "--format=%P").split() == [mine, git(kit, "rev-parse", "HEAD")]
    assert git(learner, "status", "--porcelain") == ""
    assert git(learner, "diff", "--name-only", "HEAD^2").split() == [
        "exercises/demo/softmax.py",
        "notes.md",
    ]
    publish_again(kit)
    exercise.write_text(exercise.read_text() + EDITED)
    assert learner.says("update")[0] == 0
    assert exercise.read_text() == learner.solution() + EDITED
    assert "third" in (learner.home / "README.md").read_text()


def publish_again(kit):
    (kit.home / "README.md").write_text("The kit, third edition.\n")
    commit(kit, "third")


@pytest.mark.parametrize("committed", [False, True])
def test_an_edited_tool_that_the_kit_changes_too_stops_the_update(clones, committed) -> None:
    """The file is named, and nothing at all has changed."""
    kit, learner = clones
    (learner.home / "README.md").write_text("Mine.\n")
    if committed:
        commit(learner, "my words")
    publish(kit)
    before = state(learner)
    status, said = learner.says("update")
    assert status == 1
    assert (
        "Nothing was changed. You and the kit have both edited what is no exercise: README.md"
        in said
    )
    assert state(learner) == before
    git(learner, "checkout", "--quiet", "origin/main" if committed else "HEAD", "--", "README.md")
    if committed:
        commit(learner, "their words")
    assert learner.says("update")[0] == 0


def test_an_edited_tool_that_the_kit_leaves_stays(clones) -> None:
    """A dirty tree is no obstacle where the kit has nothing to say about what is dirty."""
    kit, learner = clones
    catalogue = learner.home / "noxfile.py"
    catalogue.write_text(catalogue.read_text() + EDITED)
    (learner.home / "scratch.py").write_text(EDITED)
    publish(kit)
    assert learner.says("update")[0] == 0
    assert catalogue.read_text().endswith(EDITED)
    assert (learner.home / "scratch.py").read_text() == EDITED


def test_a_deleted_exercise_is_put_back(clones) -> None:
    """Whether the kit has changed it or not."""
    kit, learner = clones
    publish(kit)
    for key in ("demo/softmax", "demo/other"):
        learner.file("exercises", key).unlink()
    status, said = learner.says("update")
    assert status == 0
    assert "put back demo/other, demo/softmax" in said
    is_the_kit(kit, learner)


@pytest.mark.parametrize("edited", [False, True])
def test_a_paper_that_the_kit_gives_up_goes_unless_it_was_edited(clones, edited) -> None:
    """The learner's work on it stays as a file of their own."""
    kit, learner = clones
    exercise = learner.file("exercises", "demo/other")
    if edited:
        exercise.write_text(exercise.read_text() + EDITED)
    before = exercise.read_bytes()
    for path in kit.home.rglob("*other*"):
        if ".git" not in path.parts and path.is_file():
            path.unlink()
    commit(kit, "without other")
    status, said = learner.says("update")
    assert status == 0, said
    assert ("left alone demo/other, edited; the kit has it no more" in said) == edited
    assert ("gone demo/other" in said) != edited
    assert (exercise.read_bytes() if exercise.exists() else None) == (before if edited else None)
    assert not learner.file("solutions", "demo/other").exists()


def test_a_file_of_the_learners_in_the_place_of_a_new_paper_stays(clones) -> None:
    """Who wrote a paper before the kit had it keeps the file."""
    kit, learner = clones
    own = learner.file("exercises", "demo/fresh")
    own.write_text(EDITED)
    publish(kit)
    status, said = learner.says("update")
    assert status == 0, said
    assert own.read_text() == EDITED
    assert "left alone demo/fresh, edited. Its stub has new: the lesson, softmax, entropy." in said
    is_the_kit(kit, learner, "demo/fresh")


def test_after_a_pull_by_hand_there_is_nothing_left_to_do(clones) -> None:
    """Where git could pull, updating adds no commit, and still says what has been edited."""
    kit, learner = clones
    exercise = learner.file("exercises", "demo/other")
    exercise.write_text(exercise.read_text() + EDITED)
    publish(kit)
    git(learner, "pull", "--quiet", "--ff-only")
    head = git(learner, "rev-parse", "HEAD")
    assert learner.says("update") == (
        0,
        "nothing new from origin left alone demo/other: edited, with nothing to take over",
    )
    assert git(learner, "rev-parse", "HEAD") == head


def test_a_fork_is_updated_from_upstream(clones) -> None:
    """A remote called upstream is the kit; the learner's own branch follows something else."""
    kit, learner = clones
    git(learner, "remote", "rename", "origin", "upstream")
    git(learner, "switch", "--quiet", "--create", "mine", "--no-track")
    publish(kit)
    assert "1 new commit from upstream" in learner.says("update")[1]
    is_the_kit(kit, learner)
    assert git(learner, "branch", "--show-current") == "mine"


def test_settings_of_the_learners_git_do_not_matter(clones) -> None:
    """Neither a stash that git makes by itself nor other line ends count as edits or touch any."""
    kit, learner = clones
    for name, value in (("merge.autostash", "true"), ("core.autocrlf", "true"), ("merge.ff", "no")):
        git(learner, "config", name, value)
    git(learner, "rm", "--cached", "-r", "--quiet", ".")
    git(learner, "reset", "--hard", "--quiet")
    assert b"\r\n" in learner.file("exercises").read_bytes()
    other = learner.file("exercises", "demo/other")
    other.write_bytes(other.read_bytes() + b"# mine\r\n")
    before = other.read_bytes()
    publish(kit)
    status, said = learner.says("update")
    assert status == 0, said
    assert "new stub demo/softmax" in said
    assert learner.file("exercises").read_bytes().count(b"\r\n") > 20
    assert other.read_bytes() == before
    assert git(learner, "status", "--porcelain") == "M exercises/demo/other.py"
    assert git(learner, "stash", "list") == ""


def detach(kit, learner):
    git(learner, "checkout", "--quiet", "--detach")


def leave_the_network(kit, learner):
    git(learner, "remote", "set-url", "origin", str(kit.home / "nowhere"))


def forget_the_remote(kit, learner):
    git(learner, "remote", "remove", "origin")


def forget_git(kit, learner):
    shutil.rmtree(learner.home / ".git")


def begin_a_merge(kit, learner):
    (learner.home / "README.md").write_text("Mine.\n")
    commit(learner, "my words")
    git(learner, "fetch", "--quiet")
    subprocess.run(["git", "merge", "origin/main"], cwd=learner.home, capture_output=True)


def stage_and_edit(kit, learner):
    exercise = learner.file("exercises")
    exercise.write_text(exercise.read_text() + "# staged\n")
    git(learner, "add", str(exercise))
    exercise.write_text(exercise.read_text() + "# edited\n")


def lock_the_index(kit, learner):
    (learner.home / ".git/index.lock").touch()


def lock_the_branch(kit, learner):
    (learner.home / ".git/refs/heads/main.lock").touch()


def begin_anew(kit, learner):
    forget_git(kit, learner)
    git(learner, "init", "--quiet", "--initial-branch=main")
    git(learner, "remote", "add", "origin", str(kit.home))
    commit(learner, "from an archive")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (detach, "No branch is checked out"),
        (leave_the_network, "Nothing was changed. origin cannot be reached:"),
        (forget_the_remote, "has no remote to update from"),
        (forget_git, "is no git clone that can be updated:"),
        (begin_a_merge, "in the middle of a merge. Finish it"),
        (stage_and_edit, "exercises/demo/softmax.py is staged, and was edited since."),
        (lock_the_index, "index.lock"),
        (lock_the_branch, "main.lock"),
        (begin_anew, "have no commit in common."),
    ],
)
def test_what_cannot_be_updated_is_left_as_it_is(clones, trouble, words) -> None:
    """The reason is said without a traceback, the status is 1, and no file is another."""
    kit, learner = clones
    publish(kit)
    trouble(kit, learner)
    before = state(learner)
    status, said = learner.says("update")
    assert (status, words in said) == (1, True), said
    assert state(learner) == before


def test_a_clone_inside_another_is_not_mistaken_for_it(clones, tmp_path) -> None:
    """A kit that was unpacked into somebody's own repository is none of its own."""
    kit, learner = clones
    forget_git(kit, learner)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    status, said = learner.says("update")
    assert status == 1
    assert "it lies inside another clone" in said


def test_without_git_it_says_so(clones, monkeypatch) -> None:
    """A machine without git gets a line, not a traceback."""
    _, learner = clones
    monkeypatch.setenv("PATH", str(learner.home))
    status, said = learner.says("update")
    assert (status, "git cannot be run" in said) == (1, True), said


def test_killed_at_any_instant_every_exercise_is_whole(clones) -> None:
    """After each of 50 kills an edited exercise is what it was, and every other one is the old stub
    or the new one; then an update ends what was begun.
    """
    kit, learner = clones
    edited = learner.file("exercises")
    edited.write_text(edited.read_text() + EDITED)
    mine = edited.read_bytes()
    keys = [f"demo/paper_{i}" for i in range(6)]
    for key in keys:
        kit.add(key.removeprefix("demo/"))
    assert kit.run("paperlings", "stubs").returncode == 0
    commit(kit, "many papers")
    begun = time.monotonic()
    assert learner.says("update")[0] == 0
    whole = time.monotonic() - begun
    versions = {key: {learner.file("exercises", key).read_bytes()} for key in keys}
    chance = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(learner.home)}
    for number in range(50):
        if number % 5 == 0:  # a new version, which some kills later has arrived
            for key in keys:
                solution = kit.file("solutions", key)
                solution.write_text(f"{solution.read_text()}\n# edition {number}\n")
            assert kit.run("paperlings", "stubs").returncode == 0
            commit(kit, str(number))
            for key in keys:
                versions[key].add(kit.file("exercises", key).read_bytes())
        process = subprocess.Popen(
            [sys.executable, "-m", "paperlings", "update"],
            cwd=learner.home,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(0.2, 1.0) * whole)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for lock in (learner.home / ".git").rglob(
            "*.lock"
        ):  # git says that these are to be removed
            lock.unlink()
        assert edited.read_bytes() == mine
        for key in keys:
            assert learner.file("exercises", key).read_bytes() in versions[key]
    git(learner, "fsck", "--no-dangling")
    status, said = learner.says("update")
    assert status == 0, said
    is_the_kit(kit, learner, "demo/softmax")


STUB = b'''"""Lesson."""

SIDES = 2


def given(x):
    return x


class Model:
    """A model."""

    def forward(self, x: int) -> int:
        """Doc."""
        # TODO: write.
        raise NotImplementedError("Model.forward")


def task(x):
    """Doc."""
    # TODO: write.
    raise NotImplementedError("task")
'''


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (STUB, ""),
        (STUB.replace(b'raise NotImplementedError("task")', b"return x"), ""),
        (STUB.replace(b"SIDES = 2", b"import math\n\n\ndef helper(): ...\n\n\nSIDES = 2"), ""),
        (STUB.replace(b"return x", b"return 2 * x"), "other words for given"),
        (STUB.replace(b"Lesson.", b"A lesson."), "other words for the lesson"),
        (STUB.replace(b"SIDES = 2", b"SIDES = 3"), "other words for SIDES"),
        (STUB.replace(b"x: int", b"x: float"), "other words for Model.forward"),
        (STUB.replace(b"def task(x)", b"def mask(x)"), "new: task"),
        (STUB.replace(b"def task(x)", b"def task(x"), "changed; your file is no Python"),
    ],
)
def test_what_a_stub_says_otherwise(own: bytes, said: str) -> None:
    """A written body, an import and a helper are no difference; words and signatures are."""
    assert differences(STUB, own).startswith(said)
    assert bool(differences(STUB, own)) == bool(said)
