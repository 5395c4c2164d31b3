"""What a learner sees when they run pytest: four verdicts, one screen, from anywhere."""

from __future__ import annotations

import re

import pytest

SCREEN = 25


def wrong(house) -> str:
    """The solution with its temperature ignored."""
    return house.solution().replace("z = x / temperature", "z = x")


def verdict_of(output: str) -> list[str]:
    """The lines of the verdict: from the paper's headline to pytest's count."""
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("demo/"))
    last = max(i for i, line in enumerate(lines) if re.search(r"\d+ \w+ in [\d.]+s", line))
    return lines[first:last]


def test_untouched_stubs_are_todo_without_a_traceback(shared) -> None:
    """A pristine paper says todo, one word a task, and exits as not passed."""
    done = shared.run("pytest")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "Error" not in done.stdout
    assert "0 of 2 tasks pass" in done.stdout
    assert re.search(r"^  todo +softmax, entropy$", done.stdout, re.M)
    assert re.search(r"\d+ todo in", done.stdout)
    assert "write softmax in exercises/demo/softmax.py" in done.stdout
    assert len(done.stdout.splitlines()) <= 10


def test_a_failure_is_one_screen_that_says_what_why_and_what_next(house) -> None:
    """The law, the smallest counterexample, the difference, the question, the likely mistake,
    the next command.
    """
    house.file("exercises").write_text(wrong(house))
    done = house.run("pytest", "tests/papers/demo/test_softmax.py")
    assert done.returncode == 1
    screen = verdict_of(done.stdout)
    assert len(screen) <= SCREEN, done.stdout
    assert all(len(line) <= 80 or line.startswith("  next") for line in screen)
    text = " ".join(" ".join(screen).split())
    for words in (
        "1 of 2 tasks pass",
        "passed entropy",
        "failed softmax",
        "law Softmax is the exponential of each score over the sum of its row.",
        "with x (1, 2) = [[0, 1]] temperature = 0.5",
        "found actual 0.2689414214, expected 0.119202922 at [0, 0]",
        "question Over which axis is the sum?",
        "behaves like The temperature is ignored.",
        "next pytest tests/papers/demo/test_softmax.py -k test_values_agree_with_the_definition",
    ):
        assert words in text, f"{words!r} is not in\n{text}"
    command = next(line for line in screen if line.startswith("  next")).split("pytest", 1)[1]
    again = house.run("pytest", *command.split())
    assert "behaves like" in again.stdout, "the next command is one to copy"


def test_an_exception_shows_the_learners_own_line(house) -> None:
    """No traceback through the kit: the error, the file, the line and its text."""
    broken = house.solution().replace("e = z.exp()", "e = z.expp()")
    house.file("exercises").write_text(broken)
    done = house.run("pytest")
    assert "'Tensor' object has no attribute 'expp'" in done.stdout
    line = broken[: broken.index("z.expp")].count("\n") + 1
    assert f"exercises/demo/softmax.py:{line} in softmax" in done.stdout
    assert "e = z.expp()" in done.stdout
    assert "Traceback" not in done.stdout


def test_what_the_code_prints_is_shown_with_its_failure(house) -> None:
    """Those who debug by printing see the last line of it."""
    house.file("exercises").write_text(
        wrong(house).replace("z = x\n", "z = x\n    print('here:', 42)\n")
    )
    assert re.search(r"printed +here: 42", house.run("pytest").stdout)


