from __future__ import annotations

import atexit
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle.format import Bundle
from csr.interaction.corrections import Interaction
from serving.access.roles import Role
from serving.core.dataplane import DataPlane
from serving.core.decoding import DecodingPool
from serving.core.intake import Upload
from serving.deploy.config import parse_config
from serving.deploy.service import Service, engine_maker
from serving.engines import Engine, OrtEngine
from serving.interfaces.rest.app import create_server
from serving.interfaces.schemas import InteractionAnswer, InteractionRequest, StudyAnswer
from serving.models.in_service import Model
from serving.store.entries import Caller
from serving.telemetry import Telemetry

CALLER = Caller("tester", "test")


class CountingEngine:
    """The real engine, which counts."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine = OrtEngine(bundle)
        self._lock = threading.Lock()
        self.encoded = 0

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self.run_encoder(images)["patches"]

    def run_encoder(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        with self._lock:
            self.encoded += len(images)
        return self._engine.run_encoder(images, outputs)

    def run_reasoner(
        self, patches: np.ndarray, outputs: Sequence[str] | None = None, **tensors: np.ndarray
    ) -> dict[str, np.ndarray]:
        return self._engine.run_reasoner(patches, outputs, **tensors)

    def reason(
        self, patches: np.ndarray, interactions: Sequence[Interaction], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        return self._engine.reason(patches, interactions, outputs)

    def ready(self) -> None:
        self._engine.ready()

    def close(self) -> None:
        self._engine.close()


DECODING = DecodingPool()  # one for all tests: workers take a second to start
atexit.register(DECODING.close)


def make_service(
    bundle: Path, folder: Path, engine: Engine | None = None, decoding: DecodingPool = DECODING, **sections: Any
) -> Service:
    """A service over a store of its own."""
    store = {"url": f"sqlite:///{folder}/store.db", "ledger_key_file": str(folder / "ledger.key")}
    dicom = {"salt_file": str(folder / "salt.key")} | sections.pop("dicom", {})
    model = {"bundle": str(bundle)} | sections.pop("model", {})
    config = parse_config({"model": model, "store": store, "dicom": dicom, **sections})
    make = engine_maker(config.engine) if engine is None else lambda bundle, version: engine
    return Service.open(config, Telemetry.open(), make, decoding=decoding)


def serve_instead(service: Service, bundle: Bundle, engine: Engine | None = None) -> None:
    """Puts a bundle into service whose manifest need not be what lies on disk."""
    service.models.crown(Model(bundle, engine or OrtEngine(bundle), "1"))


def client_of(service: Service, role: Role = Role.ADMIN) -> TestClient:
    """A client with a key."""
    key = service.keys.create(f"tester-{role}", role)[1]
    headers = {"Authorization": f"Bearer {key}"}
    return TestClient(create_server(service), raise_server_exceptions=False, headers=headers)


def add(plane: DataPlane, data: bytes, name: str = "image") -> StudyAnswer:
    return plane.add_studies([Upload(data, name)], CALLER)[0]


def interact(plane: DataPlane, digest: str, **state: Any) -> InteractionAnswer:
    return plane.interact(digest, InteractionRequest(**state), CALLER)


@pytest.fixture(scope="session")
def bundle(tiny_run: Any) -> Bundle:
    return tiny_run.bundle


@pytest.fixture
def engine(bundle: Bundle) -> CountingEngine:
    return CountingEngine(bundle)


@pytest.fixture
def service(bundle: Bundle, engine: CountingEngine, tmp_path: Path) -> Iterator[Service]:
    service = make_service(bundle.path, tmp_path / "state", engine, http={"upload_mb": 1})
    yield service
    service.close()


@pytest.fixture
def plane(service: Service) -> DataPlane:
    return service.plane


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client


@pytest.fixture(scope="session")
def sample(bundle: Bundle) -> bytes:
    return (bundle.path / "samples" / "00.png").read_bytes()


@pytest.fixture(scope="session")
def wide(sample: bytes) -> bytes:
    """A colour image of another shape and size than the network's input: 200×100."""
    return png(np.array(Image.open(io.BytesIO(sample)).convert("RGB").resize((200, 100))))


def stripes(value: int, times: int = 1) -> bytes:
    """A picture of 128 pixels a side for every number, in the grey values from it on; one of several times the size has
    blocks for its pixels, so that a network which looks at 64 pixels sees the same of both."""
    rows = value + np.arange(128) % 16
    return png(np.broadcast_to(rows[:, None], (128, 128)).astype(np.uint8).repeat(times, 0).repeat(times, 1))


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
