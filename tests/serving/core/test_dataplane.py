from __future__ import annotations

import io
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from csr.bundle.format import AtlasEntry, AtlasSource, Bundle
from csr.bundle.runtime import BundleRunner
from csr.data.images import Placement, decode, fit, pixel_digest
from csr.evaluation.upsampling import Upsampler
from csr.interaction.corrections import Interaction, RegionBox
from serving.core.dataplane import DataPlane
from serving.core.frames import image_part, on_canvas
from serving.core.overlays import overlay_png
from serving.core.study_cache import StudyCache
from serving.core.timing import Timing
from serving.deploy.service import Service
from serving.errors import (
    FrameError,
    InvalidInteractionError,
    NotReadyError,
    UnknownConceptError,
    UnknownItemError,
    UnknownStudyError,
    UnreadableImageError,
    UnsupportedImageError,
)
from serving.interfaces.schemas import Box, ImageSize, InteractionRequest
from serving.models.explainer import Explainer
from tests.serving.conftest import CALLER, CountingEngine, add, interact, make_service, serve_instead, stripes

BOX = Box(x_min=10, y_min=20, x_max=40, y_max=50)


def test_a_prediction_is_what_the_bundle_computes(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    answer = add(plane, sample)
    canvas, _ = fit(decode(sample), bundle.manifest.side, bundle.manifest.channels)
    runner = BundleRunner(bundle)
    expected = runner.reason(runner.encode(canvas[None]), [Interaction()])
    assert answer.digest == pixel_digest(canvas)
    assert [each.name for each in answer.prediction.classes] == list(bundle.manifest.classes)
    probabilities = [each.probability for each in answer.prediction.classes]
    np.testing.assert_array_equal(np.float32(probabilities), expected["probabilities"][0])
    assert answer.prediction.top == bundle.manifest.classes[int(np.argmax(probabilities))]
    maps = np.array(plane.maps(answer.digest).maps)
    np.testing.assert_allclose(maps, expected["concept_maps"][0], atol=6e-5)


def test_bias_and_contributions_sum_to_the_logit(plane: DataPlane, sample: bytes) -> None:
    prediction = add(plane, sample).prediction
    for each in prediction.classes:
        total = each.bias + sum(concept.contributions[each.name] for concept in prediction.concepts)
        assert total == pytest.approx(each.logit, abs=1e-4)


def test_exemplars_are_the_best_scoring_prototypes(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    answer = add(plane, sample)
    canvas, _ = fit(decode(sample), bundle.manifest.side, bundle.manifest.channels)
    runner = BundleRunner(bundle)
    scores = runner.reason(runner.encode(canvas[None]), [Interaction()])["scores"][0]
    for k, concept in enumerate(answer.prediction.concepts):
        alive = [entry.index for entry in bundle.atlas() if entry.concept == concept.name and entry.alive]
        best = sorted(alive, key=lambda m: -scores[k, m])
        assert concept.exemplars[0].index == best[0] and len(concept.exemplars) == 3
        assert concept.exemplars[0].score == pytest.approx(scores[k, best[0]])


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["abc"], ["a", "b", "c"]),
        (["abc", "def"], ["a", "d", "b"]),
        (["abc", "def", "ghi", "jkl"], ["a", "d", "g"]),
        (["abc", "acd"], ["a", "b", "c"]),  # nobody is shown twice
        (["a", "bc"], ["a", "b", "c"]),
        ([""], []),
    ],
)
def test_three_training_studies_stand_behind_a_concept_however_few_its_prototypes(
    bundle: Bundle, sources: list[str], expected: list[str]
) -> None:
    """Studies are letters; the first prototype is the most similar one."""
    about = replace(bundle.manifest, concepts=("mass",), per_concept=len(sources))
    box = (0.0, 0.0, 1.0, 1.0)
    atlas = [
        AtlasEntry("mass", index, tuple(AtlasSource(each, box, 0.5) for each in own), 0.5, 0.5, {})
        for index, own in enumerate(sources)
    ]
    scores = [0.9 - 0.1 * index for index in range(len(sources))]
    found = Explainer(about, atlas)._closest(0, np.array(scores))
    assert [each.study_id for each in found] == expected
    for each in found:
        assert sources[each.index][each.rank] == each.study_id and each.score == scores[each.index]


def test_a_study_is_encoded_once_and_interactions_never_encode(
    plane: DataPlane, engine: CountingEngine, sample: bytes
) -> None:
    digest = add(plane, sample).digest
    assert add(plane, sample).digest == digest
    for _ in range(3):
        interact(plane, digest, boxes=[BOX], rejected=["mass"])
        plane.overlay(digest, "mass", InteractionRequest(boxes=[BOX]), Timing(plane._telemetry))
    assert engine.encoded == 1


def test_uploads_of_one_study_at_once_encode_it_once(plane: DataPlane, engine: CountingEngine, sample: bytes) -> None:
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(add(plane, sample))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert engine.encoded == 1


