from __future__ import annotations

import io
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from csr.bundle import Bundle
from csr.errors import BundleError
from csr.images import Placement, decode, fit, pixel_digest
from csr.interaction import Interaction, RegionBox
from csr.runtime import BundleRunner
from serving.dataplane import DataPlane
from serving.engine import OrtEngine
from serving.errors import (
    FrameError,
    InvalidInteractionError,
    UnknownConceptError,
    UnknownItemError,
    UnknownStudyError,
    UnreadableImageError,
    UnsupportedImageError,
)
from serving.frames import image_part, on_canvas
from serving.maps import Upsampler, overlay_png
from serving.schemas import ImageSize, InteractionRequest
from tests.serving.conftest import CountingEngine, png

BOX = RegionBox(10, 20, 40, 50, "positive")


def same(one: object, other: object) -> None:
    """Two predictions, bit for bit."""
    assert one.model_dump(exclude={"maps"}) == other.model_dump(exclude={"maps"})  # type: ignore[attr-defined]
    np.testing.assert_array_equal(one.maps, other.maps)  # type: ignore[attr-defined]


def test_a_prediction_is_what_the_bundle_computes(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    answer = plane.add_study(sample)
    canvas, _ = fit(decode(sample), bundle.manifest.side, bundle.manifest.channels)
    runner = BundleRunner(bundle)
    expected = runner.reason(runner.encode(canvas[None]), [Interaction()])
    assert answer.digest == pixel_digest(canvas)
    assert [each.name for each in answer.prediction.classes] == list(bundle.manifest.classes)
    probabilities = [each.probability for each in answer.prediction.classes]
    np.testing.assert_array_equal(np.float32(probabilities), expected["probabilities"][0])
    assert answer.prediction.top == bundle.manifest.classes[int(np.argmax(probabilities))]
    np.testing.assert_array_equal(answer.prediction.maps, expected["concept_maps"][0])


def test_bias_and_contributions_sum_to_the_logit(plane: DataPlane, sample: bytes) -> None:
    prediction = plane.add_study(sample).prediction
    for each in prediction.classes:
        total = each.bias + sum(concept.contributions[each.name] for concept in prediction.concepts)
        assert total == pytest.approx(each.logit, abs=1e-4)


def test_exemplars_are_the_best_scoring_prototypes(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    answer = plane.add_study(sample)
    canvas, _ = fit(decode(sample), bundle.manifest.side, bundle.manifest.channels)
    runner = BundleRunner(bundle)
    scores = runner.reason(runner.encode(canvas[None]), [Interaction()])["scores"][0]
    for k, concept in enumerate(answer.prediction.concepts):
        alive = [entry.index for entry in bundle.atlas() if entry.concept == concept.name and entry.alive]
        best = sorted(alive, key=lambda m: -scores[k, m])
        assert [each.index for each in concept.exemplars] == best[:3]
        assert concept.exemplars[0].score == pytest.approx(scores[k, best[0]])


def test_a_study_is_encoded_once_and_interactions_never_encode(
    plane: DataPlane, engine: CountingEngine, sample: bytes
) -> None:
    digest = plane.add_study(sample).digest
    assert plane.add_study(sample).digest == digest
    for _ in range(3):
        plane.interact(digest, Interaction((BOX,), ("mass",)))
        plane.overlay(digest, "mass", Interaction((BOX,)))
    assert engine.encoded == 1


def test_uploads_of_one_study_at_once_encode_it_once(plane: DataPlane, engine: CountingEngine, sample: bytes) -> None:
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(plane.add_study(sample))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert engine.encoded == 1


def test_an_empty_interaction_changes_nothing(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    study = plane.add_study(sample)
    answer = plane.interact(study.digest, InteractionRequest().interaction(bundle.manifest))
    same(answer.before, study.prediction)
    same(answer.after, study.prediction)
    assert not answer.changes.top_changed
    assert all(change.cause == "none" and change.effect == 0 for change in answer.changes.concepts)


def test_undo_gives_the_same_answer_bit_for_bit(plane: DataPlane, sample: bytes) -> None:
    digest = plane.add_study(sample).digest
    one, both = Interaction((BOX,)), Interaction((BOX,), ("nodule", "mass"))
    first = plane.interact(digest, one).after
    plane.interact(digest, both)
    same(plane.interact(digest, one).after, first)


def test_changes_say_what_moved_and_why(plane: DataPlane, sample: bytes) -> None:
    digest = plane.add_study(sample).digest
    answer = plane.interact(digest, Interaction((), ("mass",)))
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
    assert (finding.rejected, finding.peak, finding.exemplars) == (True, None, [])
    region = plane.interact(digest, Interaction((BOX,)))
    assert "region" in {change.cause for change in region.changes.concepts}


def test_boxes_are_in_pixels_of_the_uploaded_image(plane: DataPlane, bundle: Bundle, wide: bytes) -> None:
    study = plane.add_study(wide)
    assert study.image == ImageSize(width=200, height=100)
    answer = plane.interact(study.digest, Interaction((RegionBox(100, 0, 200, 100),)))
    canvas, placement = fit(decode(wide), bundle.manifest.side, bundle.manifest.channels)
    side = bundle.manifest.side
    assert (placement.scale, placement.top) == (side / 200, side / 4)
    runner = BundleRunner(bundle)
    on_network = Interaction((RegionBox(side / 2, side / 4, side, side * 3 / 4),))
    expected = runner.reason(runner.encode(canvas[None]), [on_network])
    np.testing.assert_array_equal(answer.after.maps, expected["concept_maps"][0])
    for concept in answer.after.concepts:
        assert concept.peak is not None
        assert 0 <= concept.peak.x <= 200 and 0 <= concept.peak.y <= 100


def test_a_box_that_reaches_over_the_edge_is_cut_to_the_image() -> None:
    placement = Placement(200, 100, 0.5, 0, 25)
    moved = on_canvas(Interaction((RegionBox(-50, -50, 300, 40),)), placement)
    assert moved.boxes == (RegionBox(0, 25, 100, 45),)


def test_the_same_pixels_from_a_file_of_another_size_get_its_frame(plane: DataPlane, engine: CountingEngine) -> None:
    small, large = (png(np.full((side, side), 80, np.uint8)) for side in (50, 100))
    first, second = plane.add_study(small), plane.add_study(large)
    assert first.digest == second.digest
    assert (first.image.width, second.image.width) == (50, 100)
    assert engine.encoded == 1
    with pytest.raises(FrameError, match="upload yours again"):
        plane.interact(first.digest, Interaction((BOX,)), first.image)
    plane.interact(second.digest, Interaction((BOX,)), second.image)


@pytest.mark.parametrize(
    ("boxes", "rejected", "message"),
    [
        ((RegionBox(200, 0, 260, 50),), (), r"boxes\[0\]: lies outside the 200×100 image"),
        ((BOX, RegionBox(0, -20, 10, -1)), (), r"boxes\[1\]: lies outside"),
        ((), ("spaceship",), "unknown concept 'spaceship'"),
    ],
)
def test_interactions_that_cannot_be_applied(
    plane: DataPlane, wide: bytes, boxes: tuple[RegionBox, ...], rejected: tuple[str, ...], message: str
) -> None:
    digest = plane.add_study(wide).digest
    with pytest.raises(InvalidInteractionError, match=message):
        plane.interact(digest, Interaction(boxes, rejected))


def test_what_is_not_there(plane: DataPlane, sample: bytes) -> None:
    digest = plane.add_study(sample).digest
    with pytest.raises(UnknownStudyError, match="upload it again"):
        plane.predict("0" * 64)
    with pytest.raises(UnknownConceptError):
        plane.overlay(digest, "spaceship")
    with pytest.raises(UnknownConceptError):
        plane.exhibits.crop("spaceship", 0)
    for absent in (-1, 3):
        with pytest.raises(UnknownItemError):
            plane.exhibits.crop("mass", absent)
    for absent in (-1, 10):
        with pytest.raises(UnknownItemError):
            plane.exhibits.sample(absent)


def test_bytes_that_are_no_image(plane: DataPlane, sample: bytes) -> None:
    with pytest.raises(UnreadableImageError, match=r"a\.png: is empty"):
        plane.add_study(b"", "a.png")
    with pytest.raises(UnsupportedImageError, match="not a PNG"):
        plane.add_study(b"hello, world", "a.txt")
    with pytest.raises(UnreadableImageError, match="damaged"):
        plane.add_study(sample[: len(sample) // 2])
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(buffer, "TIFF")
    with pytest.raises(UnreadableImageError, match="not finite numbers"):
        plane.add_study(buffer.getvalue())


def test_the_cache_holds_its_budget_and_forgets_the_least_recently_used(bundle: Bundle, engine: CountingEngine) -> None:
    files = [png(np.full((64, 64), value, np.uint8)) for value in (10, 20, 30)]
    alone = DataPlane(bundle, engine)
    one = alone._studies.get(alone.add_study(files[0]).digest)
    assert one is not None
    plane = DataPlane(bundle, engine, cache_bytes=2 * one.nbytes)
    digests = [plane.add_study(files[0]).digest, plane.add_study(files[1]).digest]
    plane.predict(digests[0])  # now the second is the least recently used
    digests.append(plane.add_study(files[2]).digest)
    assert plane._studies.nbytes <= 2 * one.nbytes
    plane.predict(digests[0])
    plane.predict(digests[2])
    with pytest.raises(UnknownStudyError):
        plane.predict(digests[1])
    tiny = DataPlane(bundle, engine, cache_bytes=1)
    tiny.predict(tiny.add_study(files[0]).digest)  # the newest study is always held


def test_the_model_asks_for_help_when_its_margin_is_small(bundle: Bundle, sample: bytes) -> None:
    margin = DataPlane(bundle, OrtEngine(bundle)).add_study(sample).prediction.margin
    for threshold, asks in ((margin + 0.01, True), (margin - 0.01, False)):
        other = Bundle(bundle.path, replace(bundle.manifest, ask_margin=threshold))
        assert DataPlane(other, OrtEngine(bundle)).add_study(sample).prediction.asks_for_help is asks


def test_the_model_abstains_below_its_threshold_and_says_what_it_would_have_said(bundle: Bundle, sample: bytes) -> None:
    plain = DataPlane(bundle, OrtEngine(bundle)).add_study(sample).prediction
    assert bundle.manifest.abstain_below is None and plain.abstains is False
    confidence = max(each.probability for each in plain.classes)
    for threshold, abstains in ((confidence, False), (math.nextafter(confidence, 1), True)):
        other = Bundle(bundle.path, replace(bundle.manifest, abstain_below=threshold))
        prediction = DataPlane(other, OrtEngine(bundle)).add_study(sample).prediction
        assert prediction.abstains is abstains
        assert prediction.model_copy(update={"abstains": False, "maps": plain.maps}) == plain


def test_open_refuses_a_bundle_whose_golden_case_fails(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BundleRunner, "golden_error", lambda self: float("nan"))
    with pytest.raises(BundleError, match="golden case"):
        DataPlane.open(bundle.path)


def test_enlarging_is_the_interpolation_of_the_pointing_game() -> None:
    from csr.metrics import map_peaks

    maps = np.random.default_rng(0).random((6, 5, 7)).astype(np.float32)
    upsampler = Upsampler(5, 7, 48)
    expected = F.interpolate(torch.from_numpy(maps)[None], size=(48, 48), mode="bicubic", align_corners=False)[0]
    np.testing.assert_allclose(upsampler.enlarge(maps), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(upsampler.peaks(maps), map_peaks(maps, 48))


def test_an_overlay_covers_the_image_and_is_clear_where_the_map_is_low(plane: DataPlane, wide: bytes) -> None:
    digest = plane.add_study(wide).digest
    picture, overlay = (Image.open(io.BytesIO(data)) for data in (plane.image(digest), plane.overlay(digest, "mass")))
    assert overlay.mode == "RGBA"
    assert overlay.size == picture.size == (64, 32)
    ramp = np.asarray(Image.open(io.BytesIO(overlay_png(np.linspace(-1, 1, 64)[None], 1.0))))[0, :, 3]
    assert (ramp[:32] == 0).all() and ramp[-1] == 255 and (np.diff(ramp.astype(int)) >= 0).all()


def test_a_hair_thin_image_still_has_a_picture() -> None:
    canvas, placement = fit(np.ones((1, 500, 1), np.float32), 64, 1)
    assert image_part(canvas, placement).shape[1:] == (1, 64)
