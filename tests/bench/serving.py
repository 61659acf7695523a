"""``make bench-serving``: what the server costs, beside a bare echo, bare ONNX Runtime and Triton, all in one run.

Rounds of the rivals alternate, and every figure is the median of rounds, so that a machine that is busier for a while
is so for all of them. Writes ``reports/serving.md``; for ``make bench``, the figures that it follows as JSON instead,
without the sections that have none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from csr.bench.rows import Row, row
from csr.bundle.format import Bundle
from csr.interaction.corrections import Interaction, RegionBox
from serving.core.decoding import DecodingPool, study_of
from serving.deploy import decoder
from serving.engines import OrtEngine, TritonEngine
from serving.engines.triton import ENCODER, REASONER, build_repository
from serving.store.studies import StoredStudy
from tests.bench.interaction import shares
from tests.bench.load import Load, Outcome, run_load
from tests.bench.results import save
from tests.bench.servers import Serving, echo, family, kind_of, processor_s, ray_serve, resident_mb
from tests.bench.uploads import Files, altered, upload_steps, uploader
from tests.serving.conftest import add, make_service
from tests.serving.engines.triton.server import triton_server
from tests.serving.interfaces.oip.test_protocol import Key, tensors

ROUNDS, REQUESTS, REST_S = 7, 200, 0.005
BATCH, ENCODE_S, ENCODE_ROUNDS = 8, 5.0, 5
CLIENTS_A_CORE = 4  # so that none of them waits for another's client
CLIENTS, MANY, RUNS = 32, 3200, 3
LONG = 10_000
DECODED = 200
ECHO = "bare uvicorn, an echo of the same size"
BARE = "bare ONNX Runtime loop"
_SPENT = ": processor time an image"
UPLOADS = "Ray Serve, /v1/studies (PNG in, prediction out, recorded)"


def main() -> None:
    """Runs everything and writes the report."""
    parser = argparse.ArgumentParser(prog="make bench-serving", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"))
    parser.add_argument("--page", type=Path, default=Path("reports/serving.md"))
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, in place of the page")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    lines = [
        "# What serving costs",
        "",
        f"`make bench-serving` on {os.cpu_count()} cores ({platform.machine()}), clients on the same cores, bundle "
        f"{bundle.digest[:12]}: {bundle.manifest.backbone}, {bundle.manifest.side}², "
        f"{len(bundle.manifest.concepts)} concepts, {bundle.manifest.height}×{bundle.manifest.width} cells.",
        "",
    ]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        server = stack.enter_context(ray_serve(given.bundle, folder / "serve"))
        lines += interactions(bundle, server, folder, rows)
        if given.out is None:
            lines += shares(bundle, server, folder)
        lines += many_clients(bundle, server, rows)
        if given.out is None:
            lines += memory(bundle, server)
        lines += engines(bundle, folder, rows)
        lines += throughput(bundle, server, folder, rows)
    if given.out is not None:
        save(rows, given.out, bundle=bundle.digest[:12])
        return
    with tempfile.TemporaryDirectory() as scratch:
        lines += decoding(bundle, Path(scratch) / "decoding")
        lines += upload_steps(bundle, Path(scratch) / "steps")
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def interactions(bundle: Bundle, server: Serving, folder: Path, rows: list[Row]) -> list[str]:
    """One client: an interaction beside an echo of the same payload, and beside what no server could leave out.

    A replica that waits for its one reader finds the processor's caches cold, so what is called here rests as well.
    """
    path, state, size = _study(bundle, server)
    engine = OrtEngine(bundle)
    patches = engine.encode(bundle.golden()["image"][:1])
    given = [_interaction(bundle)]
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        url = stack.enter_context(echo(size))
        bare = stack.enter_context(httpx.Client(base_url=url, trust_env=False))
        ours = stack.enter_context(_client(server))
        commit = stack.enter_context(_bare_ledger(folder / "bare.db"))
        asked: dict[str, Callable[[], Any]] = {
            ECHO: lambda: bare.post("/echo", json=state),
            "health check through HAProxy and Ray Serve": lambda: ours.get("/health/live"),
            "bare SQLite, one row, synced": commit,
            "bare ONNX Runtime, the reasoner": lambda: engine.reason(patches, given, ["concept_maps", "logits"]),
            "interaction, recorded": lambda: ours.post(path, json=state),
        }
        for _ in range(ROUNDS):
            for name, ask in asked.items():
                rest = REST_S if "bare SQLite" in name or "ONNX" in name else 0.0
                times.setdefault(name, []).append(_p50(ask, rest_s=rest))
            timings = [ours.post(path, json=state).json()["timings_ms"] for _ in range(50)]
            inside = statistics.median(sum(each.values()) for each in timings) / 1e3
            times.setdefault("of that on the server, by its own clock", []).append(inside)
    base = row(ECHO, "s", "lower", times[ECHO])
    rows += [base, *(row(name, "s", "lower", each, base) for name, each in times.items() if name != ECHO)]
    found = {name: statistics.median(each) for name, each in times.items()}
    first = found[ECHO]
    lines = [
        "## One reader",
        "",
        f"The echo answers with as much as an interaction, {size / 1000:.1f} kB.",
        "",
        "| what | p50 | of the echo |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {each * 1e3:.2f} ms | {each / first:.1f} × |" for name, each in found.items()]
    return [*lines, ""]


def many_clients(bundle: Bundle, server: Serving, rows: list[Row]) -> list[str]:
    """Interactions from many clients at once, in a process of their own."""
    path, state, _ = _study(bundle, server)
    load = Load(server.url, path, server.key, json.dumps(state), CLIENTS, MANY, CLIENTS * 8)
    runs = [(outcome.rate, *np.percentile(outcome.seconds, [50, 99, 100]) * 1e3) for outcome in _loads(load)]
    rate, p50, p99, longest = (statistics.median(each) for each in zip(*runs, strict=True))
    rates = [each[0] for each in runs]
    middle = row(f"{CLIENTS} readers at once, p50", "s", "lower", [each[1] / 1e3 for each in runs])
    rows += [
        row(f"{CLIENTS} readers at once", "interactions/s", "higher", rates),
        middle,
        row(f"{CLIENTS} readers at once, p99", "s", "lower", [each[2] / 1e3 for each in runs], middle),
        row(f"{CLIENTS} readers at once, longest", "s", "lower", [each[3] / 1e3 for each in runs]),
    ]
    return [
        f"## {CLIENTS} readers at once",
        "",
        f"{MANY} interactions, all recorded, medians of {RUNS} runs: {rate:.0f} a second ({min(rates):.0f} to "
        f"{max(rates):.0f}); p50 {p50:.1f} ms, p99 {p99:.1f} ms, {p99 / p50:.1f} × p50; the longest took "
        f"{longest:.0f} ms.",
        "",
    ]


def _loads(load: Load) -> Iterator[Outcome]:
    for _ in range(RUNS):
        yield run_load(load)


def memory(bundle: Bundle, server: Serving) -> list[str]:
    """What a replica holds after a thousand requests, and after many thousand more."""
    path, state, _ = _study(bundle, server)
    pid = server.replicas()[0]
    held: list[float] = []
    with _client(server) as client:
        for number in range(1, 1001 + LONG):
            client.post(path, json=state)
            if number >= 1000 and (number - 1000) % (LONG // 5) == 0:
                held.append(resident_mb(pid))
    shown = ", ".join(f"{each:.0f}" for each in held)
    return [
        "## Memory",
        "",
        f"A replica after 1,000 interactions and each {LONG // 5:,} more: {shown} MiB.",
        "",
    ]


def engines(bundle: Bundle, folder: Path, rows: list[Row]) -> list[str]:
    """Both engines, called directly: encoding, reasoning, and how they compare."""
    repository = folder / "engines"
    build_repository(bundle, repository, 1, "python")
    golden = bundle.golden()
    image = golden["image"][:1]
    given = [_interaction(bundle)]
    lines = ["## Engines, one study", "", "| engine | encode | reason | times cheaper |", "|---|---|---|---|"]
    with triton_server(repository, [ENCODER, REASONER], folder / "engines.log") as address:
        made: list[tuple[str, Any]] = [
            ("ONNX Runtime in process", OrtEngine(bundle)),
            ("Triton, gRPC and shared memory", TritonEngine(bundle, address.grpc, 1)),
            ("Triton, gRPC alone", TritonEngine(bundle, address.grpc, 1, shared_memory=False)),
        ]
        for name, engine in made:
            patches = engine.encode(image)
            encode = statistics.median(_p50(lambda e=engine: e.encode(image), 30) for _ in range(ROUNDS))
            reason = statistics.median(
                _p50(lambda e=engine, p=patches: e.reason(p, given, ["concept_maps", "logits"]), 60)
                for _ in range(ROUNDS)
            )
            lines.append(f"| {name} | {encode * 1e3:.2f} ms | {reason * 1e3:.2f} ms | {encode / reason:.0f} |")
            encoding = row(f"{name}: encode", "s", "lower", [encode])
            rows += [encoding, row(f"{name}: reason", "s", "lower", [reason], encoding)]
            engine.close()
    return [*lines, ""]


@dataclass(frozen=True)
class Rival:
    """Something that encodes: how to make a client of it, and the process, with its children, in which it does."""

    make: Callable[[], Callable[[], int]]
    pid: int


@dataclass(frozen=True)
class Round:
    """Images a second, and processor seconds an image: of the rival, by kind of its processes, and of its clients."""

    rate: float
    rival: float
    clients: float
    parts: dict[str, float]


def throughput(bundle: Bundle, server: Serving, folder: Path, rows: list[Row]) -> list[str]:
    """Images encoded a second, by everything that can encode, in alternating rounds."""
    repository, cores = folder / "throughput", os.cpu_count() or 1
    build_repository(bundle, repository, 1, "python", instances=cores)
    images = np.repeat(bundle.golden()["image"][:1], BATCH, axis=0)
    png = (bundle.path / "samples" / bundle.samples()[0]["file"]).read_bytes()
    bare = OrtEngine(bundle)
    files = Files(png)
    clients = cores * CLIENTS_A_CORE
    rounds: dict[str, list[Round]] = {}
    with triton_server(repository, [ENCODER, REASONER], folder / "throughput.log") as triton:
        shared = TritonEngine(bundle, triton.grpc, 1)
        address = server.url.removeprefix("http://")
        ours = server.process.pid
        rivals = {
            BARE: Rival(lambda: lambda: len(bare.encode(images)), os.getpid()),
            "Ray Serve, /v2 by HTTP": Rival(lambda: _infer(triton_http, address, images, server.key), ours),
            "Ray Serve, /v2 by gRPC": Rival(lambda: _infer(triton_grpc, server.grpc, images, server.key), ours),
            UPLOADS: Rival(lambda: uploader(server, files), ours),
            "Triton by gRPC": Rival(lambda: _infer(triton_grpc, triton.grpc, images, None), triton.pid),
            "Triton by gRPC and shared memory": Rival(lambda: lambda: len(shared.encode(images)), triton.pid),
        }
        for _ in range(ENCODE_ROUNDS):
            for name, rival in rivals.items():
                if name == UPLOADS:  # none uploads more than the bare loop encodes, not even twice as many
                    files.make(round(2 * ENCODE_S * rounds[BARE][-1].rate) + clients)
                rounds.setdefault(name, []).append(_round(rival, clients))
        shared.close()
    bare = rounds[BARE]
    lines = [
        f"## Encoding, {clients} clients",
        "",
        f"Batches of {BATCH} (uploads: one image each, each another, in files made beforehand), one intra-op thread a "
        f"call; Triton has its Python backend with {cores} instances. Clients take their processor time from the same "
        "cores; the last column says how much. Ratios to the bare loop are medians of the rounds'.",
        "",
        "| | images a second | of the bare loop | processor time an image | of the bare loop | its clients' |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rounds.items():
        rates = [each.rate for each in found]
        faster = statistics.median(each.rate / base.rate for each, base in zip(found, bare, strict=True))
        dearer = statistics.median(each.rival / base.rival for each, base in zip(found, bare, strict=True))
        spent, asked = (
            statistics.median(each) * 1e3 for each in zip(*((r.rival, r.clients) for r in found), strict=True)
        )
        rate = row(name, "images/s", "higher", rates)
        time_spent = row(name + _SPENT, "s", "lower", [each.rival for each in found])
        if name != BARE:  # ratios round by round
            rate = replace(rate, ratio_to=BARE, ratio=faster)
            time_spent = replace(time_spent, ratio_to=BARE + _SPENT, ratio=dearer)
        rows += [rate, time_spent]
        lines.append(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) | {faster:.0%} "
            f"| {spent:.1f} ms | {dearer:.2f} × | {f'{asked:.1f} ms' if asked else 'none'} |"
        )
    lines += ["", "| an upload's processor time on the server, by process | an image |", "|---|---|"]
    by_process = {
        name: statistics.median(each.parts.get(name, 0.0) for each in rounds[UPLOADS]) * 1e3
        for name in rounds[UPLOADS][0].parts
    }
    lines += [f"| {name} | {each:.2f} ms |" for name, each in sorted(by_process.items(), key=lambda item: -item[1])]
    return [*lines, ""]


class _DecodingHere(DecodingPool):
    """Decodes in the process, and the thread, that asks."""

    def decode(
        self,
        data: bytes,
        name: str,
        channels: int,
        side: int,
        salt: bytes,
        caller: str,
        display: str | None = None,
        frame: int | None = None,
    ) -> StoredStudy:
        about, pixels = decoder.read(data, name, channels, side, salt, display, frame)
        return study_of(json.loads(about), pixels)


def decoding(bundle: Bundle, folder: Path) -> list[str]:
    """What processes of their own for decoding cost uploads: the same service with them and without, in turns.

    Without HTTP and Ray, which would hide a part of it.
    """
    png = (bundle.path / "samples" / bundle.samples()[0]["file"]).read_bytes()
    count = itertools.count()
    pools: dict[str, DecodingPool] = {
        "in processes of their own": DecodingPool(),
        "in the replica's threads": _DecodingHere(),
    }
    services = {
        name: make_service(bundle.path, folder / str(number), decoding=pool)
        for number, (name, pool) in enumerate(pools.items())
    }
    rates: dict[str, list[float]] = {name: [] for name in services}
    clients = (os.cpu_count() or 1) * CLIENTS_A_CORE
    with ThreadPoolExecutor(clients) as threads:
        for _ in range(ENCODE_ROUNDS + 1):
            for name, service in services.items():
                files = [altered(png, next(count)) for _ in range(DECODED)]
                started = time.perf_counter()
                list(threads.map(lambda file, plane=service.plane: add(plane, file), files))
                rates[name].append(DECODED / (time.perf_counter() - started))
    for service in services.values():
        service.close()
    for pool in pools.values():
        pool.close()
    ratio = statistics.median(a / b for a, b in zip(*(each[1:] for each in rates.values()), strict=True))
    lines = ["## Decoding in processes of its own", "", "| uploads, without HTTP | images a second |", "|---|---|"]
    for name, (_, *found) in rates.items():  # the first round warms up
        lines.append(f"| decoded {name} | {statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f}) |")
    said = f"With processes: {ratio:.2f} × the throughput without, the median of {ENCODE_ROUNDS} rounds' ratios."
    return [*lines, "", said, ""]


def _study(bundle: Bundle, server: Serving) -> tuple[str, dict[str, Any], int]:
    """The path of a study's interactions, a state to send there, and the size of the answer."""
    sample = (bundle.path / "samples" / bundle.samples()[0]["file"]).read_bytes()
    with _client(server) as client:
        study = client.post("/v1/studies", files={"file": ("a.png", sample)}).json()
        side = study["image"]["width"]
        box = {"x_min": side / 4, "y_min": side / 4, "x_max": side / 2, "y_max": side / 2}
        state = {"boxes": [box], "rejected": [bundle.manifest.concepts[0]]}
        path = f"/v1/studies/{study['digest']}/interactions"
        return path, state, len(client.post(path, json=state).content)


