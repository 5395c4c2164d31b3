"""The pytest plugin: its options, the profiles of hypothesis, and the judge of the session.

It judges the files in tests/papers and leaves all others alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paperlings import layout
from paperlings.fixtures import figure, impl, reference
from paperlings.judge import NAME, Judge
from paperlings.lanes.gate.replay import gate

__all__ = ["figure", "gate", "impl", "reference"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("paperlings")
    group.addoption(
        "--impl", default=None, metavar="DIR", help="judge the code in DIR instead of exercises/"
    )
    group.addoption(
        "--task", default=None, metavar="NAME", help="run all tests of one task, and no others"
    )
    group.addoption(
        "--sealed", action="store_true", help="run the code under test in a process of its own"
    )
    group.addoption(
        "--reports", default=None, metavar="DIR", help="where figures go (default: reports/)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for mark in (
        "claim(seconds=20): the paper's headline in miniature",
        "compiled: what the compiler made of a kernel",
        "gate: how fast a kernel is, measured on a GPU",
    ):
        config.addinivalue_line("markers", mark)
    root = config.getoption("--impl")
    path = layout.folder(root, config.invocation_params.dir) if root else layout.EXERCISES
    if path is None:
        raise pytest.UsageError(f"--impl {root}: no such folder")
    if config.getoption("--sealed"):
        from paperlings.sealed import nursery

        nursery.shared()  # seconds, which no test should be charged with
    config.pluginmanager.register(Judge(config, path), NAME)
    config.args = [_test_of(arg, config) for arg in config.args]
    _register_profiles(config)
    _draw_from_the_test_alone()


def _test_of(argument: str, config: pytest.Config) -> str:
    """exercises/alignment/dpo.py on the command line means its tests,
    and exercises/alignment those of the track.
    """
    path = Path(config.invocation_params.dir, argument).resolve()
    if not path.is_relative_to(layout.EXERCISES):
        return argument
    inside = path.relative_to(layout.EXERCISES)
    if path.suffix == ".py" and len(inside.parts) == 2:
        return str(layout.tests(inside.with_suffix("").as_posix()))
    return str(layout.TESTS / inside)


def _register_profiles(config: pytest.Config) -> None:
    from hypothesis import HealthCheck, Phase, settings

    common: dict[str, Any] = {
        "deadline": None,
        "database": None,
        "derandomize": True,
        "max_examples": 20,
        "print_blob": False,
        "report_multiple_bugs": False,
        "suppress_health_check": [HealthCheck.too_slow],
    }
    found = (Phase.explicit, Phase.generate)
    # without Phase.explain, which takes longer than all the others and says nothing that is shown
    settings.register_profile("learn", **common, phases=(*found, Phase.shrink))
    settings.register_profile("grade", **common, phases=found)
    settings.register_profile("explore", **{**common, "derandomize": False, "max_examples": 200})
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("learn")


def _draw_from_the_test_alone() -> None:
    """Keep hypothesis from drawing numbers that stand in the files of whatever modules are loaded:
    the cases would depend on what else is judged, on whether it is sealed, and on the submission.
    """
    from hypothesis.internal.conjecture import providers

    if hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants  # which stays empty
