"""A prepare that was stopped goes on where it was, and never takes a changed file for the old one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csr.data import decoded as module
from csr.data.decoded import Decoded, DecodedImages
from csr.data.images import Placement, ReadImage
from csr.data.prepared import PreparedSet
from csr.data.problems import Problems
from csr.data.raw import prepare_raw
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares
from csr.errors import DataError
from tests.csr.data.sources.test_table import edit, set_value
from tests.csr.data.sources.test_table import folder as table_folder

folder = table_folder
SHAPE = (1, 16, 16)
PLACEMENT = Placement(40, 20, 0.4, 0.0, 4.0)


class Interruption(Exception):
    """Stands for a machine that is taken away."""


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded, as they are."""
    names: list[str] = []
    decode = module.read_image

    def counting(data: bytes, name: str, *options: object) -> ReadImage:
        names.append(name)
        return decode(data, name, *options)

    monkeypatch.setattr(module, "read_image", counting)
    return names


def prepare(root: Path, out: Path, stop_after: int | None = None) -> None:
    def stopping(items: Iterable, total: int) -> Iterator:
        for count, item in enumerate(items):
            if count == stop_after:
                raise Interruption
            yield item

    problems = Problems()
    raw = read_table(root, SplitShares(), problems)
    with DecodedImages(out / "decoded", root, SHAPE) as decoded:
        prepare_raw(raw, out / "prepared", 16, 1, 1, problems, near_bits=-1, decoded=decoded, progress=stopping)


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_stopped_run_goes_on_and_ends_the_same(folder: Path, tmp_path: Path, decoding: list[str]) -> None:
    prepare(folder, tmp_path / "whole")
    assert len(decoding) == 12 and not list((tmp_path / "whole/decoded").iterdir())
    decoding.clear()
    with pytest.raises(Interruption):
        prepare(folder, tmp_path / "stopped", stop_after=5)
    assert not (tmp_path / "stopped/prepared").exists()
    decoding.clear()
    prepare(folder, tmp_path / "stopped")
    assert len(decoding) == 7
    assert files(tmp_path / "stopped/prepared") == files(tmp_path / "whole/prepared")
    assert not list((tmp_path / "stopped/decoded").iterdir())


def test_a_mended_table_costs_no_second_decoding(folder: Path, tmp_path: Path, decoding: list[str]) -> None:
    edit(folder / "boxes.csv", set_value("x_max", 0, "5"))
    with pytest.raises(DataError):
        prepare(folder, tmp_path)
    decoding.clear()
    edit(folder / "boxes.csv", set_value("x_max", 0, "30"))
    prepare(folder, tmp_path)
    assert decoding == []


def test_a_changed_image_is_decoded_again(folder: Path, tmp_path: Path, decoding: list[str]) -> None:
    with pytest.raises(Interruption):
        prepare(folder, tmp_path, stop_after=8)
    decoding.clear()
    file = folder / "images/s03.png"
    before = file.stat()
    Image.fromarray(np.full((20, 40), 99, np.uint8)).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    prepare(folder, tmp_path)
    assert sum("s03.png" in name for name in decoding) == 1
    assert (PreparedSet.open(tmp_path / "prepared").images[3][:, 4:12] == 99).all()


@pytest.mark.parametrize("cut", [1, 5])
def test_what_a_killed_run_left_half_written_is_not_there(folder: Path, tmp_path: Path, cut: int) -> None:
    canvases = np.random.default_rng(0).integers(0, 255, (3, *SHAPE), np.uint8)
    with pytest.raises(Interruption), DecodedImages(tmp_path, folder, SHAPE) as decoded:
        for index in range(3):
            decoded.put(f"images/s0{index}.png", Decoded(canvases[index], PLACEMENT, (0.1, 0.2), ("PNG", 8), "8 bits"))
        raise Interruption
    (file,) = tmp_path.glob("*/index.jsonl")
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(Interruption), DecodedImages(tmp_path, folder, SHAPE) as decoded:
        assert decoded.get("images/s02.png") is None
        decoded.put("images/s03.png", Decoded(canvases[2], PLACEMENT, None, ("DICOM", 12), "12 bits"))
        raise Interruption
    with DecodedImages(tmp_path, folder, SHAPE) as decoded:
        for index, name in ((0, "s00"), (1, "s01"), (2, "s03")):
            known = decoded.get(f"images/{name}.png") or pytest.fail(f"{name} is not there")
            np.testing.assert_array_equal(known.canvas, canvases[index])
            assert (known.placement, known.spacing) == (PLACEMENT, None if index == 2 else (0.1, 0.2))


def test_other_shapes_and_data_sets_keep_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Interruption), DecodedImages(tmp_path, folder, SHAPE) as decoded:
        decoded.put("images/s00.png", Decoded(np.zeros(SHAPE, np.uint8), PLACEMENT, None, ("DICOM", 12), "12 bits"))
        raise Interruption
    with DecodedImages(tmp_path, folder, (3, 16, 16)) as other:
        assert other.get("images/s00.png") is None
    with DecodedImages(tmp_path, folder, SHAPE) as same:
        assert same.get("images/s00.png") is not None