@pytest.mark.parametrize(
    ("cwd", "arguments"),
    [
        ("exercises", ()),
        ("exercises/demo", ()),
        ("exercises/demo", ("softmax.py",)),
        ("tests/papers/demo", ()),
        ("solutions", ("../tests/papers/demo/test_softmax.py",)),
        (".", ("exercises/demo/softmax.py",)),
        (".", ("-n", "2")),
    ],
)
def test_it_works_from_any_folder(shared, cwd: str, arguments: tuple[str, ...]) -> None:
    """The same verdict from everywhere in the house, for an exercise's own name,
    and in two processes.
    """
    done = shared.run("pytest", "--impl", "solutions", *arguments, cwd=shared.home / cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 tasks pass" in done.stdout


def test_a_selection_says_that_it_is_one(shared) -> None:
    """With -k the verdict covers what was selected, says so, and names the command for the rest."""
    done = shared.run("pytest", "-k", "entropy_is", "--impl", "solutions")
    assert done.returncode == 0
    assert "1 of 1 tasks pass, as far as the tests selected tell" in done.stdout
    whole = "pytest tests/papers/demo/test_softmax.py --impl solutions   (all of its tests)"
    assert whole in done.stdout


def test_one_task_has_all_its_tests_and_no_others(shared) -> None:
    """--task runs what judges a task, whatever the tests are called; a wrong name is refused."""
    done = shared.run("pytest", "--task", "entropy", "--impl", "solutions")
    assert done.returncode == 0
    assert re.search(r"^  passed +entropy$", done.stdout, re.M)
    assert "9 passed" in done.stdout, done.stdout
    refused = shared.run("pytest", "--task", "entropie")
    assert refused.returncode == 4
    assert "--task entropie: no such task; there are entropy, softmax" in refused.stderr


def test_the_next_command_judges_the_same_code(house) -> None:
    """For code that lies elsewhere, the command to copy and the file to write are there too."""
    other = house.home / "mine" / "demo" / "softmax.py"
    other.parent.mkdir(parents=True)
    other.write_text(wrong(house))
    done = house.run("pytest", "--impl", "mine")
    assert re.search(r"next +pytest tests/papers/demo/test_softmax.py --impl mine -k", done.stdout)
    other.write_text(house.file("exercises").read_text())
    assert "write softmax in mine/demo/softmax.py" in house.run("pytest", "--impl", "mine").stdout


def test_the_claim_waits_for_its_tasks(house) -> None:
    """A claim is not run while another test of the paper fails, unless asked for alone."""
    house.file("exercises").write_text(wrong(house))
    assert "it waits until the paper's other tests pass" in house.run("pytest").stdout
    alone = house.run("pytest", "-k", "test_entropy_grows")
    assert re.search(r"claim +failed", alone.stdout)
    assert "demo/softmax: the claim alone, failed" in alone.stdout
    assert not (house.home / "reports/figures/demo/softmax.png").exists()


def test_a_passed_claim_leaves_a_figure(house) -> None:
    """The figure of a passed claim lies among the reports; when the claim fails, it is gone."""
    house.file("exercises").write_text(house.solution())
    picture = house.home / "reports/figures/demo/softmax.png"
    done = house.run("pytest")
    assert done.returncode == 0
    assert "passed: see reports/figures/demo/softmax.png" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    house.file("exercises").write_text(wrong(house))
    house.run("pytest", "-k", "test_entropy_grows")
    assert not picture.exists()
    assert house.run("pytest", "--impl", "solutions").returncode == 0
    assert not picture.exists(), "the figure of other code is not the learner's"
    assert (house.home / "reports/solutions/figures/demo/softmax.png").exists()


def test_impl_comes_from_the_root_asked_for(house) -> None:
    """Every test gets the module below --impl, and no other."""
    test = house.home / "tests/papers/demo/test_softmax.py"
    check = (
        "\n\ndef test_where(impl):\n    '''Where.'''\n    impl.entropy\n"
        "    raise AssertionError(impl.__file__)\n"
    )
    test.write_text(test.read_text() + check)
    for root in ("exercises", "solutions"):
        done = house.run("pytest", "--impl", root, "-k", "test_where")
        assert str(house.home / root / "demo/softmax.py") in "".join(done.stdout.split()), (
            done.stdout
        )


def test_unverified_is_neither_passed_nor_failed(house) -> None:
    """A test that this machine cannot decide leaves its task unverified, and pytest content."""
    test = house.home / "tests/papers/demo/test_softmax.py"
    check = "\n\ndef test_gpu(impl):\n    '''Gpu.'''\n    impl.entropy\n    unverified('no GPU')\n"
    test.write_text("from paperlings.testing import unverified\n" + test.read_text() + check)
    done = house.run("pytest", "--impl", "solutions")
    assert done.returncode == 0
    assert re.search(r"^  unverified +entropy$", done.stdout, re.M)
    assert re.search(r"^  passed +softmax$", done.stdout, re.M)


def test_the_same_source_a_second_later_is_read_anew(house) -> None:
    """Two saves within one second, of one size, are told apart: no bytecode cache is trusted."""
    right = house.solution()
    house.file("exercises").write_text(right)
    assert house.run("pytest", "-m", "not claim").returncode == 0
    stamp = house.file("exercises").stat()
    house.file("exercises").write_text(right.replace("x / temp", "x * temp"))
    import os

    os.utime(house.file("exercises"), ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert house.run("pytest", "-m", "not claim").returncode == 1


def test_a_broken_oracle_is_never_passed_over(house) -> None:
    """Where the kit cannot judge, pytest fails: unverified is for machines,
    not for mistakes of ours.
    """
    house.file("reference").write_text("import no_such_package\n")
    done = house.run("pytest", "--impl", "solutions")
    assert done.returncode == 1
    assert "reference/demo/softmax.py cannot be loaded" in done.stdout


def test_an_answer_that_changes_is_said_to(house) -> None:
    """A candidate that draws at random is told so, not shown the tool's own words."""
    noisy = "    return torch.rand(p.shape[:-1], dtype=p.dtype)"
    text = house.solution()
    house.file("exercises").write_text(text[: text.index("    # Task: what")] + noisy + "\n")
    done = house.run("pytest", "-k", "test_entropy_is")
    assert done.returncode == 1
    assert "Flaky" not in done.stdout
    assert re.search("gives another answer|actual", done.stdout)


def test_a_time_out_is_called_one(house) -> None:
    """It says how long it waited, with what, and where the code was."""
    loop = house.solution().replace(
        "    # Task: what", "    while p.sum() > -1: pass\n    # Task: what"
    )
    house.file("exercises").write_text(loop)
    done = house.run("pytest", "-m", "not claim")
    text = " ".join(done.stdout.split())
    assert "time-out the test stopped after 10 s: it did not come to an end" in text
    assert "with p (2, 3) = [[0, 0, 0], [0, 0, 0]]" in text
    assert "in entropy" in text


def test_a_wrong_impl_is_a_usage_error(shared) -> None:
    """A folder that does not exist is named."""
    done = shared.run("pytest", "--impl", "nowhere")
    assert done.returncode == 4
    assert "--impl nowhere: no such folder" in done.stderr
