"""``params.yaml``: what is accepted, what is refused, and how presets fill it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from csr.bundle.writing import ExportConfig
from csr.errors import ConfigError
from csr.network.weights import Preprocessing
from csr.training.concepts import ConceptTrainingConfig
from csr.training.fine_tuning import PRETRAINED, SCRATCH, Tuning
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig
from pipelines import overlay
from pipelines.flatten import flatten
from pipelines.params import Params, load_params, parse_params
from tests.pipelines.conftest import PRESETS, ROOT

SHIPPED = ROOT / "params.yaml"


def parse(content: object) -> Params:
    return parse_params(content, presets=PRESETS)


def leaves(value: object, prefix: str = "") -> set[str]:
    """Names of all keys, sections dotted."""
    if not isinstance(value, dict):
        return {prefix}
    return set().union(*(leaves(inner, f"{prefix}.{name}" if prefix else name) for name, inner in value.items()))


def test_the_shipped_file_is_valid_and_robust() -> None:
    params = load_params(SHIPPED)
    assert params.preset == "robust"
    assert params.concepts.model.pooling == "lse"


def test_the_shipped_file_names_every_key() -> None:
    assert leaves(yaml.safe_load(SHIPPED.read_text())) == set(flatten(load_params(SHIPPED)))


def test_the_shipped_file_holds_the_defaults_of_the_dataclasses() -> None:
    """Whoever imports csr without params.yaml trains the same model; null keys take the preset's values."""
    assert flatten(load_params(ROOT / "params.yaml")) == flatten(Params("robust"))


@pytest.mark.parametrize("preset", ["paper", "robust"])
def test_null_takes_the_presets_value_and_a_value_overrides_it(preset: str) -> None:
    values = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
    filled = parse({"preset": preset, "prototypes": {"gamma": None}})
    assert filled.prototypes.gamma == values["prototypes"]["gamma"]
    assert filled.concepts.model.pooling == values["concepts"]["model"]["pooling"]
    assert parse({"preset": preset, "prototypes": {"gamma": 7}}).prototypes.gamma == 7


