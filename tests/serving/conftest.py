from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle import Bundle
from csr.interaction import Interaction
from serving.api import create_app
from serving.dataplane import DataPlane
from serving.engine import OrtEngine


class CountingEngine:
    """The real engine, which counts."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine = OrtEngine(bundle)
        self._lock = threading.Lock()
        self.encoded = 0

    def encode(self, images: np.ndarray) -> np.ndarray:
        with self._lock:
            self.encoded += len(images)
        return self._engine.encode(images)

    def reason(self, patches: np.ndarray, interactions: Sequence[Interaction]) -> dict[str, np.ndarray]:
        return self._engine.reason(patches, interactions)


@pytest.fixture(scope="session")
def bundle(tiny_run: Any) -> Bundle:
    return tiny_run.bundle


@pytest.fixture
def engine(bundle: Bundle) -> CountingEngine:
    return CountingEngine(bundle)


@pytest.fixture
def plane(bundle: Bundle, engine: CountingEngine) -> DataPlane:
    return DataPlane(bundle, engine)


@pytest.fixture
def client(plane: DataPlane) -> Iterator[TestClient]:
    with TestClient(create_app(lambda: plane, upload_bytes=1 << 20), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def sample(bundle: Bundle) -> bytes:
    return (bundle.path / "samples" / "00.png").read_bytes()


@pytest.fixture(scope="session")
def wide(sample: bytes) -> bytes:
    """A colour image of another shape and size than the network's input: 200×100."""
    return png(np.array(Image.open(io.BytesIO(sample)).convert("RGB").resize((200, 100))))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def altered_copy(bundle: Bundle, folder: Path) -> Path:
    """A copy of a bundle in which one byte of the atlas is another."""
    import shutil

    shutil.copytree(bundle.path, folder)
    file = folder / "atlas.json"
    file.write_bytes(file.read_bytes().replace(b"true", b"True", 1))
    return folder
