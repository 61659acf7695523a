"""Pixels in the store: as they were, whoever wrote them, and readable by anybody."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from csr.data.images import Placement, pixel_digest, to_png
from serving.store import Store
from serving.store.entries import Caller, Entry
from serving.store.schema import study
from serving.store.studies import StoredStudy, keep_study, load_study, study_row
from tests.serving.store.test_ledger import server, store

__all__ = ["server", "store"]
CALLER = Caller("tester", "test")
BY_HAND = settings(deadline=None, max_examples=60)


def stored(canvas: np.ndarray, width: int = 100, height: int = 50) -> StoredStudy:
    return StoredStudy(pixel_digest(canvas), canvas, Placement.of(width, height, canvas.shape[-1]))


def add(store: Store, given: StoredStudy) -> list[str]:
    """The kinds of the entries that it was put on record by."""
    kept: list[str] = []

    def keep(connection: sa.Connection) -> list[Entry]:
        entries = keep_study(connection, CALLER, study_row(given))
        kept.extend(each.kind for each in entries)
        return entries

    store.ledger.append((), keep)
    return kept


@st.composite
def canvases(draw: st.DrawFn) -> np.ndarray:
    """Of noise, of few shades, of one, and smooth."""
    channels, side = draw(st.sampled_from([1, 3])), draw(st.integers(1, 40))
    rng, kind = np.random.default_rng(draw(st.integers(0, 1000))), draw(st.sampled_from("nfos"))
    shape = (channels, side, side)
    if kind == "s":
        return np.broadcast_to(np.arange(side) * 255 // side, shape).astype(np.uint8)
    return rng.integers(0, {"n": 256, "f": 3, "o": 1}[kind], shape).astype(np.uint8)


@BY_HAND
@given(canvases())
def test_a_row_is_a_png_of_the_pixels_that_other_programs_read(canvas: np.ndarray) -> None:
    picture = Image.open(io.BytesIO(study_row(stored(canvas))["canvas"]))
    assert (picture.format, picture.mode) == ("PNG", "L" if len(canvas) == 1 else "RGB")
    picture.verify()  # the checksums
    pixels = np.asarray(Image.open(io.BytesIO(study_row(stored(canvas))["canvas"])))
    assert np.array_equal(pixels, canvas[0] if len(canvas) == 1 else np.moveaxis(canvas, 0, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_study_comes_back_as_it_was_also_from_a_row_of_an_earlier_server(store: Store, channels: int) -> None:
    given = stored(np.random.default_rng(channels).integers(0, 256, (channels, 64, 64)).astype(np.uint8))
    add(store, given)
    assert np.array_equal(load_study(store.database, given.digest).canvas, given.canvas)
    with store.database.write() as connection:
        connection.execute(sa.update(study).values(canvas=to_png(given.canvas)))  # by Pillow, as it was before
    found = load_study(store.database, given.digest)
    assert np.array_equal(found.canvas, given.canvas) and found.placement == given.placement
    assert store.ledger.verify().faults == ()


def test_the_same_pixels_again_are_one_row_with_the_last_placement(store: Store) -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (1, 64, 64)).astype(np.uint8)
    assert add(store, stored(canvas)) == ["study"]
    assert add(store, stored(canvas)) == []  # nothing new
    assert add(store, stored(canvas, 50, 100)) == ["study"]
    found = load_study(store.database, pixel_digest(canvas))
    assert found.placement == Placement.of(50, 100, 64)
    with store.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(study)).scalar_one() == 1
    assert store.ledger.verify().faults == ()
