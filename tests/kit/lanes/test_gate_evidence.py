"""What is written down of what the gate has measured, and what the contests themselves promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlings import layout, loading
from paperlings.lanes.contest import Contest
from paperlings.lanes.gate import evidence, figures
from paperlings.lanes.gate.child import bars_of, contests_file
from paperlings.lanes.gate.devices import Processor
from paperlings.lanes.gate.results import COMPILED, EAGER, ROOF, Report, Result, fingerprint
from paperlings.lanes.gate.statistics import PASS, Ratio
from paperlings.lanes.gate.values import Arguments, wrong

MEASURED = [
    key for key in filter(layout.is_kernel, layout.written()) if contests_file(key).exists()
]
SMALL = 1 << 18  # elements of a family that a processor goes through in no time


def report(kernel: str = "kernels/one", gpu: str = "NVIDIA H200", **changes: Any) -> Report:
    """A kernel of 1 ms, eager torch of 3 ms."""
    ratios = {"again": Ratio(1, 1, 1), EAGER: Ratio(3, 2.9, 3.1), "other": Ratio(1.2, 1.1, 1.3)}
    result = Result(
        name="large",
        task="one",
        verdict=PASS,
        ratios=ratios,
        of_roof=Ratio(0.88, 0.87, 0.89),
        bytes=4 * 10**9,
        flops=8 * 10**9,
        roofs={"copy": 4.3e12, "read": 4.4e12, "matmul": 7.8e14},
        samples={"candidate": [990.0, 1000.0, 1010.0]},
        **changes,
    )
    machine = {"gpu": gpu, "torch": "2.11", "triton": "3.6", "driver": "580"}
    return Report(kernel, "kernels/one.py", "0", "2026-11-21", 7, machine, [result])


def test_reports_of_one_gpu_share_a_file_and_replace_each_other(tmp_path: Path) -> None:
    """What was measured before of other kernels stays; another GPU has another file."""
    first, second = report(), report("kernels/two")
    path = evidence.save([first, second], tmp_path)
    assert path.name == "nvidia-h200.json"
    again = report()
    again.seed = 8
    evidence.save([again], tmp_path)
    assert evidence.load(tmp_path) == [again, second]
    evidence.save([report(gpu="NVIDIA GeForce RTX 4090")], tmp_path)
    assert len(evidence.load(tmp_path)) == 3


def test_the_readmes_table_is_made_of_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the measured is said, and a kernel that has changed since is said to have changed."""
    assert evidence.readme(tmp_path) == evidence.NOTHING
    evidence.save([report()], tmp_path)
    row = "| one: large | NVIDIA H200 | 1 ms | 3.00 | - | 1.20 (other) | 88% | PASS"
    assert f"{row} (of an earlier version) |" in evidence.readme(tmp_path)
    assert "NVIDIA H200: torch 2.11, triton 3.6, driver 580, 2026-11-21." in evidence.readme(
        tmp_path
    )
    monkeypatch.setattr(layout, "HOME", tmp_path)
    source = layout.source(layout.SOLUTIONS, "kernels/one")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("pass")
    current = report()
    current.source = fingerprint(source)
    evidence.save([current], tmp_path)
    assert f"{row} |" in evidence.readme(tmp_path)


def test_only_what_lies_between_the_marks_is_written(tmp_path: Path) -> None:
    """A README without a place for the table is left alone."""
    readme = tmp_path / "README.md"
    readme.write_text("# Top\n")
    assert not evidence.write_readme(readme, tmp_path)
    assert readme.read_text() == "# Top\n"
    readme.write_text(f"# Top\n{evidence.BEGIN}\nold\n{evidence.END}\nbelow\n")
    assert evidence.write_readme(readme, tmp_path)
    expected = f"# Top\n{evidence.BEGIN}\n{evidence.NOTHING}\n{evidence.END}\nbelow\n"
    assert readme.read_text() == expected


def test_the_readme_says_what_was_measured() -> None:
    """The README's table is that of the committed evidence: `paperlings gates` writes it."""
    text = evidence.README.read_text(encoding="utf-8")
    between = text.partition(evidence.BEGIN)[2].partition(evidence.END)[0]
    assert between.strip() == evidence.readme(), "run `python -m paperlings gates --impl solutions`"


def test_the_roofline_shows_contests_whose_work_is_known(tmp_path: Path) -> None:
    """Without both bytes and FLOPs there is no place for a contest in the picture."""
    unknown = report()
    unknown.results[0].flops = 0
    assert not figures.roofline([unknown], tmp_path / "roofline.png")
    assert figures.roofline([unknown, report("kernels/two")], tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def contests(key: str) -> list[Contest]:
    return loading.load(contests_file(key), "contests." + key).CONTESTS  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", MEASURED)
def test_every_bar_is_about_a_contest_and_somebody_in_it(key: str) -> None:
    """The bars of a kernel's .toml name contests, and who runs in them."""
    known = {contest.name: contest for contest in contests(key)}
    assert len(known) == len(contests(key)), "two contests have one name"
    for name, bars in bars_of(key).items():
        assert bars.keys() <= {EAGER, COMPILED, ROOF, *known[name].peers}
        assert ROOF not in bars or (
            known[name].bytes if known[name].roof == "copy" else known[name].flops
        )


@pytest.mark.parametrize("key", MEASURED)
def test_the_families_of_a_contest_can_be_judged(key: str) -> None:
    """On a processor: fresh values in place, a truth in float64, and eager torch of its shapes."""

    for contest in contests(key):
        for family, inputs in contest.families.items():
            shown = inputs(torch.Generator(), torch.device("meta"))
            if sum(x.numel() for x in shown if isinstance(x, Tensor)) > SMALL:
                continue
            arguments = Arguments(inputs, Processor(), 1)
            arguments.refill(2)
            assert not arguments.changed(), f"{contest.name}, {family}: the seed says it all"
            eager = contest.eager(*arguments.args, **contest.kwargs)
            truth = contest.truth(*arguments.args, **contest.kwargs)
            assert not wrong(eager, truth, eager), f"{contest.name}, {family}"
