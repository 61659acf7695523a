"""The whole pipeline on a user's own folder: several classes at once, then concepts only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from csr.data.prepared import PreparedSet
from pipelines.promotion.judging import answers_of, studies_of
from pipelines.promotion.measures import MEASURES
from tests.pipelines.conftest import SMALL, Project, copy_project

SIDE = 64
CONCEPTS = ("spot", "bar")


def write_set(folder: Path, count: int = 240) -> None:
    """Noise with a bright spot or bar or both; ``spotted`` and ``both`` are to be predicted, some labels unknown."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    studies, boxes = [], []
    for index in range(count):
        pixels = rng.integers(20, 90, (SIDE, SIDE), dtype=np.uint8)
        has = rng.random(2) < 0.5
        for present, name, (height, width) in zip(has, CONCEPTS, ((10, 10), (4, 26)), strict=True):
            if present:
                top, left = rng.integers(0, SIDE - height), rng.integers(0, SIDE - width)
                pixels[top : top + height, left : left + width] += 140
                boxes.append((f"s{index}", name, left, top, left + width, top + height))
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        targets = [str(int(has[0])), str(int(has.all()))]
        if index % 11 == 0:
            targets[index % 2] = "unknown"
        studies.append((f"s{index}", f"{index}.png", "", *targets, *has.astype(int)))
    columns = ["study_id", "image", "split", "target:spotted", "target:both", "concept:spot", "concept:bar"]
    pd.DataFrame(studies, columns=columns).to_csv(folder / "studies.csv", index=False)
    names = ["study_id", "concept", "x_min", "y_min", "x_max", "y_max"]
    pd.DataFrame(boxes, columns=names).to_csv(folder / "boxes.csv", index=False)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("own")
    write_set(folder / "set")
    (folder / "project").mkdir()
    project = copy_project(folder / "project")
    data = {"source": "table", "path": "../set", "side": SIDE, "workers": 2}
    project.params(SMALL | {"data": data})
    project.run("dvc", "repro")
    return project


def metrics(project: Project) -> dict:
    return json.loads((project.folder / "reports/metrics.json").read_text())


def test_several_classes_pass_through_every_stage(own: Project) -> None:
    report = metrics(own)["test"]
    assert report["studies"] == 48
    assert 0 < report["macro_f1"] <= 1 and 0 <= report["ece"] <= 1
    bundle = Bundle.open(own.folder / "build/bundle")
    assert (bundle.manifest.task, bundle.manifest.classes) == ("multilabel", ("spotted", "both"))
    assert BundleRunner(bundle, 1).golden_error() < 1e-3
    assert bundle.manifest.thresholds == tuple(metrics(own)["thresholds"].values())
    data = PreparedSet.open(own.folder / "data/prepared")
    studies, answers = studies_of(data), answers_of(BundleRunner(bundle, 1), data)
    once = np.ones((1, len(studies.parts)))
    judged = {name: float(measure.of(studies, answers)(once)[0]) for name, measure in MEASURES.items()}
    assert judged["macro_f1"] == pytest.approx(report["macro_f1"], abs=0.03)  # at the same thresholds
    assert judged["auroc"] == pytest.approx(report["auroc"], abs=0.03)
    page = (own.folder / "reports/data.html").read_text()
    assert "a study can have several classes" in page


def test_each_class_has_its_operating_point(own: Project) -> None:
    table = pd.read_csv(own.folder / "reports/plots/classes_test.csv").set_index("class")
    assert list(table.index) == ["spotted", "both"]
    assert table["f1"].mean() == pytest.approx(metrics(own)["test"]["macro_f1"], abs=1e-5)
    assert table["threshold"].to_dict() == metrics(own)["thresholds"]
    assert table["auroc"].mean() == pytest.approx(metrics(own)["test"]["auroc"], abs=1e-5)
    studies = pd.read_parquet(own.folder / "data/prepared/studies.parquet")
    test = studies[studies["split"] == "test"]
    assert table.loc["both", "positives"] == (test["target:both"] == 1).sum()
    assert not (own.folder / "reports/plots/confusion_test.csv").exists()
    assert (own.folder / "reports/plots/classes_test.png").stat().st_size > 5_000


def test_concepts_only(own: Project) -> None:
    own.params({"data": {"task": "concepts"}})
    own.run("dvc", "repro", "evaluate", "atlas")
    report = metrics(own)["test"]
    assert report["macro_f1"] is None
    assert report["concept_auroc"] > 0.5 and report["pointing_game"]["pairs"] > 20
    assert not list((own.folder / "reports/plots").glob("classes_*"))
    atlas = json.loads((own.folder / "build/atlas/atlas.json").read_text())
    assert {entry["concept"] for entry in atlas} == set(CONCEPTS) and all(entry["reliance"] == 0 for entry in atlas)
    failed = own.run("dvc", "repro", "-s", "export", check=False)
    assert failed.returncode and "has concepts and no classes" in failed.stderr + failed.stdout
