"""Judging the papers of one pytest session: verdicts, diagnosis,
and the one screen a failing paper prints.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from paperlings import diagnosis, expected, lanes, layout, loading, stubs, verdict, words
from paperlings.limits import TimeLimit, time_limit
from paperlings.outcomes import KitFault, Stuck, Unverified, Unwritten, Waiting
from paperlings.verdict import FAILED, PASSED, TODO, UNVERIFIED, Finding

NAME = "paperlings-judge"  # under which the plugin registers it
SECONDS = 10.0  # an ordinary test is stopped after so long
CLAIM_SECONDS = 20.0  # of CPU time that a claim may use; it is stopped at PATIENCE times that
PATIENCE = 5.0  # slow or busy machines
LANE_SECONDS = {lanes.COMPILED: 300.0, lanes.GATE: 600.0}
DIAGNOSED = 4  # failing tests of one task that are replayed through the known mistakes

PAPER = pytest.StashKey[str]()  # the key of the paper that an item judges
FAILURES = pytest.StashKey[
    list[tuple[dict[str, Any], BaseException]]
]()  # an item's failing examples
STATUS = pytest.StashKey[str]()  # of an item whose test has run


class Judge:
    """What the plugin knows during one session."""

    def __init__(self, config: pytest.Config, root: Path):
        self.config = config
        self.root = root
        reports = config.getoption("--reports")
        self.figures = (Path(reports) if reports else layout.reports(root)) / "figures"
        self.findings: dict[str, list[Finding]] = {}
        self.partial: set[str] = set()  # papers of which not every test was asked for
        # whether tests are selected, which the process that reports may not see otherwise
        self.selects = any(config.getoption(name) for name in ("keyword", "markexpr", "--task"))
        self.stuck: dict[tuple[str, str], str] = {}  # (paper, task) -> what stopped it
        self.diagnosed: dict[tuple[str, str], int] = {}
        self.diagnoses = True
        self.seed = ""
        self.log: str | None = None  # where findings are written, when a grader runs the session
        self.begun: set[str] = set()  # tests that an earlier process of the grader's began

    def take_over(self, root: Path, log: str, diagnoses: bool, seed: str = "") -> None:
        """Judge what lies under `root` for a grader, and write every finding to `log`.

        A test that the log names already is not begun again: an earlier process did.
        seed: of the cases that are drawn, in place of those that every run draws.
        """
        from paperlings.testing import seeding

        seeding.begin(seed)
        self.root, self.log, self.diagnoses, self.seed = root, log, diagnoses, seed
        for event in events(Path(log)):
            self.begun |= {event[word] for word in ("started", "test") if word in event}
            if "stuck" in event:
                test = expected.of(event["key"]).get(event["stuck"])
                for task in test.tasks if test else ():
                    self.stuck.setdefault((event["key"], task), f"{event['stuck']} {event['how']}")

    def is_to_run(self, item: pytest.Item, key: str, tasks: tuple[str, ...], claims: bool) -> bool:
        """Whether a grader asks for the item: of that paper, of those tasks if any,
        not begun before.
        """
        if item.stash.get(PAPER, "") != key:
            return False
        name = expected.base(key, item.name)
        test = expected.of(key).get(name)
        if name in self.begun:
            return False
        if test is None:
            return not tasks
        return (claims or not test.claim) and (not tasks or bool(set(test.tasks) & set(tasks)))

    # ---- collection

    def pytest_pycollect_makemodule(
        self, module_path: Path, parent: pytest.Collector
    ) -> pytest.Module | None:
        key = layout.tested_by(module_path)
        if key is None:
            return None
        if layout.is_kernel(key):
            lanes.switch_on_interpreter()
        module: pytest.Module = PaperModule.from_parent(parent, path=module_path)
        return module

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        examples = getattr(metafunc.module, "EXAMPLES", None)
        key = layout.tested_by(metafunc.definition.path)
        if key and examples and metafunc.function.__name__ in expected.conformance(key):
            metafunc.parametrize(("task", "example"), list(examples.items()), ids=list(examples))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            key = layout.tested_by(item.path)
            if key is None or not isinstance(item, pytest.Function):
                continue
            item.stash[PAPER] = key
            # the verdict says it in words; pytest's own traceback would cost more than the test
            item.repr_failure = item._repr_failure_py = _no_traceback  # type: ignore
            # a warning of the code under test is no verdict on it
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if hasattr(item.obj, "hypothesis"):
                _record_failures(item.obj.hypothesis)
        if task := self.config.getoption("--task"):
            self._select(task, items)
        # compiling takes seconds, and so does a claim, which waits for the rest of its paper
        order = (lanes.GATE, "claim", lanes.COMPILED)
        items.sort(
            key=lambda item: (
                item.stash.get(PAPER, ""),
                [item.get_closest_marker(mark) is not None for mark in order],
            )
        )

    def _select(self, task: str, items: list[pytest.Item]) -> None:
        """Leave only the tests of one task."""
        tests = {
            key: expected.of(key) for key in {i.stash[PAPER] for i in items if PAPER in i.stash}
        }
        known = sorted({name for mine in tests.values() for t in mine.values() for name in t.tasks})
        if task not in known:
            raise pytest.UsageError(f"--task {task}: no such task; there are {', '.join(known)}")

        def judges(item: pytest.Item) -> bool:
            key = item.stash.get(PAPER, "")
            test = tests[key].get(expected.base(key, item.name)) if key else None
            return test is not None and task in test.tasks and not test.claim

        others = [item for item in items if not judges(item)]
        items[:] = [item for item in items if judges(item)]
        self.config.hook.pytest_deselected(items=others)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.partial |= {item.stash[PAPER] for item in items if PAPER in item.stash}

    # ---- running

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        if PAPER not in item.stash:
            return (yield)
        key = item.stash[PAPER]
        name = expected.base(key, item.name)
        self.write({"started": name, "key": key, "limit": SECONDS + _seconds(item)})
        if self.seed and isinstance(item, pytest.Function) and hasattr(item.obj, "hypothesis"):
            import hypothesis

            hypothesis.seed(_number(f"{self.seed} {item.name}"))(item.obj)
        with time_limit(SECONDS):
            result = yield
        self._refuse(item)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if PAPER not in item.stash:
            return (yield)
        _failing.clear()
        with time_limit(_seconds(item)):
            try:
                if not layout.is_kernel(item.stash[PAPER]):
                    return (yield)
                from paperlings.lanes import sanitizer

                sanitizer.clear()
                result = yield
                sanitizer.raise_if_any()  # the code under test may have swallowed what was raised
                return result
            except TimeLimit:
                # the time ran out over a search for a smaller case of a failure already found
                if _failing and not isinstance(_failing[-1][1], TimeLimit):
                    raise _failing[-1][1] from None
                raise
            finally:
                item.stash[FAILURES] = list(_failing)

    def _refuse(self, item: pytest.Item) -> None:
        """Do not start a test that would end as another did, nor a claim that must wait."""
        key = item.stash[PAPER]
        test = expected.of(key).get(expected.base(key, item.name))
        for task in test.tasks if test else ():
            if (key, task) in self.stuck:
                raise Stuck(f"not run: {self.stuck[key, task]}")
        if test and test.claim:
            others = [f for f in self.findings.get(key, []) if f.status in (FAILED, TODO)]
            if others:
                raise Waiting("it waits until the paper's other tests pass")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if PAPER not in item.stash or (call.when == "setup" and call.excinfo is None):
            return report
        if call.when == "teardown" and call.excinfo is None:
            return report
        assert isinstance(item, pytest.Function)
        finding = self._finding(item, call)
        item.stash[STATUS] = finding.status
        if finding.status == FAILED and not finding.timed_out and call.when == "call":
            self._diagnose(item, finding, call)
        report.finding = finding.plain()
        report.__dict__.pop("wasxfail", None)
        report.outcome = {PASSED: "passed", UNVERIFIED: "skipped"}.get(finding.status, "failed")
        report.longrepr = None
        if finding.status == UNVERIFIED:
            report.longrepr = (str(item.path), 0, f"unverified: {finding.what}")
        elif finding.status == TODO:
            report.longrepr = f"todo: {finding.todo_of or finding.what}"
        elif finding.status == FAILED:
            report.longrepr = "\n".join(verdict.explain(finding))
        return report

    def _finding(self, item: pytest.Function, call: pytest.CallInfo[None]) -> Finding:
        key = item.stash[PAPER]
        finding = Finding(key, expected.base(key, item.name), PASSED, round(call.duration, 4))
        if call.excinfo is None:
            return finding
        error = call.excinfo.value
        if isinstance(error, Unwritten) and error.__cause__:
            error = error.__cause__
        finding.status = FAILED
        test = expected.of(finding.key).get(finding.test)
        if task := self._stub_of(error, finding.key, test):
            finding.status, finding.todo_of = TODO, task
            return self._cleaned(finding)
        finding.what = words.in_words(error, self._module(item), self.root)
        if isinstance(error, Waiting):
            finding.status, finding.what = TODO, str(error)
        elif isinstance(error, Unverified):
            finding.status, finding.what = UNVERIFIED, str(error.msg)
        elif isinstance(error, KitFault) and self.log is not None:
            finding.status = UNVERIFIED  # a grader says whose fault it is; pytest just fails
            if self.config.getoption("--sealed"):  # one process of several, which others may miss
                self.write({"trouble": finding.what})
        elif isinstance(error, TimeLimit) or getattr(error, "timed_out", False):
            finding.timed_out = True
            for task in test.tasks if test else ():
                self.stuck.setdefault((finding.key, task), f"{finding.test} did not come to an end")
        if finding.status == FAILED:
            finding.question = getattr(error, "question", "")
            failures = item.stash.get(FAILURES, [])
            drawn = failures[-1][0] if failures else item.funcargs if call.when == "call" else {}
            finding.example = words.described(drawn)
            finding.printed = words.printed(item)
        return self._cleaned(finding)

    @staticmethod
    def _cleaned(finding: Finding) -> Finding:
        finding.what, finding.printed = (
            words.printable(finding.what),
            words.printable(finding.printed),
        )
        finding.example = [words.printable(line) for line in finding.example]
        return finding

    def _stub_of(self, error: BaseException, key: str, test: expected.Expected | None) -> str:
        """The task whose stub raised `error`; "" where no stub did."""
        if not isinstance(error, NotImplementedError) or len(error.args) != 1:
            return ""
        inside = words.place(error, self.root) is not None
        # what is compiled runs in another process, of which no frame is here
        inside = inside or (test is not None and test.lane == lanes.COMPILED)
        name = str(error.args[0]).split(".")[0]
        return name if inside and name in stubs.groups(key) else ""

    def _module(self, item: pytest.Function) -> ModuleType | None:
        module = item.funcargs.get("impl") if hasattr(item, "funcargs") else None
        return module if isinstance(module, ModuleType) else None

    def _diagnose(
        self, item: pytest.Function, finding: Finding, call: pytest.CallInfo[None]
    ) -> None:
        test = expected.of(finding.key).get(finding.test)
        if test is None or test.claim or "impl" not in item.funcargs or not test.tasks:
            return
        if not self.diagnoses or test.lane == lanes.COMPILED:
            return
        place = (finding.key, test.tasks[0])
        if self.diagnosed.get(place, 0) >= DIAGNOSED:
            return
        self.diagnosed[place] = self.diagnosed.get(place, 0) + 1
        failures = item.stash.get(FAILURES, [])
        function: Callable[..., Any] = item.obj
        if hasattr(item.obj, "hypothesis"):
            function = item.obj.hypothesis.inner_test
        elif call.excinfo is not None:
            names = item._fixtureinfo.argnames
            failures = [({n: item.funcargs[n] for n in names if n != "impl"}, call.excinfo.value)]
        if failures:
            fixed = {n: v for n, v in item.funcargs.items() if n == "reference"}
            known = [
                ({**arguments, **_only(fixed, arguments, function)}, error)
                for arguments, error in failures
            ]
            finding.behaves_like = diagnosis.behaves_like(finding.key, test.tasks, function, known)

    # ---- reporting

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plain = getattr(report, "finding", None)
        if plain is None:
            return
        finding = Finding(**plain)
        self.findings.setdefault(finding.key, []).append(finding)
        self.write(plain)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        plain = getattr(report, "finding", None)
        if plain is None or plain["status"] in (PASSED,):
            return None
        status = plain["status"]
        letter, word, colour = {
            FAILED: ("F", "FAILED", "red"),
            TODO: ("t", "TODO", "yellow"),
            UNVERIFIED: ("u", "UNVERIFIED", "yellow"),
        }[status]
        return status, letter, (word, {colour: True})

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Iterator[None]:
        stats = terminalreporter.stats
        ours = [r for r in stats.get(FAILED, []) if getattr(r, "finding", None)]
        # a failing paper has one screen of its own; pytest's list of failures is for other tests
        if ours:
            stats[FAILED] = [r for r in stats[FAILED] if r not in ours]
            if not stats[FAILED]:
                del stats[FAILED]
        try:
            yield
        finally:
            if ours:
                stats[FAILED] = stats.get(FAILED, []) + ours
        if self.log is None:
            for line in self._screen():
                terminalreporter.write_line(line)

    def _screen(self) -> list[str]:
        """One paper whole, or of several a line each and the first failing one whole."""
        verdicts = [
            verdict.of_paper(key, findings, self.selects or key in self.partial, self.root)
            for key, findings in self.findings.items()
        ]
        if len(verdicts) == 1:
            return verdict.screen(verdicts[0])
        lines = [verdict.headline(v) for v in verdicts]
        failing = next((v for v in verdicts if v.first_failure), None)
        return [*lines, "", *verdict.screen(failing)] if failing else lines

    def write(self, event: dict[str, Any]) -> None:
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def judge_of(config: pytest.Config) -> Judge:
    """The judge of a session, which the plugin registers."""
    judge = config.pluginmanager.get_plugin(NAME)
    assert isinstance(judge, Judge), "the plugin registers it"
    return judge


def events(log: Path) -> list[dict[str, Any]]:
    """What a judge has written to `log` so far."""
    if not log.exists():
        return []
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        # a killed process may leave half a line
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict):
                found.append(event)
    return found


class PaperModule(pytest.Module):
    """A paper's test file, to which the conformance tests of its EXAMPLES are added."""

    def _getobj(self) -> Any:
        module = super()._getobj()  # type: ignore[no-untyped-call]
        key = layout.tested_by(self.path)
        if key and hasattr(module, "EXAMPLES"):
            laws = "kernel_laws" if layout.is_kernel(key) else "conformance"
            for test in importlib.import_module(f"paperlings.testing.{laws}").TESTS:
                setattr(module, test.__name__, test)
        return module


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def _no_traceback(*args: Any, **kwargs: Any) -> str:
    return ""