def test_the_robust_preset_is_what_the_configurations_default_to() -> None:
    """So `python -m csr.comparison`, which reads no parameters, trains the same CSR as the pipeline."""
    values = yaml.safe_load((PRESETS / "robust.yaml").read_text())
    defaults = {"concepts": ConceptTrainingConfig(), "prototypes": PrototypeConfig(), "head": HeadConfig()}

    def same(value: Any, default: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                same(inner, default[key] if isinstance(default, dict) else getattr(default, key))
        else:
            assert (type(value), value) == (type(default), default)

    same(values, defaults | {"export": ExportConfig()})


def test_both_presets_decide_the_same_keys_which_the_shipped_parameters_leave_to_them() -> None:
    robust, paper, shipped = (
        yaml.safe_load(file.read_text()) for file in (PRESETS / "robust.yaml", PRESETS / "paper.yaml", SHIPPED)
    )
    assert leaves(robust) == leaves(paper)
    for name in leaves(robust):
        value = shipped
        for key in name.split("."):
            value = value[key]
        assert value is None, name


def test_a_preset_of_ones_own_is_a_file_more(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text((PRESETS / "paper.yaml").read_text().replace("gamma: 1000.0", "gamma: 50.0"))
    mine = parse_params({"preset": "mine"}, presets=tmp_path)
    assert (mine.preset, mine.prototypes.gamma, mine.head.floor) == ("mine", 50, "zero")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("gamma:", "gama:", "bold.yaml: unknown key 'prototypes.gama'; did you mean 'prototypes.gamma'"),
        ("head:", "haed:", "bold.yaml: unknown key 'haed'; did you mean 'head'"),
        ("floor: zero", "floor: none", "bold.yaml: head.floor: Input should be"),
        ("sharpness: 1.0", "sharpness: soft", "bold.yaml: concepts.model.sharpness: Input should be a valid number"),
        ("export:\n  rejection: zero\n", "", "bold.yaml: has no section 'export'"),
        ("head:", "data: {side: 64}\nhead:", "bold.yaml: data: a preset holds concepts, prototypes, head, export only"),
        ("concepts:", "concepts: [", "bold.yaml: is not YAML"),
    ],
)
def test_a_mistake_in_a_preset_names_its_file_and_key(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    text = (PRESETS / "paper.yaml").read_text()
    assert old in text
    (tmp_path / "bold.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        parse_params({"preset": "bold"}, presets=tmp_path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_without_presets_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which has none; run this from the project's folder, got 'robust'"):
        parse_params({"preset": "robust"}, presets=tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"preset": "robust", "prototypes": {"gama": 3}},
            "unknown key 'prototypes.gama'; did you mean 'prototypes.gamma'",
        ),
        ({"preset": "robust", "concept": {}}, "did you mean 'concepts'"),
        ({"preset": "robust", "data": {"phantom": {"sed": 1}}}, "did you mean 'data.phantom.seed'"),
        ({"preset": "bold"}, "preset: must be one of paper, robust, got 'bold'"),
        ({}, "preset: must be one of"),
        ({"preset": "robust", "concepts": {"epochs": "many"}}, "concepts.epochs"),
        ({"preset": "robust", "data": {"channels": 2}}, "data.channels"),
        (
            {"preset": "robust", "concepts": {"batch_size": 16}, "train": {"workers": 17}},
            "params.yaml: concepts.batch_size: 16 images, of all workers together, are fewer than the 17 workers",
        ),
        ({"preset": "robust", "concepts": {"batch_size": 65}, "train": {"workers": 65}}, "prototypes.batch_size: 64"),
        (
            {"preset": "robust", "train": {"workers": 2, "least_workers": 3}},
            "train.least_workers: must be null or 1 to train.workers, which is 2; got 3",
        ),
        ({"preset": "robust", "train": {"least_workers": 1}}, "which is 0; got 1"),
        ({"preset": "robust", "concepts": {"freeze": "some"}}, "or Input should be 'all', got 'some'"),
        ({"preset": "robust", "concepts": {"freeze": 2}}, "params.yaml: concepts.freeze: there are no pretrained"),
        ({"preset": "robust", "concepts": {"layer_decay": 2}}, "params.yaml: concepts.layer_decay: must be above 0"),
        (
            {"preset": "robust", "concepts": {"precision": "half"}},
            "concepts.precision: Input should be 'auto', 'float32', 'bfloat16' or 'float16', got 'half'",
        ),
        (
            {"preset": "robust", "prototypes": {"per_concept": "many"}},
            "prototypes.per_concept: Input should be a valid integer, unable to parse string as an integer "
            "or Input should be 'auto', got 'many'",
        ),
        ({"preset": "robust", "prototypes": {"per_concept": 0}}, "prototypes.per_concept: needs at least one"),
        (
            {"preset": "robust", "export": {"abstain_risk": 5}},
            "export.abstain_risk: 5.0 is neither between 0 and 1 nor",
        ),
        (
            {"preset": "robust", "export": {"abstain_risk": "some"}},
            "export.abstain_risk: Input should be a valid number",
        ),
        ({"preset": "robust", "data": {"phantom": {"label_noise": 2}}}, "label_noise: 2.0 is outside 0..1"),
        ({"preset": "robust", "data": {"phantom": {"shortcut_target": "flu"}}}, "'flu' is none of"),
        ({"preset": "robust", "concepts": {"model": {"pooling": "max"}}}, "concepts.model.pooling"),
        ("text", "must hold sections"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(content: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: missing"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: is not YAML"):
        load_params(tmp_path / "bad.yaml")


def test_the_number_of_prototypes_may_be_auto() -> None:
    assert parse({"preset": "robust", "prototypes": {"per_concept": "auto"}}).prototypes.per_concept == "auto"


def test_a_model_abstains_only_if_it_is_told_to() -> None:
    assert load_params(SHIPPED).export.abstain_risk is None
    assert parse({"preset": "robust", "export": {"abstain_risk": 0.05}}).export.abstain_risk == 0.05


def test_flatten_names_nested_keys() -> None:
    flat = flatten(parse({"preset": "paper"}))
    assert flat["concepts.model.pooling"] == "average"
    assert flat["data.phantom.seed"] == 7


def test_an_overlay_becomes_one_command_of_dvc_with_the_stages_last(monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {side: 160}\nconcepts: {epochs: 3}\n")
    taken = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["overlay", str(tmp_path / "mine.yaml"), "-S", "data.path=here", "prepare"])
    monkeypatch.setattr(
        overlay.subprocess, "run", lambda command, check: taken.append(command) or SimpleNamespace(returncode=5)
    )
    with pytest.raises(SystemExit) as caught:
        overlay.main()
    settings = ["-S", "data.side=160", "-S", "concepts.epochs=3", "-S", "data.path=here"]
    assert taken == [[sys.executable, "-m", "dvc", "exp", "run", *settings, "prepare"]]
    assert caught.value.code == 5


TUNED = ("learning_rate", "warmup", "decay_norms", "backbone_rate", "layer_decay")


@pytest.mark.parametrize(
    ("model", "fitting"),
    [
        ({}, SCRATCH),
        ({"pretrained": False, "checkpoint": None}, SCRATCH),
        ({"pretrained": True}, PRETRAINED),
        ({"checkpoint": "weights/some.safetensors"}, PRETRAINED),
    ],
)
def test_how_weights_are_trained_on_fits_what_they_are_unless_it_is_said(
    model: dict[str, Any], fitting: Tuning
) -> None:
    shipped = yaml.safe_load(SHIPPED.read_text())
    assert all(shipped["concepts"][key] is None for key in TUNED)
    shipped["concepts"]["model"] |= model
    found = parse(shipped).concepts
    assert {key: getattr(found, key) for key in TUNED} == asdict(fitting)
    shipped["concepts"]["learning_rate"] = 0.25
    told = parse(shipped).concepts
    assert {key: getattr(told, key) for key in TUNED} == asdict(fitting) | {"learning_rate": 0.25}


def test_a_mean_and_a_std_of_ones_own_are_read_and_checked() -> None:
    def normalised(value: object) -> object:
        return parse({"preset": "robust", "concepts": {"model": {"normalisation": value}}}).concepts.model.normalisation

    assert normalised({"mean": [0.5], "std": [0.25]}) == Preprocessing((0.5,), (0.25,))
    assert normalised("images") == "images"
    with pytest.raises(ConfigError, match=r"concepts\.model\.normalisation: mean and std must be as long"):
        normalised({"mean": [0.5], "std": [0.25, 0.5]})
    with pytest.raises(ConfigError, match=r"did you mean 'concepts\.model\.normalisation\.mean'"):
        normalised({"mena": [0.5], "std": [0.25]})
