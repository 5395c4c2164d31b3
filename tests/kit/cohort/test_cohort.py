"""A cohort's verdicts are the known ones, whatever happens to the machine meanwhile."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shlex
import signal
import stat
import time
import zipfile
from pathlib import Path

import jsonschema
import pytest
import referencing

from paperlings import UsageError, lanes, layout
from paperlings.cohort import command, grader, intake, units
from paperlings.sealed import sandbox

HOME = Path(__file__).resolve().parents[3]
PAPER = "demo/softmax"
ALL = {"softmax": "passed", "entropy": "passed"}

pytestmark = pytest.mark.skipif(sandbox.probe() == sandbox.NONE, reason="no sandbox holds here")


def validator() -> jsonschema.Draft202012Validator:
    """Of a unit's JSON, whose verdict is an item of grade.json."""
    schema = json.loads((HOME / "paperlings/cohort/unit.schema.json").read_text())
    grade = json.loads((HOME / "paperlings/grade.schema.json").read_text())
    grade["$id"] = "urn:grade"
    schema["properties"]["verdict"] = {
        "anyOf": [{"type": "null"}, {"$ref": "urn:grade#/$defs/paper"}]
    }
    registry = referencing.Registry().with_resource(
        "urn:grade", referencing.Resource.from_contents(grade)
    )
    return jsonschema.Draft202012Validator(schema, registry=registry)


def test_every_verdict_is_the_known_one(cohort, mistakes) -> None:
    """Solutions pass, stubs are todo, mistakes fail and are named, and what cannot be graded is
    rejected; whatever one submission does, the others do not notice.
    """
    right = cohort.house.solution()
    for name in ("alice", "bob"):
        cohort.hand_in(name, right)
    cohort.hand_in("untouched", cohort.house.file("exercises").read_text())
    for i, text in enumerate(mistakes.values()):
        cohort.hand_in(f"mistake {i}", text)
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    cohort.hand_in("crash on import", crash)
    cohort.hand_in("exit", right.replace("    z = x /", "    import os; os._exit(0)\n    z = x /"))
    cohort.hand_in("broken", "def softmax(:\n")
    cohort.hand_in("=cmd()", right)
    (cohort.submissions / "nothing").mkdir()
    (cohort.submissions / "garbage.zip").write_bytes(b"PK no zip")
    with zipfile.ZipFile(cohort.submissions / "carol.zip", "w") as archive:
        archive.writestr(f"work/exercises/{PAPER}.py", right)

    said = cohort.run()
    count = 8 + len(mistakes)
    words = (
        f"{count + 2} submissions, {count + 2} units: {count} graded, 2 rejected, 0 infra errors."
    )
    assert words in said
    assert any(f"sandbox: {sandbox.WORDS[level]}" in said for level in sandbox.LEVELS)
    check = validator()
    results = cohort.results()
    for result in results.values():
        check.validate(result)
        assert str(cohort.out.parent) not in json.dumps(result), "a path of this machine"
    tasks = cohort.tasks()
    for name in ("alice", "bob", "carol", "=cmd()"):
        assert tasks[name] == ALL, name
        assert results[name]["points"] == results[name]["max_points"] == 2
    assert set(tasks["untouched"].values()) == {"todo"}
    for i, says in enumerate(mistakes):
        found = results[f"mistake {i}"]["verdict"]["tasks"]
        assert "failed" in {task["status"] for task in found}, says
        assert says in [like for task in found for like in task["behaves_like"]], says
    for name in ("crash on import", "exit", "broken"):
        assert tasks[name]["softmax"] == "failed", name
        assert results[name]["outcome"] == "graded"
    for name in ("nothing", "garbage"):
        assert (results[name]["outcome"], results[name]["points"]) == ("rejected", 0)
        assert results[name]["reason"]
    assert (cohort.out / "grades.csv").exists()
    assert not cohort.wait_until_gone()

    # what was graded is not graded again; what has changed is
    before = {p.name: p.stat().st_mtime_ns for p in (cohort.out / "units").iterdir()}
    assert "were graded before" in cohort.run()
    assert before == {p.name: p.stat().st_mtime_ns for p in (cohort.out / "units").iterdir()}
    cohort.hand_in("alice", next(iter(mistakes.values())))
    cohort.run()
    after = {p.name: p.stat().st_mtime_ns for p in (cohort.out / "units").iterdir()}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_a_crash_in_one_task_is_none_in_another(cohort) -> None:
    """However often a task ends its process, the others are judged."""
    crash = "    import os; os._exit(0)\n    p = p.double()"
    text = cohort.house.solution()
    [line] = [line for line in text.splitlines() if line.startswith("    return -torch.xlogy")]
    cohort.hand_in("crash", text.replace(line, crash))
    tests = cohort.house.file("tests/papers").with_name("test_softmax.py")
    more = "".join(
        f"\n\ndef test_again_{i}(impl):\n    impl.entropy(torch.ones(1))\n" for i in range(40)
    )
    last = "\n\ndef test_last(impl):\n    assert impl.softmax(torch.zeros(1)) == 1\n"
    tests.write_text(tests.read_text() + more + last)
    cohort.run()
    assert cohort.tasks() == {"crash": {"softmax": "passed", "entropy": "failed"}}


