"""The gate from end to end on this machine's processor: a child measures plain torch functions, by
the host's clock, and everything that is made of its numbers is made.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperlings.lanes.gate import evidence, process
from paperlings.lanes.gate.child import Job
from paperlings.lanes.gate.journal import LINE, MOST, WORDS, Journal
from paperlings.lanes.gate.results import TODO, Report, Result
from paperlings.lanes.gate.statistics import FAIL, PASS, UNDECIDED, Ratio
from paperlings.sealed import workshop

NAMED = {"machine": {"gpu": "x"}, "contests": [["one", "f"], ["two", "g"]]}
PLAIN = Result(
    name="one",
    task="f",
    verdict=PASS,
    ratios={"eager": Ratio(2.0, 1.9, 2.1)},
    of_roof=Ratio(0.5, 0.4, 0.6),
    bytes=8,
    flops=8,
    roofs={"copy": 1e12, "read": 1e12, "matmul": 1e14},
    peak={"candidate": 0},
    samples={"candidate": [1.0, 2.0]},
).plain()
# what no contest's result can be
CHANGES: list[dict[str, Any]] = [
    {"name": "three"},
    {"name": "two"},
    {"task": "g"},
    {"verdict": "SPLENDID"},
    {"why": 3},
    {"why": "x" * (WORDS + 1)},
    {"bytes": -1},
    {"bytes": True},
    {"bytes": 1 << 63},
    {"flops": 1.5},
    {"of_roof": {"median": 1.0}},
    {"of_roof": "all of it"},
    {"ratios": {"eager": {"median": 0.0, "low": 0.0, "high": 0.0}}},
    {"ratios": {"eager": None}},
    {"roofs": {"copy": 1e12}},
    {"roofs": []},
    {"samples": {"candidate": []}},
    {"samples": {"eager": [1.0]}},
    {"samples": {"candidate": [float("inf")]}},
    {"samples": {"candidate": [float("nan")]}},
    {"samples": {"candidate": [-1.0]}},
    {"samples": {"candidate": ["1"]}},
    {"left_out": {"x": ["y"]}},
    {"clocks": {}},
]
KERNEL = '''"""Twice and one more, in plain torch, where no kernel can be launched."""

from torch import Tensor


def double(x: Tensor) -> Tensor:
    """2 x + 1: (n,) -> (n,)."""
    # Task: one line.
    return 2 * x + 1
'''
KNOWN = """paper = "demo/softmax"

[hints]
double = ["one", "two", "three"]

[gate.plain]
vs = {"in three steps" = 0.2}
of_roof = 0.001
"""
GATE = '''"""What the gate measures of `scale`."""

import torch

from paperlings.lanes.contest import Contest


def inputs(n):
    return lambda generator, device: (torch.randn(n, generator=generator, device=device),)


def missing(x):
    raise ImportError("No module named 'missing'")


CONTESTS = [
    Contest(
        name="plain",
        task="double",
        inputs=inputs(1 << 18),
        truth=lambda x: 2 * x.double() + 1,
        eager=lambda x: 2 * x + 1,
        peers={"in three steps": lambda x: x + x + 1, "missing": missing},
        families={"one": inputs(1)},
        bytes=1 << 17,  # few: what a processor's cache holds moves faster than any copy
        flops=2 << 18,
        torch_may=("mul", "add"),
    )
]
'''
TEST = '''"""How scale is judged."""

import pytest


@pytest.mark.gate
def test_it_is_fast(impl, gate):
    """As fast as the kit's own."""
    gate(impl)
    impl.double


@pytest.mark.gate
def test_it_is_not_measured(gate):
    """Nothing is imported for this one."""
    gate(None, "plain")
