"""Stage ``prepare`` with what readers corrected: what joins, what never does, and nothing at all unless it is asked
for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from csr.data.digests import folder_digest
from csr.data.images import pixel_digest
from csr.data.phantom import PhantomConfig, generate
from csr.data.phantom.plan import CLASSES
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError
from pipelines.overlay import merged
from pipelines.params import parse_params
from pipelines.prepare import prepare
from pipelines.stage import run_stage
from pipelines.tracking import connect
from tests.csr.data.feedback.examples import finding, picture, reading, review, write
from tests.pipelines.conftest import PRESETS, ROOT

SIDE = 32
PHANTOM = {"train": 40, "val": 16, "test": 16}
NEW = picture(0, SIDE)
Stage = Callable[..., PreparedSet]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Runs ``prepare`` in a folder of its own with changes to the shipped parameters, and returns what lies there."""
    folder = tmp_path_factory.mktemp("feedback")
    shutil.copytree(ROOT / "params", folder / "params")

    def run(**changes: Any) -> PreparedSet:
        data = {"side": SIDE, "workers": 1, "phantom": PHANTOM, "feedback": None}
        base = yaml.safe_load((ROOT / "params.yaml").read_text())
        (folder / "params.yaml").write_text(yaml.safe_dump(merged(base, {"data": data | changes})))
        run_stage("prepare", prepare)
        return PreparedSet.open(folder / "data/prepared")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield run


def said(**more: Any) -> Any:
    boxes = (finding("nodule", 4, 4, 12, 12),)
    return reading(pixel_digest(NEW), 1, classes=CLASSES, found=("normal",), rejected=("mass",), boxes=boxes, **more)


def test_nothing_changes_unless_it_is_asked_for(stage: Stage, tmp_path: Path) -> None:
    write(Path("data/feedback/set"), [said()], [NEW])
    plain = stage()
    generate(PhantomConfig(**PHANTOM), SIDE, tmp_path / "expected")
    assert folder_digest(plain.path) == folder_digest(tmp_path / "expected"), "bit for bit"
    assert not Path(".state/uncorrected").exists()


def test_corrected_studies_join_the_training(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    plain = stage()
    before, images = plain.collection, np.array(plain.images[:])
    judged = int(before.rows("test")[0])
    readings = [said(), reading(pixel_digest(images[judged]), 2, classes=CLASSES, found=("normal",))]
    feedback = write(Path("data/feedback/set"), readings, [NEW, images[judged]])
    found = stage(feedback="data/feedback/set")
    own = found.collection.studies.iloc[:-1][list(before.studies)]
    pd.testing.assert_frame_equal(own, before.studies, check_dtype=False)
    np.testing.assert_array_equal(found.images[:-1], images)
    row = len(found.images) - 1
    assert row in found.collection.class_rows("train")
    labels = dict(zip(found.collection.concepts, found.collection.concept_labels()[row], strict=True))
    assert {name: value for name, value in labels.items() if value == value} == {"nodule": 1, "mass": 0}
    np.testing.assert_array_equal(found.collection.boxes_of(row, "nodule"), [[4, 4, 12, 12]])
    assert "left out: 1 are in the validation or test split" in capsys.readouterr().out
    connect()
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    tagged = [each for each in runs if each.data.tags.get("data.feedback") == feedback.version]
    assert len(tagged) == 1
    numbers = {name: value for name, value in tagged[0].data.metrics.items() if "feedback" in name}
    assert numbers == {
        "prepare.feedback_added": 1,
        "prepare.feedback_relabelled": 0,
        "prepare.feedback_changed": 0,
        "prepare.feedback_left_out": 1,
    }


def test_the_set_that_is_there_is_read_and_of_two_none(stage: Stage) -> None:
    path = write(Path("data/feedback/set"), [said()], [NEW]).path
    named = folder_digest(stage(feedback="data/feedback/set").path)
    assert folder_digest(stage(feedback="auto").path) == named
    shutil.copytree(path, "data/feedback/other")
    with pytest.raises(SystemExit, match="holds several feedback sets, data/feedback/other, data/feedback/set; name"):
        stage(feedback="auto")
    shutil.rmtree("data/feedback")
    assert folder_digest(stage(feedback="auto").path) == folder_digest(stage().path) != named


def test_reviews_of_the_atlas_prepare_nothing_anew(stage: Stage) -> None:
    write(Path("data/feedback/set"), [said()], [NEW])
    first = folder_digest(stage(feedback="data/feedback/set").path)
    assert folder_digest(stage(feedback="data/feedback/set").path) == first
    write(Path("data/feedback/set"), [said()], [NEW], [review("nodule", 0)])
    assert folder_digest(stage(feedback="data/feedback/set").path) == first


def test_an_altered_set_is_refused_before_anything_is_written(stage: Stage) -> None:
    path = write(Path("data/feedback/set"), [said()], [NEW]).path
    before = folder_digest(stage().path)
    (path / "labels.parquet").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"labels\.parquet: was changed after the export"):
        stage(feedback="data/feedback/set")
    shutil.rmtree(path)
    with pytest.raises(SystemExit, match="data/feedback/set: is no feedback set"):
        stage(feedback="data/feedback/set")
    assert folder_digest(Path("data/prepared")) == before


@pytest.mark.parametrize("folder", ["feedback", "data/feedbacks", "data/feedback/../raw", "/data/feedback", ""])
def test_a_folder_that_dvc_does_not_watch_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.feedback: must be auto, data/feedback or a folder in it"):
        parse_params({"preset": "robust", "data": {"feedback": folder}}, presets=PRESETS)


def test_dvc_runs_the_stages_that_read_feedback_when_it_changes_and_no_others() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name for name, own in stages.items() if "data/feedback" in own["deps"]} == {"prepare", "head"}
    assert "data.feedback" in stages["head"]["params"] and "data" in stages["prepare"]["params"]
    assert (ROOT / "data/feedback/README.md").is_file(), "a dependency must be there where nobody has any feedback"
