"""What else predicts the class: planted in a sound set it is found and named, and a sound set has nothing of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from csr.data.confounders import (
    LABELLED,
    LIMIT,
    PART,
    TOGETHER,
    clustered_auroc,
    confounder_summary,
    confounder_warnings,
    confounders,
)
from csr.data.phantom.plan import CLASSES, CONCEPTS, PhantomConfig, draw_plan
from csr.data.prepared import PreparedSet
from csr.data.records import BOX_COLUMNS, Collection
from tests.data.test_quality import changed, sound


@pytest.fixture
def data(tmp_path: Path) -> PreparedSet:
    """The sound set, and what its files were like: that goes with nothing."""
    rng = np.random.default_rng(1)
    made = sound(tmp_path)
    total = len(made.collection.studies)
    return changed(
        made,
        patient_id=[f"p{row // 2 if rng.random() < 0.5 else row}" for row in range(total)],
        image_width=rng.integers(400, 2000, total),
        image_height=rng.integers(400, 2000, total),
        image_format=rng.choice(["PNG", "JPEG", "DICOM"], total),
        image_bits=rng.choice([8, 12], total),
        pixel_height_mm=rng.uniform(0.1, 0.4, total),
    )


def ill(data: PreparedSet, share: float, seed: int = 2) -> np.ndarray:
    """Where the class is ``ill``, but for a share of the studies in which it is the other way round."""
    studies = data.collection.studies
    return (studies["label"] == "ill").to_numpy() ^ (np.random.default_rng(seed).random(len(studies)) < share)


def test_of_a_sound_set_nothing_is_said(data):
    found = confounders(data)
    assert {each.name for each in found if each.kind == "class"} == {
        "site",
        "number of the patient's studies",
        "image size",
        "image shape",
        "file format",
        "bit depth",
        "pixel size, mm",
        "mean grey value",
        TOGETHER,
    }
    assert not any(each.tells for each in found)
    assert list(confounder_warnings(found)) == []
    assert confounder_summary(found).startswith(
        f"what else predicts the class: nothing above the limit of {LIMIT}; nearest comes "
    )


def brighter(data: PreparedSet) -> PreparedSet:
    images = (data.images // 2).astype(np.uint8)
    images[ill(data, 0.15)] += 40
    return replace(data, images=images)


def of_several(data: PreparedSet) -> PreparedSet:
    """Ill patients come again."""
    label = data.collection.studies["label"].to_numpy()
    return changed(data, patient_id=[f"{name}{row // 6 if name == 'ill' else row}" for row, name in enumerate(label)])


PLANTED = {
    "site": lambda data: changed(data, site=np.where(ill(data, 0.15), "A", "B")),
    "file format": lambda data: changed(data, image_format=np.where(ill(data, 0.15), "PNG", "JPEG")),
    "bit depth": lambda data: changed(data, image_bits=np.where(ill(data, 0.15), 8, 12)),
    "image size": lambda data: changed(data, image_width=np.where(ill(data, 0.15), 900, 300) + np.arange(550) % 90),
    "pixel size, mm": lambda data: changed(data, pixel_height_mm=np.where(ill(data, 0.15), 0.14, np.nan)),
    "mean grey value": brighter,
    "number of the patient's studies": of_several,
    PART: lambda data: changed(
        data, part=np.where(data.collection.studies["split"] == "test", np.where(ill(data, 0.15), "x", "y"), "train")
    ),
    LABELLED: lambda data: changed(
        data, concept_haze=data.collection.studies["concept:haze"].where(ill(data, 0.15)).to_numpy()
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_goes_with_the_class_is_named(data, name):
    found = confounders(PLANTED[name](data))
    own = next(each for each in found if each.name == name and each.kind == "class")
    assert own.tells and own.auroc > 0.75 and own.label in ("ill", "well") and own.others == 1
    sentences = [text for text in confounder_warnings(found) if f"predicts class {own.label!r}, and 1 more" in text]
    assert any(text.startswith(f"{name} predicts") for text in sentences), sentences
    if name not in ("image size", "pixel size, mm"):  # which other columns know, too
        assert len(sentences) == 1
    assert "above the limit" in confounder_summary(found)


def test_columns_that_tell_only_together_are_told_of(data):
    """Three columns of weak evidence, each below the limit alone."""
    columns = {name: np.where(ill(data, 0.39, seed), "A", "B") for seed, name in ((3, "site"), (6, "image_format"))}
    columns["image_bits"] = np.where(ill(data, 0.39, 9), 8, 12)
    found = confounders(changed(data, **columns))
    assert not any(each.tells for each in found if each.name != TOGETHER and each.kind == "class")
    (sentence,) = (text for text in confounder_warnings(found) if "predicts class" in text)
    assert sentence.startswith(TOGETHER)


def test_a_patient_s_own_site_is_no_evidence(data):
    """Sites of one patient each tell the class of the studies that are known, and of no other patient."""
    label = data.collection.studies["label"].to_numpy()
    patient = np.array([f"{name}{row // 12}" for row, name in enumerate(label)])
    found = confounders(changed(data, patient_id=patient, site=patient))
    assert not next(each for each in found if each.name == "site").tells


def test_too_few_studies_and_unknown_classes_say_nothing(data):
    label = data.collection.studies["label"].astype(object)
    few = label.where(np.arange(len(label)) % 40 == 0, None)
    assert [each for each in confounders(changed(data, label=few)) if each.kind == "class" and each.name != PART] == []
    some = label.where(np.arange(len(label)) % 3 > 0, None)
    own = PLANTED["site"](data)
    assert next(each for each in confounders(changed(own, label=some)) if each.name == "site").tells


@pytest.mark.parametrize(("strength", "tells"), [(0.9, True), (0.0, False)])
def test_the_phantom_s_marked_site_is_found_and_a_phantom_without_shortcut_is_clean(strength, tells):
    plan = draw_plan(PhantomConfig(shortcut_strength=strength))
    images = np.random.default_rng(0).integers(0, 256, (len(plan), 1, 4, 4), dtype=np.uint8)
    collection = Collection("phantom", CONCEPTS, CLASSES, plan, pd.DataFrame(columns=list(BOX_COLUMNS)))
    found = confounders(PreparedSet(collection, images, Path("nowhere")))
    warnings = list(confounder_warnings(found))
    if tells:
        assert warnings[0].startswith("site predicts class 'tuberculosis' (AUROC 0.9")
        assert all(text.startswith("site predicts") for text in warnings)
        assert confounder_summary(found).startswith("what else predicts the class: site, most of all 'tuberculosis' (")
    else:
        assert warnings == []
        assert "nothing above the limit" in confounder_summary(found)


# the interval


def test_the_auroc_is_scikit_learn_s_with_ties():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 200).astype(float), rng.integers(0, 2, 200).astype(float)
    auroc, low, high = clustered_auroc(scores, labels, np.arange(200))
    assert auroc == pytest.approx(roc_auc_score(labels, scores))
    assert low < auroc < high


@pytest.mark.parametrize("size", [1, 8])
def test_the_interval_is_as_wide_as_that_of_patients_drawn_again(size):
    """Against a bootstrap of patients; studies of one patient share most of their score."""
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(160), size)
    labels = np.repeat(np.arange(160) % 2, size).astype(float)
    scores = labels + np.repeat(rng.normal(0, 1.2, 160), size) + rng.normal(0, 0.3, len(labels))
    auroc, low, high = clustered_auroc(scores, labels, patients)
    drawn = []
    for _ in range(600):
        rows = (rng.integers(0, 160, 160)[:, None] * size + np.arange(size)).ravel()
        drawn.append(roc_auc_score(labels[rows], scores[rows]))
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(drawn), rel=0.15)
    assert auroc == pytest.approx((low + high) / 2)


def test_perfect_and_reversed_scores_stay_within_0_and_1():
    labels = np.arange(40) % 2.0
    assert clustered_auroc(labels, labels, np.arange(40)) == (1, 1, 1)
    assert clustered_auroc(-labels, labels, np.arange(40)) == (0, 0, 0)