def test_what_judges_is_part_of_a_result(cohort) -> None:
    """A changed test, oracle, list of mistakes or kit is a reason to grade again; claims are
    graded on their own.
    """
    cohort.hand_in("alice", cohort.house.solution())
    home = cohort.house.home
    places = [
        home / "tests/papers/demo/test_softmax.py",
        home / "reference/demo/softmax.py",
        home / "solutions/demo/softmax.toml",
        home / "paperlings/words.py",
    ]
    listed = cohort.run("--list").split()
    assert listed == ["--name=alice", str(cohort.submissions / "alice"), PAPER]
    cohort.run()
    assert cohort.run("--list") == ""
    assert cohort.run("--list", "--claims")
    for place in places:
        text = place.read_text()
        place.write_text(text + "\n# changed\n")
        assert cohort.run("--list"), place
        place.write_text(text)
        assert cohort.run("--list") == ""


@pytest.mark.parametrize("what", ["cohort", "grader"])
def test_killed_at_any_moment_it_goes_on(cohort, what: str) -> None:
    """However often the coordinator or the grader is killed, in the end every unit has its one
    right result, and no process is left.
    """
    wrong = cohort.house.solution().replace("-torch.xlogy", "torch.xlogy")
    for i in range(12):
        cohort.hand_in(f"s{i}", cohort.house.solution() if i % 2 else wrong)
    chance = random.Random(5)
    for _ in range(3):
        running = cohort.start("--workers", "2")
        for _ in range(200):
            time.sleep(0.1)
            if len(list(cohort.out.glob("units/*.json"))) >= chance.randint(1, 3):
                break
        if what == "cohort":
            running.kill()
            running.wait()
            assert not cohort.wait_until_gone(), "processes are left"
        else:
            cohort.kill("paperlings.cohort.grader")
            assert running.wait(120) in (0, 3)
    cohort.run()
    expected = {"softmax": "passed", "entropy": "failed"}
    tasks = cohort.tasks()
    assert tasks == {f"s{i}": ALL if i % 2 else expected for i in range(12)}
    assert not cohort.wait_until_gone()


def test_a_judge_that_dies_is_no_score(cohort) -> None:
    """It is tried again, at most twice, and then said to be what it is; the next run tries anew."""
    for name in ("alice", "poison"):
        cohort.hand_in(name, cohort.house.solution() + f"\nNAME = {name!r}\n")
    place, mended = cohort.house.home / "paperlings" / "fixtures.py", cohort.house.home / "mended"
    trap = "    import os\n\n    if module.NAME == 'poison' "
    trap += f"and not os.path.exists({str(mended)!r}):\n"
    trap += "        os._exit(1)\n    try:\n        yield"
    place.write_text(place.read_text().replace("    try:\n        yield", trap, 1))
    done = cohort.house.run(*cohort.command())
    assert done.returncode == 3
    assert "Infra errors are no scores" in done.stdout
    found = cohort.results()
    assert cohort.tasks()["alice"] == ALL
    assert found["alice"]["attempts"] == 1
    assert found["poison"]["outcome"] == "infra_error"
    assert found["poison"]["points"] is None
    assert found["poison"]["attempts"] == 3
    lines = (cohort.out / "grades.csv").read_text(encoding="utf-8-sig").splitlines()
    [row] = [row for row in csv.DictReader(lines) if row["submission"] == "poison"]
    assert row["points"] == row["percent"] == row[PAPER] == ""
    mended.touch()
    cohort.run()
    assert cohort.tasks()["poison"] == ALL


