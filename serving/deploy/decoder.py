"""``python -m serving.deploy.decoder FD MEGABYTES SECONDS``: a worker of `serving.core.decoding.DecodingPool`.

Reads tasks from the socket that it was started with until the other end closes it. It says nothing to anybody else:
what libraries would log of a file may quote a patient's name.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

from csr.bundle.profile import is_coloured
from csr.data.images import check_content, fit, read_image
from csr.errors import ImageError
from serving.core.messages import packed, unpacked
from serving.dicom.deidentify import deidentify, read_as
from serving.errors import ServingError, UnreadableImageError


def main(descriptor: int, memory_mb: int, seconds: float) -> None:
    """Serves one line until it closes, with so much memory to allocate, and a processor's time for each file."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    line = Connection(descriptor)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
        line.send_bytes(b"ready")
        while True:
            about, data = unpacked(line.recv_bytes())
            task = json.loads(about)
            task["salt"] = bytes.fromhex(task["salt"])
            signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends this process
            answered = answer(data, **task)
            signal.setitimer(signal.ITIMER_PROF, 0)
            line.send_bytes(packed(*answered))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the server is gone, or has given this worker up


def answer(data: bytes, name: str, **task: Any) -> tuple[bytes, ...]:
    """What answers a task: a study in JSON and its pixels, or why there is none."""
    try:
        return read(data, name, **task)
    except MemoryError:
        error = {"error": "MemoryError", "message": ""}
    except ServingError as refused:
        error = {"error": type(refused).__name__, "message": str(refused)}
    except RecursionError:
        message = f"{name}: is nested too deeply to be read"
        error = {"error": UnreadableImageError.__name__, "message": message}
    return (json.dumps(error).encode(),)


def read(
    data: bytes,
    name: str,
    channels: int,
    side: int,
    salt: bytes,
    display: str | None = None,
    frame: int | None = None,
) -> tuple[bytes, bytes]:
    """A file's bytes as what is known of a study, in JSON, and its pixels.

    Raises:
        ServingError: the file is refused; see `serving.core.decoding.DecodingPool.decode`.
    """
    source = deidentify(data, salt)
    try:
        image = read_image(data, name, display, frame)
        canvas, placement = fit(image.pixels, side, channels, image.turn)
        check_content(canvas, placement, name)
    except ImageError as error:
        raise UnreadableImageError(str(error)) from None
    kept = None if source is None else read_as(source, placement.turn, frame).to_json()
    coloured = is_coloured(image.pixels)
    about = {"shape": canvas.shape, "placement": vars(placement), "source": kept, "coloured": coloured}
    return json.dumps(about).encode(), canvas.tobytes()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
