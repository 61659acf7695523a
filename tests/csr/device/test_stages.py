"""Every stage on a GPU, claimed: it moves what it needs, mixes no devices, and gives what the CPU gives, bit for bit.

A stage starts from the files of the one before, so its models come from checkpoints and are on the CPU.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from csr.bundle.atlas import Atlas, build_atlas
from csr.bundle.runtime import GOLDEN_TOLERANCE, BundleRunner
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.data.text_concepts import TextConcept, TextConceptConfig, concept_directions, concept_scores, load_encoder
from csr.interaction.answering import AnswerableCSR, AnswerConfig, answer_curves, findings_of, most_alike
from csr.interaction.naming_fit import fit_naming
from csr.interaction.review import prune, retrain_head, review
from csr.network.checkpoint import Checkpoint
from csr.network.prototypes import prototype_model_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import train_head
from csr.training.prediction import predict
from csr.training.prototypes import train_prototypes
from csr.training.runtime import device
from csr.training.selection import count_curve
from csr.training.temperature import calibrate_temperature
from tests.csr.device.claimed import Accelerator, ClaimedTensor
from tests.csr.device.conftest import STAGE1, STAGE2, STAGE3, Stages
from tests.csr.synthetic import with_labels
from tests.csr.toy_encoder import SHAPES, make_shapes

CURVES = AnswerConfig(("keys", "findings", "questioned", "regions"), errors=(0.0, 0.3), budget=2, least_effect=0.0)


def same_weights(state: Checkpoint, expected: Checkpoint) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected["weights"].items():
        assert not isinstance(state["weights"][name], ClaimedTensor)
        torch.testing.assert_close(state["weights"][name], value, rtol=0, atol=0, equal_nan=True, msg=name)


# the few calls whose arguments say what a trained CSR is made of


def head_stage(stages: Stages, config=STAGE3, data=None) -> Checkpoint:
    """What the pipeline's stage ``head`` does."""
    data, model = data or stages.data, stages.prototype_model()
    reasoner = train_head(data.collection, stages.cache, model, config, SilentCallbacks())
    names = data.collection.concepts, data.collection.classes
    csr = TrainedCSR(stages.concept_model(), model, reasoner, *names)
    calibrate_temperature(data, stages.cache, csr)
    return csr.to_checkpoint()


def predictions(stages: Stages):
    return predict(stages.data, stages.cache, stages.csr())


def curves(stages: Stages) -> pd.DataFrame:
    data, csr, rows = stages.data, stages.csr().to(device()).eval(), stages.data.collection.rows("test")
    model = AnswerableCSR(stages.cache, csr, rows, data.side, naming=fit_naming(data, stages.cache, csr))
    findings = findings_of(data, rows, most_alike(data, stages.cache))
    return answer_curves(model, data.collection, rows, findings, CURVES)[0]


def refined(stages: Stages) -> tuple[pd.DataFrame, Checkpoint]:
    """The reviewer's verdicts and what is trained on the prototypes that are left, with one pruned in any case."""
    data, cache = stages.data, stages.cache
    verdicts = review(data, cache, stages.csr())
    flagged = verdicts.assign(prune=verdicts["prune"] | (np.arange(len(verdicts)) == 0))
    retrained = retrain_head(data, cache, prune(stages.csr(), flagged), STAGE3, SilentCallbacks())
    return verdicts, retrained.to_checkpoint()


def atlas(stages: Stages) -> Atlas:
    return build_atlas(stages.data, stages.cache, stages.csr())


def bundle(stages: Stages, csr: TrainedCSR, folder):
    config = ExportConfig(parity_images=4, samples=3, abstain_risk=0.9)
    origin = Provenance("robust", stages.data.digest(), "test", {})
    return write_bundle(folder / "bundle", stages.data, stages.cache, csr, atlas(stages), config, origin)


# the stages


class Interruption(Exception):
    """Stands for a machine that is taken away."""


class Kept(SilentCallbacks):
    """Keeps an epoch's checkpoint as a file would, and is cut off after it; the next run goes on from there."""

    checkpoint: bytes | None = None

    def resume(self):
        kept = self.checkpoint
        return kept and torch.load(io.BytesIO(kept), map_location="cpu", weights_only=True)

    def epoch(self, metrics, state):
        if self.checkpoint is None:
            file = io.BytesIO()
            torch.save(state(), file)
            self.checkpoint = file.getvalue()
            raise Interruption


def test_concepts_with_their_augmentation_and_alignment(stages, accelerator):
    model = train_concepts(stages.data, STAGE1, SilentCallbacks())
    assert all(isinstance(parameter, ClaimedTensor) for parameter in model.parameters())
    same_weights(concept_model_checkpoint(model), stages.stage1)


def test_concepts_from_a_checkpoint(stages, accelerator):
    callbacks = Kept()
    with pytest.raises(Interruption):
        train_concepts(stages.data, STAGE1, callbacks)
    model = train_concepts(stages.data, STAGE1, callbacks)
    same_weights(concept_model_checkpoint(model), stages.stage1)


def test_features(stages, accelerator, tmp_path):
    compute_features(stages.concept_model(), stages.data, tmp_path, SilentCallbacks())
    cache = FeatureCache.open(tmp_path)
    np.testing.assert_array_equal(cache.features, stages.cache.features)
    np.testing.assert_array_equal(cache.cam, stages.cache.cam)


def test_prototypes_and_those_that_are_seeded_again(stages, accelerator):
    callbacks = SilentCallbacks()
    model = train_prototypes(stages.data.collection, stages.cache, STAGE2, callbacks)
    assert sum(epoch["reseeded"] for epoch in callbacks.history) > 0
    same_weights(prototype_model_checkpoint(model), stages.stage2)


