"""The stages in one process on a GPU, claimed: they mix no devices, and ``train.gpu: never`` leaves it alone.

The rules of the claimed GPU are in `tests.csr.device.claimed`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import yaml

from csr.interaction.answering import AnswerConfig
from csr.training.runtime import use_device
from pipelines.atlas import atlas
from pipelines.comparison import ablation, answers, boxes, csr, missing_labels, refinement, report, shared_backbone
from pipelines.concepts import concepts
from pipelines.evaluate import evaluate
from pipelines.export import export
from pipelines.features import features
from pipelines.head import head
from pipelines.params import Params, load_params
from pipelines.prepare import prepare
from pipelines.prototypes import prototypes
from pipelines.stage import BUNDLE
from pipelines.tracking import connect
from tests.csr.device.claimed import Accelerator
from tests.pipelines.conftest import ROOT, SMALL, merge

TINY = {
    "data": {"workers": 1, "phantom": {"train": 48, "val": 24, "test": 24}},
    "concepts": {"model": {"backbone": "test_convnext"}, "epochs": 2, "batch_size": 12, "precision": "auto"},
    "prototypes": {"epochs": 1},
    "head": {"epochs": 2},
    "comparison": {"seeds": [0]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A project's folder with a prepared set, in which stages run one after the other."""
    made = tmp_path_factory.mktemp("project")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for changes in (SMALL, TINY):
        merge(content, changes)
    (made / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "params" / "presets", made / "params" / "presets")
    return made


@pytest.fixture
def params(folder, monkeypatch) -> Iterator[Params]:
    """Of the folder, in which the test runs, inside an MLflow run."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connect()
    few = AnswerConfig(("keys", "questioned", "regions"), ("worthwhile",), (0.2,), budget=2)
    monkeypatch.setattr(answers, "KINDS", {"csr_robust": few})
    loaded = load_params()
    if not Path("data/prepared").is_dir():
        with mlflow.start_run():
            prepare(loaded)
    yield loaded
    use_device("auto")


@contextmanager
def gpu() -> Iterator[Accelerator]:
    with Accelerator() as opened, mlflow.start_run():
        yield opened


def never(params: Params) -> Params:
    """The same, with ``train.gpu: never``."""
    content = yaml.safe_load(Path("params.yaml").read_text())
    merge(content, {"train": {"gpu": "never"}})
    Path("never.yaml").write_text(yaml.safe_dump(content))
    return load_params(Path("never.yaml"))


def test_every_stage_runs_on_it(params):
    piloted = replace(params, prototypes=replace(params.prototypes, per_concept="auto"))
    for stage in (concepts, features, prototypes, head, evaluate, atlas):
        with gpu() as accelerator:
            stage(piloted)
            assert accelerator.operations > 0, stage.__name__
    with gpu():
        export(params)  # on the CPU, where it is served
    assert (BUNDLE / "manifest.json").is_file()


@pytest.mark.parametrize("stage", [concepts, features, prototypes, head, evaluate, atlas], ids=lambda s: s.__name__)
def test_no_stage_runs_on_it_if_it_must_not(params, stage):
    with gpu() as accelerator:
        stage(never(params))
        assert accelerator.operations == 0


def test_the_comparisons_stages_run_on_it(params):
    for module, name in (
        (shared_backbone, "csr.comparison.concept_backbones:concepts_lse"),
        (csr, "csr_robust"),
        (ablation, "dropout"),
        (answers, "csr_robust"),
        (boxes, "csr_robust"),
        (refinement, "csr_robust"),
        (missing_labels, "50"),
    ):
        with gpu() as accelerator:
            mlflow.end_run()  # each of these has its own
            module.run(name, 0, params)
            assert accelerator.operations > 0, name
    with gpu() as accelerator:
        report.build(params)
        assert accelerator.operations > 0


def test_no_stage_of_the_comparison_runs_on_it_if_it_must_not(params):
    for module, name in (
        (shared_backbone, "csr.comparison.concept_backbones:concepts_lse"),
        (csr, "csr_robust"),
        (answers, "csr_robust"),
    ):
        with gpu() as accelerator:
            mlflow.end_run()
            module.run(name, 0, never(params))
            assert accelerator.operations == 0, name
    with gpu() as accelerator:
        report.build(never(params))
        assert accelerator.operations == 0
