"""``make bench-serving``: what the server costs, beside a bare echo, bare ONNX Runtime and Triton, all in one run.

Rounds of the rivals alternate, and every figure is the median of rounds, so that a machine that is busier for a while
is so for all of them. Writes ``reports/serving.md``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from csr.bundle import Bundle
from csr.interaction import Interaction, RegionBox
from serving.engines import OrtEngine, TritonEngine
from serving.triton import ENCODER, REASONER, build_repository
from tests.bench.servers import Serving, echo, ray_serve, resident_mb
from tests.serving.oip.test_protocol import Key, tensors
from tests.serving.triton_server import triton_server

ROUNDS, REQUESTS = 7, 200
BATCH, ENCODE_S = 8, 4.0
CLIENTS, MANY = 32, 3200
LONG = 10_000


def main() -> None:
    """Runs everything and writes the report."""
    parser = argparse.ArgumentParser(prog="make bench-serving", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"))
    parser.add_argument("--out", type=Path, default=Path("reports/serving.md"))
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
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        server = stack.enter_context(ray_serve(given.bundle, folder / "serve"))
        lines += interactions(bundle, server)
        lines += many_clients(bundle, server)
        lines += memory(bundle, server)
        lines += engines(bundle, folder)
        lines += throughput(bundle, server, folder)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def interactions(bundle: Bundle, server: Serving) -> list[str]:
    """One client: an interaction beside an echo of the same payload."""
    path, state, size = _study(bundle, server)
    times: dict[str, list[float]] = {"echo": [], "interaction": [], "health": []}
    spent: list[float] = []
    with echo(size) as url, _client(server) as ours, httpx.Client(base_url=url, trust_env=False) as bare:
        for _ in range(ROUNDS):
            times["echo"].append(_p50(lambda: bare.post("/echo", json=state)))
            times["health"].append(_p50(lambda: ours.get("/health/live")))
            times["interaction"].append(_p50(lambda: ours.post(path, json=state)))
            spent.append(sum(ours.post(path, json=state).json()["timings_ms"].values()))
    echoed, asked = (statistics.median(times[name]) for name in ("echo", "interaction"))
    return [
        "## One reader",
        "",
        "| what | p50 |",
        "|---|---|",
        f"| bare uvicorn, echo of the same {size / 1000:.1f} kB | {echoed * 1e3:.2f} ms |",
        f"| health check through HAProxy and Ray Serve | {statistics.median(times['health']) * 1e3:.2f} ms |",
        f"| interaction, recorded | {asked * 1e3:.2f} ms, {asked / echoed:.2f} × the echo |",
        f"| of that on the server, by its own clock | {statistics.median(spent):.2f} ms |",
        "",
    ]


def many_clients(bundle: Bundle, server: Serving) -> list[str]:
    """Interactions from many clients at once."""
    path, state, _ = _study(bundle, server)
    found: list[float] = []
    local = threading.local()

    def ask(_: int) -> None:
        if not hasattr(local, "client"):
            local.client = _client(server)
        started = time.perf_counter()
        local.client.post(path, json=state).raise_for_status()
        found.append(time.perf_counter() - started)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS * 8)))  # connections
        found.clear()
        started = time.perf_counter()
        list(pool.map(ask, range(MANY)))
        rate = MANY / (time.perf_counter() - started)
    p50, p99 = np.percentile(found, [50, 99]) * 1e3
    return [
        f"## {CLIENTS} readers at once",
        "",
        f"{MANY} interactions, all recorded: {rate:.0f} a second; p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"{p99 / p50:.1f} × p50.",
        "",
    ]


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


def engines(bundle: Bundle, folder: Path) -> list[str]:
    """Both engines, called directly: encoding, reasoning, and how they compare."""
    repository = folder / "engines"
    build_repository(bundle, repository, 1, "python")
    golden = bundle.golden()
    image = golden["image"][:1]
    side = bundle.manifest.side
    box = RegionBox(side / 4, side / 4, side / 2, side / 2)
    given = [Interaction(boxes=(box,), rejected=(bundle.manifest.concepts[0],))]
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
            engine.close()
    return [*lines, ""]


def throughput(bundle: Bundle, server: Serving, folder: Path) -> list[str]:
    """Images encoded a second, by everything that can encode, in alternating rounds."""
    repository = folder / "throughput"
    build_repository(bundle, repository, 1, "python")
    images = np.repeat(bundle.golden()["image"][:1], BATCH, axis=0)
    png = (bundle.path / "samples" / bundle.samples()[0]["file"]).read_bytes()
    bare = OrtEngine(bundle)
    uploads = itertools.count()
    rates: dict[str, list[float]] = {}
    with triton_server(repository, [ENCODER, REASONER], folder / "throughput.log") as address:
        shared = TritonEngine(bundle, address.grpc, 1)
        asked: dict[str, Callable[[], Callable[[], int]]] = {
            "bare ONNX Runtime loop": lambda: lambda: len(bare.encode(images)),
            "Ray Serve, /v2 by HTTP": lambda: _infer(
                triton_http, server.url.removeprefix("http://"), images, server.key
            ),
            "Ray Serve, /v2 by gRPC": lambda: _infer(triton_grpc, server.grpc, images, server.key),
            "Ray Serve, /v1/studies (PNG in, prediction out, recorded)": lambda: _upload(server, png, uploads),
            "Triton by gRPC": lambda: _infer(triton_grpc, address.grpc, images, None),
            "Triton by gRPC and shared memory": lambda: lambda: len(shared.encode(images)),
        }
        for _ in range(3):
            for name, make in asked.items():
                rates.setdefault(name, []).append(_rate(make, os.cpu_count() or 1))
        shared.close()
    first = statistics.median(rates["bare ONNX Runtime loop"])
    lines = [
        f"## Encoding, {os.cpu_count()} clients",
        "",
        f"Batches of {BATCH} (uploads: one image each, each another), one intra-op thread a call.",
        "",
        "| | images a second | of the bare loop |",
        "|---|---|---|",
    ]
    for name, found in rates.items():
        rate = statistics.median(found)
        lines.append(f"| {name} | {rate:.0f} ({min(found):.0f} to {max(found):.0f}) | {rate / first:.0%} |")
    return [*lines, ""]


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


def _client(server: Serving) -> httpx.Client:
    headers = {"Authorization": f"Bearer {server.key}"}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30)


def _infer(protocol: Any, url: str, images: np.ndarray, key: str | None) -> Callable[[], int]:
    client = protocol.InferenceServerClient(url)
    if key is not None:
        client.register_plugin(Key(key))
    given = tensors(protocol, {"image": images})
    return lambda: len(client.infer(ENCODER, given).as_numpy("patches"))


def _upload(server: Serving, png: bytes, count: Any) -> Callable[[], int]:
    client = _client(server)

    def ask() -> int:
        # Other pixels each time, or the cache would answer: the last bytes of the picture are its end marker.
        data = _altered(png, next(count))
        client.post("/v1/studies", files={"file": ("a.png", data)}).raise_for_status()
        return 1

    return ask


def _altered(png: bytes, number: int) -> bytes:
    import io

    from PIL import Image

    pixels = np.array(Image.open(io.BytesIO(png)))
    flat = pixels.reshape(-1)
    flat[:4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _rate(make: Callable[[], Callable[[], int]], clients: int) -> float:
    """Images a second from several clients, each with a connection of its own."""

    def run(ask: Callable[[], int]) -> int:
        ask()
        barrier.wait()
        end, done = time.perf_counter() + ENCODE_S, 0
        while time.perf_counter() < end:
            done += ask()
        return done

    barrier = threading.Barrier(clients)
    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(run, [make() for _ in range(clients)])) / ENCODE_S


def _p50(ask: Callable[[], Any], requests: int = REQUESTS) -> float:
    times: Sequence[float] = []
    times = [_timed(ask) for _ in range(requests)]
    return statistics.median(times)


def _timed(ask: Callable[[], Any]) -> float:
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