def test_an_empty_interaction_changes_nothing(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    study = add(plane, sample)
    answer = interact(plane, study.digest)
    assert answer.before == study.prediction
    assert answer.after == study.prediction
    assert not answer.changes.top_changed
    assert all(change.cause == "none" and change.effect == 0 for change in answer.changes.concepts)


def test_undo_gives_the_same_answer_bit_for_bit(plane: DataPlane, sample: bytes) -> None:
    digest = add(plane, sample).digest
    first = interact(plane, digest, boxes=[BOX]).after
    interact(plane, digest, boxes=[BOX], rejected=["nodule", "mass"])
    assert interact(plane, digest, boxes=[BOX]).after == first


def test_changes_say_what_moved_and_why(plane: DataPlane, sample: bytes) -> None:
    digest = add(plane, sample).digest
    answer = interact(plane, digest, rejected=["mass"])
    causes = {change.name: change.cause for change in answer.changes.concepts}
    assert causes.pop("mass") == "rejected"
    assert set(causes.values()) == {"none"}
    first = answer.changes.concepts[0]
    assert first.name == "mass"
    old, new = (
        next(concept.contributions for concept in prediction.concepts if concept.name == "mass")
        for prediction in (answer.before, answer.after)
    )
    assert first.contribution_deltas == {name: new[name] - old[name] for name in old}
    finding = next(concept for concept in answer.after.concepts if concept.name == "mass")
    assert (finding.answer, finding.peak, finding.exemplars) == ("rejected", None, [])
    region = interact(plane, digest, boxes=[BOX])
    assert "region" in {change.cause for change in region.changes.concepts}


def test_boxes_are_in_pixels_of_the_uploaded_image(plane: DataPlane, bundle: Bundle, wide: bytes) -> None:
    study = add(plane, wide)
    assert study.image == ImageSize(width=200, height=100, turn=1)
    half = InteractionRequest(boxes=[Box(x_min=100, y_min=0, x_max=200, y_max=100)])
    answer = plane.interact(study.digest, half, CALLER)
    canvas, placement = fit(decode(wide), bundle.manifest.side, bundle.manifest.channels)
    side = bundle.manifest.side
    assert (placement.scale, placement.top) == (side / 200, side / 4)
    runner = BundleRunner(bundle)
    on_network = Interaction((RegionBox(side / 2, side / 4, side, side * 3 / 4),))
    expected = runner.reason(runner.encode(canvas[None]), [on_network])
    np.testing.assert_allclose(plane.maps(study.digest, half).maps, expected["concept_maps"][0], atol=6e-5)
    for concept in answer.after.concepts:
        assert concept.peak is not None
        assert 0 <= concept.peak.x <= 200 and 0 <= concept.peak.y <= 100


def test_a_box_that_reaches_over_the_edge_is_cut_to_the_image() -> None:
    placement = Placement(200, 100, 0.5, 0, 25)
    moved = on_canvas(Interaction((RegionBox(-50, -50, 300, 40),)), placement)
    assert moved.boxes == (RegionBox(0, 25, 100, 45),)


def test_the_same_pixels_from_a_file_of_another_size_get_its_frame(plane: DataPlane, engine: CountingEngine) -> None:
    first, second = add(plane, stripes(80)), add(plane, stripes(80, times=2))
    assert first.digest == second.digest
    assert (first.image.width, second.image.width) == (128, 256)
    assert engine.encoded == 1
    with pytest.raises(FrameError, match="upload yours again"):
        interact(plane, first.digest, boxes=[BOX], image=first.image)
    interact(plane, second.digest, boxes=[BOX], image=second.image)


@pytest.mark.parametrize(
    ("boxes", "rejected", "message"),
    [
        ([Box(x_min=200, y_min=0, x_max=260, y_max=50)], [], r"boxes\[0\]: lies outside the 200×100 image"),
        ([BOX, Box(x_min=0, y_min=-20, x_max=10, y_max=-1)], [], r"boxes\[1\]: lies outside"),
        ([], ["spaceship"], "unknown concept 'spaceship'"),
    ],
)
def test_interactions_that_cannot_be_applied(
    plane: DataPlane, wide: bytes, boxes: list[Box], rejected: list[str], message: str
) -> None:
    digest = add(plane, wide).digest
    with pytest.raises(InvalidInteractionError, match=message):
        interact(plane, digest, boxes=boxes, rejected=rejected)


def test_what_is_not_there(service: Service, sample: bytes) -> None:
    plane, atlas = service.plane, service.models.champion.atlas
    digest = add(plane, sample).digest
    with pytest.raises(UnknownStudyError, match="upload it first"):
        plane.predict("0" * 64, CALLER)
    with pytest.raises(UnknownConceptError):
        plane.overlay(digest, "spaceship", None, Timing(plane._telemetry))
    with pytest.raises(UnknownConceptError):
        atlas.crop("spaceship", 0, 0)
    for absent in (-1, 3):
        with pytest.raises(UnknownItemError):
            atlas.crop("mass", absent, 0)
        with pytest.raises(UnknownItemError):
            atlas.crop("mass", 0, absent)
    for absent in (-1, len(atlas.samples)):
        with pytest.raises(UnknownItemError):
            atlas.sample(absent)


def test_bytes_that_are_no_image(plane: DataPlane, sample: bytes) -> None:
    with pytest.raises(UnreadableImageError, match=r"a\.png: is empty"):
        add(plane, b"", "a.png")
    with pytest.raises(UnsupportedImageError, match="not a PNG"):
        add(plane, b"hello, world", "a.txt")
    with pytest.raises(UnreadableImageError, match="damaged"):
        add(plane, sample[: len(sample) // 2])
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(buffer, "TIFF")
    with pytest.raises(UnreadableImageError, match="not finite numbers"):
        add(plane, buffer.getvalue())


def test_the_cache_holds_its_budget_and_what_left_it_is_encoded_again(
    bundle: Bundle, engine: CountingEngine, tmp_path: Path
) -> None:
    files = [stripes(value) for value in (10, 20, 30)]
    service = make_service(bundle.path, tmp_path, engine)
    plane, cache = service.plane, StudyCache(0)
    plane._studies = cache
    digests = [add(plane, files[0]).digest]
    assert len(cache) == 1  # the newest study is always held
    cache.budget = 2 * cache.nbytes
    digests += [add(plane, files[1]).digest]
    first = plane.predict(digests[0], CALLER)  # now the second is the least recently used
    digests += [add(plane, files[2]).digest]
    assert len(cache) == 2 and cache.nbytes <= cache.budget
    assert engine.encoded == 3
    assert plane.predict(digests[0], CALLER).prediction == first.prediction
    assert engine.encoded == 3
    plane.predict(digests[1], CALLER)
    assert engine.encoded == 4
    service.close()


def test_the_model_asks_for_help_when_its_margin_is_small(service: Service, bundle: Bundle, sample: bytes) -> None:
    margin = add(service.plane, sample).prediction.margin
    for threshold, asks in ((margin + 0.01, True), (margin - 0.01, False)):
        serve_instead(service, Bundle(bundle.path, replace(bundle.manifest, ask_margin=threshold)))
        service.plane._studies = StudyCache(0)
        assert add(service.plane, sample).prediction.asks_for_help is asks


def test_the_model_abstains_below_its_threshold_and_says_what_it_would_have_said(
    service: Service, bundle: Bundle, sample: bytes
) -> None:
    plain = add(service.plane, sample).prediction
    assert bundle.manifest.abstain_below is None and plain.abstains is False
    confidence = max(each.probability for each in plain.classes)
    for threshold, abstains in ((confidence, False), (math.nextafter(confidence, 1), True)):
        serve_instead(service, Bundle(bundle.path, replace(bundle.manifest, abstain_below=threshold)))
        service.plane._studies = StudyCache(0)
        prediction = add(service.plane, sample).prediction
        assert prediction.abstains is abstains
        assert prediction.model_copy(update={"abstains": False}) == plain


def test_a_bundle_whose_golden_case_fails_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BundleRunner, "golden_error", lambda self: float("nan"))
    service = make_service(bundle.path, tmp_path)
    with pytest.raises(NotReadyError, match="golden case"):
        service.check_ready()
    service.close()


def test_enlarging_is_the_interpolation_of_the_pointing_game() -> None:
    from csr.evaluation.peaks import map_peaks

    maps = np.random.default_rng(0).random((6, 5, 7)).astype(np.float32)
    upsampler = Upsampler(5, 7, 48)
    expected = F.interpolate(torch.from_numpy(maps)[None], size=(48, 48), mode="bicubic", align_corners=False)[0]
    np.testing.assert_allclose(upsampler.enlarge(maps), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(upsampler.peaks(maps), map_peaks(maps, 48))


def test_an_overlay_covers_the_image_and_is_clear_where_the_map_is_low(plane: DataPlane, wide: bytes) -> None:
    digest = add(plane, wide).digest
    timing = Timing(plane._telemetry)
    picture = Image.open(io.BytesIO(plane.image(digest, timing)))
    overlay = Image.open(io.BytesIO(plane.overlay(digest, "mass", None, timing)))
    assert overlay.mode == "RGBA"
    assert overlay.size == picture.size == (64, 32)
    ramp = np.asarray(Image.open(io.BytesIO(overlay_png(np.linspace(-1, 1, 64)[None], 1.0))))[0, :, 3]
    assert (ramp[:32] == 0).all() and ramp[-1] == 255 and (np.diff(ramp.astype(int)) >= 0).all()


def test_a_hair_thin_image_still_has_a_picture() -> None:
    canvas, placement = fit(np.ones((1, 500, 1), np.float32), 64, 1)
    assert image_part(canvas, placement).shape[1:] == (1, 64)
