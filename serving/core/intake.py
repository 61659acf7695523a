"""From the bytes of an upload to a study: decoded, de-identified, fitted to what the model looks at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csr.data.images import decode, fit, pixel_digest
from csr.errors import ImageError
from serving.errors import BatchError, ServingError, UnreadableImageError, UnsupportedImageError
from serving.store.studies import StoredStudy

DECODES_AT_ONCE = 2  # an image at the limit of `csr.data.images.MAX_PIXELS` takes most of a gigabyte as floats
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_NAMED = 10

Identify = Callable[[bytes], str | None]


@dataclass(frozen=True)
class Upload:
    """A file.

    Args:
        data: a PNG, JPEG, TIFF or DICOM file's bytes.
        name: what to call it in messages; kept nowhere, since it may hold a patient's name.
    """

    data: bytes
    name: str = "image"


class Intake:
    """Thread-safe.

    Args:
        identify: gives what is kept of a DICOM file's attributes, or None for other files.
    """

    def __init__(self, identify: Identify) -> None:
        self._identify = identify
        self._decoding = threading.BoundedSemaphore(DECODES_AT_ONCE)

    def read(self, uploads: Sequence[Upload], channels: int, side: int) -> list[StoredStudy]:
        """Every file, or none.

        Raises:
            UnsupportedImageError: a file is of a kind that is not read.
            UnreadableImageError: it is empty, damaged or too big.
            ServingError: whatever ``identify`` raises.
            BatchError: several files are refused.
        """
        studies: list[StoredStudy] = []
        problems: list[ServingError] = []
        for upload in uploads:
            try:
                studies.append(self._read_one(upload, channels, side))
            except ServingError as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise BatchError("; ".join(str(problem) for problem in problems[:_NAMED]) + more)
        return studies

    def _read_one(self, upload: Upload, channels: int, side: int) -> StoredStudy:
        data, name = upload.data, upload.name
        if not data:
            raise UnreadableImageError(f"{name}: is empty")
        if not data.startswith(_SIGNATURES) and data[128:132] != b"DICM":
            raise UnsupportedImageError(f"{name}: not a PNG, JPEG, TIFF or DICOM image")
        source = self._identify(data)
        with self._decoding:
            try:
                canvas, placement = fit(decode(data, name), side, channels)
            except ImageError as error:
                raise UnreadableImageError(str(error)) from None
        return StoredStudy(pixel_digest(canvas), canvas, placement, source)
