"""Trials of settings: the same draws for every system, no test study in sight, one choice, on record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import ray
import yaml

from csr.baselines.protocol import ExperimentContext
from csr.data.prepared import PreparedSet, copy_without
from csr.errors import DataError, TrainingError
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from pipelines.comparison import common, learning, rival, settings, shared_backbone, trials
from pipelines.params import Params
from tests.csr.synthetic import make_collection, make_prepared
from tests.pipelines.conftest import ROOT, merge

CLASSES, CONCEPTS, PROTOTREE = (
    "csr.baselines.black_box:classes",
    "csr.comparison.concept_backbones:concepts_lse",
    "csr.baselines.prototree:prototree",
)
COUNT = 2
SMALL = {
    "concepts": {
        "model": {"backbone": "test_convnext", "width": 16},
        "epochs": 2,
        "batch_size": 8,
        "precision": "float32",
    },
    "comparison": {"seeds": [0], "trials": COUNT},
    "train": {"threads": 1},
}
CONFIG = ConceptTrainingConfig()
LEAST_RISE = CONFIG.least_rise


# the draws


def test_the_first_trial_is_the_default_and_the_others_are_drawn_alike_for_every_system() -> None:
    assert trials.drawn_settings(CONFIG, 0) == {}
    for number in range(1, 20):
        drawn = trials.drawn_settings(CONFIG, number)
        assert drawn == trials.drawn_settings(CONFIG, number)
        assert 1e-3 <= drawn["learning_rate"] <= 1.6e-2 and 2e-3 <= drawn["weight_decay"] <= 0.2
        assert drawn["epochs"] in (6, 12, 24) and drawn["stride"] in (8, 16)
        common = {key: drawn[key] for key in ("learning_rate", "weight_decay", "warmup", "epochs")}
        assert trials.settings_for("protopnet", CONFIG, number) == common
        own = common | {"stride": drawn["stride"], "context": drawn["context"]}
        assert trials.settings_for("concepts_lse", CONFIG, number) == own
        assert trials.settings_for("classes", CONFIG, number) == drawn
    assert len({str(trials.drawn_settings(CONFIG, number)) for number in range(20)}) == 20


def test_under_the_rule_the_patience_is_drawn_and_the_cap_stays() -> None:
    ruled = replace(CONFIG, patience=8, epochs=60)
    drawn = [trials.drawn_settings(ruled, number) for number in range(1, 12)]
    assert {each["patience"] for each in drawn} == {4, 8, 16}
    assert not any("epochs" in each for each in drawn)


def test_settings_take_the_place_of_the_configurations(tmp_path: Path) -> None:
    data = make_prepared(tmp_path / "prepared", make_collection())
    given = {"learning_rate": 0.5, "stride": 16, "context": None, "pooling": "lse"}
    changed = settings.with_settings(ExperimentContext(data, CONFIG, SilentCallbacks()), given)
    assert changed.config == replace(CONFIG, learning_rate=0.5, model=replace(CONFIG.model, stride=16, context=None))
    assert changed.pooling == "lse"


# no test study


@pytest.fixture
def outlined(tmp_path: Path) -> PreparedSet:
    """A prepared set in which every box has a mask, filled in every pixel up to its own number."""
    data = make_prepared(tmp_path / "whole", make_collection())
    boxes = data.collection.boxes.assign(mask=np.arange(len(data.collection.boxes)))
    boxes.loc[3, "mask"] = -1
    boxes.to_parquet(data.path / "boxes.parquet", index=False)
    masks = np.arange(data.side**2) < np.arange(len(boxes))[:, None]
    np.save(data.path / "masks.npy", np.packbits(masks, axis=1))
    return PreparedSet.open(data.path)


def test_a_copy_without_a_split_holds_nothing_of_its_studies_and_all_of_the_others(
    outlined: PreparedSet, tmp_path: Path
) -> None:
    copy_without(outlined, "test", tmp_path / "copy")
    whole, copy = outlined.collection, PreparedSet.open(tmp_path / "copy")
    kept = np.flatnonzero(whole.studies["split"] != "test")
    assert len(copy.images) == len(kept) < len(outlined.images)
    np.testing.assert_array_equal(copy.images[np.arange(len(kept))], outlined.images[kept])
    assert copy.collection.studies["study_id"].tolist() == whole.studies["study_id"][kept].tolist()
    assert len(copy.collection.rows("test")) == 0
    boxes = whole.boxes.index[whole.boxes["study_id"].isin(copy.collection.studies["study_id"])]
    assert len(np.load(copy.path / "masks.npy")) == len(boxes) - 1
    for new, old in enumerate(boxes):
        mine, original = copy.mask_of(new), outlined.mask_of(old)
        assert (mine is None) == (original is None)
        if mine is not None and original is not None:
            np.testing.assert_array_equal(mine, original)


# the search


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a made-up set, in which trials may run."""
    folder = tmp_path_factory.mktemp("trials")
    make_prepared(folder / "data/prepared", make_collection())
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, SMALL)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "params", folder / "params")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder


