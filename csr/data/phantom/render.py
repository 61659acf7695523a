"""From a plan's row to pixels: attenuation → transmitted and scattered photons → Poisson noise → display window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from csr.data.phantom.anatomy import NoiseBank, build_body, draw_habitus
from csr.data.phantom.devices import DEVICES
from csr.data.phantom.findings import PAINTERS, Instance, paint
from csr.data.phantom.forms import SECOND, mirrored
from csr.data.phantom.plan import CONCEPTS, PhantomConfig

SCATTER_STRIDE = 8
LEAD_ATTENUATION = 5.0  # a millimetre or two: among the brightest things on the film
BODY_ATTENUATION = 0.5  # less is air; a detector sets its window on the anatomy alone
_LETTER_B = ("11110", "10001", "10001", "11110", "10001", "10001", "11110")
_GLYPH = np.array([[int(bit) for bit in row] for row in _LETTER_B])


@dataclass(frozen=True)
class Rendering:
    """``pixels`` H×W uint8; ``findings`` in the order they were painted; ``marker_box`` or None, pixel edges."""

    pixels: np.ndarray
    findings: list[Instance]
    marker_box: tuple[float, float, float, float] | None


class Renderer:
    """Renders single studies; every study has its own random stream, so order and parallelism change nothing."""

    def __init__(self, config: PhantomConfig, side: int) -> None:
        self._config = config
        self._side = side
        self._bank = NoiseBank(side, config.seed)

    def __call__(
        self, row: int, present: np.ndarray, marker: bool, devices: Sequence[str] = (), second: Sequence[str] = ()
    ) -> Rendering:
        """Renders study ``row`` with the concepts whose entry in ``present`` (K of 0/1) is 1, those named in ``second``
        in their second form, and with the devices that go with the named concepts."""
        rng = np.random.default_rng([self._config.seed, 2, row])
        names = [name for name, here in zip(CONCEPTS, present, strict=True) if here]
        habitus = draw_habitus(rng, "cardiomegaly" in names)
        body = build_body(mirrored(habitus) if "cardiomegaly" in second else habitus, self._bank.lines(rng))
        attenuation, findings = body.attenuation.copy(), []
        for name in names:
            painter = (SECOND if name in second else PAINTERS)[name]
            added, instances = paint(name, painter, body, rng, self._bank, self._config.contrast)
            attenuation += added
            findings += instances
        own = np.random.default_rng([self._config.seed, 4, row])  # so that all else is as it is without devices
        for name in devices:
            attenuation += DEVICES[name](body, own).astype(np.float32)
        marker_box = _stamp_marker(attenuation, rng) if marker else None
        return Rendering(_expose(attenuation, rng), findings, marker_box)


def _stamp_marker(attenuation: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A lead letter in an upper corner, outside the body, as one site's technicians leave it."""
    side = attenuation.shape[0]
    pixel = max(1, round(side * 0.0105))
    glyph = np.kron(_GLYPH, np.ones((pixel, pixel)))
    height, width = glyph.shape
    for _ in range(100):
        top = int(side * rng.uniform(0.02, 0.07))
        edge = int(side * rng.uniform(0.02, 0.08))
        left = edge if rng.random() < 0.5 else side - edge - width
        place = np.s_[top : top + height, left : left + width]
        if not attenuation[place].any():
            break
    attenuation[place] += LEAD_ATTENUATION * glyph
    return float(left), float(top), float(left + width), float(top + height)


def _expose(attenuation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Beer–Lambert beam, low-frequency scatter, photon noise, then a jittered window on the body's −log counts."""
    air_counts = np.float32(np.exp(rng.uniform(np.log(6000), np.log(20000))))
    primary = air_counts * np.exp(-attenuation)
    middle = SCATTER_STRIDE // 2
    coarse = ndimage.gaussian_filter(primary[middle::SCATTER_STRIDE, middle::SCATTER_STRIDE], 2)
    enlarge = [n / m for n, m in zip(primary.shape, coarse.shape, strict=True)]
    scatter = ndimage.zoom(coarse, enlarge, order=1, mode="nearest", grid_mode=True)
    counts = rng.poisson(primary + np.float32(rng.uniform(0.08, 0.25)) * scatter)
    density = -np.log(counts.astype(np.float32) + 1)
    anatomy = density[::4, ::4][attenuation[::4, ::4] > BODY_ATTENUATION]
    low, high = np.percentile(anatomy, (3, 80))
    low, high = low - rng.uniform(0.05, 0.2) * (high - low), high + rng.uniform(-0.05, 0.1) * (high - low)
    display = np.clip((density - low) / (high - low), 0, 1) ** rng.uniform(0.85, 1.2)
    return (255 * display + 0.5).astype(np.uint8)
