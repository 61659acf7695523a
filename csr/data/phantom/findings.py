"""Findings as soft bodies: each adds attenuation inside the chest and knows exactly where it is.

A finding function takes the body, the random generator and the noise bank, and returns the attenuation maps (H×W) of
its instances. The mask of an instance is where its attenuation exceeds a third of its peak; the box bounds the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from csr.data.phantom.anatomy import MU_LUNG, MU_TISSUE, SIDES, UNIT_CM, Body, NoiseBank

MASK_SHARE = 1 / 3
POROUS = ("cavity", "calcification", "consolidation", "reticulation")  # masked as regions, not as grains


@dataclass(frozen=True)
class Instance:
    """One visible finding: H×W ``mask`` and its box (x_min, y_min, x_max, y_max), pixel edges."""

    concept: str
    mask: np.ndarray
    box: tuple[float, float, float, float]


Painter = Callable[[Body, np.random.Generator, NoiseBank], list[np.ndarray]]


def place(
    body: Body, rng: np.random.Generator, reach: tuple[float, float], zone: tuple[float, float]
) -> tuple[float, float]:
    """A point in either lung: ``reach`` bounds |x|, ``zone`` bounds y; both in anatomical units."""
    for _ in range(100):
        x = rng.choice(SIDES) * rng.uniform(*reach)
        y = rng.uniform(*zone)
        u = (abs(x) - 0.43) / body.habitus.lung_width
        v = (y + 0.02) / body.habitus.lung_height
        heart = ((x - body.habitus.heart_x) / body.habitus.heart_radius[0]) ** 2
        heart += ((y - 0.27) / body.habitus.heart_radius[1]) ** 2
        if u * u + v * v < 0.75 and heart > 1.2 and y < min(body.habitus.diaphragm) - 0.06:
            break
    return x, y


def ball(body: Body, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """Path length, as a share of the longest, through an ellipsoid at (x, y) with radii in anatomical units."""
    dx, dy = body.x - x, body.y - y
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (cos * dx + sin * dy) / rx, (cos * dy - sin * dx) / ry
    return np.sqrt(np.maximum(0, 1 - u * u - v * v))


def _nodule(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    maps = []
    for _ in range(rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1))):
        x, y = place(body, rng, (0.22, 0.66), (-0.5, 0.42))
        radius = rng.uniform(0.9, 1.6) / UNIT_CM
        sphere = ball(body, x, y, radius, radius * rng.uniform(0.85, 1.15))
        maps.append(rng.uniform(1.2, 1.95) * 2 * MU_TISSUE * radius * UNIT_CM * sphere)
    return maps


def _mass(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    x, y = place(body, rng, (0.25, 0.6), (-0.45, 0.35))
    radius = rng.uniform(2.2, 3.6) / UNIT_CM
    lobes = ball(body, x, y, radius, radius * rng.uniform(0.75, 1.0), rng.uniform(0, np.pi))
    for _ in range(3):
        turn = rng.uniform(0, 2 * np.pi)
        lobe = radius * rng.uniform(0.45, 0.65)
        offset = radius * 0.62
        lobes = np.maximum(lobes, 0.8 * ball(body, x + offset * np.cos(turn), y + offset * np.sin(turn), lobe, lobe))
    return [rng.uniform(0.63, 1.2) * lobes]


def _cavity(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    x, y = place(body, rng, (0.25, 0.6), (-0.52, 0.1))
    outer = rng.uniform(1.6, 2.8) / UNIT_CM
    inner = outer * rng.uniform(0.6, 0.75)
    shell = ball(body, x, y, outer, outer * rng.uniform(0.85, 1.1))
    air = ball(body, x, y, inner, inner) * (inner / outer)
    return [rng.uniform(0.98, 1.65) * np.maximum(0, shell - air)]


def _calcification(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    x, y = place(body, rng, (0.2, 0.6), (-0.52, 0.4))
    spread = rng.uniform(1.1, 1.9) / UNIT_CM
    near = (np.abs(body.x - x) < 1.3 * spread) & (np.abs(body.y - y) < 1.3 * spread)
    near_x, near_y, grains = body.x[near], body.y[near], np.zeros(near.sum(), np.float32)
    for _ in range(rng.integers(6, 13)):
        turn, far = rng.uniform(0, 2 * np.pi), spread * np.sqrt(rng.random())
        grain = rng.uniform(0.13, 0.28) / UNIT_CM
        dx, dy = near_x - (x + far * np.cos(turn)), near_y - (y + far * np.sin(turn))
        grains = np.maximum(grains, np.exp(-(dx * dx + dy * dy) / (2 * grain * grain)))
    cluster = np.zeros_like(body.x)
    cluster[near] = rng.uniform(0.75, 1.35) * grains
    return [cluster]


def _consolidation(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    x, y = place(body, rng, (0.28, 0.6), (-0.35, 0.4))
    radius = rng.uniform(3.0, 5.0) / UNIT_CM
    envelope = ball(body, x, y, radius, radius * rng.uniform(0.7, 1.1), rng.uniform(0, np.pi))
    patchy = 1 / (1 + np.exp(-3 * (bank.blobs(rng) + 2.6 * envelope - 1.1)))
    bronchogram = 1 - 0.5 * bank.lines(rng)
    return [rng.uniform(0.63, 1.12) * patchy * bronchogram * np.minimum(1, 2 * envelope) * (body.lung_cm > 1)]


def _ground_glass(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    x, y = place(body, rng, (0.28, 0.58), (-0.4, 0.35))
    radius = rng.uniform(3.6, 6.0) / UNIT_CM
    haze = ball(body, x, y, radius, radius * rng.uniform(0.8, 1.25), rng.uniform(0, np.pi))
    haze = haze * (0.85 + 0.15 * bank.blobs(rng))
    return [rng.uniform(0.42, 0.69) * np.maximum(0, haze) * (body.lung_cm > 1)]


def _reticulation(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    x, y = place(body, rng, (0.34, 0.62), (-0.05, 0.42))
    radius = rng.uniform(3.2, 5.2) / UNIT_CM
    envelope = np.minimum(1, 1.6 * ball(body, x, y, radius, radius * rng.uniform(0.8, 1.3)))
    net = np.maximum(bank.lines(rng), bank.lines(rng))
    return [rng.uniform(0.39, 0.66) * envelope * net * (body.lung_cm > 1)]


def _effusion(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Fluid in place of lung below a concave meniscus that climbs at the chest wall."""
    maps = []
    both = rng.random() < 0.25
    for index in (0, 1) if both else (int(rng.integers(2)),):
        u = (SIDES[index] * body.x - 0.43) / body.habitus.lung_width
        level = body.habitus.diaphragm[index] - rng.uniform(0.04, 0.2)
        meniscus = level + 0.06 - 0.2 * np.maximum(u, 0) ** 2
        below = 1 / (1 + np.exp(np.clip((meniscus - body.y) / 0.02, -30, 30)))
        same_side = SIDES[index] * body.x > 0
        maps.append(rng.uniform(0.5, 0.9) * (MU_TISSUE - MU_LUNG) * body.lung_cm * below * same_side)
    return maps


