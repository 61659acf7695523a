"""The limit: how many good images are above it, and which others are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from csr.bundle.profile import LIMIT, PARTS
from csr.network.guard import GuardedEncoder
from csr.training.guard import FLAGGED, calibrated, fit_guard, fitted_direction, fitted_distance


@pytest.fixture(scope="module")
def guarded(tiny_run: Any) -> tuple[GuardedEncoder, Any]:
    guard, profile = fit_guard(tiny_run.data, tiny_run.csr)
    return GuardedEncoder(tiny_run.csr.encoder, guard).eval(), profile


@torch.no_grad()
def scores_of(guarded: tuple[GuardedEncoder, Any], images: np.ndarray) -> np.ndarray:
    return guarded[0](torch.from_numpy(np.ascontiguousarray(images)))[1].numpy()


def test_a_distance_is_that_of_the_shrunk_covariance():
    """scikit-learn's own: the mean Mahalanobis distance of what it was fitted to."""
    from sklearn.covariance import LedoitWolf

    values = np.random.default_rng(0).standard_normal((200, 6)) @ np.diag([1, 2, 3, 4, 5, 6.0]) + 3
    spread = values.std(0)
    expected = np.cbrt(LedoitWolf().fit(values / spread).mahalanobis(values / spread) / 6)
    found = fitted_distance(values)(torch.from_numpy(values).float()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_direction_tells_pictures_from_their_negatives():
    """In 50 dimensions of noise one has a mean: the distance of all 50 does not see it, that of the direction does."""
    rng = np.random.default_rng(1)
    fitted, good = rng.standard_normal((2, 2000, 50))
    fitted[:, 3] += 3
    good[:, 3] += 3
    values = torch.from_numpy(good).float()
    for distance, separated in ((fitted_direction(fitted), True), (fitted_distance(fitted), False)):
        limit = float(np.quantile(distance(values).numpy(), 0.99))
        assert bool((distance(-values) > limit).float().mean() > 0.95) is separated


@pytest.mark.parametrize("seed", range(3))
def test_at_most_the_share_of_good_images_is_above_the_limit(seed):
    rng = np.random.default_rng(seed)
    unseen = {part: rng.gamma(3, 1, 4000) for part in PARTS}
    in_val = np.arange(4000) >= 3000
    calibration, scores = calibrated(unseen, in_val)
    assert (scores.max(1) > LIMIT).mean() <= FLAGGED
    assert (scores[in_val].max(1) > LIMIT).mean() <= FLAGGED
    more = np.stack([(rng.gamma(3, 1, 20000) - shift) / scale for shift, scale in calibration.values()], 1)
    assert 0.004 < (more.max(1) > LIMIT).mean() < 0.016, "others of their kind are above it as often"
    shares = (more > LIMIT).mean(0)
    assert shares.max() < 3 * shares.min(), "no part sets the limit alone"


def test_images_of_validation_that_differ_from_those_of_training_set_the_limit():
    rng = np.random.default_rng(0)
    in_val = np.arange(2000) >= 1800
    unseen = {part: rng.gamma(3, 1, 2000) * np.where(in_val, 1.5, 1) for part in PARTS}
    assert (calibrated(unseen, in_val)[1][in_val].max(1) > LIMIT).mean() <= FLAGGED


def test_few_good_test_images_are_flagged(tiny_run: Any, guarded: tuple[GuardedEncoder, Any]):
    rows = tiny_run.data.collection.rows("test")
    assert (scores_of(guarded, tiny_run.data.images[rows]).max(1) > LIMIT).mean() <= 0.05
    assert guarded[1].flagged <= FLAGGED


@pytest.mark.parametrize(
    "change",
    [
        lambda image: 255 - image,
        lambda image: np.rot90(image, axes=(-2, -1)),
        lambda image: np.rot90(image, 2, axes=(-2, -1)),
        lambda image: image // 16,
        lambda image: np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8),
    ],
)
def test_other_pictures_are(tiny_run: Any, guarded: tuple[GuardedEncoder, Any], change):
    images = tiny_run.data.images[tiny_run.data.collection.rows("test")[:30]]
    assert (scores_of(guarded, change(np.array(images))).max(1) > LIMIT).mean() >= 0.95


def test_the_profile_says_what_the_images_were(tiny_run: Any, guarded: tuple[GuardedEncoder, Any]):
    data, profile = tiny_run.data, guarded[1]
    assert profile.images == sum(len(data.collection.rows(split)) for split in ("train", "val"))
    assert (profile.side, profile.channels) == (data.side, data.channels)
    assert profile.modality == ("CR", "DX") and profile.body_part == ("CHEST",)
    assert sum(profile.grey_levels) == pytest.approx(1, abs=1e-3)
    assert sum(profile.score_shares) == pytest.approx(1) and min(profile.score_shares) > 0
    assert profile.aspect[0] < 1 < profile.aspect[1]


def test_what_is_stated_goes_before_the_table_and_the_table_before_what_is_known(tiny_run: Any):
    collection = tiny_run.data.collection
    studies = collection.studies.assign(modality="RG", view="LL")
    data = replace(tiny_run.data, collection=replace(collection, studies=studies))
    profile = fit_guard(data, tiny_run.csr, {"view": ("PA", "AP", "PA")})[1]
    assert (profile.modality, profile.view, profile.body_part) == (("RG",), ("AP", "PA"), ("CHEST",))
