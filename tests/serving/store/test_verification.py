"""Studies that were swapped, moved, removed or put into the store are found, and never answered from."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from csr.data.images import fit, pixel_digest, to_png
from serving.errors import AlteredStudyError, UnknownStudyError
from serving.store import Store
from serving.store.entries import Caller, Entry
from serving.store.schema import study
from serving.store.studies import StoredStudy, keep_study, load_study, study_row
from serving.store.verification import verify_studies
from tests.bench.large_store import KEY as LARGE_KEY
from tests.bench.large_store import address, build_store
from tests.serving.store.test_ledger import change, server, store

__all__ = ["server", "store"]
CALLER = Caller("key:a", "r")
Change = Callable[[Store, StoredStudy], None]


def make(seed: int, width: int = 40, height: int = 20, channels: int = 1) -> StoredStudy:
    image = np.random.default_rng(seed).integers(0, 255, (height, width, channels), np.uint8)
    canvas, placement = fit(image, 32, channels)
    return StoredStudy(pixel_digest(canvas), canvas, placement)


def add(store: Store, given: StoredStudy, recorded: bool = True) -> None:
    place = given.placement
    body = {"request": {"image": {"width": place.width, "height": place.height}}}
    entries = [Entry("prediction", CALLER, "b", body, given.digest)]
    row = study_row(given)
    if recorded:
        store.ledger.append(entries, lambda connection: keep_study(connection, CALLER, row))
    else:
        change(store, study.insert().values(row))


def rewrite(**values: Any) -> Change:
    def apply(store: Store, victim: StoredStudy) -> None:
        change(store, sa.update(study).where(study.c.digest == victim.digest).values(**values))

    return apply


def other_pixels(victim: StoredStudy, index: int = 0) -> np.ndarray:
    canvas = victim.canvas.copy()
    canvas.reshape(-1)[index] ^= 1
    return canvas


def swap(store: Store, victim: StoredStudy) -> None:
    rewrite(canvas=to_png(make(9).canvas))(store, victim)


def flip_a_bit(store: Store, victim: StoredStudy) -> None:
    rewrite(canvas=to_png(other_pixels(victim, 500)))(store, victim)


ALTERATIONS: dict[str, Change] = {
    "another's pixels": swap,
    "one bit": flip_a_bit,
    "turned": lambda store, victim: rewrite(canvas=to_png(victim.canvas[:, ::-1]))(store, victim),
    "in colour": lambda store, victim: rewrite(canvas=to_png(victim.canvas.repeat(3, 0)))(store, victim),
    "cut short": lambda store, victim: rewrite(canvas=to_png(victim.canvas)[:60])(store, victim),
    "no picture": rewrite(canvas=b"hello"),
    "nothing": rewrite(canvas=b""),
    "scale": rewrite(scale=0.5),
    "left": rewrite(offset_left=1.0),
    "top": rewrite(offset_top=-8.0),
    "width": rewrite(width=39),
    "no width": rewrite(width=0),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_study_is_found_and_not_given_out(store: Store, name: str) -> None:
    studies = [make(seed, channels=1 + 2 * (seed % 2)) for seed in range(4)]
    for each in studies:
        add(store, each)
    assert verify_studies(store.database).faults == ()
    ALTERATIONS[name](store, studies[2])
    found = verify_studies(store.database)
    assert (found.stored, found.recomputed, len(found.faults)) == (4, 4, 1)
    assert studies[2].digest[:12] in found.faults[0]
    with pytest.raises(AlteredStudyError, match=r"does not hold what was added \(") as refused:
        load_study(store.database, studies[2].digest)
    assert refused.value.status == 500 and refused.value.code == "study_altered"
    for each in (studies[0], studies[1], studies[3]):
        loaded = load_study(store.database, each.digest)
        assert np.array_equal(loaded.canvas, each.canvas) and loaded.placement == each.placement
    add(store, studies[2])
    assert verify_studies(store.database).faults == (), "uploading it again mends it"


def test_a_placement_that_is_one_but_not_this_study_s(store: Store) -> None:
    """Consistent in itself, so that only the ledger knows better."""
    given = make(1)
    add(store, given)
    moved = replace(given, placement=make(2, 80, 40).placement)
    change(store, sa.update(study).values({**study_row(moved), "canvas": study_row(given)["canvas"]}))
    assert verify_studies(store.database).faults == (
        f"study {given.digest[:12]}: is of an image of 80×40, which the ledger does not know",
    )
    add(store, moved)
    assert verify_studies(store.database).faults == ()


def test_a_study_that_is_gone_or_was_put_there_is_named_whatever_the_sample(store: Store) -> None:
    gone, foreign = make(1), make(2)
    add(store, gone)
    add(store, make(3))
    change(store, sa.delete(study).where(study.c.digest == gone.digest))
    add(store, foreign, recorded=False)
    assert verify_studies(store.database, 0).faults == (
        f"study {gone.digest[:12]}: is gone, though the ledger names it",
        f"study {foreign.digest[:12]}: was put there, no entry of the ledger names it",
    )


def test_pixels_under_the_digest_of_another_study(store: Store) -> None:
    """Two studies whose rows changed places."""
    first, second = make(1), make(2)
    for each in (first, second):
        add(store, each)
    rewrite(canvas=to_png(second.canvas))(store, first)
    rewrite(canvas=to_png(first.canvas))(store, second)
    assert len(verify_studies(store.database).faults) == 2


def test_a_sample_is_as_large_as_is_said(store: Store) -> None:
    for seed in range(6):
        add(store, make(seed))
    found = verify_studies(store.database, 4)
    assert (found.stored, found.recomputed) == (6, 4)
    assert verify_studies(store.database, 100).recomputed == 6
    change(store, sa.update(study).values(canvas=b""))
    assert len(verify_studies(store.database, 4).faults) == 4


def test_many_faults_are_cut_short(store: Store) -> None:
    for seed in range(25):
        add(store, make(seed))
    change(store, sa.update(study).values(canvas=b""))
    faults = verify_studies(store.database).faults
    assert len(faults) == 21 and faults[-1] == "and more"


@pytest.mark.parametrize("digest", ["", "x", "0" * 64, "0" * 63, "\x00", "é", "' OR 1=1 --"])
def test_a_study_that_was_never_added(store: Store, digest: str) -> None:
    with pytest.raises(UnknownStudyError):
        load_study(store.database, digest)


def peak(folder: Path, studies: int) -> tuple[int, int]:
    """Bytes that verifying the ledger and the studies of a large store takes in Python's memory."""
    folder.mkdir()
    build_store(folder, studies)
    opened = Store.open(address(folder), LARGE_KEY)
    found = []
    for verified in (opened.ledger.verify, lambda: verify_studies(opened.database, 0)):
        tracemalloc.start()
        assert verified().faults == ()
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    opened.database.close()
    return found[0], found[1]


def test_verifying_takes_the_same_memory_however_much_there_is(tmp_path: Path) -> None:
    few, many = peak(tmp_path / "few", 1500), peak(tmp_path / "many", 6000)
    assert many[0] < 1.2 * few[0] and many[1] < 1.2 * few[1]
