"""Many clients at once, in a process of their own that does little else: HTTP/1.1 over connections that stay open.

A client of a library's takes as much of a core as what it asks for, and hides what a server can do on the same cores.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """What to ask, with a key and a body of JSON, and how often from how many connections; ``warm`` requests more come
    first and are not counted."""

    url: str
    path: str
    key: str
    body: str
    clients: int
    requests: int
    warm: int


@dataclass(frozen=True)
class Outcome:
    """Requests a second, and the seconds that each took."""

    rate: float
    seconds: list[float]


def run_load(load: Load) -> Outcome:
    """Asks from another process.

    Raises:
        subprocess.CalledProcessError: an answer was no success.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(load))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True)
    return Outcome(**json.loads(done.stdout))


async def _client(load: Load, left: list[int], seconds: list[float]) -> None:
    address = urlsplit(load.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {load.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(load.body.encode())}\r\n\r\n"
    )
    request = (head + load.body).encode()
    while left[0] > 0:
        left[0] -= 1
        began = time.perf_counter()
        writer.write(request)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        seconds.append(time.perf_counter() - began)
        if answer.split(None, 2)[1] != b"200":
            raise RuntimeError(body.decode())
    writer.close()


async def _run(load: Load) -> Outcome:
    for requests in (load.warm, load.requests):
        left, seconds = [requests], list[float]()
        began = time.perf_counter()
        await asyncio.gather(*(_client(load, left, seconds) for _ in range(load.clients)))
        rate = requests / (time.perf_counter() - began)
    return Outcome(rate, seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_run(Load(**json.loads(sys.argv[1])))))))
