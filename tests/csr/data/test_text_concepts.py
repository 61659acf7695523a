"""Text-defined concepts: an encoder trained here finds shapes by their names, and only what is unknown is filled."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score

from csr.data.records import Collection
from csr.data.text_concepts import (
    Calibration,
    ImageTextEncoder,
    TextConcept,
    TextConceptConfig,
    calibrate,
    concept_directions,
    concept_scores,
    fill_labels,
    load_encoder,
)
from csr.data.text_concepts.simulated import simulated_scores
from csr.errors import ConfigError, DataError
from tests.csr import toy_encoder
from tests.csr.toy_encoder import SHAPES, make_shapes

PREVALENCE = dict(zip(SHAPES, (0.5, 0.4, 0.25), strict=True))
CONFIG = TextConceptConfig(
    factory="tests.csr.toy_encoder:load",
    checkpoint="toy.pt",
    concepts={name: TextConcept() for name in SHAPES},
    templates=("picture of {}",),
    negative_templates=("picture of nothing",),
)
STATED = replace(CONFIG, concepts={name: TextConcept(prevalence=share) for name, share in PREVALENCE.items()})


@pytest.fixture(scope="module")
def encoder(toy_checkpoint: Path) -> ImageTextEncoder:
    return load_encoder(CONFIG.factory, toy_checkpoint, {})


@pytest.fixture(scope="module")
def shapes() -> tuple[Collection, np.ndarray]:
    return make_shapes()


@pytest.fixture(scope="module")
def scores(encoder: ImageTextEncoder, shapes: tuple[Collection, np.ndarray]) -> np.ndarray:
    collection, images = shapes
    return concept_scores(
        encoder, images, collection.rows("train"), concept_directions(encoder, CONFIG, collection.concepts)
    )


def forget(collection: Collection, known: int) -> Collection:
    """Only the first ``known`` training studies keep their labels; validation and test keep every second one."""
    labels = collection.concept_labels()
    labels[collection.rows("train")[known:]] = np.nan
    labels[np.concatenate([collection.rows("val"), collection.rows("test")])[::2]] = np.nan
    studies = collection.studies.copy()
    studies[[f"concept:{name}" for name in collection.concepts]] = labels
    return replace(collection, studies=studies)


def test_directions_find_shapes_that_no_label_pointed_out(encoder, shapes):
    collection, images = shapes
    directions = concept_directions(encoder, CONFIG, collection.concepts)
    assert directions.shape == (3, 16)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(3))
    found = concept_scores(encoder, images, np.arange(len(images)), directions)
    labels = collection.concept_labels()
    assert all(roc_auc_score(labels[:, k], found[:, k]) > 0.9 for k in range(3))
    other = [roc_auc_score(labels[:, k], found[:, (k + 1) % 3]) for k in range(3)]
    assert max(other) < 0.7  # each direction is its own concept's, not one of "something is there"


def test_a_direction_is_the_mean_of_unit_texts_less_that_of_the_negative_ones(encoder):
    config = replace(
        CONFIG,
        concepts={"ring": TextConcept(("ring", "ring and cross"))},
        templates=("picture of {}", "{}"),
        negative_templates=("nothing", "picture of nothing and {}"),
    )

    def mean(*texts: str) -> torch.Tensor:
        with torch.no_grad():
            raw = encoder.model.encode_text(toy_encoder.tokenise(list(texts)))
        return (raw / raw.norm(dim=1, keepdim=True)).mean(0)

    positive = mean("picture of ring", "picture of ring and cross", "ring", "ring and cross")
    negative = mean("nothing", "picture of nothing and ring", "picture of nothing and ring and cross")
    for templates, expected in ((config.negative_templates, positive - negative), ((), positive)):
        (found,) = concept_directions(encoder, replace(config, negative_templates=templates), SHAPES)
        torch.testing.assert_close(found, expected / expected.norm())


def test_without_phrases_the_encoder_reads_the_concepts_name(encoder):
    read: list[str] = []

    def tokenise(texts: list[str]) -> torch.Tensor:
        read.extend(texts)
        return toy_encoder.tokenise(["ring"] * len(texts))

    config = replace(CONFIG, concepts={"thick_ring": TextConcept()}, negative_templates=())
    concept_directions(replace(encoder, tokenizer=tokenise), config, ["thick_ring"])
    assert read == ["picture of thick ring"]


def test_scores_are_cosines_in_the_order_of_the_rows_whatever_the_batch(encoder, shapes):
    _, images = shapes
    directions = F.normalize(torch.arange(32.0).reshape(2, 16).cos(), dim=1)
    rows = np.array([7, 3, 250, 3])
    found = concept_scores(encoder, images, rows, directions, batch_size=3)
    for row, own in zip(rows, found, strict=True):
        rgb = torch.from_numpy(np.repeat(images[row], 3, axis=0)[None].astype(np.float32) / 255)
        with torch.no_grad():
            expected = F.cosine_similarity(encoder.model.encode_image(rgb), directions)
        np.testing.assert_allclose(own, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_is_shown_rgb_whatever_is_prepared(encoder, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 24, 24), np.uint8)
    seen: list[np.ndarray] = []

    def preprocess(picture: Image.Image) -> torch.Tensor:
        seen.append(np.asarray(picture))
        return toy_encoder.preprocess(picture)

    assert replace(encoder, preprocess=preprocess).embed_images(images).shape == (4, 16)
    np.testing.assert_array_equal(seen, np.broadcast_to(np.moveaxis(images, 1, -1), (4, 24, 24, 3)))


@pytest.mark.parametrize(("known", "config"), [(60, CONFIG), (0, STATED)], ids=["by labels", "by prevalence"])
def test_unknown_training_labels_are_filled_and_nearly_always_rightly(shapes, scores, known, config):
    collection, _ = shapes
    filled, report = fill_labels(forget(collection, known), scores, config)
    train = collection.rows("train")[known:]
    truth, guessed = collection.concept_labels()[train], filled.concept_labels()[train]
    for k, concept in enumerate(report):
        written = ~np.isnan(guessed[:, k])
        assert (concept.name, concept.known) == (SHAPES[k], known)
        counts = [(guessed[:, k] == value).sum() for value in (1, 0)]
        assert [concept.present, concept.absent, concept.unknown] == [*counts, (~written).sum()]
        assert written.mean() > 0.3 and min(counts) > 10
        assert (truth[written, k] == guessed[written, k]).mean() > 0.93
        assert (concept.auroc or 0) > 0.9 if known else concept.auroc is None
        np.testing.assert_array_equal(np.flatnonzero(filled.studies[f"filled:{SHAPES[k]}"]), train[written])


def test_known_labels_and_what_is_judged_stay_as_they_are(shapes, scores):
    collection, _ = shapes
    given = forget(collection, 60)
    wrong = given.studies.copy()
    wrong.loc[:3, "concept:ring"] = 1 - wrong.loc[:3, "concept:ring"]  # not for the encoder to put right
    given = replace(given, studies=wrong)
    before = given.studies.copy()
    config = replace(CONFIG, concepts={"ring": TextConcept()})
    filled, _ = fill_labels(given, scores[:, [1]], config)
    old, new = given.concept_labels(), filled.concept_labels()
    assert (np.isnan(old) & ~np.isnan(new))[:, 1].sum() > 50
    np.testing.assert_array_equal(new[~np.isnan(old)], old[~np.isnan(old)])
    for split in ("val", "test"):
        rows = collection.rows(split)
        assert np.isnan(old[rows]).any()
        np.testing.assert_array_equal(new[rows], old[rows])
    np.testing.assert_array_equal(new[:, [0, 2]], old[:, [0, 2]])  # concepts that the configuration does not name
    assert before.equals(given.studies)


def test_a_higher_confidence_leaves_more_unknown_and_changes_nothing_else(shapes, scores):
    collection, _ = shapes
    labels = [
        fill_labels(forget(collection, 60), scores, replace(CONFIG, confidence=level))[0].concept_labels()[60:300]
        for level in (0.6, 0.9, 0.95)
    ]
    written = [~np.isnan(each) for each in labels]
    assert written[0].sum() > written[1].sum() > written[2].sum() > 0
    for bold, shy in ((0, 1), (1, 2)):
        np.testing.assert_array_equal(labels[shy][written[shy]], labels[bold][written[shy]])


def test_a_label_needs_the_confidence_at_even_odds_and_at_the_prevalence():
    evidence = np.array([-3.0, -2.0, 0.0, 2.0, 3.0, 5.0])  # log 9 = 2.197
    even = Calibration(slope=2.0, intercept=1.0, prevalence=0.5)
    np.testing.assert_array_equal(even.labels((evidence - 1) / 2, 0.9), [0, np.nan, np.nan, np.nan, 1, 1])
    rare = replace(even, prevalence=0.1)  # log-odds are 2.197 lower: 3 is too little, and −2 is still too little
    np.testing.assert_array_equal(rare.labels((evidence - 1) / 2, 0.9), [0, np.nan, np.nan, np.nan, np.nan, 1])
    common = replace(even, prevalence=0.9)
    np.testing.assert_array_equal(common.labels((evidence - 1) / 2, 0.9), [np.nan, np.nan, np.nan, np.nan, 1, 1])


def test_an_encoder_that_sees_next_to_nothing_labels_nothing_though_guessing_absent_would_mostly_be_right():
    rng = np.random.default_rng(0)
    labels = (np.arange(800) % 20 == 0).astype(np.float32)
    scores = 0.5 * labels + rng.standard_normal(800)
    calibration = calibrate("rare", scores, labels, None)
    assert calibration.prevalence == pytest.approx(0.05) and calibration.slope > 0
    assert np.isnan(calibration.labels(scores, 0.9)).all()


@pytest.mark.parametrize("prevalence", [0.1, 0.5])
def test_two_humps_give_the_log_density_ratio_and_one_hump_gives_nothing(prevalence):
    rng = np.random.default_rng(1)
    unknown, distance = np.full(4000, np.nan), 3.0
    truth = rng.random(4000) < prevalence
    scores = 10 + 0.1 * (rng.standard_normal(4000) + distance * truth)
    found = calibrate("two", scores, unknown, prevalence)
    assert found.slope == pytest.approx(distance / 0.1, rel=0.15)
    assert found.slope * 10.15 + found.intercept == pytest.approx(0, abs=0.5)  # even halfway between the means
    labels = found.labels(scores, 0.9)
    assert (labels[~np.isnan(labels)] == truth[~np.isnan(labels)]).mean() > 0.97
    one = calibrate("one", 10 + 0.1 * rng.standard_normal(4000), unknown, prevalence)
    assert (one.slope, one.intercept) == (0, 0)
    assert np.isnan(one.labels(scores, 0.51)).all()


def test_a_stated_prevalence_replaces_the_share_among_the_labels_and_not_the_evidence():
    labels = np.repeat([0.0, 1.0], 30)
    scores = labels + np.random.default_rng(2).standard_normal(60)
    own, stated = calibrate("c", scores, labels, None), calibrate("c", scores, labels, 0.1)
    assert own.prevalence == 0.5
    assert stated == replace(own, prevalence=0.1)


def test_concepts_that_cannot_be_calibrated_are_refused(shapes, scores):
    collection, _ = shapes
    few = np.r_[np.ones(3), np.zeros(40), np.full(10, np.nan)]
    noise = np.random.default_rng(3).standard_normal(53)
    with pytest.raises(DataError, match=r"concepts\.ring: 3 training studies are labelled present and 40 absent"):
        calibrate("ring", noise, few, None)
    assert calibrate("ring", noise, few, 0.2).prevalence == 0.2
    with pytest.raises(DataError, match=r"concepts\.ring: the encoder gives every training image the same score"):
        calibrate("ring", np.full(53, 0.3), few, 0.2)
    with pytest.raises(DataError, match="scores are no higher where the 60 training labels say present"):
        calibrate("ring", -np.arange(60.0), np.repeat([0.0, 1.0], 30), None)
    with pytest.raises(DataError, match=r"concepts\.square: nobody labelled a training study present and"):
        fill_labels(forget(collection, 0), np.random.default_rng(0).standard_normal(scores.shape), STATED)


def test_texts_that_cannot_be_used_are_refused(encoder):
    unknown = replace(CONFIG, concepts={"rnig": TextConcept()})
    with pytest.raises(ConfigError, match=r"no column 'concept:rnig'; .*did you mean 'ring'"):
        concept_directions(encoder, unknown, SHAPES)
    with pytest.raises(ConfigError, match=r"concepts\.square: its texts average to nothing"):
        concept_directions(encoder, replace(CONFIG, negative_templates=("picture of {}",)), SHAPES)


def broken(checkpoint: Path) -> None:
    raise RuntimeError("size mismatch\n  for text.weight")


def pair(checkpoint: Path) -> tuple:
    return torch.nn.Identity(), toy_encoder.preprocess


def mute(checkpoint: Path) -> tuple:
    return torch.nn.Identity(), toy_encoder.preprocess, toy_encoder.tokenise


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("toy_encoder.load", "factory: must read package.module:callable, got 'toy_encoder.load'"),
        ("no_such_module:load", "the module 'no_such_module' cannot be imported .*folder that you run from"),
        ("tests.csr.toy_encoder:lod", "the module 'tests.csr.toy_encoder' has nothing to call by the name 'lod'"),
        ("tests.csr.toy_encoder:SHAPES", "has nothing to call by the name 'SHAPES'"),
        ("tests.csr.data.test_text_concepts:broken", r"failed on .* \(RuntimeError: size mismatch for text.weight\)"),
        ("tests.csr.data.test_text_concepts:pair", r"must return \(model, preprocess, tokenizer\)"),
        ("tests.csr.data.test_text_concepts:mute", "methods encode_image and encode_text, got .*Identity"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_a_sentence(toy_checkpoint, factory, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_encoder(factory, toy_checkpoint, {})
    assert str(caught.value).startswith("data.text_concepts.factory") and "\n" not in str(caught.value)


def test_weights_that_are_not_there_and_options_that_do_not_fit_are_refused(toy_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint: no file or folder '.*none\.pt'; weights are read from this"):
        load_encoder(CONFIG.factory, tmp_path / "none.pt", {})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'layers'"):
        load_encoder(CONFIG.factory, toy_checkpoint, {"layers": 3})


class Bent(torch.nn.Module):
    """The toy encoder with a fault at one end."""

    def __init__(self, good: torch.nn.Module, image: Callable | None = None, text: Callable | None = None) -> None:
        super().__init__()
        self.good, self.image, self.text = good, image or (lambda made: made), text or (lambda made: made)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.image(self.good.encode_image(image))

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        return self.text(self.good.encode_text(text))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda e: {"model": Bent(e.model, text=lambda x: x[:, None])}, "encode_text made 1×1×16 of a batch of 1"),
        (lambda e: {"model": Bent(e.model, image=lambda x: x[:1])}, "encode_image made 1×16 of a batch of 5, not 5×E"),
        (lambda e: {"model": Bent(e.model, image=lambda x: x * np.nan)}, "encode_image returns numbers that are not"),
        (lambda e: {"model": Bent(e.model, image=lambda x: x[:, :9])}, "makes 9 numbers of an image and 16 of a text"),
        (lambda e: {"tokenizer": lambda texts: [[1]] * len(texts)}, "the tokenizer must return a tensor of tokens"),
        (lambda e: {"preprocess": lambda picture: picture}, "preprocess must turn an image into a 3×H×W tensor"),
        (lambda e: {"preprocess": lambda picture: torch.zeros(9)}, r"3×H×W tensor, got \(9,\)"),
    ],
)
def test_what_an_encoder_returns_is_checked(encoder, shapes, change, sentence):
    _, images = shapes
    bent = replace(encoder, **change(encoder))
    with pytest.raises(ConfigError, match=sentence):
        concept_scores(bent, images, np.arange(5), concept_directions(bent, CONFIG, SHAPES))


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A stand-in with the two functions of open_clip that are called, and what they were called with."""
    from huggingface_hub import is_offline_mode

    calls: list[tuple] = []
    module = types.ModuleType("open_clip")

    def create_model_from_pretrained(name: str, pretrained: str | None) -> tuple:
        calls.append((name, pretrained, is_offline_mode()))
        return toy_encoder.ToyEncoder(), toy_encoder.preprocess

    def get_tokenizer(name: str) -> Callable:
        calls.append((name, is_offline_mode()))
        return toy_encoder.tokenise

    module.create_model_from_pretrained = create_model_from_pretrained
    module.get_tokenizer = get_tokenizer
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return calls


