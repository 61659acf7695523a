"""Stage ``prepare`` with an image-text encoder: what it writes, and that nothing happens unless it is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from PIL import Image

from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.errors import ConfigError
from pipelines.overlay import merged, overlay_settings
from pipelines.params import load_params, parse_params
from pipelines.prepare import prepare
from pipelines.stage import run_stage
from tests.csr.toy_encoder import SHAPES, make_shapes
from tests.pipelines.conftest import PRESETS, ROOT

SECTION = {
    "factory": "tests.csr.toy_encoder:load",
    "templates": ["picture of {}"],
    "negative_templates": ["picture of nothing"],
    "concepts": {"ring": {"phrases": ["ring"], "prevalence": 0.4}, "cross": {}},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of shapes: squares are labelled, rings by nobody, crosses in the first 80 studies."""
    folder = tmp_path_factory.mktemp("workplace")
    collection, images = make_shapes()
    (folder / "shapes/images").mkdir(parents=True)
    for name, image in zip(collection.studies["image"], images, strict=True):
        Image.fromarray(image[0]).save(folder / "shapes/images" / name)
    table = collection.studies.drop(columns="part")
    table["concept:ring"] = np.nan
    table.loc[80:299, "concept:cross"] = np.nan
    table.to_csv(folder / "shapes/studies.csv", index=False)
    shutil.copytree(ROOT / "params", folder / "params")
    return folder


@pytest.fixture(scope="module")
def stage(workplace: Path) -> Iterator[Callable[..., PreparedSet]]:
    """Runs ``prepare`` there with changes to the shipped parameters, and returns what lies in ``data/prepared``."""

    def run(**changes: Any) -> PreparedSet:
        data = {"source": "table", "path": "shapes", "side": 24, "workers": 1}
        base = yaml.safe_load((ROOT / "params.yaml").read_text())
        (workplace / "params.yaml").write_text(yaml.safe_dump(merged(base, {"data": data | changes})))
        run_stage("prepare", prepare)
        return PreparedSet.open(workplace / "data/prepared")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield run


@pytest.fixture(scope="module")
def filled(stage: Callable[..., PreparedSet], toy_checkpoint: Path) -> tuple[Collection, str]:
    """The tables that ``prepare`` wrote with the encoder, and the digest of the set."""
    data = stage(text_concepts=SECTION | {"checkpoint": str(toy_checkpoint)})
    return data.collection, data.digest()


def test_prepare_fills_training_labels_and_says_which(filled):
    collection, digest = filled
    given, _ = make_shapes()
    truth, labels = given.concept_labels(), collection.concept_labels()
    train = given.rows("train")
    np.testing.assert_array_equal(labels[:, 0], truth[:, 0])
    np.testing.assert_array_equal(labels[:80, 2], truth[:80, 2])
    assert np.isnan(labels[300:, 1]).all()  # validation and test
    np.testing.assert_array_equal(labels[300:, 2], truth[300:, 2])
    for k, rows in ((1, train), (2, train[80:])):
        written = ~np.isnan(labels[rows, k])
        assert written.mean() > 0.3
        assert (labels[rows, k][written] == truth[rows, k][written]).mean() > 0.93
        assert collection.studies[f"filled:{SHAPES[k]}"].sum() == written.sum()
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`data.digest` = '{digest}'", output_format="list"
    )
    assert run.data.params["data.text_concepts.factory"] == SECTION["factory"]
    assert run.data.metrics["prepare.filled_unknown"] == np.isnan(labels[train][:, 1:]).sum()
    table = json.loads(
        Path(mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/prepare"))
        .joinpath("text_concepts.json")
        .read_text()
    )["rows"]
    ring, cross = sorted(table, key=lambda row: row["known"])
    assert (ring["name"], ring["known"], ring["auroc"]) == ("ring", 0, None)
    assert (cross["name"], cross["known"]) == ("cross", 80) and cross["auroc"] > 0.9


def test_the_shipped_parameters_leave_it_off(stage, workplace):
    assert load_params(ROOT / "params.yaml").data.text_concepts is None
    with pytest.raises(SystemExit, match="concept 'ring' has no positive and no negative example in split 'train'"):
        stage()
    file = workplace / "shapes/studies.csv"
    before = file.read_text()
    table = pd.read_csv(file)
    table.drop(columns="concept:ring").to_csv(file, index=False)
    try:
        studies = stage().collection.studies
    finally:
        file.write_text(before)
    assert not any(column.startswith("filled:") for column in studies)
    np.testing.assert_array_equal(studies["concept:cross"], table["concept:cross"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint": "none.pt"}, "prepare: data.text_concepts.checkpoint: no file or folder 'none.pt'"),
        ({"concepts": {"ring": {"prevalence": 0.4}, "crss": {}}}, "did you mean 'cross'?"),
        ({"concepts": {"ring": {}}}, "data.text_concepts.concepts.ring: 0 training studies are labelled present"),
        ({"concepts": {"cross": {}}}, "concept 'ring' has no positive and no negative example in split 'train'"),
    ],
)
def test_a_mistake_ends_the_stage_with_one_sentence_and_leaves_its_output_alone(
    stage, filled, workplace, toy_checkpoint, changes, sentence
):
    kept = {path: path.stat().st_mtime_ns for path in (workplace / "data").rglob("*")}
    with pytest.raises(SystemExit) as caught:
        stage(text_concepts=SECTION | {"checkpoint": str(toy_checkpoint)} | changes)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (workplace / "data").rglob("*")} == kept


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"templats": []}, "unknown key 'data.text_concepts.templats'; did you mean 'data.text_concepts.templates'"),
        ({"concepts": {"ring": {"phrase": []}}}, "did you mean 'data.text_concepts.concepts.ring.phrases'"),
        ({"concepts": {"ring": {"prevalence": 40}}}, "concepts.ring: prevalence must lie between 0 and 1, is 40.0"),
        ({"concepts": {"ring": {"phrases": "ring"}}}, "data.text_concepts.concepts.ring.phrases"),
        ({"concepts": {}}, "data.text_concepts.concepts: names no concept"),
        ({"templates": ["a ring"]}, "data.text_concepts.templates: each must hold {}"),
        ({"confidence": 1}, "data.text_concepts.confidence: must lie between 0.5 and 1, is 1.0"),
        ({"batch_size": 0}, "data.text_concepts.batch_size: must be at least 1, is 0"),
    ],
)
def test_a_wrong_parameter_is_named(changes, sentence):
    section = SECTION | {"checkpoint": "toy.pt"} | changes
    with pytest.raises(ConfigError) as caught:
        parse_params({"preset": "robust", "data": {"source": "table", "text_concepts": section}}, presets=PRESETS)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_phantom_has_nothing_to_fill():
    with pytest.raises(ConfigError, match=r"data\.text_concepts: the phantom has every label"):
        data = {"text_concepts": SECTION | {"checkpoint": "toy.pt"}}
        parse_params({"preset": "robust", "data": data}, presets=PRESETS)


def test_an_overlay_can_switch_it_on(tmp_path):
    overlay = {"data": {"source": "table", "text_concepts": SECTION | {"checkpoint": "a b/toy.pt"}}}
    base = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(base))
    apply_overrides(tmp_path / "params.yaml", overlay_settings(overlay, "overlay", base))  # as dvc exp run -S does
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == merged(base, overlay)
