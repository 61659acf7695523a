"""The data plane: everything the server can do, without a protocol. Adapters translate and nothing more.

Concurrency: every method may be called from any number of threads and blocks until it is done, so adapters call it
off their event loops. A study is encoded once: uploads of the same pixels wait for the first. An interaction carries
its whole state and is a pure function of it and the encoded study; nothing is remembered between two of them.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from weakref import WeakValueDictionary

import numpy as np

from csr.bundle import Bundle
from csr.errors import ImageError
from csr.images import Placement, decode, fit, pixel_digest, to_png
from csr.interaction import Interaction, InteractionError
from serving.engine import Engine, OrtEngine
from serving.errors import (
    FrameError,
    InvalidInteractionError,
    UnknownStudyError,
    UnreadableImageError,
    UnsupportedImageError,
)
from serving.exhibits import Exhibits
from serving.explain import Explainer, compare
from serving.frames import image_part, on_canvas
from serving.maps import overlay_png
from serving.schemas import ImageSize, InteractionAnswer, InteractionRequest, StudyAnswer
from serving.studies import Study, StudyCache

CACHE_BYTES = 256 << 20
DECODES_AT_ONCE = 2  # an image at the limit of `csr.images.MAX_PIXELS` takes most of a gigabyte as floats
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")


class DataPlane:
    """Serves one bundle.

    Args:
        bundle: a verified bundle.
        engine: runs its graphs.
        cache_bytes: budget of the encoded studies held in memory.

    Attributes:
        manifest, bundle_digest: of the bundle.
        exhibits: its atlas and samples.
    """

    def __init__(self, bundle: Bundle, engine: Engine, cache_bytes: int = CACHE_BYTES) -> None:
        self.manifest = bundle.manifest
        self._engine = engine
        self.bundle_digest = bundle.digest
        self.exhibits = Exhibits(bundle)
        self._explainer = Explainer(bundle.manifest, self.exhibits.atlas)
        self._studies = StudyCache(cache_bytes)
        self._decoding = threading.BoundedSemaphore(DECODES_AT_ONCE)
        self._encoding: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._encoding_guard = threading.Lock()

    @classmethod
    def open(cls, path: Path, cache_bytes: int = CACHE_BYTES, threads: int = 1) -> DataPlane:
        """Verifies a bundle's digests and golden case and serves it with ONNX Runtime.

        Raises:
            BundleError: either fails.
        """
        bundle = Bundle.open(path)
        return cls(bundle, OrtEngine(bundle, threads), cache_bytes)

    def add_study(self, data: bytes, name: str = "image") -> StudyAnswer:
        """Decodes, encodes (unless these pixels are held already) and predicts.

        Args:
            data: a PNG, JPEG, TIFF or DICOM file's bytes.
            name: what to call it in messages.

        Raises:
            UnsupportedImageError: it is none of these.
            UnreadableImageError: it is empty, damaged or too big.
        """
        clock = _Clock()
        canvas, placement = self._decode(data, name)
        clock.lap("decode")
        digest = pixel_digest(canvas)
        with self._turn(digest):
            study = self._studies.get(digest)
            if study is None:
                patches = self._engine.encode(canvas[None])
                clock.lap("encode")
                study = self._predicted(digest, canvas, placement, patches)
                clock.lap("reason")
            elif study.placement != placement:  # the same pixels from a file of another size: its frame is asked for
                study = self._predicted(digest, canvas, placement, study.patches)
                clock.lap("reason")
            self._studies.put(study)
        return _study_answer(study, clock)

    def predict(self, digest: str) -> StudyAnswer:
        """The prediction without interaction, again.

        Raises:
            UnknownStudyError: it was never uploaded here, or has left the cache.
        """
        return _study_answer(self._study(digest), _Clock())

    def interact(self, digest: str, interaction: Interaction, drawn_on: ImageSize | None = None) -> InteractionAnswer:
        """Applies an interaction to a study. Reasons once; encodes never.

        Args:
            digest: the study's address.
            interaction: the whole state, boxes in pixels of the uploaded image.
            drawn_on: the image's size as the client knows it; None trusts that it is the study's.

        Raises:
            UnknownStudyError: see `predict`.
            FrameError: the study's image has another size.
            InvalidInteractionError: a box outside the image, or an unknown concept.
        """
        clock = _Clock()
        study = self._study(digest, drawn_on)
        outputs = self._reason(study, interaction)
        clock.lap("reason")
        before = study.prediction
        after = self._explainer.predict(outputs, study.placement, interaction.rejected, before.map_limit)
        changes = compare(before, after)
        clock.lap("explain")
        return InteractionAnswer(
            digest=digest, before=before, after=after, changes=changes, timings_ms=clock.milliseconds
        )

    def overlay(
        self,
        digest: str,
        concept: str,
        interaction: Interaction | None = None,
        drawn_on: ImageSize | None = None,
    ) -> bytes:
        """A concept's similarity map as a transparent PNG that covers the study's image.

        Raises:
            UnknownConceptError: no such concept.
            UnknownStudyError, FrameError, InvalidInteractionError: see `interact`.
        """
        study = self._study(digest, drawn_on)
        self.exhibits.check_concept(concept)
        maps = study.prediction.maps
        if interaction is not None:
            maps = self._reason(study, interaction)["concept_maps"][0]
        enlarged = self._explainer.upsampler.enlarge(maps[self.manifest.concepts.index(concept)])
        return overlay_png(image_part(enlarged, study.placement), study.prediction.map_limit)

    def image(self, digest: str) -> bytes:
        """The study as the network saw it, without margins, as PNG.

        Raises:
            UnknownStudyError: see `predict`.
        """
        study = self._study(digest)
        return to_png(image_part(study.canvas, study.placement))

    def _decode(self, data: bytes, name: str) -> tuple[np.ndarray, Placement]:
        if not data:
            raise UnreadableImageError(f"{name}: is empty")
        if not data.startswith(_SIGNATURES) and data[128:132] != b"DICM":
            raise UnsupportedImageError(f"{name}: not a PNG, JPEG, TIFF or DICOM image")
        with self._decoding:
            try:
                image = decode(data, name)
            except ImageError as error:
                raise UnreadableImageError(str(error)) from None
            return fit(image, self.manifest.side, self.manifest.channels)

    def _turn(self, digest: str) -> AbstractContextManager[object]:
        """A lock of this digest; it vanishes with the last thread that holds or awaits it."""
        with self._encoding_guard:
            return self._encoding.setdefault(digest, threading.Lock())

    def _predicted(self, digest: str, canvas: np.ndarray, placement: Placement, patches: np.ndarray) -> Study:
        plain = InteractionRequest().interaction(self.manifest)  # so that an empty interaction changes nothing
        prediction = self._explainer.predict(self._engine.reason(patches, [plain]), placement)
        return Study(digest, canvas, placement, patches, prediction)

    def _study(self, digest: str, drawn_on: ImageSize | None = None) -> Study:
        study = self._studies.get(digest)
        if study is None:
            raise UnknownStudyError("this server does not hold the study (any more); upload it again")
        if drawn_on is not None and drawn_on != _size(study.placement):
            known, asked = _size(study.placement), drawn_on
            raise FrameError(
                f"image: is {asked.width}×{asked.height} here, but the study was last uploaded as "
                f"{known.width}×{known.height}; upload yours again"
            )
        return study

    def _reason(self, study: Study, interaction: Interaction) -> dict[str, np.ndarray]:
        try:
            return self._engine.reason(study.patches, [on_canvas(interaction, study.placement)])
        except InteractionError as error:
            raise InvalidInteractionError(str(error)) from None


def _study_answer(study: Study, clock: _Clock) -> StudyAnswer:
    return StudyAnswer(
        digest=study.digest,
        image=_size(study.placement),
        prediction=study.prediction,
        timings_ms=clock.milliseconds,
    )


def _size(placement: Placement) -> ImageSize:
    return ImageSize(width=placement.width, height=placement.height)


class _Clock:
    """Milliseconds of the steps between laps."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, step: str) -> None:
        now = perf_counter()
        self.milliseconds[step] = round((now - self._last) * 1000, 3)
        self._last = now