@pytest.fixture(scope="module")
def params(workplace: Path) -> Params:
    return common.load_comparison()


@pytest.fixture(scope="module")
def searched(workplace: Path, params: Params) -> dict[str, dict]:
    """What the report is told of a search for the black box, then for a system that starts from it."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
            patch.setattr(ray, "init", lambda **given: None)  # one cluster for this module
            trials.run(CLASSES, params)
            shared_backbone.run(CLASSES, 0, params)
            trials.run(PROTOTREE, params)
            rival.run(PROTOTREE, 0, params)
            resumed(workplace, patch)
    finally:
        ray.shutdown()
    folder = params.comparison.folder / "trials"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("classes", "prototree")}


def resumed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A search that is cut off by a machine's fault and started again; what ran is noted in a file."""
    log, mended = folder / "ran.txt", folder / "mended"

    def noted(config, given):
        with log.open("a") as file:
            file.write(f"{config['number']}\n")
        if config["number"] == 1 and not mended.exists():
            raise RuntimeError("out of memory")
        return {"trial": {"number": config["number"]}}

    patch.setattr(trials, "_trial", noted)
    with pytest.raises(TrainingError, match=r"trials_made_up: a trial ended with .*out of memory"):
        trials._tuned("trials_made_up", {}, COUNT)
    mended.touch()
    assert sorted(each["number"] for each in trials._tuned("trials_made_up", {}, COUNT)) == [0, 1]


def test_each_trial_is_reported_and_the_best_figure_is_chosen(searched: dict[str, dict]) -> None:
    for name, content in searched.items():
        assert [trial["number"] for trial in content["trials"]] == list(range(COUNT))
        figures = [trial["figure"] for trial in content["trials"]]
        assert all(0 <= figure <= 1 for figure in figures)
        beaten = max(figures) > figures[0] + LEAST_RISE
        assert content["chosen"] == (figures.index(max(figures)) if beaten else 0)
        assert content["trials"][0]["settings"] == {}
        assert settings.chosen_settings(name) == content["trials"][content["chosen"]]["settings"]


def test_the_chosen_setting_is_what_is_trained(searched: dict[str, dict], params: Params) -> None:
    chosen = settings.chosen_settings("classes")
    model = trials._model_alone(common.SHARED_BACKBONES_FOLDER / "classes-0").model
    assert model.config.stride == chosen.get("stride", params.concepts.model.stride)
    curves = json.loads((params.comparison.folder / "curves/classes-0.json").read_text())
    assert curves["settings"] == chosen
    (curve,) = curves["phases"]
    assert len(curve["values"]) == chosen.get("epochs", params.concepts.epochs)
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], "tags.comparison = 'shared_backbone'")
    assert run.data.params["concepts.learning_rate"] == str(chosen.get("learning_rate", params.concepts.learning_rate))
    assert run.data.params["concepts.model.stride"] == str(model.config.stride)
    best = searched["classes"]["trials"][searched["classes"]["chosen"]]
    assert best["figure"] == pytest.approx(curve["values"][-1], abs=1e-5)  # the same seed, without the test split


def trial(number: int, figure: float | None) -> dict:
    return {"number": number, "figure": figure}


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([0.9, 0.95, 0.97], 2),
        ([0.9, 0.97, 0.97], 1),  # the earlier of equal ones
        ([0.9, 0.9005, 0.8], 0),  # above the default by less than what counts as a rise
        ([None, 0.5, 0.4], 1),
        ([0.5, None, None], 0),
        ([None, None], 0),
    ],
)
def test_the_default_stays_unless_it_is_beaten_by_a_rise(figures: list[float | None], best: int) -> None:
    found = [trial(number, figure) for number, figure in enumerate(figures)]
    assert trials.best_of(found, 0.001)["number"] == best