def _seconds(item: pytest.Item) -> float:
    """How long the item may take."""
    if claim := item.get_closest_marker("claim"):
        return PATIENCE * float(claim.kwargs.get("seconds", CLAIM_SECONDS))
    for mark, seconds in LANE_SECONDS.items():
        if item.get_closest_marker(mark):
            return seconds
    return SECONDS


# the failing examples of the hypothesis test that is running; its inner function is wrapped once
_failing: list[tuple[dict[str, Any], BaseException]] = []


def _record_failures(handle: Any) -> None:
    """Keep the arguments with which a hypothesis test fails: the first failure,
    and the last and smallest.
    """
    inner = handle.inner_test
    if hasattr(inner, "paperlings_inner"):
        return

    @functools.wraps(inner)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        kept = diagnosis.fresh({k: v for k, v in kwargs.items() if k not in ("impl", "reference")})
        try:
            return inner(*args, **kwargs)
        except (NotImplementedError, KitFault, loading.Unloadable) as error:
            raise Unwritten from error  # there is nothing to shrink
        except (Exception, TimeLimit) as error:
            from_hypothesis = type(error).__module__.startswith("hypothesis")
            if not from_hypothesis and not (_failing and isinstance(error, TimeLimit)):
                _failing[1:] = [(kept, error)]
            raise

    recorded.paperlings_inner = inner  # type: ignore[attr-defined]
    handle.inner_test = recorded


def _only(
    fixtures: dict[str, Any], given: dict[str, Any], function: Callable[..., Any]
) -> dict[str, Any]:
    names = inspect.signature(inspect.unwrap(function)).parameters
    return {name: value for name, value in fixtures.items() if name in names and name not in given}
