"""Devices that go with findings: a harder shortcut than the site marker, since it lies inside the body.

Chest drains with effusions and pacemakers with large hearts are what classifiers of radiographs were found to read
instead of the finding (Oakden-Rayner et al. 2020, arXiv 1909.12475). Each device lies where its finding never does, or
hardly ever, so where a model looks tells what it has learned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from csr.data.phantom.anatomy import SIDES, Body

METAL = 3.0  # attenuation, without unit: a titanium can
PLASTIC = 0.9  # a tube with its radio-opaque stripe

Device = Callable[[Body, np.random.Generator], np.ndarray]


def _disc(body: Body, x: float, y: float, radius: float) -> np.ndarray:
    return ((body.x - x) ** 2 + (body.y - y) ** 2 < radius**2).astype(np.float32)


def _tube(body: Body, ends: tuple[tuple[float, float], tuple[float, float]], half_width: float) -> np.ndarray:
    """A straight tube between two points, with a denser stripe along its middle."""
    (x0, y0), (x1, y1) = ends
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((body.x - x0) * dx + (body.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    away = np.hypot(body.x - x0 - along * dx, body.y - y0 - along * dy)
    return (away < half_width) * (0.6 + 0.4 * (away < half_width / 2))


def _pacemaker(body: Body, rng: np.random.Generator) -> np.ndarray:
    """A rounded can below the left collar bone, the image's right."""
    x, y = rng.uniform(0.46, 0.56), rng.uniform(-0.58, -0.48)
    u, v = (body.x - x) / 0.12, (body.y - y) / 0.095
    return METAL * (u**4 + v**4 < 1)


def _drain(body: Body, rng: np.random.Generator) -> np.ndarray:
    """A tube through the side of the chest, above where fluid gathers."""
    side, level = rng.choice(SIDES), rng.uniform(-0.2, 0.0)
    ends = ((side * rng.uniform(0.76, 0.84), level + 0.12), (side * rng.uniform(0.45, 0.52), level - 0.08))
    return PLASTIC * _tube(body, ends, 0.028)


def _port(body: Body, rng: np.random.Generator) -> np.ndarray:
    """The ring of an implanted port below the right collar bone, the image's left."""
    x, y = rng.uniform(-0.52, -0.42), rng.uniform(-0.64, -0.56)
    return METAL * (_disc(body, x, y, 0.065) - _disc(body, x, y, 0.035))


def _clips(body: Body, rng: np.random.Generator) -> np.ndarray:
    """Three clips in a row in the arm pit, as the removal of lymph nodes leaves them."""
    x, y = rng.choice(SIDES) * rng.uniform(0.74, 0.8), rng.uniform(-0.46, -0.36)
    return METAL * np.maximum.reduce([_disc(body, x, y + step, 0.02) for step in (-0.07, 0.0, 0.07)])


def _central_line(body: Body, rng: np.random.Generator) -> np.ndarray:
    """A catheter from the right collar bone, the image's left, to the great vein."""
    start = (rng.uniform(-0.62, -0.54), rng.uniform(-0.58, -0.52))
    return PLASTIC * _tube(body, (start, (-0.14, rng.uniform(-0.5, -0.42))), 0.02)


def _electrodes(body: Body, rng: np.random.Generator) -> np.ndarray:
    """Two electrodes of a monitor on the flanks, below the lungs."""
    y = rng.uniform(0.72, 0.82)
    return METAL * np.maximum.reduce([_disc(body, side * rng.uniform(0.5, 0.6), y, 0.045) for side in SIDES])


DEVICES: dict[str, Device] = {
    "cardiomegaly": _pacemaker,
    "effusion": _drain,
    "mass": _port,
    "nodule": _clips,
    "consolidation": _central_line,
    "ground_glass": _electrodes,
}
