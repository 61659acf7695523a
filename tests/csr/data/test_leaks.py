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

from csr.data import leaks
from csr.data.leaks import Fingerprints, find_leaks, near_pairs, perceptual_hash
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


def compared_one_by_one(ours: np.ndarray, theirs: np.ndarray, near: int) -> list[list[int]]:
    found = []
    for i, one in enumerate(ours):
        for j, other in enumerate(theirs):
            differing = sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))
            if differing <= near:
                found.append([i, j, differing])
    return found


@pytest.mark.parametrize("near", [0, 1, 5, 12, 40, 120])
@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_near_hashes_are_those_that_a_look_at_every_pair_finds(
    near: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "PAIRS", at_once)
    rng = np.random.default_rng(near)
    ours = rng.integers(0, 2**64, (40, 4), np.uint64)
    theirs = rng.integers(0, 2**64, (30, 4), np.uint64)
    for j in range(20):  # copies with a few bits turned over, some just near enough and some just too far
        bits = np.unpackbits(ours[rng.integers(40)].view(np.uint8))
        bits[rng.choice(256, near + rng.integers(-1, 2) if near else rng.integers(2), replace=False)] ^= 1
        theirs[j] = np.packbits(bits).view(np.uint64)
    expected = compared_one_by_one(ours, theirs, near)
    assert expected and near_pairs(ours, theirs, near).tolist() == expected


def test_hashes_that_all_share_a_part_are_compared_too() -> None:
    hashes = np.tile(np.arange(4, dtype=np.uint64), (9, 1))
    assert len(near_pairs(hashes, hashes[:5], 12)) == 45
    assert near_pairs(hashes[:0], hashes, 12).shape == near_pairs(hashes, hashes[:0], 12).shape == (0, 3)


def test_few_of_all_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unlike pictures: 13 parts of 19 or 20 bits, so about one in 40 000 pairs shares one."""
    looked_at, plain = 0, np.bitwise_count

    def counted(words: np.ndarray) -> np.ndarray:
        nonlocal looked_at
        looked_at += len(words)
        return plain(words)

    monkeypatch.setattr(np, "bitwise_count", counted)
    hashes = np.random.default_rng(0).integers(0, 2**64, (20_000, 4), np.uint64)
    assert len(near_pairs(hashes[:15_000], hashes[15_000:], 12)) == 0
    assert looked_at < 15_000 * 5_000 / 10_000


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