FACTORY = "csr.data.text_concepts:open_clip_encoder"


def test_open_clip_gets_local_weights_only_and_the_hub_stays_out_of_it(open_clip, toy_checkpoint, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(toy_checkpoint.parent)
    made = load_encoder(FACTORY, Path("toy.pt"), {"model": "ViT-B-32"})
    assert open_clip == [("ViT-B-32", str(toy_checkpoint.resolve()), True), ("ViT-B-32", True)]
    assert made.embed_texts(["ring"]).shape == (1, 16) and not made.model.training
    open_clip.clear()
    load_encoder(FACTORY, toy_checkpoint.parent, {})
    folder = f"local-dir:{toy_checkpoint.parent.resolve()}"
    assert open_clip == [(folder, None, True), (folder, True)]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("options", [{}, {"model": "hf-hub:laion/CLIP-ViT-B-32"}])
def test_open_clip_is_not_asked_for_what_it_would_have_to_fetch(open_clip, toy_checkpoint, options):
    with pytest.raises(ConfigError, match=r"options\.model: must name the architecture of toy\.pt"):
        load_encoder(FACTORY, toy_checkpoint, options)
    assert open_clip == []


def test_open_clip_that_is_not_installed_is_named(toy_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match="open_clip is not installed; pip install open_clip_torch"):
        load_encoder(FACTORY, toy_checkpoint, {"model": "ViT-B-32"})


# simulated encoders


@pytest.mark.parametrize("auroc", [0.5, 0.7, 0.9])
def test_a_simulated_encoder_has_the_auroc_that_it_is_asked_for(auroc):
    collection, _ = make_shapes(train=8000, val=3, test=3)
    scores, labels = simulated_scores(collection, auroc, 0), collection.concept_labels()[:8000]
    assert scores.shape == (8000, 3)
    for score, own in zip(scores.T, labels.T, strict=True):
        assert roc_auc_score(own, score) == pytest.approx(auroc, abs=0.02)
    np.testing.assert_array_equal(scores, simulated_scores(collection, auroc, 0))
    assert (scores != simulated_scores(collection, auroc, 1)).all()


def test_a_simulated_encoder_needs_the_truth_and_a_possible_auroc():
    collection, _ = make_shapes()
    for auroc in (0.4, 1.0):
        with pytest.raises(ConfigError, match=rf"AUROC of a simulated encoder: {auroc} is outside 0\.5\.\.1"):
            simulated_scores(collection, auroc, 0)
    collection.studies.loc[3, "concept:ring"] = np.nan
    with pytest.raises(ConfigError, match="shapes: a simulated encoder needs the truth"):
        simulated_scores(collection, 0.8, 0)
