"""The body of a phantom study: attenuation of a chest without findings, and the coordinates findings are placed in.

Anatomical coordinates: x and y in [-1, 1] over a 40 cm field (1 unit = 20 cm), x to the image's right, y downwards,
after the inverse of the study's pose. Attenuation maps are line integrals ∫μ dl, without unit; lengths are in cm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

UNIT_CM = 20.0
MU_TISSUE = 0.19  # 1/cm, water near 70 keV
MU_LUNG = 0.05  # inflated lung, a quarter of water's density
MU_BONE = 0.22  # in excess of tissue
SIDES = (-1.0, 1.0)


@dataclass(frozen=True)
class Habitus:
    """One person in one pose. Lengths in units of the half field unless named otherwise."""

    depth_cm: float
    width: float
    lung_width: float
    lung_height: float
    diaphragm: tuple[float, float]
    heart_x: float
    heart_radius: tuple[float, float]
    rib_pitch: float
    rib_phase: float
    rib_contrast: float
    vessel_contrast: float
    rotation: float
    scale: float
    shift: tuple[float, float]


@dataclass(frozen=True)
class Body:
    """Maps of H×W float32: ``attenuation`` of the chest, ``lung_cm`` path through lung, anatomical ``x``, ``y``."""

    habitus: Habitus
    attenuation: np.ndarray
    lung_cm: np.ndarray
    x: np.ndarray
    y: np.ndarray


def draw_habitus(rng: np.random.Generator, cardiomegaly: bool) -> Habitus:
    """Draws a person. The heart is the only organ that depends on a finding: its width is the finding."""
    ratio = rng.uniform(1.22, 1.5) if cardiomegaly else rng.uniform(0.85, 1.12)
    lung_width = rng.uniform(0.30, 0.36)
    return Habitus(
        depth_cm=rng.uniform(16, 25),
        width=rng.uniform(0.82, 0.97),
        lung_width=lung_width,
        lung_height=rng.uniform(0.58, 0.68),
        diaphragm=(rng.uniform(0.42, 0.54), rng.uniform(0.46, 0.58)),
        heart_x=rng.uniform(0.07, 0.14),
        heart_radius=(0.245 * ratio, rng.uniform(0.24, 0.29) * (0.5 + 0.5 * ratio)),
        rib_pitch=rng.uniform(0.155, 0.19),
        rib_phase=rng.uniform(0, 1),
        rib_contrast=rng.uniform(0.6, 1.3),
        vessel_contrast=rng.uniform(0.6, 1.4),
        rotation=np.deg2rad(rng.uniform(-5, 5)),
        scale=rng.uniform(0.93, 1.06),
        shift=(rng.uniform(-0.06, 0.06), rng.uniform(-0.05, 0.05)),
    )


def build_body(habitus: Habitus, vessels: np.ndarray) -> Body:
    """Sums the attenuation of torso, lungs, heart, mediastinum, spine, ribs and lung vessels.

    Args:
        habitus: the person.
        vessels: H×W line texture in [0, 1], drawn by the caller from a `NoiseBank`.
    """
    x, y = _pose(habitus, vessels.shape[0])
    ax = np.abs(x)
    depth = _torso_depth(habitus, ax, y)
    lung = np.minimum(_lung_path(habitus, x, y), 0.72 * depth)
    heart = 10.5 * _ellipsoid((x - habitus.heart_x) / habitus.heart_radius[0], (y - 0.27) / habitus.heart_radius[1])
    mediastinum = 12.0 * _ellipsoid(x / 0.15, (y + 0.05) / 0.85)
    lung = lung - np.minimum(np.maximum(heart, mediastinum), lung)

    attenuation = MU_TISSUE * depth - (MU_TISSUE - MU_LUNG) * lung
    attenuation += MU_BONE * (1.6 * _spine(x, y) + habitus.rib_contrast * _ribs(habitus, ax, y)) * (depth > 3)
    hilar_fall_off = np.exp(-(((ax - 0.16) / 0.3) ** 2) - (y / 0.42) ** 2)
    attenuation += 0.028 * habitus.vessel_contrast * lung * (0.15 + hilar_fall_off) * vessels
    return Body(habitus, attenuation.astype(np.float32), lung.astype(np.float32), x, y)


def _pose(habitus: Habitus, side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    column, row = axis[None, :] - np.float32(habitus.shift[0]), axis[:, None] - np.float32(habitus.shift[1])
    cos, sin = (
        np.float32(np.cos(habitus.rotation) / habitus.scale),
        np.float32(np.sin(habitus.rotation) / habitus.scale),
    )
    return cos * column + sin * row, cos * row - sin * column


def _ellipsoid(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Path through a unit ellipsoid as a share of its longest path: √(1 − u² − v²), 0 outside."""
    return np.sqrt(np.maximum(0, 1 - u * u - v * v))