def _interaction(bundle: Bundle) -> Interaction:
    side = bundle.manifest.side
    box = RegionBox(side / 4, side / 4, side / 2, side / 2)
    return Interaction(boxes=(box,), rejected=(bundle.manifest.concepts[0],))


@contextmanager
def _bare_ledger(file: Path) -> Iterator[Callable[[], object]]:
    """Writes one row of the size of an interaction's, durably, and nothing more."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE ledger (body TEXT)"):
            connection.execute(statement)
        yield lambda: connection.execute("INSERT INTO ledger VALUES (?)", ("x" * 2000,))


def _client(server: Serving) -> httpx.Client:
    headers = {"Authorization": f"Bearer {server.key}"}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30)


def _infer(protocol: Any, url: str, images: np.ndarray, key: str | None) -> Callable[[], int]:
    client = protocol.InferenceServerClient(url)
    if key is not None:
        client.register_plugin(Key(key))
    given = tensors(protocol, {"image": images})
    return lambda: len(client.infer(ENCODER, given).as_numpy("patches"))


def _round(rival: Rival, clients: int) -> Round:
    """Several clients, each with a connection of its own, ask for a while as fast as they are answered."""

    def run(ask: Callable[[], int]) -> int:
        ask()
        barrier.wait()
        done = 0
        while time.perf_counter() < began[0] + ENCODE_S:
            done += ask()
        return done

    def spent() -> dict[str, float]:
        seconds: dict[str, float] = {}
        for pid, title in processes:
            kind = kind_of(title)
            seconds[kind] = seconds.get(kind, 0.0) + processor_s([pid])
        return seconds

    def start() -> None:
        processes.extend([(rival.pid, b"")] if own else family(rival.pid))  # with those that the first request started
        used.update(spent())
        began.extend((time.perf_counter(), time.process_time()))

    own = rival.pid == os.getpid()
    processes: list[tuple[int, bytes]] = []
    began: list[float] = []  # the clock, and this process's time
    used: dict[str, float] = {}
    barrier = threading.Barrier(clients, start)
    with ThreadPoolExecutor(clients) as pool:
        images = sum(pool.map(run, [rival.make() for _ in range(clients)]))
    seconds = time.perf_counter() - began[0]
    parts = {kind: (total - used[kind]) / images for kind, total in spent().items()}
    asked = time.process_time() - began[1]
    return Round(images / seconds, sum(parts.values()), 0.0 if own else asked / images, parts)


def _p50(ask: Callable[[], Any], requests: int = REQUESTS, rest_s: float = 0.0) -> float:
    return statistics.median(_timed(ask, rest_s) for _ in range(requests))


def _timed(ask: Callable[[], Any], rest_s: float) -> float:
    time.sleep(rest_s)
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