@pytest.mark.parametrize("margin", ["plus", "numerator"])
def test_prototypes_to_the_letter(stages, accelerator, margin):
    letter = replace(STAGE2, absence=0.0, agreement=0.0, standardise=False, gamma=1000.0, margin=margin, reseed=False)
    train_prototypes(stages.data.collection, stages.cache, letter, SilentCallbacks())


def test_the_number_of_prototypes(stages, accelerator):
    with_gpu = count_curve(stages.prototype_model(), stages.data.collection, stages.cache)
    accelerator.close()
    on_cpu = count_curve(stages.prototype_model(), stages.data.collection, stages.cache)
    np.testing.assert_array_equal(with_gpu.order, on_cpu.order)
    np.testing.assert_array_equal(with_gpu.shortfall, on_cpu.shortfall)


def test_head_with_its_temperature(stages, accelerator):
    same_weights(head_stage(stages), stages.stage3)


def test_head_that_meets_a_reader(stages, accelerator):
    head_stage(stages, replace(STAGE3, interventions=1.0))


def test_head_to_the_letter(stages, accelerator):
    head_stage(stages, replace(STAGE3, clip=False, floor="zero", least_usage=0.0, concept_dropout=0.0))


def test_head_on_partly_unknown_labels(stages, accelerator):
    labels = stages.data.collection.concept_labels()
    labels[::7, 1] = np.nan
    head_stage(stages, data=replace(stages.data, collection=with_labels(stages.data.collection, labels)))


def multilabel(stages: Stages) -> Stages:
    """The same studies with three diagnoses that can go together, some unknown."""
    collection = stages.data.collection
    truth = np.eye(3, dtype=np.float32)[collection.truth()]
    truth[:, 2] = np.maximum(truth[:, 2], collection.concept_labels()[:, 2])
    truth[::9, 0] = np.nan
    columns = {f"target:{name}": truth[:, t] for t, name in enumerate(collection.classes)}
    studies = collection.studies.drop(columns="label").assign(**columns)
    return replace(
        stages, data=replace(stages.data, collection=replace(collection, studies=studies, task="multilabel"))
    )


def test_head_and_its_answers_where_a_study_can_have_several_classes(stages, accelerator):
    several = multilabel(stages)
    trained = replace(several, stage3=head_stage(several))
    assert predictions(trained).probabilities.shape == (12, 3)
    assert len(curves(trained))


def test_head_of_a_set_with_concepts_only(stages, accelerator):
    bare = replace(stages.data.collection, classes=(), task="concepts")
    head_stage(stages, data=replace(stages.data, collection=bare))


# what is done with a trained model; each is compared with the CPU's


def both(accelerator: Accelerator, make):
    """What ``make`` gives on the claimed GPU and, once that is closed, on the CPU."""
    claimed = make()
    accelerator.close()
    return claimed, make()


def test_prediction(stages, accelerator):
    claimed, expected = both(accelerator, lambda: predictions(stages))
    for name in ("rows", "probabilities", "concepts", "peaks"):
        np.testing.assert_array_equal(getattr(claimed, name), getattr(expected, name))


def test_curves_of_answers(stages, accelerator):
    claimed, expected = both(accelerator, lambda: curves(stages))
    pd.testing.assert_frame_equal(claimed, expected, check_exact=True)
    assert (expected.groupby("tool")["replies"].max() > 0).all()


def test_refinement(stages, accelerator):
    (verdicts, state), (expected, expected_state) = both(accelerator, lambda: refined(stages))
    pd.testing.assert_frame_equal(verdicts, expected, check_exact=True)
    same_weights(state, expected_state)
    assert (state["weights"]["reasoner.alive"] == 0).any()


def test_atlas(stages, accelerator):
    claimed, expected = both(accelerator, lambda: atlas(stages))
    assert claimed.entries == expected.entries
    np.testing.assert_array_equal(claimed.crops, expected.crops)


def test_bundle_of_a_model_that_is_on_the_gpu(stages, accelerator, tmp_path):
    """As the pipeline's stage ``export``, and from a process that trained what it exports."""
    written, gap = bundle(stages, stages.csr().to("cuda"), tmp_path)
    assert gap <= ExportConfig().tolerance
    assert BundleRunner(written).golden_error() < GOLDEN_TOLERANCE


def test_text_concepts(toy_checkpoint, accelerator):
    """The image-text encoder, which is told where it computes; its embeddings come back to the host."""
    config = TextConceptConfig("tests.csr.toy_encoder:load", "toy.pt", {name: TextConcept() for name in SHAPES})
    collection, images = make_shapes()

    def scores(place: torch.device | None) -> np.ndarray:
        encoder = load_encoder(config.factory, toy_checkpoint, {}, place)
        directions = concept_directions(encoder, config, collection.concepts)
        return concept_scores(encoder, images, np.arange(20), directions)

    claimed = scores(torch.device("cuda"))
    before = accelerator.operations
    np.testing.assert_array_equal(claimed, scores(None))
    assert accelerator.operations == before > 0


def test_naming_of_boxes(stages, accelerator):
    def naming() -> dict:
        fitted = fit_naming(stages.data, stages.cache, stages.csr().to(device()).eval())
        assert fitted is not None
        return fitted.to_json()

    claimed, expected = both(accelerator, naming)
    for name, value in expected.items():
        np.testing.assert_allclose(claimed[name], value, atol=1e-6, err_msg=name)
