"""The comparison: its registry, how runs are kept, what systems cost, and all of it in one call."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from csr.baselines.protocol import (
    Answer,
    ExperimentContext,
    SharedBackbone,
    System,
    load_system,
    predict,
    save_system,
)
from csr.comparison import __main__ as command
from csr.comparison import shared_backbones as shared
from csr.comparison.ablations import VARIANTS
from csr.comparison.concept_backbones import shared_backbone_context
from csr.comparison.csr_system import Recipe
from csr.comparison.latency import answer_latency
from csr.comparison.report import (
    OURS,
)
from csr.comparison.runs import load_predictions, save_predictions
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.comparison.training import Result, run_system
from csr.errors import ConfigError, DataError
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.predictions import Predictions
from csr.network.backbone import Backbone
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig
from tests.csr.baselines.test_saving import MAKERS
from tests.csr.synthetic import CLASSES, CONCEPTS, SIDE, make_collection, make_prepared

# nothing is pruned: which of so many prototypes win no vector of so few depends on the processor's rounding
ROBUST = Recipe(PrototypeConfig(per_concept=2, width=8, epochs=1), HeadConfig(epochs=2, least_usage=0.0))
PAPER = Recipe(
    PrototypeConfig(per_concept=7, width=8, epochs=1),
    HeadConfig(epochs=2, clip=False, floor="zero", least_usage=0.0),
)
ENTRIES = systems({"robust": ROBUST, "paper": PAPER})
NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16)


# the registry


def test_every_system_of_the_comparison_is_there_with_what_it_rests_on():
    """The rivals are those of CSR's paper, the black box, and a CBM, an SCBM and an IntCEM on the same stage 1."""
    shared_backbones = {name: entry.shared_backbone for name, entry in ENTRIES.items()}
    on_stage_1 = {"csr_robust", "cbm_shared", "cbm_answered", "scbm_shared", "intcem_shared"}
    assert {name for name, each in shared_backbones.items() if each == "concepts_lse"} == on_stage_1
    assert shared_backbones["csr_paper"] == "concepts_average"
    assert shared_backbones["cbm_sequential"] == shared_backbones["cbm_independent"] == "concepts_average"
    assert shared_backbones["cbm_joint"] is shared_backbones["cbm_joint_lse"] is None
    from_the_black_box = {"posthoc_cbm", "posthoc_cbm_hybrid", "protopnet", "protopool", "prototree", "pipnet"}
    from_the_black_box |= {"label_free_cbm", "black_box"}
    assert {name for name, each in shared_backbones.items() if each == "classes"} == from_the_black_box
    assert set(shared_backbones.values()) <= {None, *SHARED_BACKBONES}
    assert len({entry.title for entry in ENTRIES.values()}) == len(ENTRIES) == 18
    assert next(iter(ENTRIES)) == OURS


def test_foundations_differ_in_what_their_names_say():
    assert get_args(SharedBackbone) == tuple(SHARED_BACKBONES)
    unread = SimpleNamespace(collection=make_collection())
    own = ExperimentContext(unread, ConceptTrainingConfig(model=NET), SilentCallbacks())  # type: ignore[arg-type]
    models = {kind: shared_backbone_context(kind, own).config.model for kind in SHARED_BACKBONES if kind != "classes"}
    assert models["concepts_lse"] == replace(NET, pooling="lse")
    assert models["concepts_average"] == replace(NET, pooling="average")
    assert models["concepts_coarse"] == replace(models["concepts_lse"], stride=16, context=None)


def test_an_ablation_takes_out_one_ingredient_and_leaves_the_rest():
    robust = Recipe()
    plain = asdict(robust)
    assert VARIANTS["robust"].recipe(robust) == robust and VARIANTS["robust"].shared_backbone == "concepts_lse"
    seen = [("concepts_lse", plain)]
    for variant in list(VARIANTS.values())[1:]:
        changed = asdict(variant.recipe(robust))
        for stage, keys in (("prototypes", variant.prototypes), ("head", variant.head)):
            differing = {key for key, value in plain[stage].items() if changed[stage][key] != value}
            assert differing == set(keys)
        seen.append((variant.shared_backbone, changed))
        assert variant.shared_backbone in SHARED_BACKBONES and variant.shared_backbone != "classes"
    assert all(each not in seen[:index] for index, each in enumerate(seen))
    assert len({variant.title for variant in VARIANTS.values()}) == len(VARIANTS)


