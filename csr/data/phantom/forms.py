"""A second visual form of every concept: what a concept of two looks is, and so what several prototypes are for.

The second form is the rarer one. It lies where the first does, but for loculated fluid and the mirrored heart, is of
about the same size and dose, and means the same: labels and the rule do not know it. Which form a study's findings of
a concept have is in its ``form:<concept>`` (`csr.data.phantom.plan.draw_plan`), for whoever measures what prototypes
have found; nothing is trained on it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr.data.phantom.anatomy import MU_LUNG, MU_TISSUE, SIDES, UNIT_CM, Body, Habitus, NoiseBank
from csr.data.phantom.findings import PAINTERS, Painter, ball, place


def _spiculated_nodule(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """A small core with thin arms, as a star."""
    x, y = place(body, rng, (0.22, 0.66), (-0.5, 0.42))
    radius, turn, arms = rng.uniform(0.9, 1.6) / UNIT_CM, rng.uniform(0, np.pi), np.zeros_like(body.x)
    for step in range(3):
        arms = np.maximum(arms, ball(body, x, y, 2.1 * radius, 0.3 * radius, turn + step * np.pi / 3))
    star = np.maximum(0.75 * arms, ball(body, x, y, 0.6 * radius, 0.6 * radius))
    return [rng.uniform(1.2, 1.95) * 2 * MU_TISSUE * radius * UNIT_CM * star]


def _plate_mass(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Long and narrow instead of lobed."""
    x, y = place(body, rng, (0.25, 0.6), (-0.45, 0.35))
    radius = rng.uniform(2.2, 3.6) / UNIT_CM
    return [rng.uniform(0.75, 1.3) * ball(body, x, y, 1.6 * radius, 0.42 * radius, rng.uniform(0, np.pi))]


def _filled_cavity(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """A cavity whose lower half is full of fluid, up to a level."""
    x, y = place(body, rng, (0.25, 0.6), (-0.52, 0.1))
    outer = rng.uniform(1.6, 2.8) / UNIT_CM
    inner = outer * rng.uniform(0.6, 0.75)
    shell = ball(body, x, y, outer, outer * rng.uniform(0.85, 1.1))
    air = ball(body, x, y, inner, inner) * (inner / outer) * (body.y < y)
    return [rng.uniform(0.98, 1.65) * np.maximum(0, shell - air)]


def _rod_calcification(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Parallel rods instead of grains."""
    x, y = place(body, rng, (0.2, 0.6), (-0.52, 0.4))
    spread, turn, rods = rng.uniform(1.1, 1.9) / UNIT_CM, rng.uniform(0, np.pi), np.zeros_like(body.x)
    for step in (-0.8, 0.0, 0.8):
        across = (x - step * spread * np.sin(turn), y + step * spread * np.cos(turn))
        rods = np.maximum(rods, ball(body, *across, 1.1 * spread, 0.28 / UNIT_CM, turn))
    return [rng.uniform(0.75, 1.35) * rods]


def _lobar_consolidation(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Even, without air bronchograms, and cut off by a straight fissure."""
    x, y = place(body, rng, (0.28, 0.6), (-0.35, 0.4))
    radius = rng.uniform(3.0, 5.0) / UNIT_CM
    envelope = np.minimum(1, 2 * ball(body, x, y, radius, radius * rng.uniform(0.7, 1.1)))
    return [rng.uniform(0.5, 0.9) * envelope * (body.y > y) * (body.lung_cm > 1)]


def _mosaic_glass(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Haze in tiles, every second one spared."""
    x, y = place(body, rng, (0.28, 0.58), (-0.4, 0.35))
    radius, tile = rng.uniform(3.6, 6.0) / UNIT_CM, 1.5 / UNIT_CM
    haze = ball(body, x, y, radius, radius * rng.uniform(0.8, 1.25), rng.uniform(0, np.pi))
    tiles = (np.floor((body.x - x) / tile) + np.floor((body.y - y) / tile)) % 2
    return [rng.uniform(0.55, 0.9) * haze * tiles * (body.lung_cm > 1)]


def _septal_reticulation(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Parallel horizontal lines instead of a net."""
    x, y = place(body, rng, (0.34, 0.62), (-0.05, 0.42))
    radius, pitch = rng.uniform(3.2, 5.2) / UNIT_CM, 1.7 / UNIT_CM
    envelope = np.minimum(1, 1.6 * ball(body, x, y, radius, radius * rng.uniform(0.8, 1.3)))
    lines = np.maximum(0, np.cos(2 * np.pi * (body.y - y) / pitch)) ** 3
    return [rng.uniform(0.39, 0.66) * envelope * lines * (body.lung_cm > 1)]


def _loculated_effusion(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Fluid held at the side wall, above the diaphragm."""
    index = int(rng.integers(2))
    u = (SIDES[index] * body.x - 0.43) / body.habitus.lung_width
    bottom = body.habitus.diaphragm[index] - rng.uniform(0.12, 0.25)
    middle, half = bottom - 0.17, rng.uniform(0.13, 0.19)
    depth = 0.5 * np.sqrt(np.maximum(0, 1 - ((body.y - middle) / half) ** 2))
    held = (u > 1 - depth) & (SIDES[index] * body.x > 0)
    return [rng.uniform(0.7, 1.0) * (MU_TISSUE - MU_LUNG) * body.lung_cm * held]


def _chain_of_hilar_nodes(body: Body, rng: np.random.Generator, bank: NoiseBank) -> list[np.ndarray]:
    """Three separate small balls one above the other on each enlarged side."""
    maps = []
    sides = SIDES if rng.random() < 0.7 else (rng.choice(SIDES),)
    for side in sides:
        x, y = side * rng.uniform(0.17, 0.22), rng.uniform(-0.12, 0.02)
        radius = rng.uniform(0.9, 1.2) / UNIT_CM
        nodes = [ball(body, x + side * 0.02 * step, y + 2.2 * step * radius, radius, radius) for step in (-1, 0, 1)]
        maps.append(rng.uniform(0.7, 1.15) * np.maximum.reduce(nodes))
    return maps


def mirrored(habitus: Habitus) -> Habitus:
    """The second form of a large heart, which is part of the body: it lies to the other side."""
    return replace(habitus, heart_x=-habitus.heart_x)


SECOND: dict[str, Painter] = {
    "nodule": _spiculated_nodule,
    "mass": _plate_mass,
    "cavity": _filled_cavity,
    "calcification": _rod_calcification,
    "consolidation": _lobar_consolidation,
    "ground_glass": _mosaic_glass,
    "reticulation": _septal_reticulation,
    "effusion": _loculated_effusion,
    "cardiomegaly": PAINTERS["cardiomegaly"],
    "hilar_enlargement": _chain_of_hilar_nodes,
}