def test_what_was_trained_says_with_which_settings(searched: dict[str, dict], params: Params) -> None:
    report = json.loads((params.comparison.folder / "prototree-0.json").read_text())
    assert report["settings"] == settings.chosen_settings("prototree")
    assert report["shared_backbone"] == {"kind": "classes", "settings": settings.chosen_settings("classes")}
    settings.check_settings(params.comparison.folder, [report])


@pytest.mark.parametrize("of", ["prototree", "classes"])
def test_a_report_of_systems_trained_with_other_settings_than_the_chosen_is_refused(
    searched: dict[str, dict], params: Params, of: str
) -> None:
    report = json.loads((params.comparison.folder / "prototree-0.json").read_text())
    if of == "prototree":
        report["settings"] = {"learning_rate": 1.0}
    else:
        report["shared_backbone"]["settings"] = {"learning_rate": 1.0}
    with pytest.raises(DataError, match=rf"prototree, seed 0: {of} was trained with learning_rate 1.0, its trials"):
        settings.check_settings(params.comparison.folder, [report])


def test_every_trial_is_a_run_below_its_search(searched: dict[str, dict]) -> None:
    runs = mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}").search_runs(["1"], "tags.comparison = 'trial'")
    assert len(runs) == 2 * COUNT
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert len(parents) == 2
    assert all("trial.figure" in run.data.metrics for run in runs)


def test_only_trials_that_had_not_ended_run_again_after_an_interruption(searched: dict[str, dict]) -> None:
    ran = Path("ran.txt").read_text().split()
    assert ran.count("0") == 1 and ran.count("1") == 2


def test_what_a_trial_is_given_holds_no_test_study(searched: dict[str, dict], workplace: Path) -> None:
    data = PreparedSet.open(trials.without_test(workplace / "data/prepared"))
    assert data.path != workplace / "data/prepared" and len(data.collection.rows("test")) == 0
    backbone = trials._model_alone(common.SHARED_BACKBONES_FOLDER / "classes-0")
    assert backbone.cache.features.size == backbone.cache.cam.size == 0


def test_without_trials_a_file_says_so_and_the_settings_are_the_parameters(workplace: Path, params: Params) -> None:
    none = replace(params, comparison=replace(params.comparison, trials=0, folder=Path("reports/none")))
    trials.run(CONCEPTS, none)
    assert settings.chosen_settings("concepts_lse") == {}
    assert json.loads(Path("reports/none/trials/concepts_lse.json").read_text()) == {
        "system": "concepts_lse",
        "chosen": None,
        "trials": [],
    }


# the report


def test_the_report_sets_trials_side_by_side(searched: dict[str, dict], params: Params) -> None:
    (section,) = learning.trials_section(params.comparison.folder, learning.TITLES, LEAST_RISE)
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows["black box (shared backbone)"][1] == rows["prototree"][1] == str(COUNT)
    for name, content in searched.items():
        row = rows[learning.TITLES.get(name, name)]
        default, best = content["trials"][0]["figure"], content["trials"][content["chosen"]]["figure"]
        assert row[2:4] == (f"{default:.3f}", f"{best:.3f}")
    assert sum(int(row[2]) for row in section.tables[1].rows) > COUNT  # ours counts what was tried before


def test_the_report_draws_every_curve_with_its_end(searched: dict[str, dict], params: Params) -> None:
    curves = learning.read_curves(params.comparison.folder, [0])
    assert list(curves) == ["classes", "prototree"]
    (section,) = learning.curves_section(curves, {"prototree": "ProtoTree"}, params.concepts)
    phases = [phase for each in curves.values() for phase in each[0]]
    assert [row[1] for row in section.tables[0].rows] == [phase["phase"] for phase in phases]
    for row, phase in zip(section.tables[0].rows, phases, strict=True):
        assert row[3] == f"{phase['values'][0]:.3f}" and row[6] == f"{phase['images'][-1]:,}"
        assert row[8] == "fixed length"
    assert section.figures[0].startswith("<svg") and "ProtoTree" in section.tables[0].rows[-1]
    assert learning.curves_section({}, {}, params.concepts) == []
