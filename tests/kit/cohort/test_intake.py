"""What is handed in is read by an allow-list, and nothing else of it is ever opened."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperlings import UsageError
from paperlings.cohort import intake
from paperlings.cohort.intake import Refused, Submission

KEY, KERNEL = "alignment/dpo", "kernels/newton_schulz"
TEXT = "answer = 42\n"

Writer = Callable[[Path, dict[str, bytes]], Path]


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / "handed_in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "handed_in"


def write_zip(folder: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "handed_in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder / "handed_in.zip"


def _write_tar(folder: Path, files: dict[str, bytes], kind: str) -> Path:
    path = folder / f"handed_in.tar{'.' + kind if kind else ''}"
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_tar(folder: Path, files: dict[str, bytes]) -> Path:
    return _write_tar(folder, files, "")


def write_tgz(folder: Path, files: dict[str, bytes]) -> Path:
    return _write_tar(folder, files, "gz")


def write_txz(folder: Path, files: dict[str, bytes]) -> Path:
    return _write_tar(folder, files, "xz")


WRITERS = [write_folder, write_zip, write_tar, write_tgz, write_txz]
ARCHIVERS = WRITERS[1:]


def taken(path: Path, key: str = KEY) -> str:
    """The text that is graded, or "refused: ..." """
    [text] = intake.take(Submission("s", path), [key]).values()
    return f"refused: {text}" if isinstance(text, Refused) else text


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("where", ["", "exercises/", "repo-main/exercises/", "repo-main/"])
def test_the_layout_of_exercises_is_found(write: Writer, where: str, tmp_path: Path) -> None:
    """With that folder or without, and inside one more or not."""
    assert taken(write(tmp_path, {f"{where}{KEY}.py": TEXT.encode()})) == TEXT


@pytest.mark.parametrize("write", WRITERS)
def test_a_whole_repository_is_graded_by_its_exercises(write: Writer, tmp_path: Path) -> None:
    """Solutions, oracles and tests that lie beside them are not what was handed in."""
    roots = ("solutions", "reference", "exercises", "kernels", "__MACOSX")
    files = {f"repo/{root}/{KEY}.py": root.encode() for root in roots}
    assert taken(write(tmp_path, files)) == "exercises"
    (tmp_path / "only").mkdir()
    del files[f"repo/exercises/{KEY}.py"]
    assert taken(write(tmp_path / "only", files)) == f"refused: it has no {KEY}.py"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("top", ["", "repo/"])
def test_the_kits_own_kernel_is_nobodys_answer(write: Writer, top: str, tmp_path: Path) -> None:
    """Beside exercises/ it is the kit's, even where theirs is missing; by itself, it is theirs."""
    own, theirs = f"{top}{KERNEL}.py", f"{top}exercises/{KERNEL}.py"
    other = f"{top}exercises/{KEY}.py"
    for i, (roots, text) in enumerate(
        [
            ((own, theirs, other), theirs),
            ((theirs, other), theirs),
            ((own, other), f"refused: it has no exercises/{KERNEL}.py; {KERNEL}.py is the kit's"),
            ((own,), own),
            ((own, f"{top}{KEY}.py"), own),
        ]
    ):
        (tmp_path / str(i)).mkdir()
        path = write(tmp_path / str(i), {name: name.encode() for name in roots})
        assert taken(path, KERNEL) == text
        if other in roots:
            assert taken(path) == other
        if not top:
            assert [s.path for s in intake.submissions(path)] == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_two_answers_are_none(write: Writer, tmp_path: Path) -> None:
    """Nobody chooses for a student."""
    files = {f"{top}/{KEY}.py": top.encode() for top in ("first", "second")}
    assert "several files" in taken(write(tmp_path, files))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x" * (intake.LARGEST + 1), "larger than 256 KiB"),
        (b"\xff\xfe", "no UTF-8 text"),
    ],
    ids=["huge", "binary"],
)
def test_files_are_small_and_text(write: Writer, data: bytes, says: str, tmp_path: Path) -> None:
    """A quarter of a megabyte of UTF-8 at most."""
    assert says in taken(write(tmp_path, {f"{KEY}.py": data}))


@pytest.mark.parametrize("write", WRITERS)
def test_a_byte_order_mark_is_no_part_of_a_text(write: Writer, tmp_path: Path) -> None:
    """Windows' editors write one, and Python reads over it."""
    assert taken(write(tmp_path, {f"{KEY}.py": b"\xef\xbb\xbf" + TEXT.encode()})) == TEXT


