"""The commands of the kit. `nox -l` lists them; arguments go after `--`."""

import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))
from paperlings import environment

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["grade"]
nox.options.default_venv_backend = "none"


def _run(
    session: nox.Session, *command: str, groups: tuple[str, ...] = (), folder: str = ".venv"
) -> None:
    try:
        python = environment.python(*groups, folder=folder)
    except environment.SetupError as error:
        session.error(str(error))
    session.run(python, *command, external=True)


@nox.session
def grade(session: nox.Session) -> None:
    """Grade your work: `nox -s grade`, or `nox -s grade -- dpo` for one paper or track."""
    _run(session, "-m", "paperlings", "grade", *session.posargs)


def _verb(name: str, words: str) -> None:
    """A session that runs one verb of the command line."""

    def verb(session: nox.Session) -> None:
        _run(session, "-m", "paperlings", name, *session.posargs)

    verb.__doc__ = words
    nox.session(verb, name=name)


_verb("watch", "Judge a paper again whenever you save it: `nox -s watch -- dpo`.")
_verb("hint", "The next of three hints: `nox -s hint -- dpo`, or `-- dpo dpo_loss` for one task.")
_verb("compare", "Your code beside the solution, once it passes: `nox -s compare -- dpo`.")
_verb("reset", "Put a stub back, after a backup; `-- dpo --undo` takes that back.")
_verb("update", "Bring in new papers and changed stubs; files that you edited stay.")
_verb("roadmap", "What to read next, and how far you are; writes reports/roadmap.html.")
_verb("log", "Your own notes on a paper, in Markdown: `nox -s log -- dpo`.")
_verb("doctor", "What this machine can verify, and why not the rest.")
_verb("gates", "Time your kernels on this machine's NVIDIA GPU against the kit's own.")
_verb("unit", "Grade one submission's answer to one paper, sealed.")


@nox.session
def cohort(session: nox.Session) -> None:
    """Grade many submissions, sealed: `nox -s cohort -- SUBMISSIONS --out DIR`."""
    on_dask = "--engine dask" in " ".join(session.posargs).replace("=", " ")
    command = ("-m", "paperlings", "cohort", *session.posargs)
    _run(session, *command, groups=("dask",) if on_dask else ())


@nox.session
def tests(session: nox.Session) -> None:
    """Test the kit itself, then every solution with its claim."""
    pytest = ("-m", "pytest", "-n", "2")
    kit = ("tests/kit", "--assert=rewrite", "--dist", "loadfile")
    _run(session, *pytest, *kit, *session.posargs, groups=("tests",))
    _run(session, *pytest, "tests/papers", "--impl", "solutions", groups=("tests",))


@nox.session
def mistakes(session: nox.Session) -> None:
    """Test the tests: wrong answers are caught and named, right ones accepted."""
    _run(session, "-m", "paperlings", "mistakes", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the solutions by machine: survivors are killed, or explained in the paper's .toml."""
    _run(session, "-m", "paperlings", "mutants", *session.posargs)


@nox.session
def stubs(session: nox.Session) -> None:
    """Write exercises/ from solutions/; `-- --check` only compares."""
    _run(session, "-m", "paperlings", "stubs", *session.posargs)


@nox.session
def upstream(session: nox.Session) -> None:
    """Compare the oracles with other people's libraries, in an environment of their own."""
    command = ("-m", "pytest", "tests/upstream", *session.posargs)
    _run(session, *command, groups=("upstream",), folder=".venv-upstream")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and that every stub is up to date."""
    _run(session, "-m", "ruff", "check", groups=("lint",))
    _run(session, "-m", "ruff", "format", "--check", groups=("lint",))
    _run(session, "-m", "mypy", groups=("lint",))
    _run(session, "-m", "paperlings", "stubs", "--check")