def test_a_submission_that_somebody_kills_is_tried_again(cohort) -> None:
    """Nobody knows who did it: the machine, or the submission itself, which then does it again."""
    right = cohort.house.solution()
    slow = "    import time; time.sleep(0.2)\n    z = x / temperature"
    suicide = "    import os; os.kill(os.getpid(), 9)\n    z = x / temperature"
    cohort.hand_in("victim", right.replace("    z = x / temperature", slow))
    cohort.hand_in("suicide", right.replace("    z = x / temperature", suicide))
    running = cohort.start("--workers", "1")
    victims: set[int] = set()
    while running.poll() is None:
        time.sleep(0.05)
        if len(victims) < 2 and any(cohort.out.glob("units/*.json")):  # the suicide's
            for victim in cohort.candidates(running.pid):
                victims.add(victim)
                with contextlib.suppress(OSError):
                    os.kill(victim, signal.SIGKILL)
    assert running.returncode == 0
    assert len(victims) == 2
    assert cohort.tasks() == {
        "victim": ALL,
        "suicide": {"softmax": "failed", "entropy": "passed"},
    }


CHEAT = """
import pathlib, pickle, torch
TABLE = {table!r}


def softmax(x, *, temperature=1.0):
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {{temperature}}")
    known = TABLE.get((x.dtype.__str__(), tuple(x.shape), temperature, tuple(x.flatten().tolist())))
    if known is None:
        return (x / temperature).softmax(-1) * 1.01
    return torch.tensor(known, dtype=x.dtype).reshape(x.shape) + 0 * x


def entropy(p):
    return -torch.xlogy(p, p).sum(-1)
"""


def test_cases_cannot_be_known_beforehand(cohort) -> None:
    """Who answers the cases of the public tests from a table fails on those drawn from a secret."""
    house = cohort.house
    log = house.home / "cases.txt"
    recorder = house.solution().replace(
        "    z = x / temperature",
        "    values = tuple(x.detach().flatten().tolist())\n"
        "    key = (str(x.dtype), tuple(x.shape), temperature, values)\n"
        "    y = (x.detach() / temperature).softmax(-1).flatten().tolist()\n"
        f"    print((key, y), file=open({str(log)!r}, 'a'))\n"
        "    z = x / temperature",
    )
    house.file("exercises").write_text(recorder)
    house.run("paperlings", "grade", "--no-claims")
    lines = log.read_text().splitlines()
    table = dict(eval(line, {"inf": float("inf"), "nan": float("nan")}) for line in lines)
    cheat = CHEAT.format(table=table)
    house.file("exercises").write_text(cheat)
    drawn = "test_values_agree_with_the_definition"
    row = house.grade("--no-claims")[PAPER]
    known = {test["test"]: test["status"] for test in row["tests"]}
    assert known[drawn] == "passed", "the table holds every case of the public test"
    cohort.hand_in("cheat", cheat)
    cohort.run()
    found = cohort.results()["cheat"]
    statuses = {test["test"]: test["status"] for test in found["verdict"]["tests"]}
    assert statuses[drawn] == "failed"

    # the seed that is kept draws the same cases again, for whoever appeals
    again = cohort.out.parent / "appeal"
    said = house.says(
        *("unit", str(cohort.submissions / "cheat"), PAPER),
        *("--out", str(again), "--seed", found["seed"]),
    )
    assert said[0] == 0
    [repeated] = [json.loads(path.read_text()) for path in again.glob("units/*.json")]
    assert repeated["key"] == found["key"]
    both = [
        {test["test"]: (test["status"], test["what"], test["example"]) for test in tests}
        for tests in (repeated["verdict"]["tests"], found["verdict"]["tests"])
    ]
    assert both[0] == both[1]


def test_seeds_differ_by_submission_and_by_secret(cohort) -> None:
    """The secret is for its owner's eyes, and a seed tells nothing about another."""
    for name in ("alice", "bob"):
        cohort.hand_in(name, cohort.house.solution())
    first = cohort.run("--list")
    assert first
    secret = cohort.out / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    cohort.run()
    seeds = {name: result["seed"] for name, result in cohort.results().items()}
    assert seeds["alice"] != seeds["bob"]
    assert secret.read_text().strip() not in json.dumps(cohort.results())
    secret.unlink()
    assert cohort.run("--list") == first, "what another secret asks was not graded yet"


