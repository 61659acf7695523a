"""What a file says of itself beside the profile, and what the scores say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from csr.bundle.profile import PARTS, FileFacts, InputProfile, fit_score, is_coloured, pixel_reasons
from csr.data.headers import collection_headers, table_headers

PROFILE = InputProfile(
    images=100,
    modality=("CR", "DX"),
    body_part=("CHEST",),
    view=("AP", "PA"),
    photometric=("MONOCHROME2",),
    side=64,
    channels=1,
    aspect=(0.7, 1.2),
    grey_levels=(1.0,),
    detail=(1.0, 2.0, 3.0),
    score_edges=(0.5,),
    score_shares=(0.5, 0.5),
    flagged=0.01,
    part_flagged={},
)
CHEST = FileFacts("DX", "CHEST", "PA", "MONOCHROME2", "1.2.840.10008.5.1.4.1.1.1.1")


def codes(profile: InputProfile, facts: FileFacts, width: int = 100, height: int = 100) -> list[str]:
    return [reason.code for reason in profile.file_reasons(facts, width, height)]


@pytest.mark.parametrize(
    "facts, expected",
    [
        (CHEST, []),
        (FileFacts(), []),
        (replace(CHEST, photometric="MONOCHROME1"), []),  # the same picture, stored the other way round
        (replace(CHEST, modality="CT"), ["modality"]),
        (replace(CHEST, body_part="HAND"), ["body_part"]),
        (replace(CHEST, view="LL"), ["view"]),
        (replace(CHEST, photometric="RGB", coloured=True), ["photometric"]),
        (FileFacts(coloured=True), ["colour"]),
        (replace(CHEST, sop_class="1.2.840.10008.5.1.4.1.1.7"), ["secondary_capture"]),
        (replace(CHEST, sop_class="1.2.840.10008.5.1.4.1.1.7.2"), ["secondary_capture"]),
        (replace(CHEST, sop_class="1.2.840.10008.5.1.4.1.1.77.1.4"), []),  # a photograph, which is another class
        (replace(CHEST, modality="MR", body_part="KNEE"), ["modality", "body_part"]),
    ],
)
def test_a_file_contradicts_what_is_known_only(facts, expected):
    assert codes(PROFILE, facts) == expected


def test_a_profile_that_states_nothing_contradicts_no_file():
    silent = replace(PROFILE, modality=(), body_part=(), view=(), photometric=())
    contradictory = FileFacts("CT", "HAND", "LL", "RGB", "1.2.840.10008.5.1.4.1.1.7", True)
    assert codes(silent, contradictory) == []


@pytest.mark.parametrize(
    "width, height, fits", [(100, 100, True), (119, 100, True), (130, 100, False), (60, 100, False)]
)
def test_an_aspect_that_no_training_image_had_is_named(width, height, fits):
    assert codes(PROFILE, CHEST, width, height) == ([] if fits else ["aspect"])


def test_reasons_say_what_the_file_said_and_what_was_expected():
    (reason,) = PROFILE.file_reasons(replace(CHEST, modality="CT"), 1, 1)
    assert reason.message == "The file says modality CT; the training images were CR or DX."


def test_parts_above_the_limit_are_reasons_the_highest_first():
    scores = np.linspace(0.9, 1.1, len(PARTS)).astype(np.float32)
    above = [part for part, score in zip(PARTS, scores, strict=True) if score > 1 and part != "handedness"]
    assert [reason.code for reason in pixel_reasons(scores)] == above[::-1]
    assert pixel_reasons(np.ones(len(PARTS))) == []
    assert fit_score(scores) == pytest.approx(1.1)


@pytest.mark.parametrize(
    "layout, expected", [(0.8, ["handedness"]), (1.5, ["handedness", "layout"]), (9.0, ["layout"])]
)
def test_a_picture_is_called_mirrored_where_that_is_what_is_most_unlike(layout, expected):
    scores = np.zeros(len(PARTS))
    scores[PARTS.index("layout")], scores[PARTS.index("handedness")] = layout, 2
    assert [reason.code for reason in pixel_reasons(scores)] == expected


def test_a_score_that_is_no_number_is_a_reason():
    scores = np.zeros(len(PARTS))
    scores[2] = np.nan
    assert [reason.code for reason in pixel_reasons(scores)] == [PARTS[2]]


def test_a_profile_survives_its_file():
    assert InputProfile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE


@pytest.mark.parametrize("scale", [np.uint8(255), np.float32(1)])
def test_grey_pictures_in_three_channels_are_not_coloured(scale):
    grey = (np.random.default_rng(0).random((20, 30, 1)) * scale).astype(scale.dtype).repeat(3, 2)
    assert not is_coloured(grey) and not is_coloured(grey[..., :1])
    tinted = grey.copy()
    tinted[:5, :, 0] = 0
    assert is_coloured(tinted)


def test_terms_come_from_the_columns_of_the_table():
    import pandas as pd

    studies = pd.DataFrame({"study_id": ["a", "b", "c"], "modality": ["DX", "CR", None], "body_part": ["", None, None]})
    assert table_headers(studies) == {"modality": ("CR", "DX")}


def test_what_published_sets_show_is_known():
    assert collection_headers("phantom")["body_part"] == ("CHEST",)
    assert collection_headers("mine") == {}