@pytest.mark.parametrize("write", ARCHIVERS)
def test_a_name_that_is_there_twice_is_no_answer(write: Writer, tmp_path: Path) -> None:
    """One who unpacks it sees the last, one who reads it the first."""
    files = {f"{KEY}.py": TEXT.encode(), f"./{KEY}.py": b"answer = 41"}
    assert taken(write(tmp_path, files)) == f"refused: it has {KEY}.py twice"


def test_an_archive_that_takes_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's reader of tarballs takes the square of a header's length for some."""
    monkeypatch.setattr(intake, "SECONDS", 0.2)
    monkeypatch.setattr(intake.zipfile, "is_zipfile", lambda path: time.sleep(60))
    path = write_tgz(tmp_path, {f"{KEY}.py": TEXT.encode()})
    assert taken(path) == "refused: it takes more than 0.2 s to read"


@pytest.mark.parametrize("write", ARCHIVERS)
@pytest.mark.parametrize("name", [f"../../{KEY}.py", f"/{KEY}.py", f"a/../{KEY}.py"])
def test_no_name_leads_out(write: Writer, name: str, tmp_path: Path) -> None:
    """Nothing is extracted, and a name that climbs is no answer either."""
    assert taken(write(tmp_path, {name: TEXT.encode()})).startswith("refused")
    assert {path.name for path in tmp_path.iterdir()} <= {"handed_in.zip", *os.listdir(tmp_path)}


@pytest.mark.parametrize("write", ARCHIVERS)
def test_a_bomb_is_put_out_at_once(write: Writer, tmp_path: Path) -> None:
    """No more is unpacked than a file may have."""
    bomb = write(tmp_path, {f"{KEY}.py": b"0" * 100_000_000})
    begun = time.process_time()
    assert "larger than" in taken(bomb)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("write", [write_tgz, write_txz])
def test_a_bomb_before_the_answer_is_put_out_too(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To get past a member of a tarball, it must be unpacked; that has an end."""
    monkeypatch.setattr(intake, "STREAM", 1 << 20)
    bomb = write(tmp_path, {"zeros": bytes(3 << 20), f"{KEY}.py": TEXT.encode()})
    assert taken(bomb) == "refused: it unpacks to more than 1 MiB"


@pytest.mark.parametrize("write", WRITERS)
def test_files_that_nobody_asked_for_are_never_opened(write: Writer, tmp_path: Path) -> None:
    """They may be anything."""
    files = {"conftest.py": b"boom", "pytest.ini": b"\xff", "alignment/__init__.py": b"boom"}
    assert taken(write(tmp_path, {**files, f"{KEY}.py": TEXT.encode()})) == TEXT


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_pipes_in_tarballs_are_no_files(kind: bytes, tmp_path: Path) -> None:
    """Only regular files are read."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo(f"{KEY}.py")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert taken(tmp_path / "x.tar") == f"refused: it has no {KEY}.py"


def test_links_in_zips_are_no_files(tmp_path: Path) -> None:
    """A zip keeps a link as a file whose mode says so."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        member = zipfile.ZipInfo(f"{KEY}.py")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    assert taken(tmp_path / "x.zip") == f"refused: it has no {KEY}.py"


@pytest.mark.parametrize("how", ["file", "hard link", "folder", "top", "pipe", "folder as file"])
def test_links_and_pipes_in_folders_are_no_files(how: str, tmp_path: Path) -> None:
    """On no part of the way, and reading a pipe does not wait for its writer."""
    secret = tmp_path / "secret" / f"{KEY}.py"
    secret.parent.mkdir(parents=True)
    secret.write_text("secret")
    root = tmp_path / "handed_in"
    path = root / f"{KEY}.py"
    if how == "folder":
        root.mkdir()
        path.parent.symlink_to(secret.parent)
    elif how == "top":
        root.mkdir()
        (root / "mine").symlink_to(tmp_path / "secret")
    else:
        path.parent.mkdir(parents=True)
        {
            "file": lambda: path.symlink_to(secret),
            "hard link": lambda: os.link(secret, path),
            "pipe": lambda: os.mkfifo(path),
            "folder as file": path.mkdir,
        }[how]()
    assert taken(root).startswith("refused")


def test_a_submission_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """It could lead to another student's."""
    write_folder(tmp_path, {f"{KEY}.py": TEXT.encode()})
    (tmp_path / "thief").symlink_to(tmp_path / "handed_in")
    assert "a link or a device" in taken(tmp_path / "thief")


