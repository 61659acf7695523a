"""What is asked of a reader: the next question, doubts about names, and what is in a box."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from csr.data.images import decode, fit
from csr.interaction.corrections import Interaction, RegionBox, cells_inside
from csr.interaction.naming import BoxNaming
from csr.interaction.questions import Question
from serving.core.dataplane import DataPlane
from serving.core.questions import _reason, open_questions
from serving.core.reasoning import reason
from serving.core.timing import Timing
from serving.deploy.service import Service
from serving.errors import CannotNameError, FrameError, InvalidInteractionError, NotReadyError
from serving.interfaces.schemas import Box, ClassScore, ImageSize, InteractionRequest, ProbeRequest, Region
from serving.store.worklist import WorklistQuery
from tests.serving.conftest import CALLER, CountingEngine, add, interact, make_service, stripes

BOX = Region(x_min=10, y_min=20, x_max=40, y_max=50)


def finding(concept: str) -> Box:
    return Box(**BOX.model_dump(), kind="finding", concept=concept)


@pytest.fixture
def eager(service: Service) -> DataPlane:
    """A data plane whose model finds every question worth asking."""
    ask_from(service, -1e9)
    return service.plane


def ask_from(service: Service, least_effect: float) -> None:
    champion = service.models.champion
    champion.manifest = replace(champion.manifest, least_effect=least_effect)


@pytest.fixture
def naming(bundle: Bundle) -> BoxNaming:
    found = bundle.naming()
    assert found is not None
    return found


def test_every_prediction_carries_the_questions_that_are_worth_asking(eager: DataPlane, sample: bytes) -> None:
    study = add(eager, sample)
    asked = study.prediction.questions
    assert len(asked) == 3 and [each.effect for each in asked] == sorted((each.effect for each in asked), reverse=True)
    first = asked[0]
    for answer, expected in (("confirmed", first.if_confirmed), ("rejected", first.if_rejected)):
        after = interact(eager, study.digest, **{answer: [first.concept]}).after
        assert {each.name: each.probability for each in after.classes} == pytest.approx(expected, abs=1e-5)
        assert first.concept not in {each.concept for each in after.questions}
    peak = next(each.peak for each in study.prediction.concepts if each.name == first.concept)
    assert first.place == peak is not None
    assert first.reason.startswith(f"If {first.concept} is there, ") and "; if not, " in first.reason


def test_what_was_answered_is_not_asked_again_and_boxes_count(eager: DataPlane, bundle: Bundle, sample: bytes) -> None:
    digest, concepts = add(eager, sample).digest, bundle.manifest.concepts
    left = interact(
        eager, digest, boxes=[finding(concepts[0])], confirmed=list(concepts[1:4]), rejected=list(concepts[5:])
    ).after
    assert [each.concept for each in left.questions] == [concepts[4]]
    everything = interact(eager, digest, confirmed=list(concepts)).after
    assert everything.questions == []
    focus = Box(**BOX.model_dump())
    focused = interact(eager, digest, boxes=[focus]).after
    for question in focused.questions:
        told = interact(eager, digest, boxes=[focus], confirmed=[question.concept]).after
        assert {each.name: each.probability for each in told.classes} == pytest.approx(question.if_confirmed, abs=1e-5)


def test_questions_are_what_asking_the_model_each_of_them_would_say(
    eager: DataPlane, bundle: Bundle, sample: bytes
) -> None:
    """Against the reasoner with one answer more, for every concept."""
    digest, concepts = add(eager, sample).digest, bundle.manifest.concepts
    state: dict[str, Any] = {"boxes": [Box(**BOX.model_dump())], "rejection": "zero"}
    model, study = eager._study(digest, Timing(eager._telemetry))
    reasoned = reason(model, study, InteractionRequest(**state, rejected=[concepts[0]]))
    said = interact(eager, digest, **state, rejected=[concepts[0]]).after
    found = open_questions(model, study, reasoned, said)
    assert {each.concept for each in found} == set(concepts[1:])
    for each in found:
        yes = interact(eager, digest, **state, rejected=[concepts[0]], confirmed=[each.concept]).after
        no = interact(eager, digest, **state, rejected=[concepts[0], each.concept]).after
        for told, expected in ((each.if_confirmed, yes), (each.if_rejected, no)):
            assert told.tolist() == pytest.approx([one.probability for one in expected.classes], abs=2e-6)


def test_no_question_below_the_bundles_least_effect(service: Service, eager: DataPlane, sample: bytes) -> None:
    digest = add(eager, sample).digest
    effects = [each.effect for each in interact(eager, digest).after.questions]
    ask_from(service, (effects[0] + effects[1]) / 2)
    assert [each.effect for each in interact(eager, digest).after.questions] == effects[:1]
    ask_from(service, effects[0] + 1e-6)
    assert interact(eager, digest).after.questions == []


def test_where_nothing_is_left_to_know_the_model_is_not_asked(
    service: Service, bundle: Bundle, engine: CountingEngine, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add(service.plane, sample).digest
    calls: list[int] = []
    run = engine.run_reasoner

    def counted(patches: np.ndarray, *rest: Any, **tensors: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(patches))
        return run(patches, *rest, **tensors)

    service.models.champion.probabilities(np.zeros(2))  # asks the model what its temperature is, once
    monkeypatch.setattr(engine, "run_reasoner", counted)
    interact(service.plane, digest, rejected=["mass"])
    assert calls == [1, 2]  # the answer, and every question with every answer
    calls.clear()
    ask_from(service, 10.0)  # beyond any entropy of a few classes
    assert interact(service.plane, digest, rejected=["mass"]).after.questions == []
    assert calls == [1]


@pytest.mark.parametrize(
    ("yes", "no", "sentence"),
    [
        ([0.21, 0.8], [0.6, 0.35], "If mass is there, sick rises from 40 % to 80 %; if not, it falls to 35 %."),
        (
            [0.21, 0.8],
            [0.61, 0.4],
            "If mass is there, sick rises from 40 % to 80 %; if not, well rises from 60 % to 61 %.",
        ),
        ([0.9, 0.4], [0.601, 0.4], "If mass is there, well rises from 60 % to 90 %; if not, it stays at 60 %."),
        ([0.6, 0.1], [0.601, 0.4], "If mass is there, sick falls from 40 % to 10 %; if not, well stays at 60 %."),
    ],
)
def test_the_reason_is_a_sentence(yes: list[float], no: list[float], sentence: str) -> None:
    """Of the classes, each answer is told by the one that it moves most."""
    question = Question("mass", 0.1, np.array(yes), np.array(no))
    classes = [ClassScore(name=name, probability=p, logit=0, bias=0) for name, p in (("well", 0.6), ("sick", 0.4))]
    assert _reason(question, classes) == sentence


@pytest.mark.parametrize(
    ("threshold", "there", "moves"),
    [
        (0.5, 0.499, "rises from 30 % to < 50 %"),
        (0.35, 0.499, "rises from 30 % to 50 %"),
        (0.35, 0.3499, "rises from 30 % to < 35 %"),
        (0.35, 0.35, "rises from 30 % to 35 %"),
        (0.3, 0.35, "rises from 30 % to 35 %"),
    ],
)
def test_a_threshold_that_is_not_reached_is_not_said_to_be(threshold: float, there: float, moves: str) -> None:
    question = Question("mass", 0.1, np.array([there]), np.array([0.1]))
    sick = ClassScore(name="sick", probability=0.3, logit=0, bias=0, threshold=threshold)
    assert _reason(question, [sick]) == f"If mass is there, sick {moves}; if not, it falls to 10 %."


def test_a_name_that_the_evidence_contradicts_is_doubted(
    service: Service, bundle: Bundle, sample: bytes, naming: BoxNaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, about = service.plane, bundle.manifest
    digest = add(plane, sample).digest
    canvas, _ = fit(decode(sample), about.side, about.channels)
    runner = BundleRunner(bundle)
    maps = runner.reason(runner.encode(canvas[None]), [Interaction()])["concept_maps"][0]
    likely = naming.probabilities(maps, RegionBox(10, 20, 40, 50), about.side)
    order = [about.concepts[k] for k in np.argsort(-likely, kind="stable")]
    own = float(np.sort(likely)[0])
    monkeypatch.setattr(service.models.champion, "naming", replace(naming, doubt=float(np.sort(likely)[-2:].mean())))
    plain = Box(x_min=1, y_min=1, x_max=9, y_max=9)
    answer = interact(plane, digest, boxes=[plain, finding(order[-1]), finding(order[0])])
    [doubt] = answer.doubts
    assert (doubt.box, doubt.concept, doubt.probability) == (1, order[-1], pytest.approx(own, rel=1e-4))
    assert [each.name for each in doubt.speaks_for] == order[:3]
    chance = f"{own * 100:.0f} %" if own >= 0.005 else "< 1 %"
    assert doubt.message == (
        f"Box 2 is named {order[-1]} ({chance}), but the evidence inside it speaks for {order[0]} "
        f"({likely.max() * 100:.0f} %)."
    )
    kept = next(row for row in plane.store.ledger.entries("interaction"))["body"]["doubts"]
    assert [(each["box"], each["concept"]) for each in kept] == [(1, order[-1])]
    assert next(each.answer for each in answer.after.concepts if each.name == order[-1]) == "confirmed"  # as was said
    monkeypatch.setattr(service.models.champion, "naming", replace(naming, doubt=1.1))
    [first] = interact(plane, digest, boxes=[finding(order[0])]).doubts
    assert "little inside it speaks for that; next comes" in first.message and first.speaks_for[0].name == order[1]
    monkeypatch.setattr(service.models.champion, "naming", None)
    assert interact(plane, digest, boxes=[finding(order[-1])]).doubts == []


def test_what_is_in_a_box(plane: DataPlane, bundle: Bundle, sample: bytes, naming: BoxNaming) -> None:
    about, digest = bundle.manifest, add(plane, sample).digest
    answer = plane.probe(digest, ProbeRequest(box=BOX))
    canvas, _ = fit(decode(sample), about.side, about.channels)
    runner = BundleRunner(bundle)
    outputs = runner.reason(runner.encode(canvas[None]), [Interaction()])
    box = RegionBox(10, 20, 40, 50)
    likely = naming.probabilities(outputs["concept_maps"][0], box, about.side)
    inside = outputs["similarity_maps"][0][:, :, cells_inside(box, about.side, about.height, about.width)].max(-1)
    assert {each.name: each.probability for each in answer.concepts} == pytest.approx(
        dict(zip(about.concepts, likely.tolist(), strict=True)), abs=1e-4
    )
    assert sum(each.probability for each in answer.concepts) == pytest.approx(1)
    chances = [each.probability for each in answer.concepts]
    assert chances == sorted(chances, reverse=True)
    for each in answer.concepts:
        k = about.concepts.index(each.name)
        alive = [entry.index for entry in bundle.atlas() if entry.concept == each.name and entry.alive]
        best = max(alive, key=lambda m: inside[k, m])
        assert each.exemplars[0].index == best
        assert each.exemplars[0].score == pytest.approx(inside[k, best], abs=1e-5)
        assert each.exemplars[0].crop == f"/v1/atlas/{each.name}/{best}.png?rank={each.exemplars[0].rank}"
        assert BOX.x_min <= each.peak.x <= BOX.x_max and BOX.y_min <= each.peak.y <= BOX.y_max
    assert not list(plane.store.ledger.entries("interaction"))


def test_boxes_that_cannot_be_probed(service: Service, plane: DataPlane, wide: bytes) -> None:
    digest = add(plane, wide).digest
    outside = Region(x_min=200, y_min=0, x_max=260, y_max=50)
    with pytest.raises(InvalidInteractionError, match=r"^box: lies outside the 200×100 image"):
        plane.probe(digest, ProbeRequest(box=outside))
    with pytest.raises(InvalidInteractionError, match=r"^box: is empty or inverted"):
        plane.probe(digest, ProbeRequest(box=Region(x_min=9, y_min=9, x_max=9, y_max=10)))
    with pytest.raises(FrameError):
        plane.probe(digest, ProbeRequest(box=BOX, image=ImageSize(width=5, height=5)))
    tiny = plane.probe(digest, ProbeRequest(box=Region(x_min=199.9, y_min=99.9, x_max=900, y_max=900)))
    assert all(each.peak.x <= 200 and each.peak.y <= 100 for each in tiny.concepts)
    service.models.champion.naming = None
    with pytest.raises(CannotNameError, match="validated on too few boxes"):
        plane.probe(digest, ProbeRequest(box=BOX))


def test_a_box_is_probed_in_pixels_of_the_uploaded_image(plane: DataPlane) -> None:
    small = add(plane, stripes(80))
    near = plane.probe(small.digest, ProbeRequest(box=Region(x_min=20, y_min=20, x_max=60, y_max=60)))
    large = add(plane, stripes(80, times=2))
    assert small.digest == large.digest
    far = plane.probe(large.digest, ProbeRequest(box=Region(x_min=40, y_min=40, x_max=120, y_max=120)))
    assert [each.probability for each in near.concepts] == [each.probability for each in far.concepts]
    for one, other in zip(near.concepts, far.concepts, strict=True):
        assert (other.peak.x, other.peak.y) == pytest.approx((2 * one.peak.x, 2 * one.peak.y))


def test_confirming_gives_the_concept_its_place_and_no_new_exemplars(
    plane: DataPlane, bundle: Bundle, sample: bytes
) -> None:
    study = add(plane, sample)
    before = {each.name: each for each in study.prediction.concepts}
    for state in ({"confirmed": ["mass"]}, {"boxes": [finding("mass")]}):
        answer = interact(plane, study.digest, **state)
        after = {each.name: each for each in answer.after.concepts}
        assert after["mass"].answer == "confirmed" and after["nodule"].answer == "none"
        assert after["mass"].probability >= before["mass"].probability
        assert after["mass"].exemplars == before["mass"].exemplars
        assert after["nodule"] == before["nodule"]
        causes = {each.name: each.cause for each in answer.changes.concepts}
        assert causes.pop("mass") == "confirmed" and set(causes.values()) == {"none"}
        deltas = np.sum([list(each.contribution_deltas.values()) for each in answer.changes.concepts], axis=0)
        moved = [new.logit - old.logit for new, old in zip(answer.after.classes, answer.before.classes, strict=True)]
        np.testing.assert_allclose(deltas, moved, atol=1e-4)
    peak = after["mass"].peak
    assert peak is not None and 10 <= peak.x <= 40 and 20 <= peak.y <= 50
    assert interact(plane, study.digest, confirmed=["mass"]).after.concepts[1].peak == before["mass"].peak


def test_alpha_is_the_requests_or_the_models(plane: DataPlane, bundle: Bundle, sample: bytes) -> None:
    digest, box = add(plane, sample).digest, Box(x_min=10, y_min=20, x_max=40, y_max=50)
    own = interact(plane, digest, boxes=[box])
    assert own.alpha == bundle.manifest.alpha == 0.2
    assert interact(plane, digest, boxes=[box], alpha=0.2).after == own.after
    blunt = interact(plane, digest, boxes=[box], alpha=1.0)
    assert blunt.alpha == 1.0
    assert blunt.after.classes == blunt.before.classes


def test_the_best_question_orders_the_worklist(plane: DataPlane, service: Service, bundle: Bundle) -> None:
    digests = [add(plane, stripes(value)).digest for value in (20, 120, 220)]
    items = service.readings.worklist(WorklistQuery("effect"), "key:a", False).items
    assert {each.digest for each in items} == set(digests)
    effects = [each.expected_effect for each in items]
    assert effects == sorted(effects, reverse=True)
    for each in items:
        asked = plane.predict(each.digest, CALLER).prediction.questions
        if asked:
            assert asked[0].effect == pytest.approx(each.expected_effect)
        else:
            assert each.expected_effect < bundle.manifest.least_effect


def test_a_bundle_of_the_last_format_is_refused_with_what_to_do(bundle: Bundle, tmp_path: Any) -> None:
    shutil.copytree(bundle.path, tmp_path / "old")
    file = tmp_path / "old" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 5}))
    service = make_service(tmp_path / "old", tmp_path / "state")
    with pytest.raises(NotReadyError, match="format is 5, this version reads 6 to 8; export the bundle again"):
        service.check_ready()
    service.close()
