"""The stub generator: one source a paper, whatever that source looks like."""

from __future__ import annotations

import ast
import textwrap

import pytest

from paperlings import stubs


def made(source: str) -> str:
    return stubs.stub(textwrap.dedent(source).lstrip("\n"))


FULL = '''
    """A lesson.  # Task: not a comment."""

    import functools


    def given(x: int) -> int:
        """Stays."""
        # why it is so
        return x + 1


    @functools.cache
    @functools.wraps(given)
    def decorated(
        x: int,  # first
        *,
        y: str = "# Task: in a default",
    ) -> int:
        """Two lines,

        and    # Task: in a docstring.
        """

        # Task: one thing,
        # and more of it.
        # Task: another.

        z = x  # Task: trailing
        # a comment inside

        return z
        # a comment at the end

    # a comment outside


    async def waits(x):
        # Task: no docstring.
        async with x:
            return await x


    class Outer:
        """A class."""

        kept = 1

        class Inner:
            def method(self, x):
                """Doc."""
                # Task: nested.
                def helper():
                    return x
                return helper()

            @property
            def other(self): return 3

        def last(self):
            r"""Raw."""
            # Task: the end.
            return [
                1,
            ]
'''


def test_everything_but_tasks_is_kept() -> None:
    """Signatures, docstrings, given code and comments outside stay; bodies go."""
    stub = made(FULL)
    ast.parse(stub)
    for kept in (
        'y: str = "# Task: in a default"',
        "and    # Task: in a docstring.",
        "@functools.wraps(given)",
        "# why it is so",
        "# a comment outside",
        "async def waits(x):",
        "kept = 1",
        "def other(self): return 3",
        "    # TODO: one thing,\n    # and more of it.\n    # TODO: another.\n    raise NotImpl",
    ):
        assert kept in stub, kept
    for gone in (
        "a comment inside",
        "a comment at the end",
        "await x",
        "helper",
        "return z",
        "trailing",
    ):
        assert gone not in stub, gone
    for name in ("decorated", "waits", "Outer.Inner.method", "Outer.last"):
        assert f'raise NotImplementedError("{name}")' in stub
    assert stub.count("raise NotImplementedError") == 4


def test_tasks_are_named_in_order() -> None:
    """A method is judged with its class."""
    found = stubs.tasks(textwrap.dedent(FULL).lstrip("\n"))
    assert [task.name for task in found] == [
        "decorated",
        "waits",
        "Outer.Inner.method",
        "Outer.last",
    ]
    assert [task.group for task in found] == ["decorated", "waits", "Outer", "Outer"]


def test_windows_line_ends_stay() -> None:
    """A CRLF file gives a CRLF stub, the same but for its line ends."""
    unix = textwrap.dedent(FULL).lstrip("\n")
    stub = stubs.stub(unix.replace("\n", "\r\n"))
    assert stub.count("\n") == stub.count("\r\n")
    assert stub.replace("\r\n", "\n") == stubs.stub(unix)


def test_a_stub_of_a_stub_cannot_be_made() -> None:
    """An exercise holds TODO lines, not Task lines, so nobody generates from the wrong file."""
    with pytest.raises(stubs.StubError, match="no function is marked"):
        stubs.stub(made(FULL))


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("def f():\n    '''Doc.'''\n    # Task: nothing follows\n", 3, "no code"),
        ("# Task: outside\ndef f():\n    # Task: x\n    return 1\n", 1, "opens a function"),
        ("def f():\n    x = 1\n    # Task: late\n    return x\n", 3, "opens a function"),
        ("class C:\n    # Task: in a class\n    x = 1\n", 2, "opens a function"),
        (
            "def f():\n    # Task: o\n    def g():\n        # Task: i\n        pass\n    g()\n",
            4,
            "inside",
        ),
        ("def f(:\n", 1, "invalid"),
        ("def f():\n    return 1\n", None, "no function"),
        (
            "if 1:\n    # Task: in a branch\n    pass\n\ndef f():\n    # Task: x\n    return 1\n",
            2,
            "opens",
        ),
    ],
)
def test_a_wrong_mark_is_refused_with_its_line(source: str, line: int | None, words: str) -> None:
    """The message names the file and the line."""
    with pytest.raises(stubs.StubError) as error:
        stubs.stub(source, "solutions/a/b.py")
    where = "solutions/a/b.py:" if line is None else f"solutions/a/b.py:{line}:"
    assert str(error.value).startswith(where)
    assert words in str(error.value)


def test_a_stale_stub_fails_the_check_and_is_mended(house) -> None:
    """`--check` fails where a stub differs from its solution and writes nothing;
    without it the stub is written.
    """
    exercise = house.file("exercises")
    fresh = exercise.read_text()
    exercise.write_text(fresh + "\n# old\n")
    check = house.run("paperlings", "stubs", "--check")
    assert check.returncode == 1
    assert "exercises/demo/softmax.py is not the stub" in check.stdout
    assert exercise.read_text() != fresh
    written = house.run("paperlings", "stubs")
    assert written.returncode == 0
    assert exercise.read_text() == fresh
    backups = list(exercise.parent.glob("softmax.py.*.bak"))
    assert len(backups) == 1
    assert backups[0].read_text() == fresh + "\n# old\n", "nobody's work is lost"
    assert backups[0].name in written.stdout
    assert house.run("paperlings", "stubs", "--check").returncode == 0


def test_an_exercise_without_solution_fails_the_check(house) -> None:
    """A file that no solution stands behind is found."""
    (house.home / "exercises" / "demo" / "orphan.py").write_text("x = 1\n")
    check = house.run("paperlings", "stubs", "--check")
    assert check.returncode == 1
    assert "orphan.py has no solution" in check.stdout