# predictions on disk


@pytest.mark.parametrize("bare", [False, True])
def test_predictions_come_back_as_they_were(tmp_path, bare):
    rng = np.random.default_rng(0)

    def made(rows: list[int]) -> Predictions:
        n = len(rows)
        concepts, peaks = (None, None) if bare else (rng.random((n, 3)), 32 * rng.random((n, 3, 2)))
        return Predictions(np.array(rows), rng.random((n, 4)), concepts, peaks, rng.integers(0, 9, n))

    result = Result({}, validation=made([5, 2]), test=made([7, 9, 8]), report={})
    save_predictions(tmp_path / "deep/a.npz", result.validation, result.test)
    for split in ("validation", "test"):
        expected, found = getattr(result, split), load_predictions(tmp_path / "deep/a.npz", split)
        np.testing.assert_array_equal(found.rows, expected.rows)
        assert found.rows.dtype.kind == "i"
        for name in ("probabilities", "concepts", "peaks", "explanations"):
            if bare and name in ("concepts", "peaks"):
                assert getattr(found, name) is None
            else:
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)


# latency


class Slow(System):
    """Notes its calls, and takes as many seconds as it is told."""

    config = from_config = None  # never saved

    def __init__(self, name: str, log: list[str], clock: list[float], seconds: list[float]) -> None:
        super().__init__()
        self.name, self.log, self.clock, self.seconds = name, log, clock, seconds

    def answer(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.log.append(self.name)
        self.clock[0] += self.seconds[(len(self.log) - 1) // 2 % len(self.seconds)]
        return Answer(images, None, None, images)


def test_every_systems_latency_is_the_median_of_answers_taken_in_turns(monkeypatch):
    log: list[str] = []
    clock = [0.0]
    monkeypatch.setattr("csr.comparison.latency.time.perf_counter", lambda: clock[0])
    members = {"a": Slow("a", log, clock, [9, 1, 2, 1]), "b": Slow("b", log, clock, [0, 3, 3, 50])}
    assert answer_latency(members, torch.zeros(1, 1, 8, 8), rounds=3) == pytest.approx({"a": 1, "b": 3})
    assert log == ["a", "b"] * 4  # one to warm up


class Layout(System):
    """One convolution; notes how its weights and the image lie in memory."""

    config = from_config = None  # never saved

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.seen: list[tuple[bool, bool]] = []

    def answer(self, images):
        tensors = (self.layer.weight, images)
        self.seen.append(tuple(each.is_contiguous(memory_format=torch.channels_last) for each in tensors))
        return Answer(self.layer(images), None, None, images)


def test_latency_is_taken_in_one_memory_format_however_a_system_came_to_be():
    trained, reloaded = Layout().to(memory_format=torch.channels_last), Layout()
    reloaded.load_state_dict({name: value.contiguous() for name, value in trained.state_dict().items()})
    answer_latency({"trained": trained, "reloaded": reloaded}, torch.zeros(1, 3, 8, 8), rounds=2)
    assert trained.seen == reloaded.seen == [(True, True)] * 3


@pytest.mark.parametrize("make", MAKERS)
def test_every_system_that_comes_from_a_file_is_timed_in_that_format(make, tmp_path):
    """What is compared when a convolution runs: the layout of its weights, and of the whole network's input."""
    trained = make().eval().to(memory_format=torch.channels_last)
    save_system(trained, tmp_path / "system.pt")
    again = load_system(type(trained), tmp_path / "system.pt")
    layouts: dict[str, list[tuple[bool, bool]]] = {"trained": [], "again": []}
    for name, system in (("trained", trained), ("again", again)):
        backbone = next(each for each in system.modules() if isinstance(each, Backbone))
        backbone.register_forward_pre_hook(lambda _, given, name=name: layouts[name].append(layout(given[0])))
    answer_latency({"trained": trained, "again": again}, torch.zeros(1, 1, 64, 64, dtype=torch.uint8), rounds=1)
    assert layouts["trained"] == layouts["again"] == [layout(torch.zeros(1, 1, 64, 64))] * len(layouts["again"])
    kept = [{name: layout(value) for name, value in each.named_parameters()} for each in (trained, again)]
    assert kept[0] == kept[1]
    assert all(channels_last for each in kept for channels_last, _ in each.values())


def layout(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Whether its channels lie last, if it has any, and how its numbers follow one another if it has none."""
    if tensor.dim() == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last), True
    return True, tensor.is_contiguous()


# shared_backbones and systems on a tiny set


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> ExperimentContext:
    data = make_prepared(tmp_path_factory.mktemp("data") / "prepared", make_collection())
    config = ConceptTrainingConfig(model=NET, epochs=2, batch_size=8, seed=3, precision="float32")
    return ExperimentContext(data, config, SilentCallbacks())


@pytest.fixture(scope="module")
def shared_backbones(context, tmp_path_factory) -> Path:
    """A folder of all shared_backbones."""
    folder = tmp_path_factory.mktemp("shared_backbones")
    for kind in SHARED_BACKBONES:
        (folder / kind).mkdir()
        train_shared_backbone(SHARED_BACKBONES[kind], context, folder / kind)
    return folder


def test_a_shared_backbones_seconds_are_those_of_its_training_and_of_its_features(context, tmp_path, monkeypatch):
    clock = [0.0]

    def taking(function, seconds):
        def run(*given, **named):
            clock[0] += seconds
            return function(*given, **named)

        return run

    monkeypatch.setattr("csr.comparison.shared_backbones.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(shared, "compute_features", taking(shared.compute_features, 2))
    own = replace(context, config=replace(context.config, epochs=1))
    train_shared_backbone(taking(SHARED_BACKBONES["concepts_lse"], 40), own, tmp_path)
    assert open_shared_backbone(tmp_path)[1] == 42


@pytest.mark.parametrize("kind", list(SHARED_BACKBONES))
def test_a_foundation_comes_back_with_its_features_and_the_time_it_took(context, shared_backbones, kind):
    trained, seconds = open_shared_backbone(shared_backbones / kind)
    about = json.loads((shared_backbones / kind / "about.json").read_text())
    assert seconds == about["seconds"] > 0
    assert about["parameters"] == sum(parameter.numel() for parameter in trained.model.parameters())
    cells = SIDE // (16 if kind == "concepts_coarse" else 8)
    data = context.data
    assert trained.cache.cam.shape == (len(data.images), 3, cells, cells)
    rows = np.array([0, 41, 67])
    with torch.no_grad():
        features = trained.model.features(torch.from_numpy(data.images[rows]))
        maps = trained.model.maps(features)
    np.testing.assert_allclose(trained.cache.features[rows], features, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(trained.cache.cam[rows], maps, atol=1e-4, rtol=1e-4)
    assert trained.model.config.pooling == ("lse" if kind in ("concepts_lse", "concepts_coarse") else "average")
    assert trained.model.to_maps.out_channels == len(CLASSES if kind == "classes" else CONCEPTS)


@pytest.mark.parametrize("missing", ["model.pt", "about.json", "features.npy", "cam.npy"])
def test_an_incomplete_foundation_is_named(shared_backbones, tmp_path, missing):
    for file in (shared_backbones / "classes").iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(DataError, match=missing):
        open_shared_backbone(tmp_path)


@pytest.fixture(scope="module")
def robust(context, shared_backbones) -> tuple[System, Result]:
    trained, _ = open_shared_backbone(shared_backbones / "concepts_lse")
    return run_system(ENTRIES["csr_robust"], replace(context, shared_backbone=trained), shared_seconds=1000.0)


def test_csr_is_judged_with_all_its_prototypes_and_one_explanation_a_concept(robust):
    system, result = robust
    assert result.about["prototypes"] == system.prototypes == 3 * 2
    assert result.about["explanations"] == 3
    assert 1000 < result.about["seconds"] < 1100
    assert result.about["parameters"] == sum(parameter.numel() for parameter in system.parameters())
    assert not any(module.training for module in system.modules())


def test_a_result_holds_both_splits_and_the_report_of_the_test_parts(robust, context):
    system, result = robust
    collection = context.data.collection
    for split, found in (("val", result.validation), ("test", result.test)):
        np.testing.assert_array_equal(found.rows, collection.rows(split))
        again = predict(system, context.data, collection.rows(split))
        np.testing.assert_array_equal(found.probabilities, again.probabilities)
        np.testing.assert_array_equal(found.peaks, again.peaks)
    assert result.report == evaluate_predictions(collection, result.test, SIDE)
    assert list(result.report) == ["test"]


def test_a_recipe_and_the_settings_seed_reach_csr(context, shared_backbones):
    trained, _ = open_shared_backbone(shared_backbones / "concepts_average")
    own = replace(context, shared_backbone=trained)
    paper, result = run_system(ENTRIES["csr_paper"], own)
    assert result.about["prototypes"] == paper.csr.reasoner.alive.numel() == 3 * 7
    assert not paper.csr.reasoner.clip and paper.csr.reasoner.floor == "zero"
    _, other = run_system(ENTRIES["csr_paper"], replace(own, config=replace(context.config, seed=4)))
    assert not np.array_equal(result.test.probabilities, other.test.probabilities)


def test_pruned_prototypes_are_not_counted(context, shared_backbones):
    trained, _ = open_shared_backbone(shared_backbones / "concepts_average")
    half = systems({"robust": ROBUST, "paper": replace(PAPER, head=replace(PAPER.head, least_usage=0.15))})["csr_paper"]
    system, result = run_system(half, replace(context, shared_backbone=trained))
    assert 3 <= result.about["prototypes"] == system.prototypes == int(system.csr.reasoner.alive.sum()) < 3 * 7


def test_a_system_trains_for_its_share_of_the_budget(context):
    seen = []

    class Nothing(System):
        config = from_config = None  # never saved

        def answer(self, images):
            n = len(images)
            return Answer(torch.full((n, 3), 1 / 3), None, None, torch.zeros(n))

    def train(own: ExperimentContext) -> System:
        seen.append(own.config.epochs)
        return Nothing()

    own = replace(context, config=replace(context.config, epochs=8))
    for share in (1.0, 0.5):
        _, result = run_system(replace(ENTRIES["black_box"], train=train, epochs=share), own)
    assert seen == [8, 4]
    assert result.about["prototypes"] == result.about["parameters"] == 0


# everything in one call

SYSTEMS = ["csr_robust", "black_box", "cbm_shared", "cbm_answered", "intcem_shared", "scbm_shared"]
PAPER_FILE = Path(__file__).parents[3] / "params/presets/paper.yaml"
SIZE = (
    "--train 48 --val 24 --test 24 --side 64 --backbone test_convnext --epochs 1 --batch-size 8 --workers 1 --seeds 0"
)
STRANGERS = ("ray", "mlflow", "dvc", "fastapi", "pydantic", "onnx", "pipelines", "serving")
PROGRAM = f"""
import runpy, sys
import csr.baselines.protocol
csr.baselines.protocol.LEAST_STEPS = 1  # as in this process: bottlenecks have their epochs
runpy.run_module("csr.comparison", run_name="__main__", alter_sys=True)
found = sorted({{name.partition(".")[0] for name in sys.modules}} & set({STRANGERS!r}))
print("strangers:", found)
"""


def call(out: Path, *more: str) -> None:
    """``python -m csr.comparison`` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["comparison", str(out), *SIZE.split(), *more])
        command.main()


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[Path, str]:
    """The folder that a process of its own filled with some systems, and what it printed."""
    out = tmp_path_factory.mktemp("compared")
    arguments = [str(out), *SIZE.split(), "--systems", *SYSTEMS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_one_call_writes_the_report_and_every_run(compared):
    out, _ = compared
    left = {"prepared", "settings.json", "comparison.md", "comparison.html"}
    assert {file.name for file in out.iterdir()} == left | {f"{n}-0.{end}" for n in SYSTEMS for end in ("json", "npz")}
    markdown, page = (out / "comparison.md").read_text(), (out / "comparison.html").read_text()
    for name in SYSTEMS:
        report = json.loads((out / f"{name}-0.json").read_text())
        assert (report["system"], report["seed"], report["title"]) == (name, 0, ENTRIES[name].title)
        assert set(report) >= {"iid", "shifted", "prototypes", "explanations", "parameters", "seconds"}
        assert report["seconds"] > 0 and report["parameters"] > 10_000
        assert f"{report['iid']['macro_f1']:.3f}" in markdown
        assert markdown.count(f"| {report['title']} |") >= 5 and report["title"].partition("'")[0] in page
    assert 10 <= json.loads((out / "csr_robust-0.json").read_text())["prototypes"] <= 10 * 5  # without unused ones
    assert "Comparison: 48 images, 64², test_convnext" in markdown


def test_it_imports_none_of_the_pipelines_or_servers_frameworks(compared):
    assert compared[1].splitlines()[-1] == "strangers: []"


def test_a_stopped_comparison_goes_on_and_trains_what_is_left(compared, capsys):
    """Here all other systems but what needs an encoder, which thereby run on the phantom once each."""
    out, _ = compared
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*-0.*")}
    call(out, "--paper", str(PAPER_FILE))
    printed = capsys.readouterr().out
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert "drawing" not in printed and "seed 0: concepts_lse" not in printed
    assert "label_free_cbm" not in printed
    for name, entry in ENTRIES.items():
        if entry.encoder:
            continue
        assert (f"seed 0: {name}\n" in printed) == (name not in SYSTEMS)
        assert f"| {entry.title} |" in (out / "comparison.md").read_text()
        report = json.loads((out / f"{name}-0.json").read_text())
        assert 0 <= report["iid"]["macro_f1"] <= 1 and 0 <= report["shifted"]["pointing_game"]["pair"] <= 1
        assert (report["iid"]["concept_auroc"] is not None) == (
            name.startswith(("csr", "cbm", "intcem", "posthoc", "scbm"))
        )
    call(out)  # all but csr_paper, which has no file now
    assert "seed 0" not in capsys.readouterr().out
    assert "CSR, to the letter" not in (out / "comparison.md").read_text()


def test_a_folder_holds_one_comparison(compared):
    out, _ = compared
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.raises(SystemExit) as caught:
        call(out, "--train", "50", "--systems", "pipnet")
    message = str(caught.value.code)
    assert message.startswith("comparison: ") and "settings.json: the runs here have train 48, not 50" in message
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_csr_to_the_letter_is_what_its_file_says(compared, tmp_path):
    out, _ = compared
    letter = command.read_recipe(PAPER_FILE)
    assert (letter.prototypes.per_concept, letter.prototypes.gamma, letter.head.floor) == (100, 1000, "zero")
    other = tmp_path / "other.yaml"
    other.write_text(PAPER_FILE.read_text().replace("gamma: 1000.0", "gamma: 900.0"))
    with pytest.raises(SystemExit, match=r"settings\.json: the runs here have another --paper"):
        call(out, "--paper", str(other))
    with pytest.raises(SystemExit, match="csr_paper needs --paper FILE"):
        call(tmp_path / "new", "--systems", "csr_paper")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prototypes: {gama: 3}\nhead: {}\n", "unknown key 'prototypes.gama'"),
        ("prototypes: {}\n", "has no section 'head'"),
        ("[1", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_mistake_in_that_file_is_named(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "paper.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"paper\.yaml: {sentence}"):
        command.read_recipe(tmp_path / "paper.yaml")


def test_a_missing_split_or_an_unknown_system_ends_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        call(tmp_path / "small", "--val", "2")
    assert str(caught.value.code).startswith("comparison: ") and "no study in split 'val'" in str(caught.value)
    with pytest.raises(SystemExit):
        call(tmp_path / "unknown", "--systems", "csr_rebust")
    assert "invalid choice: 'csr_rebust'" in capsys.readouterr().err
    assert not (tmp_path / "unknown").exists()


def test_without_our_system_there_is_nothing_to_set_the_others_against(compared, capsys):
    out, _ = compared
    before = (out / "comparison.md").stat().st_mtime_ns
    call(out, "--systems", "black_box")
    assert "no report" in capsys.readouterr().out
    assert (out / "comparison.md").stat().st_mtime_ns == before
