"""What is killed under load comes back, and nothing that was acknowledged is lost: on the real server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from csr.bundle.format import Bundle
from serving.client import Client, InteractionRequest
from serving.engines.triton import ENCODER, REASONER, build_repository
from tests.bench.servers import Serving, ray_serve
from tests.serving.conftest import stripes
from tests.serving.engines.triton.server import TritonServer
from tests.serving.faults.load import Heard, check_ledger, readers, status, wait_for
from tests.serving.models.test_follower import another
from tests.serving.postgres import postgres

pytestmark = pytest.mark.faults
READERS = 16


def study(server: Serving, sample: bytes) -> str:
    with Client(server.url, server.key) as client:
        return client.add_study(("a.png", sample)).digest


def ledger_of(folder: Path) -> tuple[str, Path]:
    return f"sqlite:///{folder}/.state/serving/store.db", folder / ".state/serving/ledger.key"


def report(name: str, heard: Heard, **facts: Any) -> None:
    print(f"\n{name}: {heard.said()}; " + ", ".join(f"{key} {value}" for key, value in facts.items()))


def test_a_replica_is_killed(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    with ray_serve(bundle.path, tmp_path, 2) as server:
        digest = study(server, sample)
        before = server.replicas()
        assert len(before) == 2
        with readers(server.url, server.key, digest, READERS) as heard:
            wait_for(lambda: len(heard.records) > 100, 30)
            os.kill(before[0], signal.SIGKILL)
            killed_at = len(heard.records)
            answered = wait_for(lambda: len(heard.records) > killed_at + 100, 30)
            back = wait_for(lambda: len(set(server.replicas()) - {before[0]}) == 2, 60)
            seen = len(heard.records)
            wait_for(lambda: len(heard.records) > seen + 100, 30)
        assert set(heard.refused) <= {"unreachable", "http_error", "unexpected_answer"}, heard.refused
        length = check_ledger(heard, *ledger_of(tmp_path))
        report("replica", heard, next_hundred=f"{answered:.1f} s", second_replica_after=f"{back:.1f} s", length=length)


def test_the_whole_server_is_killed(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    with ray_serve(bundle.path, tmp_path, 2) as server:
        digest = study(server, sample)
        with readers(server.url, server.key, digest, READERS) as heard:
            wait_for(lambda: len(heard.records) > 200, 30)
            for pid, _ in server.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.process.kill()
            server.process.wait(10)
    check_ledger(heard, *ledger_of(tmp_path))
    with ray_serve(bundle.path, tmp_path) as again:
        with Client(again.url, again.key) as client:
            answer = client.interact(digest, InteractionRequest(rejected=["mass"]))
        assert answer.record.number > max(number for number, _ in heard.records)
    length = check_ledger(heard, *ledger_of(tmp_path))
    report("server", heard, length=length)


def test_the_database_is_killed(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    with postgres() as database, ray_serve(bundle.path, tmp_path, store={"url": database.url}) as server:
        digest = study(server, sample)
        with readers(server.url, server.key, digest, READERS) as heard:
            wait_for(lambda: len(heard.records) > 100, 30)
            database.kill()
            noticed = wait_for(lambda: status(server.url, "/health/ready") == 503, 30)
            assert status(server.url, "/v2/health/ready") == 503
            assert status(server.url, "/health/live") == 200
            refused = httpx.post(
                f"{server.url}/v1/studies/{digest}/interactions",
                json={},
                headers={"Authorization": f"Bearer {server.key}"},
                timeout=20,
                trust_env=False,
            )
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert refused.json()["error"]["code"] == "store_unavailable"
            database.start()
            back = wait_for(lambda: status(server.url, "/health/ready") == 200, 30)
            seen = len(heard.records)
            wait_for(lambda: len(heard.records) > seen + 100, 60)
        assert set(heard.refused) <= {"store_unavailable"}, heard.refused
        length = check_ledger(heard, database.url, tmp_path / ".state/serving/ledger.key")
        report("database", heard, noticed=f"{noticed:.1f} s", ready_after=f"{back:.1f} s", length=length)


def test_triton_is_killed(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    build_repository(bundle, repository, 1, "python")
    triton = TritonServer(repository, [ENCODER, REASONER], tmp_path / "triton.log")
    triton.start()
    try:
        engine = {"kind": "triton", "url": triton.grpc, "timeout_s": 5}
        with ray_serve(bundle.path, tmp_path / "serve", engine=engine) as server:
            digest = study(server, sample)
            with readers(server.url, server.key, digest, 8) as heard:
                wait_for(lambda: len(heard.records) > 100, 60)
                triton.kill()
                noticed = wait_for(lambda: status(server.url, "/health/ready") == 503, 30)
                assert status(server.url, "/v2/health/ready") == 503
                assert status(server.url, "/health/live") == 200
                wait_for(lambda: heard.refused["engine_unavailable"] > 0, 40)
                triton.start()
                back = wait_for(lambda: status(server.url, "/health/ready") == 200, 60)
                seen = len(heard.records)
                wait_for(lambda: len(heard.records) > seen + 50, 60)
            assert set(heard.refused) <= {"engine_unavailable"}, heard.refused
            length = check_ledger(heard, *ledger_of(tmp_path / "serve"))
            report("triton", heard, noticed=f"{noticed:.1f} s", ready_after=f"{back:.1f} s", length=length)
    finally:
        triton.stop()


def test_a_roll_out_under_load_drops_nothing(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    served, second = tmp_path / "bundle", another(bundle, tmp_path / "second", code_revision="second")
    digests = {bundle.digest, second.digest}
    shutil.copytree(bundle.path, served)
    model = {"registry": {"poll_s": 0.5}}
    with ray_serve(served, tmp_path / "serve", 2, model={"bundle": str(served)} | model) as server:
        digest = study(server, sample)
        with readers(server.url, server.key, digest, 8) as heard:
            wait_for(lambda: len(heard.records) > 100, 30)
            served.rename(tmp_path / "first")
            second.path.rename(served)
            swapped = wait_for(lambda: len(heard.models) == 2, 30)
            seen = len(heard.records)
            wait_for(lambda: len(heard.records) > seen + 300, 60)
        assert not heard.refused
        assert heard.models == digests
        length = check_ledger(heard, *ledger_of(tmp_path / "serve"))
        report("roll-out", heard, first_new_answer_after=f"{swapped:.1f} s", length=length)


def test_a_server_that_is_told_to_stop_finishes_what_it_began(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    with ray_serve(bundle.path, tmp_path) as server:
        digest = study(server, sample)
        with readers(server.url, server.key, digest, READERS) as heard:
            wait_for(lambda: len(heard.records) > 200, 30)
            server.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert server.process.wait(60) == 0
            took = time.monotonic() - started
    length = check_ledger(heard, *ledger_of(tmp_path))
    answered = len(heard.records)
    # What is in the ledger and was not acknowledged was cut between the two: at most what was under way.
    assert length - 2 - answered <= READERS
    assert "Traceback" not in (tmp_path / "log").read_text()
    report("stop", heard, took=f"{took:.1f} s", unacknowledged=length - 2 - answered)


def test_load_starts_another_replica(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    with ray_serve(bundle.path, tmp_path, replicas={"most": 2, "target_ongoing": 2, "cpus": 0.5}) as server:
        digest = study(server, sample)
        with readers(server.url, server.key, digest, READERS) as heard:
            wait_for(lambda: len(heard.records) > 100, 30)
            assert len(server.replicas()) == 1
            grown = wait_for(lambda: len(server.replicas()) == 2, 120)
            seen = len(heard.records)
            wait_for(lambda: len(heard.records) > seen + 300, 60)
        assert not heard.refused
        length = check_ledger(heard, *ledger_of(tmp_path))
        report("autoscaling", heard, second_replica_after=f"{grown:.1f} s", length=length)


def test_more_than_a_server_takes_is_told_to_come_back(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    tiny = {"ongoing": 1, "queued": 1, "retry_after_s": 3}
    with ray_serve(bundle.path, tmp_path, replicas=tiny) as server:
        digest = study(server, sample)
        answers: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
                for _ in range(20):
                    headers = {"Authorization": f"Bearer {server.key}"}
                    answers.append(client.post(f"/v1/studies/{digest}/interactions", json={}, headers=headers))

        threads = [threading.Thread(target=ask) for _ in range(READERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(answers) == READERS * 20
        found = {answer.status_code for answer in answers}
        assert found == {200, 503}, found
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"3"}
        assert status(server.url, "/health/ready") == 200
        refused = sum(answer.status_code == 503 for answer in answers)
        print(f"\nback-pressure: {refused} of {len(answers)} told to come back")


def test_as_many_uploads_at_once_as_a_replica_takes(bundle: Bundle, tmp_path: Path) -> None:
    """Each waits for a batch, and the batch must not wait for them."""
    with ray_serve(bundle.path, tmp_path, replicas={"ongoing": 4, "queued": 64}) as server:
        files = [stripes(value) for value in range(0, 240, 6)]
        digests: set[str] = set()

        def add(data: bytes) -> None:
            with Client(server.url, server.key) as client:
                digests.add(client.add_study(("a.png", data)).digest)

        started = time.monotonic()
        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(add, files))
        assert len(digests) == len(files)
        print(f"\nuploads: {len(files)} at once within {time.monotonic() - started:.1f} s")


def test_slow_clients_are_cut_and_others_answered(bundle: Bundle, sample: bytes, tmp_path: Path) -> None:
    with ray_serve(bundle.path, tmp_path, http={"body_seconds": 2}) as server:
        digest = study(server, sample)
        host, port = server.url.removeprefix("http://").split(":")
        head = (
            f"POST /v1/studies/{digest}/interactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        ).encode()
        slow = [socket.create_connection((host, int(port))) for _ in range(50)]
        for number, connection in enumerate(slow):
            connection.sendall(head + b"{" if number % 2 else head[:40])
        started = time.monotonic()
        with readers(server.url, server.key, digest, 4) as heard:
            wait_for(lambda: len(heard.records) > 100, 30)
        assert not heard.refused
        cut = 0
        for connection in slow[1::2]:
            connection.settimeout(15)
            answer = connection.recv(4096)
            assert answer == b"" or b" 408 " in answer.splitlines()[0], answer
            cut += 1
        took = time.monotonic() - started
        for connection in slow:
            connection.close()
        assert status(server.url, "/health/ready") == 200
        report("slow clients", heard, cut=cut, within=f"{took:.1f} s")


def test_nothing_of_a_server_stays_behind(bundle: Bundle, tmp_path: Path) -> None:
    with ray_serve(bundle.path, tmp_path) as server:
        started = {pid for pid, _ in server.processes()}
        assert started
    wait_for(lambda: not any(_alive(pid) for pid in started), 20)


def _alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")
