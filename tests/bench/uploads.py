"""What an upload costs: files and clients that cost next to nothing, and where its processor time goes.

Files are made before a round begins, and clients speak HTTP by the standard library alone: what they would spend, the
server could not.
"""

from __future__ import annotations

import functools
import http.client
import importlib
import io
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from csr.bundle.format import Bundle
from serving.core.decoding import DecodingPool
from serving.interfaces.rest import context
from tests.bench.servers import Serving, processor_s
from tests.serving.conftest import add, make_service

_BOUNDARY = "a-line-that-no-png-has"
_HEAD = (
    f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
).encode()
_TAIL = f"\r\n--{_BOUNDARY}--\r\n".encode()
_ROUNDS, _UPLOADS = 5, 60
# What is told apart, from the outside in; what one of them spends in another counts for the other.
_STEPS = {
    "the encoder": "csr.bundle.runtime:BundleRunner.run_encoder",
    "the reasoner": "csr.bundle.runtime:BundleRunner.run_reasoner",
    "what it says, explained": "serving.models.explainer:Explainer.predict",
    "whether it fits": "serving.core.reasoning:judge",
    "around the model (tensors, laps)": "serving.core.dataplane:encoded_study",
    "questions and their effects": "serving.core.dataplane:open_questions",
    "questions in words": "serving.core.dataplane:asking",
    "what its files said before": "serving.core.dataplane:DataPlane._facts",
    "drift": "serving.core.dataplane:DataPlane._note_drift",
    "the line to the decoder, the digest": "serving.core.decoding:DecodingPool.decode",
    "pixels for the store": "serving.core.dataplane:study_row",
    "rows of study and worklist": "serving.core.dataplane:keep_study",
    "the ledger": "serving.store.ledger:Ledger.append",
    "the answer in JSON": "serving.interfaces.rest.context:answered",
    "what is left": "serving.core.dataplane:DataPlane.add_studies",
}


def altered(png: bytes, number: int) -> bytes:
    """A PNG file of other pixels for each number: the cache would answer for the same ones."""
    pixels = np.array(Image.open(io.BytesIO(png)))
    flat = pixels.reshape(-1)
    flat[:4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class Files:
    """Altered files, each given out once, to any number of threads.

    Args:
        png: the file that they are altered from.
    """

    def __init__(self, png: bytes) -> None:
        self._png = png
        self._made: list[bytes] = []
        self._number = 0
        self._guard = threading.Lock()

    def make(self, count: int) -> None:
        """Sees to it that there are so many."""
        while len(self._made) < count:
            self._made.append(altered(self._png, self._number))
            self._number += 1

    def take(self) -> bytes:
        """Raises:
        RuntimeError: there is none left: a round must not make them.
        """
        with self._guard:
            if not self._made:
                raise RuntimeError("more uploads than files; make more before the round")
            return self._made.pop()


def uploader(server: Serving, files: Files) -> Callable[[], int]:
    """A client with a connection of its own: each call uploads one file."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    headers = {
        "Authorization": f"Bearer {server.key}",
        "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
    }

    def upload() -> int:
        connection.request("POST", "/v1/studies", _HEAD + files.take() + _TAIL, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 201:
            raise RuntimeError(f"{answer.status}: {content[:200]!r}")
        return 1

    return upload


def upload_steps(bundle: Bundle, folder: Path) -> list[str]:
    """Where an upload's processor time goes, without HTTP: by step in the thread that serves it, and in the decoder."""
    png = (bundle.path / "samples" / bundle.samples()[0]["file"]).read_bytes()
    pool, files = DecodingPool(), Files(png)
    service = make_service(bundle.path, folder, decoding=pool)
    files.make((_ROUNDS + 1) * _UPLOADS)
    rounds: list[dict[str, float]] = []
    with _timed_steps() as spent:
        for _ in range(_ROUNDS + 1):
            spent.clear()
            before = processor_s(pool.processes())
            for _ in range(_UPLOADS):
                context.answered(add(service.plane, files.take()), 201)
            spent["in the decoder's process"] = processor_s(pool.processes()) - before
            rounds.append({name: seconds / _UPLOADS * 1e3 for name, seconds in spent.items()})
    service.close()
    pool.close()
    del rounds[0]  # it warms up
    found = {name: statistics.median(each.get(name, 0.0) for each in rounds) for name in rounds[0]}
    encoder, total = found[next(iter(_STEPS))], sum(found.values())
    lines = [
        "## One upload, by step",
        "",
        "| processor time, without HTTP | an image | of the encoder's |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {each:.2f} ms | {each / encoder:.0%} |"
        for name, each in sorted(found.items(), key=lambda item: -item[1])
    ]
    return [*lines, f"| all of it | {total:.2f} ms | {total / encoder:.0%} |", ""]


@contextmanager
def _timed_steps() -> Iterator[dict[str, float]]:
    """Seconds of this thread's processor time by the names of `_STEPS`, while it lasts."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[float] = []  # of each step that is under way, what the steps in it took
    originals: list[tuple[Any, str, Any]] = []

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def call(*args: Any, **more: Any) -> Any:
            started = time.thread_time()
            inside.append(0.0)
            try:
                return step(*args, **more)
            finally:
                took = time.thread_time() - started
                spent[name] += took - inside.pop()
                if inside:
                    inside[-1] += took

        return call

    for name, place in _STEPS.items():
        module, _, path = place.partition(":")
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        originals.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, timed(name, originals[-1][2]))
    try:
        yield spent
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