'''
# the processor takes the place of the GPU that is not there
PROCESSOR = """
from paperlings import lanes
from paperlings.lanes.gate import replay
from paperlings.lanes.gate.replay import gate

lanes.why_not_gate = lambda: ""
replay.DEVICE, replay.SECONDS = "processor", 3.0
"""
COMMAND = """
import sys
from pathlib import Path

from paperlings import layout
from paperlings.lanes.gate import command

command.LEAST = 1.0
root, out = sys.argv[1:]
out = Path(out) if out else None
sys.exit(command.gates([], layout.HOME / root, out, 6.0, device="processor"))
"""
# the report of one submission, as JSON
MEASURE = """
import json, sys

from paperlings import layout
from paperlings.lanes.gate import process
from paperlings.sealed import workshop

root, sealed = sys.argv[1:]
process.GRACE, workshop.ROOM = 40.0, 1 << 26
rules = {"rounds": 15, "doublings": 0, "load": 0.05}
report = process.measure(
    "kernels/scale", layout.HOME / root, 2.0,
    device="processor", seed=5, rules=rules, sealed=bool(sealed),
)
print(json.dumps(report.plain()))
"""
# what it managed to do stands in the error that it raises
ATTACK = """
import contextlib, os, signal, socket, subprocess

found = []
def tried(what, attempt):
    try:
        attempt()
    except (OSError, ValueError):
        return
    found.append(what)

def connect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.connect(("192.0.2.1", 9))

tried("reads another submission", lambda: open("{other}").read())
tried("reads the tests", lambda: os.listdir("{home}/tests"))
tried("reads the kit's kernel", lambda: open("{home}/kernels/scale.py").read())
tried("reads accounts", lambda: open("/etc/passwd").read())
tried("writes into the house", lambda: open("{home}/paperlings/x", "w"))
tried("writes to the outside", lambda: open("{outside}/x", "w"))
tried("writes over itself", lambda: open(__file__, "w"))
tried("reaches a network", connect)
tried("becomes another", lambda: os.setuid(os.getuid() + 1))
with contextlib.suppress(OSError):
    os.kill(os.getppid(), signal.SIGKILL)  # which nobody has delivered to him
for place in ("self", os.getppid()):
    tried("reads a secret", lambda: open(f"/proc/{{place}}/environ").read().index("of-the-grader"))
if not os.fork():
    os.setsid()
    subprocess.Popen(["sleep", "{marker}"])
    signal.pause()
written = 0
try:
    with open("/tmp/full", "wb", 0) as file:
        while written < 1 << 28:
            written += file.write(bytes(1 << 20))
except OSError:
    pass
raise RuntimeError(f"it has found: {{found}} and has written {{written}}")
"""
# the line on which the judge is spoken to
FORGER = f"""
import json, os, socket, stat

PLAIN = {PLAIN | {"name": "plain", "task": "double"}}
open_ = [i for i in range(3, 99) if os.path.exists(f"/proc/self/fd/{{i}}")]
line = next(i for i in open_ if stat.S_ISSOCK(os.fstat(i).st_mode))

def say(**event):
    os.write(line, json.dumps(event).encode() + b"\\n")
"""
FORGERIES = {
    "passed": "say(result=PLAIN)\nsay(end=True)",
    "ended": "say(end=True)",
    "garbage": "os.write(line, bytes(range(256)))",
    "gigabyte": "while True:\n    os.write(line, b'{\"inside\": true}\\n' * 10_000)",
}
SEALED = """
from paperlings.lanes.gate import process
from paperlings.sealed import workshop

measure = process.measure


def told(*args, **kwargs):
    print("it was sealed" if kwargs["sealed"] else "it was open")
    return measure(*args, **kwargs)


process.measure = told
"""
needs = pytest.mark.skipif(not workshop._prefix(False), reason="no workshop holds here")


@pytest.fixture(scope="module")
def house(build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A house with one kernel, `scale`, whose stub is still to be written."""
    house = build(tmp_path_factory.mktemp("gate") / "house", "softmax")
    tests = house.home / "tests/papers/kernels"
    tests.mkdir(parents=True)
    (house.home / "kernels/scale.py").write_text(KERNEL)
    (house.home / "kernels/scale.toml").write_text(KNOWN)
    (tests / "gate_scale.py").write_text(GATE)
    (tests / "test_scale.py").write_text(TEST)
    (tests / "conftest.py").write_text(PROCESSOR)
    (house.home / "command.py").write_text(COMMAND)
    (house.home / "README.md").write_text(f"# Top\n\n{evidence.BEGIN}\nold\n{evidence.END}\n")
    assert house.says("stubs")[0] == 0
    return house


def gates(house: Any, root: str, out: Path | str = "") -> tuple[int, str]:
    """The exit status of the command and all it prints; it has six seconds."""
    done = house.run("command", root, str(out))
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def report(folder: Path) -> Result:
    (only,) = json.loads((folder / "gates.json").read_text())
    (result,) = Report.of(only).results
    return result


def submission(house: Any, body: str, name: str = "submission") -> str:
    """The name of a folder whose answer to `double` is `body`."""
    folder = house.home / name / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.py").write_text(KERNEL.replace("return 2 * x + 1", body))
    return name


def test_the_kits_own_kernel_is_measured_and_becomes_evidence(house: Any) -> None:
    """Samples, versions, ratios and verdicts go into a file of the device, the README and a
    picture; a peer that cannot run is left out, and the table says so.
    """
    status, said = gates(house, "solutions")
    assert status == 0, said
    assert max(map(len, said.splitlines())) <= 80, said
    result = report(house.home / "reports/solutions")
    assert result.verdict in (PASS, UNDECIDED), result.why  # the machine may be busy
    assert {"eager", "in three steps", "again"} <= result.ratios.keys()
    assert "missing is left out: ImportError: No module named 'missing'" in " ".join(said.split())
    assert (house.home / "reports/solutions/roofline.png").stat().st_size > 10_000
    (kept,) = evidence.load(house.home / "kernels/evidence")
    assert kept.machine["torch"]
    assert kept.results[0].samples.keys() == result.samples.keys()
    readme = (house.home / "README.md").read_text()
    assert "| scale: plain | processor |" in readme
    assert readme.startswith("# Top")
    assert "of an earlier version" not in readme


def test_a_stub_is_todo_and_a_folder_of_ones_own_takes_everything(
    house: Any, tmp_path: Path
) -> None:
    """Nothing is written into the house when the reports are asked for elsewhere."""
    before = sorted(house.home.rglob("*.json"))
    status, said = gates(house, "exercises", tmp_path / "out")
    assert status == 0, said
    assert report(tmp_path / "out").verdict == TODO
    assert sorted(house.home.rglob("*.json")) == before


def test_a_candidate_that_ends_the_process_fails(house: Any, tmp_path: Path) -> None:
    """Whoever ends the process has failed the contest in which he did."""
    status, said = gates(house, submission(house, "import os; os._exit(3)"), tmp_path)
    assert status == 1, said
    result = report(tmp_path)
    assert result.verdict == FAIL
    assert result.why == "in the candidate, the process ended by itself (exit status 3)"


def test_what_a_journal_does_not_reach_is_undecided() -> None:
    """A hanging candidate fails; what came after it, and what hangs without it, is not decided."""
    for inside, verdict in ((True, FAIL), (False, UNDECIDED)):
        journal = heard(NAMED, {"inside": inside}, '{"cut sh')
        found = Report("kernels/x", "x.py", "0", "today", 0)
        process._conclude(found, journal, "what it said last", "it hangs")
        assert [r.verdict for r in found.results] == [verdict, UNDECIDED]
        assert all("it hangs" in r.why for r in found.results)
        assert found.trouble == ("" if inside else "what it said last")


def test_a_child_that_takes_too_long_is_ended() -> None:
    """With everything that it has started."""
    job = Job("kernels/none", ".", "processor", 1.0, 0, {})
    journal, _, ended = process._run([], dict(os.environ), job, 0.1)
    assert ended == "it did not come to an end within 0 s"
    assert journal == Journal()


def test_what_a_child_leaves_running_holds_nobody_up() -> None:
    """Who has left its session and keeps its output open is not waited for."""
    job = Job("kernels/none", ".", "processor", 1.0, 0, {})
    began = time.monotonic()
    leaving = ["sh", "-c", "setsid sleep 20 & echo gone; exit 3"]
    _, printed, ended = process._run(leaving, dict(os.environ), job, 60.0)
    assert (printed, ended) == ("gone\n", "the process ended by itself (exit status 3)")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[" * 100_000,
        "9" * 10_000,
        '"' + " " * (LINE + 1) + '"',
        {"inside": 1},
        {"end": False},
        {"end": True},  # before all was said
        {"end": True, "inside": False},
        NAMED,  # again
        *({"result": PLAIN | change} for change in CHANGES),
        {"result": {name: PLAIN[name] for name in PLAIN if name != "why"}},
        {"result": PLAIN | {"more": 1}},
        {"result": [PLAIN]},
    ],
    ids=str,
)
def test_what_the_judge_never_says_fails_every_contest(line: Any) -> None:
    """Also those that seemed passed, and nothing that follows is heard."""
    first, second = {"result": PLAIN}, {"result": PLAIN | {"name": "two", "task": "g"}}
    before = [NAMED, {"inside": True}]
    if line == {"end": True}:
        first = second = {"inside": False}
    journal = heard(*before, line, first, second, {"end": True})
    assert journal.forged
    found = Report("kernels/x", "x.py", "0", "today", 0)
    process._conclude(found, journal, "", "")
    assert [(r.name, r.verdict) for r in found.results] == [("one", FAIL), ("two", FAIL)]
    assert not found.trouble


def test_what_the_judge_says_is_heard_as_it_was_said() -> None:
    """And what a terminal would obey is no longer in it."""
    second = {"result": PLAIN | {"name": "two", "task": "g", "why": "\x1b[2Jgone"}}
    journal = heard(NAMED, {"inside": True}, {"result": PLAIN}, second, {"end": True})
    assert journal.done
    assert not journal.forged
    assert journal.results[0] == Result.of(PLAIN)
    assert journal.results[1].why == "?[2Jgone"
    assert Journal.of(b"\n" * (MOST + 1)).forged


@needs
def test_sealed_the_verdicts_are_the_same(house: Any, said: Callable[..., Any]) -> None:
    """An honest candidate, a wrong one, a stub, and those that end the process."""
    bodies = {
        "honest": "return 2 * x + 1",
        "wrong": "return 2 * x + 1.5",
        "stub": 'raise NotImplementedError("double")',
        "crashed": "import os; os.kill(os.getpid(), 11)",
    }
    roots = [submission(house, body, name) for name, body in bodies.items()]
    (house.home / "measure.py").write_text(MEASURE)
    for root in roots:
        sealed, open_ = (
            Report.of(said(house.home, house.home / "measure.py", root, how, seconds=120))
            for how in ("sealed", "")
        )
        assert sealed.machine == open_.machine
        assert (sealed.source, sealed.impl, sealed.seed) == (open_.source, open_.impl, open_.seed)
        (mine,), (theirs,) = sealed.results, open_.results
        assert mine.ratios.keys() == theirs.ratios.keys()
        if root == "honest":  # the machine may be busy
            assert {mine.verdict, theirs.verdict} <= {PASS, UNDECIDED}, mine.why + theirs.why
        else:
            assert (mine.verdict, mine.why) == (theirs.verdict, theirs.why)


@needs
def test_sealed_a_submission_finds_nothing_and_harms_nothing(
    house: Any, said: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither files, nor a network, nor secrets, nor others; its /tmp is its own and is bounded;
    and what it leaves behind is gone when it has been judged.
    """
    monkeypatch.setenv("GRADER_TOKEN", "of-the-grader")
    marker = f"{random.randrange(10**8, 10**9)}.5"
    (house.home / "measure.py").write_text(MEASURE)
    other = house.home / submission(house, "return 2 * x + 1", "other") / "kernels/scale.py"
    root = house.home / submission(house, "return 2 * x + 1", "attack")
    attack = ATTACK.format(other=other, outside=tmp_path, home=house.home, marker=marker)
    (root / "kernels/scale.py").write_text(attack)
    found = Report.of(said(house.home, house.home / "measure.py", "attack", "sealed", seconds=120))
    (result,) = found.results
    assert result.verdict == FAIL
    assert "it has found: [] and has written 67" in result.why
    assert [path.name for path in tmp_path.iterdir()] == []
    for _ in range(100):
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if holds(path, marker)]
        if not left:
            break
        time.sleep(0.05)
    assert not left


@needs
@pytest.mark.parametrize("attack", FORGERIES)
def test_sealed_what_is_forged_is_a_verdict_on_the_forger(
    house: Any, said: Callable[..., Any], attack: str
) -> None:
    """Whoever shares the process can say of himself what the judge would, also that he has passed,
    and that is all: everything else that he says fails him.
    """
    (house.home / "measure.py").write_text(MEASURE)
    root = submission(house, "return 2 * x + 1", attack)
    file = house.home / root / "kernels/scale.py"
    file.write_text(FORGER + FORGERIES[attack] + "\nos._exit(0)\n")
    found = Report.of(said(house.home, house.home / "measure.py", root, "sealed", seconds=120))
    (result,) = found.results
    assert (result.name, result.task) == ("plain", "double")
    if attack == "passed":
        assert result.verdict == PASS, result.why
    else:
        assert (result.verdict, result.question) == (FAIL, process.FORGED), result.why
    assert found.machine["gpu"] == "processor"
    assert not found.trouble


@needs
def test_sealed_pytest_measures_sealed(house: Any, tmp_path: Path) -> None:
    """And where there is no workshop, the gate is unverified."""
    test = "tests/papers/kernels/test_scale.py"
    root = submission(house, "return 2 * x + 1", "handed")
    for closed, expected in (("", "it was sealed"), ("workshop._prefix = lambda gpu: []", "work")):
        (house.home / "tests/papers/kernels/conftest.py").write_text(f"{PROCESSOR}{SEALED}{closed}")
        done = house.run("pytest", test, "--impl", root, "--sealed", "-k", "not_measured", "-s")
        assert expected in done.stdout, done.stdout + done.stderr
    (house.home / "tests/papers/kernels/conftest.py").write_text(PROCESSOR)
    assert f"unverified: {workshop.WHY_NOT}" in " ".join(done.stdout.split())


def heard(*events: Any) -> Journal:
    """The journal in which these stand, one a line, in JSON or as they are."""
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    cut = lines[-1].startswith('{"cut')
    return Journal.of(("\n".join(lines) + "\n" * (not cut)).encode())


def holds(path: Path, marker: str) -> bool:
    try:
        return marker in path.read_text()
    except OSError:
        return False


def test_pytest_stores_the_samples_as_its_own(house: Any, tmp_path: Path) -> None:
    """pytest-benchmark writes exactly the samples that the gate has measured, with what else it
    found; switched off, missing or under xdist the gate is unverified.
    """
    test = "tests/papers/kernels/test_scale.py"
    stored = tmp_path / "stored.json"
    done = house.run(
        "pytest", test, "--impl", "solutions", "-k", "fast", f"--benchmark-json={stored}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(stored.read_text())["benchmarks"]
    extra = benchmark["extra_info"]
    assert extra["contest"] == "plain"
    numbers = extra["contests"]["plain"]
    assert numbers["ratios"].keys() >= {"eager", "in three steps"}
    assert numbers["GB/s"] == pytest.approx(
        (1 << 17) / benchmark["stats"]["median"] / 1e9, rel=0.05
    )
    assert len(benchmark["stats"]["data"]) >= 15
    for options, reason in (
        (["--benchmark-disable"], "benchmarks are disabled"),
        (["-p", "no:benchmark"], "pytest-benchmark is not loaded"),
        (["-n", "1"], "benchmarks are disabled"),
    ):
        done = house.run("pytest", test, "-k", "not_measured", *options)
        said = " ".join(done.stdout.split())
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"unverified: not measured: {reason}" in said, done.stdout + done.stderr


def test_without_a_gpu_the_gates_are_unverified(house: Any) -> None:
    """Where there is nothing to measure on, nothing is failed and nothing is passed."""
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    status, said = house.says("gates")
    assert status == 0
    assert "unverified: no NVIDIA GPU" in said
    assert house.says("gates", "nothing")[0] == 2
