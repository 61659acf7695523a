"""The guard's scores against numpy, which computes them another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csr.bundle.profile import GREY_EDGES, PARTS
from csr.network.guard import DETAIL_SIZES, THUMBNAIL, Descriptions, Distance, InputGuard, averaging


def images_of(seed: int, batch: int = 3, channels: int = 1, side: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, channels, side, side), dtype=np.uint8)


def described(images: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(images))
    fine, patches = rng.standard_normal((2, len(images), 5, 6, 6)).astype(np.float32)
    found = Descriptions(images.shape[-1])(torch.from_numpy(images), torch.from_numpy(fine), torch.from_numpy(patches))
    return {part: value.numpy() for part, value in found.items()} | {"fine": fine, "patches": patches}


def test_every_part_is_described_in_their_order():
    found = described(images_of(0))
    assert tuple(found)[: len(PARTS)] == PARTS


@pytest.mark.parametrize("side", [16, 48, 50, 200])
def test_a_thumbnail_averages_the_pixels_below_each_cell(side):
    """By area also where cells end inside pixels: averages of the picture enlarged 16 times are the same."""
    images = images_of(side, side=side).astype(np.float64).mean(1)
    enlarged = images.repeat(THUMBNAIL, 1).repeat(THUMBNAIL, 2).reshape(len(images), THUMBNAIL, side, THUMBNAIL, side)
    pool = averaging(side, THUMBNAIL).numpy().astype(np.float64)
    np.testing.assert_allclose(pool @ images @ pool.T, enlarged.mean((2, 4)), rtol=1e-5)


@given(st.integers(0, 100), st.sampled_from([1, 3]))
def test_descriptions_are_what_numpy_says(seed, channels):
    images = images_of(seed, channels=channels)
    found, grey = described(images), images.astype(np.float64) / 255
    mean = grey.mean(1)
    np.testing.assert_allclose(found["texture"], found["fine"].mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(found["content"], found["patches"].mean((2, 3)), atol=1e-5)
    thumbnail = mean.reshape(len(mean), THUMBNAIL, 3, THUMBNAIL, 3).mean((2, 4))
    np.testing.assert_allclose(found["layout"], thumbnail.reshape(len(mean), -1), atol=1e-5)
    left = (thumbnail - thumbnail[:, :, ::-1])[:, :, : THUMBNAIL // 2]
    np.testing.assert_allclose(found["handedness"], left.reshape(len(mean), -1), atol=1e-5)
    seen = grey[:, :, ::2, ::2]
    below = [(seen <= np.float32(edge)).mean((2, 3)) for edge in GREY_EDGES]
    more = [np.abs(seen[:, 1:] - seen[:, :-1]).mean((2, 3))] if channels == 3 else []
    np.testing.assert_allclose(found["grey_levels"], np.concatenate(below + more, 1), atol=1e-5)
    detail = []
    for size in DETAIL_SIZES:
        smaller = mean.reshape(len(mean), 48 // size, size, 48 // size, size).mean((2, 4))
        inner = slice(1, -1)
        around = smaller[:, 2:, inner] + smaller[:, :-2, inner] + smaller[:, inner, 2:] + smaller[:, inner, :-2]
        steep = np.abs(around - 4 * smaller[:, inner, inner])
        detail.append(np.log(steep.mean((1, 2)) + 1e-3))
        if size <= 2:
            detail.append(np.log((steep < 3.6 / 255).mean((1, 2)) + 1e-3))
    np.testing.assert_allclose(found["detail"], np.stack(detail, 1), atol=2e-3)


def test_a_mirrored_picture_has_the_opposite_handedness():
    images = images_of(1)
    one, other = described(images)["handedness"], described(np.ascontiguousarray(images[..., ::-1]))["handedness"]
    np.testing.assert_allclose(one, -other, atol=1e-6)


@given(st.integers(0, 100))
def test_a_distance_is_mahalanobis(seed):
    rng = np.random.default_rng(seed)
    mixing, centre, values = rng.standard_normal((4, 4)), rng.standard_normal(4), rng.standard_normal((5, 4))
    covariance = mixing @ mixing.T + np.eye(4)
    distance = Distance(4, 4)
    distance.centre.copy_(torch.from_numpy(centre))
    distance.whiten.copy_(torch.from_numpy(np.linalg.cholesky(np.linalg.inv(covariance)).T))
    distance.shift.fill_(0.7)
    distance.scale.fill_(0.3)
    squared = np.einsum("nd,de,ne->n", values - centre, np.linalg.inv(covariance), values - centre) / 4
    expected = (np.cbrt(squared) - 0.7) / 0.3
    np.testing.assert_allclose(distance(torch.from_numpy(values).float()).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_guard_scores_its_parts_in_order():
    images = images_of(2)
    widths = {part: value.shape[1] for part, value in described(images).items() if part in PARTS}
    distances = {part: Distance(width, width) for part, width in widths.items()}
    for number, part in enumerate(PARTS):
        distances[part].shift.fill_(float(number))
    guard = InputGuard(Descriptions(48), distances)
    found = described(images)
    scores = guard(*(torch.from_numpy(each) for each in (images, found["fine"], found["patches"]))).numpy()
    expected = [np.cbrt((found[part] ** 2).mean(1)) - number for number, part in enumerate(PARTS)]
    np.testing.assert_allclose(scores, np.stack(expected, 1), atol=1e-4)


def test_the_encoder_gives_the_same_patches_with_its_guard(tiny_run):
    """And the finest level is that from which they are made."""
    images = torch.from_numpy(np.ascontiguousarray(tiny_run.data.images[:2]))
    with torch.no_grad():
        fine, patches = tiny_run.csr.encoder.depths(images)
        torch.testing.assert_close(patches, tiny_run.csr.encoder(images))
        assert fine.ndim == 4 and len(fine) == 2