def _torso_depth(habitus: Habitus, ax: np.ndarray, y: np.ndarray) -> np.ndarray:
    shoulder = 1 / (1 + np.exp(-(y + 0.66) / 0.06))
    half_width = 0.27 + (habitus.width - 0.27) * shoulder
    return habitus.depth_cm * np.sqrt(np.maximum(0, 1 - (ax / half_width) ** 4))


def _lung_path(habitus: Habitus, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    path = np.zeros_like(x)
    for side, level in zip(SIDES, habitus.diaphragm, strict=True):
        u = (side * x - 0.43) / habitus.lung_width
        v = (y + 0.02) / habitus.lung_height
        dome = level + 0.35 * u * u * habitus.lung_width
        above = 1 / (1 + np.exp(np.clip((y - dome) / 0.018, -30, 30)))
        path += 15.0 * np.sqrt(np.maximum(0, 1 - u * u - np.abs(v) ** 2.6)) * above
    return path


def _spine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    discs = 0.8 + 0.2 * np.cos(2 * np.pi * y / 0.13)
    return np.sqrt(np.maximum(0, 1 - (x / 0.075) ** 2)) * discs


def _ribs(habitus: Habitus, ax: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Posterior ribs (steep near the spine) and fainter anterior ribs as tubes along curves y = c(x) + n·pitch."""
    cage = (ax > 0.1) & (ax < 0.86) & (y > -0.82) & (y < 0.62)
    posterior = _tubes(y - 0.55 * (ax - 0.25) ** 2 - 0.02, habitus.rib_pitch, habitus.rib_phase, 0.17)
    anterior = _tubes(y + 0.42 * (ax - 0.9), habitus.rib_pitch * 1.12, habitus.rib_phase + 0.4, 0.2)
    return cage * (0.75 * posterior + 0.42 * anterior * (ax > 0.3))


def _tubes(level: np.ndarray, pitch: float, phase: float, half_width: float) -> np.ndarray:
    """Cortex-weighted path through tubes of radius ``half_width``·pitch that repeat every ``pitch``."""
    turns = level * np.float32(1 / pitch) + np.float32(phase)
    offset = np.abs(turns - np.floor(turns) - np.float32(0.5)) * np.float32(1 / half_width)
    return np.sqrt(np.maximum(0, 1 - offset * offset)) * (0.6 + 0.4 * offset)


class NoiseBank:
    """Smooth and ridged random fields, drawn once and cropped a study at a time, since drawing them is slow.

    Args:
        side: image side in pixels; fields are twice that, so a crop has side² places to come from.
        seed: same seed, same fields.
    """

    def __init__(self, side: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self._side = side
        self._blobs = [self._smooth(rng, 2 * side, cells) for cells in (24, 24, 34)]
        self._lines = [self._ridges(rng, 2 * side, cells) for cells in (40, 40, 64)]

    @staticmethod
    def _smooth(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
        field = sum(
            ndimage.zoom(rng.standard_normal((n + 3, n + 3)), size / n, order=3)[:size, :size] * weight
            for n, weight in ((cells, 1.0), (2 * cells, 0.5), (4 * cells, 0.25))
        )
        return ((field - field.mean()) / field.std()).astype(np.float32)

    @classmethod
    def _ridges(cls, rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
        return np.exp(-((cls._smooth(rng, size, cells) / 0.22) ** 2)).astype(np.float32)

    def _crop(self, rng: np.random.Generator, fields: list[np.ndarray]) -> np.ndarray:
        field = fields[rng.integers(len(fields))]
        row, column = rng.integers(0, self._side, 2)
        crop = field[row : row + self._side, column : column + self._side]
        return crop[:, ::-1] if rng.random() < 0.5 else crop

    def blobs(self, rng: np.random.Generator) -> np.ndarray:
        """H×W smooth field with mean 0 and standard deviation 1."""
        return self._crop(rng, self._blobs)

    def lines(self, rng: np.random.Generator) -> np.ndarray:
        """H×W net of thin lines in [0, 1]."""
        return self._crop(rng, self._lines)
