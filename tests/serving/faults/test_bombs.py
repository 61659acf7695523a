"""Files that are dear to read, on the real server: each is answered in time, and nobody else waits for them."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from csr.bundle.format import Bundle
from serving.access.keys import KeyStore
from serving.access.roles import Role
from serving.access.secrets import read_secret
from serving.core.decoding import PATIENCE, DecodingLimits
from serving.store import Store
from tests.bench.servers import Serving, ray_serve, resident_mb
from tests.serving.bombs import BOMBS
from tests.serving.conftest import stripes
from tests.serving.faults.load import status

pytestmark = pytest.mark.faults
LIMITS = DecodingLimits()
SLACK_S = 5.0


def another_key(folder: Path) -> str:
    state = folder / ".state/serving"
    store = Store.open(f"sqlite:///{state}/store.db", read_secret(state / "ledger.key", "CSR_LEDGER_KEY"))
    try:
        return KeyStore(store).create("other", Role.READER)[1]
    finally:
        store.database.close()


def send(server: Serving, key: str, name: str, data: bytes) -> tuple[int, str, float]:
    started = time.monotonic()
    answer = httpx.post(
        f"{server.url}/v1/studies",
        files={"file": (name, data)},
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )
    return answer.status_code, answer.text, time.monotonic() - started


def test_bombs_of_all_kinds(bundle: Bundle, tmp_path: Path) -> None:
    """One reader sends them, three at a time; of three workers one is left for another reader's pictures."""
    files = {kind: make(number) for kind, (make, number) in BOMBS.items()}
    waits: list[float] = []
    over = threading.Event()
    with ray_serve(bundle.path, tmp_path) as server:
        other = another_key(tmp_path)

        def read() -> None:
            for number in itertools.count():
                if over.is_set():
                    return
                code, said, seconds = send(server, other, "a.png", stripes(number % 250))
                assert code == 201, said
                waits.append(seconds)
                over.wait(0.5)

        def bomb(kind: str) -> str:
            data = files[kind]
            code, said, seconds = send(server, server.key, kind, data)
            assert code in (201, 422), (kind, code, said)
            assert seconds < 2 * PATIENCE * LIMITS.seconds + SLACK_S, (kind, seconds)
            told = "read" if code == 201 else said.partition('"message":"')[2][:70]
            return f"{kind:30} {len(data) / 1e6:6.2f} MB {seconds:6.2f} s  {told}"

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(3) as bombers:
            reading = reader.submit(read)
            try:
                lines = list(bombers.map(bomb, BOMBS))
            finally:
                over.set()
            reading.result()
        assert status(server.url, "/health/ready") == 200
        held = [resident_mb(pid) for pid in server.replicas()]
    print("\n" + "\n".join(lines))
    print(f"another reader: {len(waits)} pictures, longest wait {max(waits):.1f} s; replica holds {held[0]:.0f} MiB")
    assert max(waits) < SLACK_S
    assert max(held) < 1024
