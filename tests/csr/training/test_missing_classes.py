"""Studies without a class: their concepts train stages 1 and 2, and no head sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from csr.baselines import cbm, last_layer, protopnet
from csr.baselines.protocol import ExperimentContext, predict
from csr.comparison.csr_system import Recipe
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.data.missing import hide_class_labels
from csr.data.phantom.plan import PhantomConfig
from csr.data.prepared import PreparedSet
from csr.data.records import NO_CLASS, TARGET_PREFIX, Collection
from csr.data.schema import check_schema
from csr.data.splits import SplitShares, complete_split
from csr.errors import ConfigError, DataError
from csr.evaluation.evaluate import evaluate_predictions
from csr.network.concept_model import ConceptModelConfig
from csr.training import concepts
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.workflow.training import draw_phantom
from tests.csr.synthetic import CLASSES, SIDE, make_cache, make_collection, make_prepared

STAGE1 = ConceptTrainingConfig(
    model=ConceptModelConfig("test_resnet", stride=8, context=None),
    augment=AugmentConfig(0, 0, 0, 0, 0),
    epochs=4,
    batch_size=8,
    precision="float32",
)
STAGE2 = PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=2, batch_size=8, precision="float32")
STAGE3 = HeadConfig(epochs=3, batch_size=8)


def multilabel(collection: Collection) -> Collection:
    """The same with a target for each class."""
    columns = {TARGET_PREFIX + name: (collection.studies["label"] == name).astype(np.float32) for name in CLASSES}
    return replace(collection, task="multilabel", studies=collection.studies.drop(columns="label").assign(**columns))


KINDS = pytest.mark.parametrize("kind", [lambda collection: collection, multilabel], ids=["multiclass", "multilabel"])


# what is unknown


@KINDS
def test_an_unknown_class_is_unknown_in_every_form(kind):
    before = kind(make_collection())
    after = hide_class_labels(before, 0.3, 0)
    unknown = ~after.has_class()
    assert unknown.sum() == 12 and before.has_class().all()
    assert set(np.flatnonzero(unknown)) <= set(before.rows("train").tolist())
    indicators = after.class_indicators()
    assert indicators.dtype == np.float32
    assert np.isnan(indicators[unknown]).all()
    np.testing.assert_array_equal(indicators[~unknown], before.class_indicators()[~unknown])
    if after.task == "multiclass":
        assert (after.truth()[unknown] == NO_CLASS).all()
    assert {after.diagnosis(row) for row in np.flatnonzero(unknown)} == {"class unknown"}
    assert after.diagnosis(after.class_rows("train")[0]) in CLASSES
    np.testing.assert_array_equal(after.class_rows("train"), np.setdiff1d(after.rows("train"), np.flatnonzero(unknown)))
    np.testing.assert_array_equal(after.labelled_rows("train"), after.rows("train"))  # concepts are known
    check_schema(after, SIDE)


@KINDS
def test_hiding_keeps_each_class_once_and_hides_more_of_the_same(kind):
    collection = kind(make_collection())
    some, most, all_ = (hide_class_labels(collection, share, 3).has_class() for share in (0.3, 0.6, 1.0))
    assert not (most & ~some).any() and not (all_ & ~most).any()
    whole = hide_class_labels(collection, 1.0, 3)
    assert np.nansum(whole.class_indicators()[whole.rows("train")], 0).tolist() == [1, 1, 1]
    pd.testing.assert_frame_equal(hide_class_labels(collection, 0.0, 3).studies, collection.studies)
    with pytest.raises(ConfigError, match="classes to hide: 2 is outside"):
        hide_class_labels(collection, 2, 0)


@KINDS
def test_a_study_that_is_judged_on_needs_a_class(kind):
    collection = kind(make_collection())
    columns = [name for name in collection.studies if name == "label" or name.startswith(TARGET_PREFIX)]
    studies = collection.studies.copy()
    studies.loc[45, columns] = np.nan
    with pytest.raises(DataError, match=r"row 46 \(study 's045'\): split must be 'train', for the study has no class"):
        check_schema(replace(collection, studies=studies), SIDE)


@KINDS
def test_a_split_that_is_made_puts_patients_with_an_unknown_class_into_train(kind):
    collection = kind(make_collection(300, 0, 0))
    studies = collection.studies.assign(split="", patient_id=[f"p{row // 2:03d}" for row in range(300)])
    shares = SplitShares(0.2, 0.2, 0)
    partly = hide_class_labels(collection, 0.3, 0)
    columns = [name for name in studies if name == "label" or name.startswith(TARGET_PREFIX)]
    split = complete_split(studies.assign(**{name: partly.studies[name] for name in columns}), shares)
    known = pd.Series(partly.has_class()).groupby(studies["patient_id"]).transform("all")
    assert set(split[~known]) == {"train"}
    assert split[known].value_counts(normalize=True)[["val", "test"]].tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    assert (split.groupby(studies["patient_id"]).nunique() == 1).all()


# training


@pytest.mark.parametrize("share", [0.0, 0.3])
@KINDS
def test_a_head_is_what_it_would_be_if_its_scores_were_of_the_studies_with_a_class_alone(kind, share):
    """Concepts of the others are hidden too, so that nothing but the head could see them."""
    collection = without_any_label(kind(make_collection(60)), share)
    cache = make_cache(collection)
    model = train_prototypes(collection, cache, STAGE2, SilentCallbacks())
    apart = left_out(collection)
    heads = [train_head(each, cache, model, STAGE3, SilentCallbacks()).state_dict() for each in (collection, apart)]
    for name, value in heads[0].items():
        torch.testing.assert_close(value, heads[1][name], rtol=0, atol=0)


def without_any_label(collection: Collection, share: float) -> Collection:
    """The same with training studies that have neither a class nor a concept."""
    collection = hide_class_labels(collection, share, 0)
    studies, unknown = collection.studies.copy(), ~collection.has_class()
    studies.loc[unknown, [f"concept:{name}" for name in collection.concepts]] = np.nan
    boxes = collection.boxes[~collection.boxes["study_id"].isin(studies["study_id"][unknown])]
    return replace(collection, studies=studies, boxes=boxes)


def left_out(collection: Collection) -> Collection:
    """The same without those studies, whose rows stay in the table."""
    split = collection.studies["split"].where(collection.has_class(), "left out")
    return replace(collection, studies=collection.studies.assign(split=split))


def test_a_study_without_a_class_trains_stage_2_as_one_with_a_class_does():
    collection = make_collection(60)
    cache = make_cache(collection)
    made = [
        train_prototypes(each, cache, STAGE2, SilentCallbacks()).prototypes.raw.detach()
        for each in (collection, hide_class_labels(collection, 0.3, 0))
    ]
    torch.testing.assert_close(*made, rtol=0, atol=0)


def test_a_study_without_any_label_is_in_no_batch_of_stage_2():
    partly = without_any_label(make_collection(60), 0.3)
    np.testing.assert_array_equal(partly.labelled_rows("train"), partly.class_rows("train"))
    cache, config = make_cache(make_collection(60)), replace(STAGE2, standardise=False)
    made = [
        train_prototypes(each, cache, config, SilentCallbacks()).prototypes.raw.detach()
        for each in (partly, left_out(partly))
    ]
    torch.testing.assert_close(*made, rtol=0, atol=0)


def test_a_study_without_any_label_counts_in_stage_1_for_the_channels_statistics_alone(tmp_path, monkeypatch):
    partly = without_any_label(make_collection(60), 0.3)
    data = make_prepared(tmp_path / "prepared", partly)
    apart = replace(data, collection=left_out(partly))
    config, seen = replace(STAGE1, epochs=2), []

    def statistics(data, rows):
        seen.append(rows)
        return torch.tensor([0.3]), torch.tensor([0.2])

    monkeypatch.setattr("csr.training.images.channel_statistics", statistics)
    states = [concepts.train_concepts(each, config, SilentCallbacks()).state_dict() for each in (data, apart)]
    np.testing.assert_array_equal(seen[0], partly.rows("train"))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0)


def test_a_joint_cbm_learns_its_concepts_from_batches_in_which_no_class_is_known(phantom):
    nearly = replace(phantom, collection=hide_class_labels(phantom.collection, 1.0, 0))
    assert len(nearly.collection.class_rows("train")) == 5
    system = cbm.joint_cbm(ExperimentContext(nearly, replace(STAGE1, epochs=2), SilentCallbacks()))
    assert all(torch.isfinite(value).all() for value in system.state_dict().values())


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A phantom of which three training classes in ten are hidden."""
    config = PhantomConfig(train=80, val=30, test=30)
    data = draw_phantom(tmp_path_factory.mktemp("phantom") / "prepared", config, side=64)
    return replace(data, collection=hide_class_labels(data.collection, 0.3, 0))


