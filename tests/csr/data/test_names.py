"""Names as people write them: which file they fit, what is said of them, and that they are taken only when told so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csr.__main__ import main
from csr.data.names import GUESSES, StoredNames
from csr.data.prepared import PreparedSet
from csr.data.problems import Problems
from csr.data.raw import prepare_raw
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares
from csr.errors import DataError
from tests.csr.data.sources.test_table import edit, set_value
from tests.csr.data.sources.test_table import folder as table_folder
from tests.csr.data.test_masks import outlined  # noqa: F401

folder = table_folder

FILES = ("images/S1.png", "images/deep/1.2.840.7.dcm", "images/two.png", "images/Two.jpg", "images/other.tif")


@pytest.fixture
def names(tmp_path: Path) -> StoredNames:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return StoredNames(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images/s1.PNG", "images/S1.png"),
        ("images\\S1.png", "images/S1.png"),
        (".\\images\\s1", "images/S1.png"),
        ("images/./s1.png", "images/S1.png"),
        ("images/deep/1.2.840.7", "images/deep/1.2.840.7.dcm"),
        ("images/TWO.png", "images/two.png"),
        ("images/two", None),  # a PNG and a JPEG
        ("images/S1.jpg", None),  # another file may have been meant
        ("images/S2.png", None),
        ("../images/S1.png", None),
        ("images", None),
    ],
)
def test_a_name_fits_the_one_file_that_differs_in_capitals_extension_or_slashes(
    names: StoredNames, name: str, file: str | None
) -> None:
    assert name not in names
    assert names.match(name) == file


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("images/s1", "; data.lenient: true takes 'images/S1.png' for it"),
        ("images/two", "; it could be 'images/Two.jpg' or 'images/two.png'"),
        ("images/S1.jpg", "; the nearest is 'images/S1.png'"),
        ("images/images/other.tif", "; the nearest is 'images/other.tif'"),
        ("C:\\scans\\1.2.840.7.dcm", "; the nearest is 'images/deep/1.2.840.7.dcm'"),
        ("images/othr.tif", "; the nearest is 'images/other.tif'"),
        ("???", ""),
    ],
)
def test_the_nearest_file_is_said(names: StoredNames, name: str, hint: str) -> None:
    assert names.hint(name) == hint


def test_folders_behind_links_are_looked_into_and_a_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "A.png").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert StoredNames(tmp_path / "set").match("images/a.PNG") == "images/A.png"


def test_spelling_is_compared_for_a_few_names_only(names: StoredNames) -> None:
    hints = [names.hint(f"images/othr{number}.tif") for number in range(GUESSES + 5)]
    assert all(hints[:GUESSES]) and not any(hints[GUESSES:])
    assert names.hint("images/s1")  # what needs no look at every file is said of all


def prepare(root: Path, path: Path, lenient: bool) -> PreparedSet:
    problems = Problems()
    raw = read_table(root, SplitShares(0.2, 0.2, 0), problems)
    prepare_raw(raw, path, 16, 1, 2, problems, lenient=lenient, near_bits=-1)
    return PreparedSet.open(path)


def test_names_are_taken_only_when_told_so_and_the_notes_say_so(folder: Path, tmp_path: Path) -> None:
    before = prepare(folder, tmp_path / "before", lenient=True)
    assert before.notes() == ()

    def respell(table) -> None:
        table["image"] = [
            name.upper() if row % 2 else name.removesuffix(".png") for row, name in enumerate(table["image"])
        ]

    edit(folder / "studies.csv", respell)
    with pytest.raises(DataError) as caught:
        prepare(folder, tmp_path / "after", lenient=False)
    assert str(caught.value).splitlines()[1] == (
        f"{folder / 'studies.csv'}: 12 rows: no such file in {folder}, first row 2, got 'images/s00'; "
        "data.lenient: true takes 'images/s00.png' for it"
    )
    after = prepare(folder, tmp_path / "after", lenient=True)
    assert after.collection.studies["image"].tolist() == before.collection.studies["image"].tolist()
    assert (after.images[:] == before.images[:]).all()
    (note,) = after.notes()
    assert note.startswith(
        "12 names are not quite those of files and were taken for them, as 'images/s00' for 'images/s00"
    )


def test_a_name_of_two_files_is_refused_even_so(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "images" / "s03.png", folder / "images" / "s03.tif")
    edit(folder / "studies.csv", set_value("image", 3, "s03"))
    with pytest.raises(DataError, match=r"row 5: no such file .*; it could be 'images/s03.png' or 'images/s03.tif'"):
        prepare(folder, tmp_path / "after", lenient=True)


def test_masks_are_named_as_images_are(outlined: Path, tmp_path: Path) -> None:  # noqa: F811
    edit(outlined / "boxes.csv", lambda table: table.__setitem__("mask", table["mask"].str.upper()))
    with pytest.raises(DataError, match=r"there is no such file; data\.lenient: true takes 'masks/disc\.png' for it"):
        prepare(outlined, tmp_path / "prepared", lenient=False)
    data = prepare(outlined, tmp_path / "prepared", lenient=True)
    assert data.mask_of(0) is not None


def test_the_command_says_equal_problems_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "studies.csv", lambda table: table.__setitem__("image", table["image"].str.upper()))
    with pytest.raises(SystemExit):
        main(["data", "check", str(folder)])
    first, *others = capsys.readouterr().out.splitlines()
    assert not any("no such file" in line for line in others)
    assert first.startswith(f"{folder / 'studies.csv'}: 12 rows: no such file in")
    with pytest.raises(SystemExit):  # now the pictures are read: all are flat, so all are the same
        main(["data", "check", str(folder), "--lenient"])
    assert "no such file" not in capsys.readouterr().out
