"""What training has seen must not be judged on: patients, pixels and near-duplicates in two splits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from csr.data.leaks import BLOCK, Fingerprints, find_leaks, perceptual_hash
from csr.data.problems import Problems
from csr.data.raw import prepare_raw
from csr.data.records import Collection
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares
from csr.errors import DataError
from tests.csr.synthetic import make_collection


def picture(seed: int, side: int = 96) -> np.ndarray:
    """Blobs of every size, as in photographs, unlike those of any other seed."""
    noise = np.random.default_rng(seed).standard_normal((5, side, side))
    scene = sum(2**level * gaussian_filter(noise[level], 2**level) for level in range(5))
    return ((scene - scene.min()) / np.ptp(scene) * 255).astype(np.uint8)[None]


def differing(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(perceptual_hash(first) ^ perceptual_hash(second)).sum())


def as_jpeg(canvas: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(canvas[0]).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))[None]


CHANGES = {
    "scaled": lambda canvas: np.asarray(Image.fromarray(canvas[0]).resize((80, 80)))[None],
    "re-encoded": as_jpeg,
    "brighter": lambda canvas: np.clip(canvas * 1.05 + 5, 0, 255).astype(np.uint8),
    "in colour": lambda canvas: np.repeat(canvas, 3, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_keeps_its_hash_through_what_is_done_to_copies(change: str) -> None:
    assert max(differing(picture(seed), CHANGES[change](picture(seed))) for seed in range(20)) <= 12


def test_different_pictures_differ_in_about_half_of_the_bits() -> None:
    distances = [differing(picture(seed), picture(seed + 100)) for seed in range(50)]
    assert min(distances) > 80
    assert np.mean(distances) == pytest.approx(128, abs=8)


@pytest.fixture
def collection() -> Collection:
    made = make_collection(20, 10, 10)
    studies = made.studies.copy()
    studies["patient_id"] = studies["study_id"]
    return replace(made, studies=studies)


def prints_of(pictures: list[np.ndarray]) -> Fingerprints:
    prints = Fingerprints()
    for each in pictures:
        prints.add(each)
    return prints


def test_a_clean_set_has_no_leak(collection: Collection) -> None:
    assert list(find_leaks(collection, prints_of([picture(seed) for seed in range(40)]))) == []


def test_the_same_patient_in_two_splits_is_named(collection: Collection) -> None:
    collection.studies.loc[[3, 4, 25], "patient_id"] = "p7"
    (leak,) = find_leaks(collection, prints_of([picture(seed) for seed in range(40)]))
    assert leak == "a patient is in several splits: 'p7' with s003 (train), s004 (train), s025 (val)"


def test_the_same_pixels_are_named_once(collection: Collection) -> None:
    pictures = [picture(seed) for seed in range(40)]
    pictures[35] = pictures[2].copy()
    (leak,) = find_leaks(collection, prints_of(pictures))
    assert leak == "the same pixels are in several splits: s002 (train), s035 (test)"


def test_near_duplicates_are_named_unless_only_pixels_count(collection: Collection) -> None:
    pictures = [picture(seed) for seed in range(40)]
    pictures[25] = CHANGES["brighter"](pictures[31])
    (leak,) = find_leaks(collection, prints_of(pictures))
    assert leak.startswith("nearly the same picture is in two splits: s025 (val), s031 (test); ")
    assert list(find_leaks(collection, prints_of(pictures), near=-1)) == []


def test_copies_within_a_split_are_no_leak(collection: Collection) -> None:
    pictures = [picture(seed) for seed in range(40)]
    pictures[1], pictures[2] = pictures[0], CHANGES["re-encoded"](pictures[0])
    assert list(find_leaks(collection, prints_of(pictures))) == []


def test_hashes_beyond_one_block_are_compared_too() -> None:
    count = BLOCK + 10
    made = make_collection(count, 3, 3)
    made.studies["patient_id"] = made.studies["study_id"]
    prints = prints_of([picture(0)])
    rng = np.random.default_rng(0)
    prints.hashes = list(rng.integers(0, 2**63, (count + 6, 4)).astype(np.uint64))
    prints.digests = [bytes([*index.to_bytes(4), 0]) for index in range(count + 6)]
    prints.hashes[count + 5] = prints.hashes[count - 1] ^ np.uint64(1)
    (leak,) = find_leaks(made, prints)
    assert "; 4 of 256 bits differ" in leak


def test_preparing_refuses_a_leak_and_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    rows = []
    for index in range(12):
        Image.fromarray(picture(index if index != 11 else 0)[0]).save(root / "images" / f"{index}.png")
        rows.append((f"s{index}", f"{index}.png", ("train", "val", "test")[index % 3], "ab"[index // 3 % 2], index % 2))
    columns = ["study_id", "image", "split", "label", "concept:round"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "studies.csv", index=False)
    problems = Problems()
    raw = read_table(root, SplitShares(), problems)
    with pytest.raises(DataError, match=r"the same pixels are in several splits: s0 \(train\), s11 \(test\)"):
        prepare_raw(raw, tmp_path / "out" / "prepared", 32, 1, 1, problems, skip_bad=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_flat_pictures_are_one_picture() -> None:
    assert differing(np.full((3, 40, 40), 7, np.uint8), np.full((3, 40, 40), 201, np.uint8)) == 0
