"""The gate from end to end on this machine's processor: a child measures plain torch functions, by
the host's clock, and everything that is made of its numbers is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paperlings.lanes.gate import evidence, process
from paperlings.lanes.gate.child import Job
from paperlings.lanes.gate.results import TODO, Report, Result
from paperlings.lanes.gate.statistics import FAIL, PASS, UNDECIDED

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


def submission(house: Any, body: str) -> str:
    """The name of a folder whose answer to `double` is `body`."""
    folder = house.home / "submission/kernels"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.py").write_text(KERNEL.replace("return 2 * x + 1", body))
    return "submission"


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


def test_what_a_journal_does_not_reach_is_undecided(tmp_path: Path) -> None:
    """A hanging candidate fails; what came after it, and what hangs without it, is not decided."""
    named = {"machine": {"gpu": "x"}, "contests": [["one", "f"], ["two", "g"]]}
    for inside, verdict in ((True, FAIL), (False, UNDECIDED)):
        lines = [json.dumps(event) for event in (named, {"inside": inside})]
        (tmp_path / "journal").write_text("\n".join([*lines, '{"cut sh']))
        (tmp_path / "output").write_text("what it said last")
        found = Report("kernels/x", "x.py", "0", "today", 0)
        process._read(found, tmp_path, "it did not come to an end within 9 s")
        assert [r.verdict for r in found.results] == [verdict, UNDECIDED]
        assert all("it did not come to an end within 9 s" in r.why for r in found.results)
        assert found.trouble == ("" if inside else "what it said last")


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """With everything that it has started."""
    Job("kernels/none", ".", "processor", 1.0, 0, {}).write(tmp_path / "job.json")
    assert process._run(tmp_path, 0.1) == "it did not come to an end within 0 s"


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
