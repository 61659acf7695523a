"""Decoding in other processes: the same studies as here, and no file that costs more than its limits."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from csr.data.images import decode, fit, pixel_digest
from serving.core.decoding import DecodingLimits, DecodingPool
from serving.dicom.deidentify import deidentify
from serving.errors import BurnedInAnnotationError, DecoderError, UnreadableImageError
from serving.store.studies import StoredStudy
from tests.serving.conftest import DECODING, png
from tests.serving.dicom.files import SALT, dataset, written

PICTURE = png(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))


def saved(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def kinds() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files of 64×64 pixels, and the pixels that are in them."""
    grey, colour = (np.random.default_rng(0).integers(0, 256, (64, 64, n), dtype=np.uint8) for n in (1, 3))
    grey, opacity = grey[..., 0], np.where(grey[..., 0] < 128, 0, 255).astype(np.uint8)
    said = PngInfo()
    said.add_text("Comment", "what is said beside the pixels")
    indexed = Image.fromarray(255 - grey, "P")
    indexed.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
    lossy = saved(colour, "JPEG", quality=80)
    header = {"Rows": 64, "Columns": 64, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return {
        "PNG, grey": (saved(grey), grey),
        "PNG, grey, as small as it goes": (saved(grey, optimize=True), grey),
        "PNG, grey, with a comment": (saved(grey, pnginfo=said), grey),
        "PNG, grey of 16 bits": (saved(grey.astype(np.uint16) * 257), grey),
        "PNG, grey with opacity": (saved(np.dstack([grey, opacity])), np.where(opacity > 0, grey, 0)),
        "PNG, palette": (saved(indexed), grey),
        "PNG, colour": (saved(colour), colour),
        "PNG, colour with opacity": (saved(np.dstack([colour, opacity])), np.where(opacity[..., None] > 0, colour, 0)),
        "JPEG": (lossy, np.asarray(Image.open(io.BytesIO(lossy)))),
        "TIFF": (saved(colour, "TIFF"), colour),
        "BMP": (saved(grey, "BMP"), grey),
        "WebP": (saved(colour, "WEBP", lossless=True), colour),
        "DICOM": (written(dataset(**header, PixelData=grey.tobytes())), grey),
    }


KINDS = kinds()


@cache
def large(side: int = 7000) -> bytes:
    """Takes far longer than a few milliseconds and more than 300 MB."""
    buffer = io.BytesIO()
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: side // 2] = 200
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read(pool: DecodingPool, data: bytes, name: str = "image", caller: str = "a") -> StoredStudy:
    return pool.decode(data, name, 1, 64, SALT, caller)


def only_worker(pool: DecodingPool) -> int:
    (worker,) = pool._workers.values()
    return worker._process.pid


@pytest.fixture
def pool() -> Iterator[DecodingPool]:
    pool = DecodingPool(DecodingLimits(workers=1))
    yield pool
    pool.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_s_address_is_that_of_its_pixels_whatever_the_file(kind):
    """By hand, so that the studies of today are found tomorrow."""
    data, pixels = KINDS[kind]
    canvas = np.stack([pixels] * 3) if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    study = DECODING.decode(data, "image", 3, 64, SALT, "a")
    np.testing.assert_array_equal(study.canvas, canvas)
    assert study.digest == hashlib.sha256(b"(3, 64, 64)" + canvas.tobytes()).hexdigest()


@pytest.mark.parametrize("data", [PICTURE, written(dataset())])
def test_a_file_is_the_study_that_it_would_be_here(data):
    study = read(DECODING, data)
    canvas, placement = fit(decode(data), 64, 1)
    np.testing.assert_array_equal(study.canvas, canvas)
    assert (study.placement, study.digest) == (placement, pixel_digest(canvas))
    source = deidentify(data, SALT)
    assert study.source == (None if source is None else source.to_json())


def test_what_is_refused_here_is_refused_there_in_the_same_words():
    with pytest.raises(UnreadableImageError, match=r"scan\.png: the image is damaged"):
        read(DECODING, PICTURE[:200], "scan.png")
    with pytest.raises(BurnedInAnnotationError):
        read(DECODING, written(dataset(BurnedInAnnotation="YES")))


def test_a_file_that_takes_too_long_is_refused_and_the_next_one_is_read():
    pool = DecodingPool(DecodingLimits(workers=1, seconds=0.3))
    try:
        read(pool, PICTURE)  # the worker is up
        before = only_worker(pool)
        with pytest.raises(UnreadableImageError, match=r"slow\.png: takes longer than 0\.3 seconds to decode"):
            read(pool, large(), "slow.png")
        assert read(pool, PICTURE).canvas.shape == (1, 64, 64)
        assert only_worker(pool) != before
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
    finally:
        pool.close()


def test_a_file_that_takes_too_much_memory_is_refused_and_the_next_one_is_read():
    pool = DecodingPool(DecodingLimits(workers=1, memory_mb=256))
    try:
        with pytest.raises(UnreadableImageError, match=r"big\.png: needs more than 256 MB of memory"):
            read(pool, large(), "big.png")
        assert read(pool, PICTURE).canvas.shape == (1, 64, 64)
    finally:
        pool.close()


def test_an_image_at_the_limit_of_pixels_fits_into_the_memory_that_a_worker_has(pool):
    study = read(pool, large(8000))
    assert (study.placement.width, study.placement.height) == (8000, 8000)


def test_a_worker_that_dies_costs_the_file_that_it_was_at_and_no_other(pool):
    read(pool, PICTURE)
    pid = only_worker(pool)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(UnreadableImageError, match="ends the decoder"):
        read(pool, large())
    assert read(pool, PICTURE).canvas.shape == (1, 64, 64)


def test_bombs_of_one_reader_do_not_keep_another_waiting():
    """The other one is served after the bomb that is being read, not after all that wait."""
    pool, ended = DecodingPool(DecodingLimits(workers=1, seconds=0.3)), []

    def bomb() -> None:
        with pytest.raises(UnreadableImageError):
            read(pool, large(), caller="a")
        ended.append("bomb")

    try:
        read(pool, PICTURE)
        bombs = [threading.Thread(target=bomb) for _ in range(4)]
        for each in bombs:
            each.start()
        while sum(map(len, pool._slots._waiting.values())) < 3:
            time.sleep(0.01)
        read(pool, PICTURE, caller="b")
        assert len(ended) <= 2
        for each in bombs:
            each.join()
    finally:
        pool.close()


def test_a_decoder_that_does_not_start_is_the_servers_fault():
    pool = DecodingPool(DecodingLimits(workers=1), command=(sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(DecoderError, match="does not start"):
        read(pool, PICTURE)
    pool.close()


def test_a_worker_sees_no_secret_of_the_server(pool, monkeypatch):
    monkeypatch.setenv("CSR_STORE_URL", "postgresql://user:secret@host/csr")
    monkeypatch.setenv("PACS", "token")
    read(pool, PICTURE)
    environment = Path(f"/proc/{only_worker(pool)}/environ").read_bytes()
    assert b"secret" not in environment and b"token" not in environment and b"PATH=" in environment


def test_workers_end_with_the_server_that_started_them():
    code = (
        "from serving.core.decoding import DecodingLimits, DecodingPool\n"
        "from tests.serving.core.test_decoding import PICTURE, only_worker, read\n"
        "import os, signal\n"
        "pool = DecodingPool(DecodingLimits(workers=1))\n"
        "read(pool, PICTURE)\n"
        "print(only_worker(pool), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text()
