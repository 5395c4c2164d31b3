"""The command line: `python -m paperlings <verb>`; every nox session is a thin call of one verb."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from paperlings import UsageError, catalogue, layout, stubs, teacher


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns its exit status. What is wrong with the input is said in one line,
    with status 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (catalogue.CatalogueError, teacher.KnowledgeError, stubs.StubError, UsageError) as error:
        print(f"paperlings {options.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paperlings", description="Machine-learning papers as exercises."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")

    grade = verbs.add_parser("grade", help="run the tests, print a table and what to do next")
    grade.add_argument(
        "names", nargs="*", metavar="paper|track", help="what to grade; everything without"
    )
    grade.add_argument("--impl", default="exercises", metavar="DIR", help="grade the code in DIR")
    grade.add_argument(
        "--fail-under", type=float, default=0.0, metavar="PERCENT", help="exit 1 below this"
    )
    grade.add_argument(
        "--no-claims", action="store_true", help="leave out the claims, which take seconds"
    )
    grade.add_argument(
        "--json", action="store_true", help="print reports/grade.json instead of the table"
    )
    grade.add_argument(
        "--sealed", action="store_true", help="run the code in a locked process of its own"
    )
    grade.set_defaults(run=_grade)

    mistakes = verbs.add_parser(
        "mistakes", help="every known mistake must be caught, every equivalent accepted"
    )
    mistakes.add_argument("names", nargs="*", metavar="paper|track")
    mistakes.add_argument(
        "--sealed", action="store_true", help="run each in a locked process of its own"
    )
    mistakes.set_defaults(run=_mistakes)

    mutants = verbs.add_parser(
        "mutants", help="break the solutions by machine, and list what no test notices"
    )
    mutants.add_argument("names", nargs="*", metavar="paper|track")
    mutants.set_defaults(run=_mutants)

    gates = verbs.add_parser("gates", help="time the kernels on this machine's NVIDIA GPU")
    gates.add_argument("names", nargs="*", metavar="kernel")
    gates.add_argument("--impl", default="exercises", metavar="DIR", help="time the code in DIR")
    gates.add_argument(
        "--out", type=Path, metavar="DIR", help="write everything to DIR, to be carried elsewhere"
    )
    gates.add_argument(
        "--seconds", type=float, default=540, help="share so much time among the contests"
    )
    gates.set_defaults(run=_gates)

    generate = verbs.add_parser("stubs", help="write exercises/ from solutions/")
    generate.add_argument(
        "--check", action="store_true", help="write nothing; fail where a stub is out of date"
    )
    generate.set_defaults(run=_stubs)

    cohort = verbs.add_parser("cohort", help="grade many submissions, sealed")
    cohort.add_argument(
        "source",
        type=Path,
        metavar="SUBMISSIONS",
        help="a folder of folders, zips or tarballs; one of these; a CSV of submission,path",
    )
    _add_common(cohort)
    cohort.add_argument(
        "--papers", nargs="+", default=[], metavar="paper|track", help="default: all handed in"
    )
    cohort.add_argument("--workers", type=int, default=0, metavar="N", help="units at a time")
    cohort.add_argument("--engine", choices=("local", "dask"), default="local")
    cohort.add_argument("--scheduler", default="", metavar="tcp://HOST:PORT", help="of Dask")
    cohort.add_argument(
        "--list", action="store_true", help="only print what is left to grade, for `unit`"
    )
    cohort.set_defaults(run=_cohort)

    unit = verbs.add_parser("unit", help="grade one submission's answer to one paper, sealed")
    unit.add_argument("path", type=Path, metavar="SUBMISSION")
    unit.add_argument("paper")
    unit.add_argument("--name", default="", help="of the submission, where the file does not say")
    unit.add_argument("--seed", default="", help="draw the cases of an earlier result again")
    _add_common(unit)
    unit.set_defaults(run=_unit)

    hint = verbs.add_parser("hint", help="the next of three hints for the first unfinished task")
    hint.add_argument("name", metavar="paper")
    hint.add_argument("task", nargs="?", help="a task other than the first unfinished one")
    hint.set_defaults(run=_hint)

    compare = verbs.add_parser("compare", help="your code beside the solution")
    compare.add_argument("name", metavar="paper")
    compare.add_argument(
        "--give-up", action="store_true", help="look at the solution without having passed"
    )
    compare.set_defaults(run=_compare)

    reset = verbs.add_parser("reset", help="put a stub back, after a dated backup of your file")
    reset.add_argument("name", metavar="paper")
    reset.add_argument("--undo", action="store_true", help="put the last backup back instead")
    reset.set_defaults(run=_reset)

    update = verbs.add_parser("update", help="bring in new and changed stubs; edited files stay")
    update.set_defaults(run=_update)

    roadmap = verbs.add_parser("roadmap", help="what to read next, and how far you are")
    roadmap.set_defaults(run=_roadmap)

    log = verbs.add_parser("log", help="your own notes on a paper, in Markdown")
    log.add_argument("name", metavar="paper")
    log.set_defaults(run=_log)

    doctor = verbs.add_parser("doctor", help="what this machine can verify, and why not the rest")
    doctor.set_defaults(run=_doctor)

    watch = verbs.add_parser("watch", help="judge a paper again whenever you save it")
    watch.add_argument("name", nargs="?", metavar="paper")
    watch.set_defaults(run=_watch)

    new = verbs.add_parser("new", help="make the five files of a new paper")
    new.add_argument("key", metavar="track/paper")
    new.set_defaults(run=_new)
    return parser


def _grade(options: argparse.Namespace) -> int:
    from paperlings.grade import grade

    root = _root(options.impl)
    return grade(
        options.names,
        root,
        layout.reports(root),
        claims=not options.no_claims,
        fail_under=options.fail_under,
        as_json=options.json,
        sealed=options.sealed,
    )


def _mistakes(options: argparse.Namespace) -> int:
    from paperlings.mistakes import mistakes

    return mistakes(options.names, options.sealed)


def _mutants(options: argparse.Namespace) -> int:
    from paperlings.mutants import mutants

    return mutants(options.names)


def _gates(options: argparse.Namespace) -> int:
    from paperlings.lanes.gate.command import gates

    return gates(options.names, _root(options.impl), options.out, options.seconds)


def _stubs(options: argparse.Namespace) -> int:
    changed = stubs.generate(check=options.check)
    for line in changed:
        print(line if options.check else f"wrote {line}")
    if options.check and changed:
        print("run `nox -s stubs` and commit what it writes", file=sys.stderr)
        return 1
    print(f"{len(layout.written())} exercises are the stubs of their solutions")
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where results go, and are resumed"
    )
    parser.add_argument("--claims", action="store_true", help="run the claims too")
    parser.add_argument(
        "--secret", type=Path, metavar="FILE", help="from which cases are drawn (DIR/secret)"
    )


def _cohort(options: argparse.Namespace) -> int:
    from paperlings.cohort.command import cohort

    return cohort(
        options.source,
        options.out,
        options.papers,
        claims=options.claims,
        workers=options.workers,
        engine=options.engine,
        scheduler=options.scheduler,
        secret=options.secret,
        only_list=options.list,
    )


def _unit(options: argparse.Namespace) -> int:
    from paperlings.cohort.command import unit

    return unit(
        options.path,
        options.name,
        options.paper,
        options.out,
        claims=options.claims,
        secret=options.secret,
        seed=options.seed,
    )


def _hint(options: argparse.Namespace) -> int:
    from paperlings.learner.hint import hint

    return hint(options.name, options.task)


def _compare(options: argparse.Namespace) -> int:
    from paperlings.learner.compare import compare

    return compare(options.name, give_up=options.give_up)


def _reset(options: argparse.Namespace) -> int:
    from paperlings.learner.reset import reset, undo

    return undo(options.name) if options.undo else reset(options.name)


def _update(options: argparse.Namespace) -> int:
    from paperlings.learner.update import update

    return update()


def _roadmap(options: argparse.Namespace) -> int:
    from paperlings.learner.roadmap import roadmap

    return roadmap()


def _log(options: argparse.Namespace) -> int:
    from paperlings.learner.reading import log

    return log(options.name)


def _doctor(options: argparse.Namespace) -> int:
    from paperlings.learner.doctor import doctor

    return doctor()


def _watch(options: argparse.Namespace) -> int:
    from paperlings.learner.watch import watch

    return watch(options.name)


def _new(options: argparse.Namespace) -> int:
    from paperlings.new import new

    for path in new(options.key):
        print(f"wrote {layout.shown(path)}")
    print("next: CONTRIBUTING.md, from step 2")
    return 0


def _root(name: str) -> Path:
    if path := layout.folder(name, Path.cwd()):
        return path
    raise UsageError(
        f"--impl {name}: no such folder; it should hold <track>/<paper>.py, as exercises/ does"
    )


if __name__ == "__main__":
    sys.exit(main())
