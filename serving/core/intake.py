"""From the bytes of an upload to a study: decoded, de-identified, fitted to what the model looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csr.data.images import KINDS
from serving.core.decoding import DecodingPool
from serving.core.together import together
from serving.errors import BatchError, ServingError, UnreadableImageError, UnsupportedImageError
from serving.store.studies import StoredStudy

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM")
_NAMED = 10


@dataclass(frozen=True)
class Upload:
    """A file.

    Args:
        data: a PNG, JPEG, TIFF, BMP, WebP or DICOM file's bytes.
        name: what to call it in messages; kept nowhere, since it may hold a patient's name.
        frame: which page or frame of it, from 1; needed where it has several.
    """

    data: bytes
    name: str = "image"
    frame: int | None = None


class Intake:
    """Thread-safe.

    Args:
        decoding: decodes and de-identifies, within limits.
        salt: of the pseudonyms.
    """

    def __init__(self, decoding: DecodingPool, salt: bytes) -> None:
        self._decoding = decoding
        self._salt = salt

    def read(
        self, uploads: Sequence[Upload], channels: int, side: int, caller: str, display: str | None = None
    ) -> list[StoredStudy]:
        """Every file, or none; several are decoded at once.

        Args:
            channels, side, display: see `csr.bundle.format.Manifest`.
            caller: who sent them; callers take turns.

        Raises:
            UnsupportedImageError: a file is of a kind that is not read.
            UnreadableImageError: it is empty, damaged or too big, or takes too long or too much memory to decode.
            BurnedInAnnotationError, IncompleteDicomError: a DICOM file that is not taken.
            BatchError: several files are refused.
        """

        def read_one(upload: Upload) -> StoredStudy | ServingError:
            try:
                return self._read_one(upload, channels, side, caller, display)
            except ServingError as error:
                return error

        read = together(read_one, uploads)
        studies = [each for each in read if isinstance(each, StoredStudy)]
        problems = [each for each in read if isinstance(each, ServingError)]
        if len(problems) == 1:
            raise problems[0]
        if problems:
            more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise BatchError("; ".join(str(problem) for problem in problems[:_NAMED]) + more)
        return studies

    def _read_one(self, upload: Upload, channels: int, side: int, caller: str, display: str | None) -> StoredStudy:
        data, name = upload.data, upload.name
        if not data:
            raise UnreadableImageError(f"{name}: is empty")
        if not data.startswith(_SIGNATURES) and data[8:12] != b"WEBP" and data[128:132] != b"DICM":
            raise UnsupportedImageError(f"{name}: not a {KINDS}")
        return self._decoding.decode(data, name, channels, side, self._salt, caller, display, upload.frame)