@pytest.fixture(scope="module")
def shared(phantom, tmp_path_factory):
    """Each shared backbone, trained on it."""
    folder, found = tmp_path_factory.mktemp("shared"), {}
    for kind, train in SHARED_BACKBONES.items():
        if kind != "concepts_coarse":
            (folder / kind).mkdir()
            train_shared_backbone(train, ExperimentContext(phantom, STAGE1, SilentCallbacks()), folder / kind)
            found[kind], _ = open_shared_backbone(folder / kind)
    return found


ENTRIES = systems({"robust": Recipe(STAGE2, STAGE3), "paper": Recipe(STAGE2, STAGE3)}, encoder=False)


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_system_trains_on_a_phantom_of_which_three_classes_in_ten_are_hidden(
    phantom: PreparedSet, shared, name, monkeypatch
):
    monkeypatch.setattr(last_layer, "STRENGTHS", (1.0,))  # one try is enough, and quick
    monkeypatch.setattr(protopnet, "TUNING_STEPS", 20)
    entry = ENTRIES[name]
    backbone = None if entry.shared_backbone is None else shared[entry.shared_backbone]
    context = ExperimentContext(phantom, replace(STAGE1, epochs=2), SilentCallbacks(), backbone)
    system = entry.train(context)
    assert all(
        torch.isfinite(value).all() for key, value in system.state_dict().items() if not key.endswith(("low", "high"))
    )
    report = evaluate_predictions(phantom.collection, predict(system, phantom, phantom.collection.rows("test")), 64)
    assert 0 <= report["iid"]["macro_f1"] <= 1