def test_one_file_is_the_answer_that_its_name_says(tmp_path: Path) -> None:
    """Or to the only paper that is graded."""
    (tmp_path / "dpo.py").write_text(TEXT)
    (tmp_path / "alice.py").write_text(TEXT)
    both = intake.take(Submission("s", tmp_path / "dpo.py"), [KEY, "diffusion/ddpm"])
    assert both[KEY] == TEXT
    assert isinstance(both["diffusion/ddpm"], Refused)
    assert taken(tmp_path / "alice.py") == TEXT


def test_a_file_of_a_kernel_may_be_called_as_its_papers(tmp_path: Path) -> None:
    """Its folder says which it is; by itself it is the paper's, unless only the kernel is asked."""
    both = ["systems/flash_attention", "kernels/flash_attention"]
    for folder, theirs in (("kernels", both[1]), ("ada", both[0])):
        path = tmp_path / folder / "flash_attention.py"
        path.parent.mkdir()
        path.write_text(TEXT)
        found = intake.take(Submission("s", path), both)
        assert [key for key in both if found[key] == TEXT] == [theirs]
        assert taken(path, both[1]) == TEXT


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("write", ARCHIVERS)
def test_a_broken_archive_is_refused(
    write: Writer, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever its bytes, it breaks nothing but itself."""
    path = write(tmp_path_factory.mktemp("broken"), {f"{KEY}.py": TEXT.encode() * 9})
    raw = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=9)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    assert isinstance(taken(path), str)


# ---- which submissions there are


def test_nobody_is_called_what_another_is(tmp_path: Path) -> None:
    """Whatever is chosen as a file's name, no result takes the place of another's."""
    for name in ("bob.zip", "bob.tar", "bob.zip.zip", "eve.zip.tar"):
        (tmp_path / name).touch()
    found = [submission.name for submission in intake.submissions(tmp_path)]
    assert found == ["bob.tar", "bob.zip", "bob.zip.zip", "eve.zip"]
    for name in ("a\nb", "a\\x0ab"):
        (tmp_path / name).mkdir()
    names = [submission.name for submission in intake.submissions(tmp_path)]
    assert len(set(names)) == len(names) == 6
    assert names[0].startswith("a\\x0ab~")


def test_a_folder_holds_submissions_of_every_kind(tmp_path: Path) -> None:
    """Folders and archives, by their names; what is none of these is passed over."""
    for name in ("alice", "bob"):
        (tmp_path / name).mkdir()
    for name in ("carol.zip", "dave.tar.gz", "eve.tgz", "notes.txt", ".hidden"):
        (tmp_path / name).touch()
    found = [submission.name for submission in intake.submissions(tmp_path)]
    assert found == ["alice", "bob", "carol", "dave", "eve"]


def test_two_submissions_never_share_a_name(tmp_path: Path) -> None:
    """A folder beside its own archive: both keep their whole names."""
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice.zip").touch()
    assert [s.name for s in intake.submissions(tmp_path)] == ["alice", "alice.zip"]


def test_a_folder_may_be_a_submission_itself(tmp_path: Path) -> None:
    """As exercises/ is."""
    path = write_folder(tmp_path, {f"{KEY}.py": b""})
    assert [s.name for s in intake.submissions(path)] == ["handed_in"]


def test_a_list_names_submissions(tmp_path: Path) -> None:
    """A CSV, whose paths are relative to it."""
    (tmp_path / "list.csv").write_text('path,submission\na.zip,"Lovelace, Ada"\nb,bob\n')
    found = intake.submissions(tmp_path / "list.csv")
    assert [(s.name, s.path) for s in found] == [
        ("Lovelace, Ada", tmp_path / "a.zip"),
        ("bob", tmp_path / "b"),
    ]
    assert taken(found[0].path) == "refused: it cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "columns submission and path"),
        ("name,file\n", "columns submission and path"),
        ("submission,path\n", "names no submissions"),
        ("submission,path\na,x\na,y\n", "line 3: a is there twice"),
        ("submission,path\na\n", "line 2: it needs a submission and a path"),
        ('submission,path\n"a,x\n', "unexpected end of data"),
    ],
)
def test_a_wrong_list_says_where(text: str, says: str, tmp_path: Path) -> None:
    """The line, and what is wrong with it."""
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=says):
        intake.submissions(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["nothing", "empty", "notes.txt"])
def test_where_there_are_no_submissions_it_says_what_was_expected(
    name: str, tmp_path: Path
) -> None:
    """A name that is nothing, an empty folder, some other file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"no such file|holds no submissions|neither a folder"):
        intake.submissions(tmp_path / name)


@given(name=st.text(min_size=1))
def test_names_can_be_shown_and_stay_different(name: str) -> None:
    """No control character, no half of a surrogate pair, no line break."""
    shown = intake.printable(name)
    assert shown.isprintable()
    shown.encode()
