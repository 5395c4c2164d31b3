"""`mistakes` finds every planted weakness of a paper's tests."""

from __future__ import annotations

import re


def faults(house) -> tuple[int, str]:
    return house.says("mistakes", "softmax")


def edit(
    house, root: str, old: str, new: str, name: str = "demo/softmax", suffix: str = ".py"
) -> None:
    path = house.file(root, name).with_suffix(suffix)
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1))


def test_a_whole_paper_is_without_fault(shared) -> None:
    """Every mistake is caught and named, every equivalent accepted,
    and knowing nothing passes nothing.
    """
    status, said = faults(shared)
    assert status == 0, said
    assert "10 of 10 mistakes caught, 2 of 2 equivalents accepted." in said
    assert re.search(r"softmax 10 of 10 10 of 10 2 of 2 0 ", said)


def test_a_mistake_that_survives_is_reported(house) -> None:
    """A wrong solution that passes every test fails the session, and is named."""
    more = '\n[[mistakes]]\nin = "return e /"\nas = "return 1.0 * e /"\nsays = "Harmless."\n'
    path = house.file("solutions").with_suffix(".toml")
    path.write_text(path.read_text() + more)
    status, said = faults(house)
    assert status == 1
    assert "mistake 11 is not caught: Harmless." in said


def test_a_right_variant_that_is_rejected_is_reported(house) -> None:
    """An equivalent that a test refuses fails the session, with the test that refused it."""
    more = '\n[[equivalents]]\nin = "return e / e.sum"\nas = "return 2.0 * e / e.sum"\n'
    path = house.file("solutions").with_suffix(".toml")
    path.write_text(path.read_text() + more)
    status, said = faults(house)
    assert status == 1
    assert "equivalent 3 is rejected by test_values_agree_with_the_definition" in said


def test_a_mistake_that_nobody_can_name_is_reported(house) -> None:
    """Where two mistakes too many look the same, the verdict could not say which:
    that is a fault of the list.
    """
    same = "".join(
        f'\n[[mistakes]]\nin = "z = x / temperature"\nas = "z = x * {one}"\nsays = "Same {one}."\n'
        for one in ("1", "1.0", "(1)")
    )
    path = house.file("solutions").with_suffix(".toml")
    path.write_text(path.read_text() + same)
    status, said = faults(house)
    assert status == 1
    assert "but not named" in said


def test_a_task_that_zeros_pass_is_reported(house) -> None:
    """A test that checks the shape alone lets zeros pass, and is found out."""
    path = house.file("tests/papers", "demo/test_softmax")
    text = path.read_text()
    weak = (
        "\ndef test_shape(impl):\n    '''Shape.'''\n"
        "    assert impl.entropy(torch.ones(3, 2)).shape == (3,), 'shape?'\n"
    )
    start, end = text.index("@given(p="), text.index("@pytest.mark.claim")
    text = text[:start] + weak + "\n\n" + text[end:]
    text = text.replace('    "entropy": Example((P,), gradient=(0,), batch=(0,)),\n', "")
    path.write_text(text)
    status, said = faults(house)
    assert status == 1
    assert "entropy pass with the zeros" in said


def test_a_test_that_a_stub_passes_is_reported(house) -> None:
    """A test that does not reach the candidate cannot be passed by a stub unnoticed."""
    path = house.file("tests/papers", "demo/test_softmax")
    path.write_text(
        path.read_text() + "\n\ndef test_nothing(impl):\n    '''No.'''\n    impl.entropy\n"
    )
    status, said = faults(house)
    assert status == 1
    assert "on the untouched stub test_nothing is passed, not todo" in said


def test_a_place_that_does_not_occur_once_is_an_error(house) -> None:
    """`in` occurs exactly once in the solution: a moved line is noticed."""
    for times, place in (("0", "no such text"), ("2", "keepdim=True")):
        path = house.file("solutions").with_suffix(".toml")
        kept = path.read_text()
        path.write_text(kept + f'\n[[mistakes]]\nin = "{place}"\nas = "x"\nsays = "y"\n')
        status, said = faults(house)
        assert status == 2
        assert f"mistake 11: '{place}' occurs {times} times in the solution" in said
        path.write_text(kept)


def test_what_a_paper_still_lacks_is_said(house) -> None:
    """Eight mistakes, two equivalents, three hints a task."""
    edit(house, "solutions", 'entropy = ["What is 0 log 0?", ', "entropy = [", suffix=".toml")
    path = house.file("solutions").with_suffix(".toml")
    text = path.read_text()
    path.write_text(text[: text.index("[[equivalents]]")])
    status, said = faults(house)
    assert status == 1
    assert "entropy has 2 hints; a task has exactly 3" in said
    assert "0 equivalents; a paper has at least 2" in said


def test_wrong_tables_are_refused(house) -> None:
    """An unknown key, an unknown table and broken TOML are named, with status 2."""
    path = house.file("solutions").with_suffix(".toml")
    kept = path.read_text()
    for more, words in (
        ('\n[[mistakes]]\nin = "a"\nas = "b"\n', "mistake 11: give the texts as, in, says"),
        ("\n[other]\nx = 1\n", "unknown table 'other'"),
        ("\n[[[", "cannot be read"),
    ):
        path.write_text(kept + more)
        status, said = faults(house)
        assert (status, words in said) == (2, True), said