def _cardiomegaly(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """The enlarged heart is part of the body already (`csr.data.phantom.anatomy.draw_habitus`); only its place is
    returned, at no dose."""
    radius = body.habitus.heart_radius
    return [1e-6 * ball(body, body.habitus.heart_x, 0.27, radius[0], radius[1])]


def _hilar_enlargement(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    maps = []
    sides = SIDES if rng.random() < 0.7 else (rng.choice(SIDES),)
    for side in sides:
        x, y = side * rng.uniform(0.17, 0.22), rng.uniform(-0.12, 0.02)
        radius = rng.uniform(1.5, 2.3) / UNIT_CM
        maps.append(rng.uniform(0.6, 1.05) * ball(body, x, y, radius, radius * rng.uniform(1.1, 1.5), side * 0.4))
    return maps


PAINTERS: dict[str, Painter] = {
    "nodule": _nodule,
    "mass": _mass,
    "cavity": _cavity,
    "calcification": _calcification,
    "consolidation": _consolidation,
    "ground_glass": _ground_glass,
    "reticulation": _reticulation,
    "effusion": _effusion,
    "cardiomegaly": _cardiomegaly,
    "hilar_enlargement": _hilar_enlargement,
}


def paint(
    concept: str, painter: Painter, body: Body, rng: np.random.Generator, bank: NoiseBank, contrast: float
) -> tuple[np.ndarray, list[Instance]]:
    """Adds every instance of one concept. Returns the attenuation to add (H×W) and the visible instances."""
    maps = painter(body, rng, bank)
    instances = [Instance(concept, *_extent(concept, each)) for each in maps]
    return contrast * np.stack(maps).sum(axis=0, dtype=np.float32), instances


def _extent(concept: str, attenuation: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    mask = attenuation > MASK_SHARE * attenuation.max()
    left, top, right, bottom = _bounds(mask)
    if concept in POROUS:
        window = np.s_[top:bottom, left:right]
        closed = ndimage.binary_closing(np.pad(mask[window], 5), iterations=4)[5:-5, 5:-5]
        mask[window] |= ndimage.binary_fill_holes(closed)
    return mask, (float(left), float(top), float(right), float(bottom))


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
