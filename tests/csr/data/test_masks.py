"""Masks of single boxes in the ``table`` layout: from PNG files to the prepared set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csr.data.images import Placement
from csr.data.masks import place_mask, read_mask, tight_box
from csr.data.prepared import PreparedSet
from csr.errors import DataError, ImageError
from tests.csr.data.sources.test_table import edit, prepare, set_value
from tests.csr.data.sources.test_table import folder as table_folder

folder = table_folder
DISC = np.hypot(*(np.mgrid[0:20, 0:40] - np.array([10, 20]).reshape(2, 1, 1))) < 6  # of its images' 40×20 pixels


@pytest.fixture
def outlined(folder: Path) -> Path:
    """The first box leaves its corners to a mask, the second has both, the others have none."""
    (folder / "masks").mkdir()
    Image.fromarray(DISC).save(folder / "masks/disc.png")
    corner = np.zeros((20, 40), np.uint8)
    corner[2:6, 30:40] = 7
    Image.fromarray(corner).save(folder / "masks/corner.png")

    def name(table: pd.DataFrame) -> None:
        table["mask"] = ["disc.png", "corner.png", *[""] * (len(table) - 2)]
        table.loc[0, ["x_min", "y_min", "x_max", "y_max"]] = ""

    edit(folder / "boxes.csv", name)
    return folder


def test_a_mask_is_placed_on_the_canvas_and_fills_empty_corners(outlined: Path, tmp_path: Path) -> None:
    collection = prepare(outlined, tmp_path / "prepared", side=80)  # twice as large, 20 pixels below the upper edge
    data = PreparedSet.open(tmp_path / "prepared")
    assert collection.boxes["mask"].tolist() == [0, 1, -1, -1]
    expected = np.zeros((80, 80), bool)
    expected[20:60] = DISC.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(data.mask_of(0), expected)
    left, top, right, bottom = tight_box(DISC)
    corners = collection.boxes[["x_min", "y_min", "x_max", "y_max"]].to_numpy()
    assert corners[0].tolist() == [2 * left, 2 * top + 20, 2 * right, 2 * bottom + 20]
    assert corners[1].tolist() == [20, 30, 60, 50]  # given corners stay
    second = data.mask_of(1)
    assert second is not None and second[24:32, 60:80].all() and second.sum() == 8 * 20
    assert data.mask_of(2) is None


def test_a_set_without_masks_has_none(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "prepared")
    data = PreparedSet.open(tmp_path / "prepared")
    assert data.mask_of(0) is None
    assert not (tmp_path / "prepared/masks.npy").exists()


def test_masks_of_studies_that_were_skipped_are_not_kept(outlined: Path, tmp_path: Path) -> None:
    first = pd.read_csv(outlined / "boxes.csv")["study_id"].iat[0]
    (outlined / "images" / f"{first}.png").write_bytes(b"no image")
    collection = prepare(outlined, tmp_path / "prepared", side=80, skip_bad=True)
    assert collection.boxes["mask"].tolist() == [0, -1, -1]
    mask = PreparedSet.open(tmp_path / "prepared").mask_of(0)
    assert mask is not None and mask.sum() == 8 * 20
    assert len(np.load(tmp_path / "prepared/masks.npy")) == 1


def spoil_mask(content: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: content(root / "masks/disc.png")


WRONG = [
    (spoil_mask(Path.unlink), "boxes.csv row 2: mask 'masks/disc.png' there is no such file"),
    (spoil_mask(lambda file: file.write_bytes(b"x")), "boxes.csv row 2: mask 'masks/disc.png' cannot be read as a PNG"),
    (
        spoil_mask(lambda file: Image.new("L", (20, 40), 1).save(file)),
        "boxes.csv row 2: mask 'masks/disc.png' is of 20×40 pixels and its image of 40×20",
    ),
    (
        spoil_mask(lambda file: Image.new("L", (40, 20)).save(file)),
        "boxes.csv row 2: mask 'masks/disc.png' is 0 everywhere",
    ),
    (
        lambda root: edit(root / "boxes.csv", set_value("x_min", 0, "4")),
        "boxes.csv row 2: y_min, x_max, y_max empty; give all four corners, or none",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_a_wrong_mask_is_named_with_its_row(
    outlined: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(outlined)
    with pytest.raises(DataError) as caught:
        prepare(outlined, tmp_path / "prepared")
    assert sentence in str(caught.value)
    assert not (tmp_path / "prepared").exists()
    assert len(prepare(outlined, tmp_path / "prepared", skip_bad=True).boxes) == 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_any_mode_are_set_where_they_are_not_0(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(DISC.astype(np.uint8) * 200)
    if mode == "I;16":
        picture = Image.fromarray(DISC.astype(np.uint16) * 900)
    elif mode == "P":
        picture = Image.fromarray(DISC.astype(np.uint8), "P")
        picture.putpalette([255, 255, 255, 0, 0, 0])  # the index counts and not its colour
    else:
        picture = grey.convert(mode, dither=Image.Dither.NONE)
    picture.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 40, 20), DISC)


def test_an_animation_is_no_mask(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "mask.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="is an animation of 2 frames"):
        read_mask(tmp_path / "mask.png", 6, 4)


def test_transparency_marks_nothing(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 255)).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match="is 0 everywhere"):
        read_mask(tmp_path / "mask.png", 4, 4)


def test_a_finding_of_one_pixel_survives_any_reduction() -> None:
    mask = np.zeros((1000, 1000), bool)
    mask[777, 345] = True
    placed = place_mask(mask, Placement(1000, 1000, 0.05, 0, 0), 50)
    assert np.argwhere(placed).tolist() == [[38, 17]]
