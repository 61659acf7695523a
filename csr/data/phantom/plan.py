"""What each phantom study shows: concepts, diagnosis by rule, site marker, split.

The plan is a table drawn before any pixel is rendered, so that prevalence, label noise and the planted shortcut can
be read and tested without images. Rendering (`csr.data.phantom.render`) adds nothing to it but geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from csr.data.phantom.devices import DEVICES

CONCEPTS = (
    "nodule",
    "mass",
    "cavity",
    "calcification",
    "consolidation",
    "ground_glass",
    "reticulation",
    "effusion",
    "cardiomegaly",
    "hilar_enlargement",
)
FORM_PREFIX = "form:"
CLASSES = ("normal", "heart_failure", "pneumonia", "tuberculosis", "malignancy")

# The stated rule: each diagnosis collects the weights of the concepts that are present; the largest sum wins when it
# reaches RULE_THRESHOLD, ties go to the earlier diagnosis, and below the threshold the study is normal.
RULE_WEIGHTS = pd.DataFrame(
    {
        "nodule": (0, 0, 1, 1),
        "mass": (0, 0, 0, 2),
        "cavity": (0, 0, 2, 1),
        "calcification": (0, 0, 1, 0),
        "consolidation": (0, 2, 1, 0),
        "ground_glass": (1, 1, 0, 0),
        "reticulation": (1, 0, 1, 0),
        "effusion": (1, 1, 0, 1),
        "cardiomegaly": (2, 0, 0, 0),
        "hilar_enlargement": (0, 0, 1, 1),
    },
    index=list(CLASSES[1:]),
)
RULE_THRESHOLD = 2

# Chance of each concept given the disease that a patient is drawn for; the rule, not this table, decides the label.
_TENDENCY = pd.DataFrame(
    {
        "nodule": (0.03, 0.05, 0.05, 0.45, 0.50),
        "mass": (0.00, 0.02, 0.02, 0.04, 0.60),
        "cavity": (0.00, 0.02, 0.04, 0.55, 0.12),
        "calcification": (0.12, 0.10, 0.08, 0.40, 0.10),
        "consolidation": (0.00, 0.10, 0.70, 0.30, 0.08),
        "ground_glass": (0.08, 0.45, 0.50, 0.08, 0.06),
        "reticulation": (0.08, 0.45, 0.08, 0.30, 0.10),
        "effusion": (0.04, 0.50, 0.35, 0.08, 0.35),
        "cardiomegaly": (0.00, 0.70, 0.08, 0.03, 0.06),
        "hilar_enlargement": (0.05, 0.08, 0.05, 0.35, 0.40),
    },
    index=list(CLASSES),
)


@dataclass(frozen=True)
class PhantomConfig:
    """Size and difficulty of the phantom.

    Args:
        train, val, test: studies per split; ``test`` counts each of the two halves, ``iid`` and ``shifted``.
        prevalence: factor on every concept's chance of being present.
        contrast: factor on the attenuation of every finding; 1 is the default benchmark.
        label_noise: share of studies, in every split, whose diagnosis is replaced by another at random.
        shortcut_target: the diagnosis, or ``concept:<name>``, that the site marker goes with.
        shortcut_strength: s in P(marker | target) = (1 + s) / 2 and P(marker | other) = (1 - s) / 2. In the
            ``shifted`` half the marker keeps its overall rate but is independent of everything else.
        devices: the same strength for devices inside the body, each of which goes with a finding
            (`csr.data.phantom.devices`); in the ``shifted`` half they too are independent. None: there are none.
        forms: share of the studies with a concept that show it in its second form (`csr.data.phantom.forms`). None:
            every concept has one form.
        seed: same seed, same bytes.
    """

    train: int = 2400
    val: int = 400
    test: int = 600
    prevalence: float = 1.0
    contrast: float = 1.0
    label_noise: float = 0.03
    shortcut_target: str = "tuberculosis"
    shortcut_strength: float = 0.9
    devices: float | None = None
    forms: float | None = None
    seed: int = 7

    def __post_init__(self) -> None:
        targets = CLASSES + tuple(f"concept:{name}" for name in CONCEPTS)
        if self.shortcut_target not in targets:
            raise ValueError(f"data.phantom.shortcut_target: {self.shortcut_target!r} is none of {', '.join(targets)}")
        for name, value, top in (
            ("prevalence", self.prevalence, 2.0),
            ("contrast", self.contrast, 10.0),
            ("label_noise", self.label_noise, 1.0),
            ("shortcut_strength", self.shortcut_strength, 1.0),
            ("devices", self.devices or 0.0, 1.0),
            ("forms", self.forms or 0.0, 1.0),
        ):
            if not 0 <= value <= top:
                raise ValueError(f"data.phantom.{name}: {value} is outside 0..{top}")
        for name, count in (("train", self.train), ("val", self.val), ("test", self.test)):
            if count < 1:
                raise ValueError(f"data.phantom.{name}: needs at least one study, got {count}")


def diagnose(concepts: np.ndarray) -> np.ndarray:
    """The stated rule. ``concepts`` N×K of 0/1 in the order of ``CONCEPTS`` → N indices into ``CLASSES``."""
    evidence = concepts @ RULE_WEIGHTS[list(CONCEPTS)].to_numpy().T
    return np.where(evidence.max(axis=1) >= RULE_THRESHOLD, evidence.argmax(axis=1) + 1, 0)


def draw_plan(config: PhantomConfig) -> pd.DataFrame:
    """Draws the studies table: one row a study, in split order train, val, test iid, test shifted.

    Columns: ``study_id, image, split, part, label, patient_id, site, marker`` and ``concept:<name>``; with devices also
    ``device:<concept that it goes with>``, with forms also ``form:<name>``: 1 where the study's findings of the concept
    are of its second form, 0 where of its first, NaN where there are none.
    """
    rng = np.random.default_rng([config.seed, 0])
    parts = [("train", "train", config.train), ("val", "val", config.val)]
    parts += [("test", "iid", config.test), ("test", "shifted", config.test)]
    total = sum(count for _, _, count in parts)
    split = np.concatenate([[name] * count for name, _, count in parts])
    part = np.concatenate([[name] * count for _, name, count in parts])

    concepts = _draw_concepts(rng, total, config.prevalence)
    label = diagnose(concepts)
    noisy = rng.random(total) < config.label_noise
    label = np.where(noisy, (label + rng.integers(1, len(CLASSES), total)) % len(CLASSES), label)
    marker = _draw_marker(rng, config, concepts, label, shifted=part == "shifted")

    study = [f"phantom_{row:06d}" for row in range(total)]
    table = pd.DataFrame(
        {
            "study_id": study,
            "image": [f"{name}.png" for name in study],
            "split": split,
            "part": part,
            "label": np.array(CLASSES)[label],
            "patient_id": [f"patient_{row:06d}" for row in range(total)],
            "site": np.where(marker, "B", "A"),
            "marker": marker.astype(np.int8),
        }
    )
    for k, name in enumerate(CONCEPTS):
        table[f"concept:{name}"] = concepts[:, k].astype(np.float32)
    if config.devices is not None:
        rng = np.random.default_rng([config.seed, 3])  # its own, so that all else is as it is without devices
        for name in DEVICES:
            own = concepts[:, CONCEPTS.index(name)] == 1
            table[f"device:{name}"] = _tied(rng, own, config.devices, part == "shifted").astype(np.int8)
    if config.forms is not None:
        rng = np.random.default_rng([config.seed, 5])  # its own, too
        second = rng.random(concepts.shape) < config.forms
        for k, name in enumerate(CONCEPTS):
            table[f"{FORM_PREFIX}{name}"] = np.where(concepts[:, k] == 1, second[:, k], np.nan).astype(np.float32)
    return table


def _draw_concepts(rng: np.random.Generator, total: int, prevalence: float) -> np.ndarray:
    """Draws concepts for equally likely diseases, again and again until the rule agrees with the drawn disease.

    A disease that the rule cannot reach at this prevalence keeps its last draw after 200 rounds.
    """
    chance = np.clip(_TENDENCY[list(CONCEPTS)].to_numpy() * prevalence, 0, 1)
    disease = rng.integers(0, len(CLASSES), total)
    concepts = np.zeros((total, len(CONCEPTS)), np.int64)
    open_rows = np.arange(total)
    for _ in range(200):
        concepts[open_rows] = rng.random((len(open_rows), len(CONCEPTS))) < chance[disease[open_rows]]
        open_rows = open_rows[diagnose(concepts[open_rows]) != disease[open_rows]]
        if not len(open_rows):
            break
    return concepts


def _draw_marker(
    rng: np.random.Generator, config: PhantomConfig, concepts: np.ndarray, label: np.ndarray, shifted: np.ndarray
) -> np.ndarray:
    kind, _, name = config.shortcut_target.rpartition(":")
    target = concepts[:, CONCEPTS.index(name)] == 1 if kind else label == CLASSES.index(name)
    return _tied(rng, target, config.shortcut_strength, shifted)


def _tied(rng: np.random.Generator, target: np.ndarray, strength: float, shifted: np.ndarray) -> np.ndarray:
    """Where something is that goes with a target, and in the shifted studies with nothing; n bool each."""
    tied = np.where(target, (1 + strength) / 2, (1 - strength) / 2)
    chance = np.where(shifted, tied[~shifted].mean(), tied)
    return rng.random(len(target)) < chance
