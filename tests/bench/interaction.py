"""``python -m tests.bench.interaction``: where an interaction's time goes, from the client's call to the answer.

The same interaction is asked of ever more of the server, all in alternating rounds with one client: bare uvicorn with
an answer of the same size, our application in bare uvicorn, and the whole server behind Ray Serve and HAProxy. What a
layer costs is a difference of medians; what happens inside the application is told by its own clock (``timings_ms``).
Only on a quiet machine: each way from one thread or process to another waits for a core, so that one that is busy with
something else shows milliseconds there (measured: 8 ms at a load of 10 on two cores, where the processor works 0.1).
With ``--flame FILE`` py-spy draws a flame graph of the replica afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx

from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.deploy.cluster import free_port
from tests.bench.servers import Serving, echo, ray_serve

ROUNDS, REQUESTS = 7, 150
STEPS = {
    "reason": "the reasoner, and what the reader said as tensors",
    "explain": "peaks, exemplars, what changed",
    "assess": "what to ask next",
    "record": "the ledger, synced to the disk",
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.interaction", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"))
    parser.add_argument("--flame", type=Path, help="an SVG to write the flame graph to")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve(given.bundle, int(given.serve[0]), Path(given.serve[1]))
        return
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        server = stack.enter_context(ray_serve(given.bundle, Path(scratch) / "ray"))
        print("\n".join(shares(Bundle.open(given.bundle), server, Path(scratch), given.flame)))


def shares(bundle: Bundle, server: Serving, folder: Path, flame: Path | None = None) -> list[str]:
    """The table as Markdown.

    Args:
        bundle: that is served.
        server: the whole server.
        folder: for the application in bare uvicorn.
        flame: where to draw the whole server's replica.
    """
    times: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    with ExitStack() as stack:
        bare = stack.enter_context(_bare(bundle, folder))
        ours = stack.enter_context(client_of(server.url, server.key))
        alone = {"bare": bare, "ours": ours}
        paths = {name: _study(bundle, each) for name, each in alone.items()}
        size = len(ours.post(paths["ours"][0], json=paths["ours"][1]).content)
        url = stack.enter_context(echo(size))
        plain = stack.enter_context(httpx.Client(base_url=url, trust_env=False))
        state = paths["ours"][1]
        asked: dict[str, Callable[[], Any]] = {
            "echo": lambda: plain.post("/echo", json=state),
            "bare health": lambda: bare.get("/health/live"),
            "health": lambda: ours.get("/health/live"),
            "bare interaction": lambda: bare.post(paths["bare"][0], json=state).raise_for_status(),
            "interaction": lambda: ours.post(paths["ours"][0], json=state).raise_for_status(),
        }
        for ask in asked.values():
            _p50(ask)
        for _ in range(ROUNDS):
            for name, ask in asked.items():
                times.setdefault(name, []).append(_p50(ask))
            for _ in range(REQUESTS // 5):
                for name, spent in ours.post(paths["ours"][0], json=state).json()["timings_ms"].items():
                    steps.setdefault(name, []).append(spent)
        if flame is not None:  # not before: it slows down what it looks at
            with _drawn(flame, server.replicas()[0]):
                for _ in range(ROUNDS):
                    _p50(asked["interaction"])
    found = {name: statistics.median(each) * 1e3 for name, each in times.items()}
    inside = {name: statistics.median(each) for name, each in steps.items()}
    ray = found["health"] - found["bare health"]
    http = found["interaction"] - found["echo"] - ray - sum(inside.values())
    rows = [
        (f"client, loopback and uvicorn: an echo of the same {size / 1000:.1f} kB", found["echo"]),
        ("HAProxy and Ray Serve: by health checks with them and without", ray),
        ("middlewares, routing, JSON in and out, the way to a thread and back: the rest", http),
        *((STEPS.get(name, name), spent) for name, spent in inside.items()),
        ("**interaction, recorded**", found["interaction"]),
        ("the same in bare uvicorn, without Ray Serve and HAProxy", found["bare interaction"]),
    ]
    lines = ["## Where an interaction's time goes", "", "| what | ms | of the echo |", "|---|---|---|"]
    lines += [f"| {name} | {spent:.2f} | {spent / found['echo']:.1f} × |" for name, spent in rows]
    return [*lines, ""]


def client_of(url: str, key: str) -> httpx.Client:
    """A client with a key, of which nothing waits for long."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30)


def _study(bundle: Bundle, client: httpx.Client) -> tuple[str, dict[str, Any]]:
    """The path of a study's interactions, and a state to send there."""
    sample = (bundle.path / "samples" / bundle.samples()[0]["file"]).read_bytes()
    study = client.post("/v1/studies", files={"file": ("a.png", sample)}).raise_for_status().json()
    side = study["image"]["width"]
    box = {"x_min": side / 4, "y_min": side / 4, "x_max": side / 2, "y_max": side / 2}
    return f"/v1/studies/{study['digest']}/interactions", {"boxes": [box], "rejected": [bundle.manifest.concepts[0]]}


@contextmanager
def _bare(bundle: Bundle, folder: Path) -> Iterator[httpx.Client]:
    """A client of our application in uvicorn, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", __spec__.name, "--bundle", str(bundle.path), "--serve", str(port), str(folder)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        url, key = f"http://127.0.0.1:{port}", folder / "bench.key"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                httpx.get(f"{url}/health/live", trust_env=False)
                break
            if process.poll() is not None:
                raise RuntimeError("the application did not start; it says why above")
            time.sleep(0.1)
        with client_of(url, key.read_text()) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def _serve(bundle: Path, port: int, folder: Path) -> None:
    import uvicorn

    from serving.interfaces.rest.app import create_server
    from tests.serving.conftest import make_service

    service = make_service(bundle, folder, access={"rates": {"requests_per_minute": 10_000_000, "concurrent": 256}})
    (folder / "bench.key").write_text(service.keys.create("bench", Role.ADMIN)[1])
    uvicorn.run(create_server(service), port=port, log_level="warning", access_log=False)


@contextmanager
def _drawn(file: Path, pid: int) -> Iterator[None]:
    """py-spy draws the process while the block runs.

    Raises:
        RuntimeError: there is no py-spy.
    """
    program = shutil.which("py-spy")
    if program is None:
        raise RuntimeError("--flame: there is no py-spy; pip install py-spy")
    command = [program, "record", "-p", str(pid), "-o", str(file), "-d", "600", "--nonblocking"]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.send_signal(2)  # it draws what it has
        process.wait(60)
        if file.exists():  # its title is the command, with this machine's paths
            file.write_text(file.read_text().replace(" ".join(command), "A replica while a reader corrects"))


def _p50(ask: Callable[[], Any]) -> float:
    def timed() -> float:
        began = time.perf_counter()
        ask()
        return time.perf_counter() - began

    return statistics.median(timed() for _ in range(REQUESTS))


if __name__ == "__main__":
    main()
