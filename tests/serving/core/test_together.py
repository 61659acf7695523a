"""Several things at once: files of one request, and what is said of them."""

from __future__ import annotations

import io
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from csr.bundle.format import Bundle
from serving.core.dataplane import DataPlane
from serving.core.intake import Upload
from serving.core.together import MOST, together
from serving.errors import BatchError
from tests.serving.conftest import CALLER, CountingEngine, add, make_service, png

REQUEST: ContextVar[str] = ContextVar("request", default="none")


def test_results_come_in_the_order_of_the_things_whoever_is_first() -> None:
    all_there, last_there = threading.Barrier(MOST, timeout=20), threading.Event()

    def late(thing: int) -> int:
        all_there.wait()  # they are at it at once, or this never ends
        if thing == MOST - 1:
            last_there.set()
        assert last_there.wait(20)
        return thing * thing

    assert together(late, range(MOST)) == [thing * thing for thing in range(MOST)]
    assert together(late, []) == []


def test_threads_know_whose_request_it_is() -> None:
    REQUEST.set("r-1")
    assert together(lambda _: REQUEST.get(), [1, 2, 3]) == ["r-1"] * 3


def test_the_first_mistake_is_told_and_the_others_are_done() -> None:
    done: list[int] = []

    def fail(thing: int) -> None:
        done.append(thing)
        if thing in (2, 4):
            raise ValueError(str(thing))

    with pytest.raises(ValueError, match="2"):
        together(fail, range(6))
    assert sorted(done) == [*range(6)]


def files(sample: bytes, count: int) -> list[Upload]:
    """Of other pixels each."""
    pixels = np.array(Image.open(io.BytesIO(sample)).convert("L"))
    made = []
    for number in range(count):
        pixels[0, 0] = number
        made.append(Upload(png(pixels), f"{number}.png"))
    return made


class MeetingEngine(CountingEngine):
    """Encodes once so many images are there, each from a thread of its own."""

    def __init__(self, bundle: Bundle, images: int) -> None:
        super().__init__(bundle)
        self._meeting = threading.Barrier(images, timeout=20)

    def run_encoder(self, images: np.ndarray, *rest: Any) -> dict[str, np.ndarray]:
        self._meeting.wait()
        return super().run_encoder(images, *rest)


def test_files_of_one_request_can_be_one_batch_of_the_encoder(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    service = make_service(bundle.path, tmp_path, MeetingEngine(bundle, 4))
    answers = service.plane.add_studies(files(sample, 4), CALLER)
    alone = make_service(bundle.path, tmp_path / "alone")
    for answer, upload in zip(answers, files(sample, 4), strict=True):
        expected = add(alone.plane, upload.data)
        assert answer.digest == expected.digest
        for now, then in zip(answer.prediction.classes, expected.prediction.classes, strict=True):
            assert now.probability == pytest.approx(then.probability, abs=1e-5)
    assert {"decode", "encode", "reason", "record"} <= answers[0].timings_ms.keys()
    service.close()
    alone.close()


def test_one_picture_twice_in_a_request_is_encoded_once(
    plane: DataPlane, engine: CountingEngine, sample: bytes
) -> None:
    first, second = plane.add_studies([Upload(sample, "a.png"), Upload(sample, "b.png")], CALLER)
    assert first.digest == second.digest and engine.encoded == 1


def test_files_that_cannot_be_read_are_named_in_their_order(plane: DataPlane, sample: bytes) -> None:
    broken = [Upload(b"no image", f"{number}.png") for number in range(3)]
    with pytest.raises(BatchError, match=r"0\.png.*1\.png.*2\.png"):
        plane.add_studies([*broken, Upload(sample, "good.png")], CALLER)