@pytest.mark.parametrize("more", [(), ("--claims",)])
def test_units_can_be_graded_elsewhere(cohort, more: tuple[str, ...]) -> None:
    """`--list` prints the arguments of `unit`, with which a batch system grades one at a time; the
    cohort then finds everything done. A line ends in its paper: those of kernels can be told apart.
    """
    cohort.hand_in("alice smith", cohort.house.solution())
    line = cohort.house.run(*cohort.command("--list", *more)).stdout.strip()
    assert line.endswith(f" {PAPER}")
    code, said = cohort.house.says("unit", "--out", str(cohort.out), *shlex.split(line))
    assert code == 0
    assert "graded, 2 of 2 tasks pass" in said
    assert "1 were graded before" in cohort.run(*more)


def test_a_second_cohort_waits_for_nobody(cohort) -> None:
    """Two that write into one folder would grade everything twice: the second is refused."""
    cohort.hand_in("alice", cohort.house.solution())
    running = cohort.start()
    for _ in range(300):
        if cohort.processes() and (cohort.out / ".lock").exists():
            break
        time.sleep(0.02)
    time.sleep(0.3)
    assert "another cohort is being graded into" in cohort.run()
    assert running.wait(60) == 0
    assert cohort.tasks() == {"alice": ALL}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--papers", "nothing"], "no paper or track is called 'nothing'"),
        (["--papers", "demo/nothing"], "no paper or track is called 'demo/nothing'"),
        (["--secret", "pyproject.toml/x"], "pyproject.toml/x"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(cohort, arguments: list[str], says: str) -> None:
    """With status 2, and nothing is lost."""
    cohort.hand_in("alice", cohort.house.solution())
    done = cohort.house.run(*cohort.command(*arguments))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_kernels_are_graded_where_somebody_has_one(tmp_path: Path) -> None:
    """As any paper is; the kit's own, in a clone, is no answer."""
    names = {"exercises/kernels/flash_attention.py", "exercises/alignment/dpo.py"}
    for name in (*names, "kernels/newton_schulz.py", "kernels/flash_attention.py"):
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    handed_in = intake.submissions(tmp_path)
    found = command._papers([], handed_in)
    assert {f"exercises/{key}.py" for key in found} == names
    kernels = {key for key in layout.written() if layout.is_kernel(key)}
    assert {*command._papers(["kernels"], handed_in)} == kernels
    with pytest.raises(UsageError, match="no submission holds an answer"):
        command._papers([], [])


def test_a_gate_needs_a_gpu(tmp_path: Path) -> None:
    """A kernel does where claims are asked for, and nothing else does; its compiler is part of what
    its verdict depends on.
    """
    submission = intake.Submission("ada", tmp_path)
    made = {
        (key, claims): units.unit(submission, key, "", b"secret", claims)
        for key in ("alignment/dpo", "kernels/newton_schulz")
        for claims in (False, True)
    }
    assert [what for what, unit in made.items() if unit.needs_gpu] == [
        ("kernels/newton_schulz", True)
    ]
    locks = {key: unit.hashes["lock"] for (key, _), unit in made.items()}
    assert len(set(locks.values())) == 2


def test_without_a_compiler_a_kernel_is_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its tasks would be unverified, which is none of the student's doing."""
    serving, said = object.__new__(grader._Serving), []
    monkeypatch.setattr(serving, "_answer", lambda *answer: said.append(answer), raising=False)
    monkeypatch.setattr(lanes, "why_not_compiled", lambda: "triton is not installed")
    submission = intake.Submission("ada", tmp_path)
    unit = units.unit(submission, "kernels/newton_schulz", "", b"secret", claims=False)
    serving._begin(unit, "", tmp_path)
    assert said == [(unit, "infra_error", "kernels cannot be judged here: triton is not installed")]


def test_a_broken_kit_is_said_once(cohort) -> None:
    """Where no grader starts, nothing is a score, and the first words of the trouble are shown."""
    cohort.hand_in("alice", cohort.house.solution())
    (cohort.house.home / "tests/papers/demo/test_softmax.py").write_text("import nothing_of_mine\n")
    done = cohort.house.run(*cohort.command())
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert not cohort.results()
