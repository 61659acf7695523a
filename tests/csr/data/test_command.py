"""``csr data check``: everything that is wrong with a folder, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr.__main__ import main
from tests.csr.data.sources.test_isic2017 import folder as isic2017_folder
from tests.csr.data.sources.test_table import Image, edit, set_value
from tests.csr.data.sources.test_table import folder as table_folder
from tests.csr.data.test_leaks import picture

isic, flat = isic2017_folder, table_folder


@pytest.fixture
def folder(flat: Path) -> Path:
    """A sound set in the ``table`` layout, with a picture of its own in every study."""
    for index, file in enumerate(sorted((flat / "images").iterdir())):
        Image.fromarray(picture(index)[0, :20, :40]).save(file)
    return flat


def listing(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_sound_set_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(folder.parent)
    main(["data", "check", str(folder)])
    said = capsys.readouterr().out
    assert "nothing is wrong. 6 train, 3 val, 3 test; 2 classes, 2 concepts, 4 boxes" in said
    assert "\nwarning: split 'train' has fewer than 20 studies with round (" in said
    assert listing(folder.parent) == before


def test_every_problem_is_printed_and_the_status_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "studies.csv", set_value("split", 0, "dev"))
    (folder / "images" / "s03.png").write_bytes(b"no image")
    edit(folder / "boxes.csv", set_value("x_min", 0, "left"))
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", str(folder)])
    assert caught.value.code == f"{folder}: 3 problems"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "studies.csv row 2: split must be" in lines[0]
    assert "boxes.csv row 2: x_min must be a number" in lines[1]
    assert "studies.csv row 5, image 'images/s03.png': not a PNG" in lines[2]


def test_a_folder_that_is_no_data_set_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1 problems"):
        main(["data", "check", str(tmp_path)])
    assert "studies.csv: missing" in capsys.readouterr().out


def test_published_sets_are_checked_by_their_reader(isic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", str(isic), "--source", "isic2017"])
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("the same picture is in two splits" in line for line in lines)  # all pictures are flat
