"""``params.yaml``: what is accepted, what is refused, and how presets fill it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from csr.errors import ConfigError
from csr.presets import PRESETS
from pipelines import overlay
from pipelines.params import Params, flatten, load_params, parse_params

ROOT = Path(__file__).parents[2]


def test_the_shipped_file_is_valid_and_robust() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.preset == "robust"
    assert params.concepts.model.pooling == "lse"


def test_the_shipped_file_names_every_key() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())

    def keys(value: object, prefix: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {prefix}
        return set().union(*(keys(inner, f"{prefix}.{name}" if prefix else name) for name, inner in value.items()))

    assert keys(content) == set(flatten(load_params(ROOT / "params.yaml")))


def test_the_shipped_file_holds_the_defaults_of_the_dataclasses() -> None:
    """Whoever imports csr without params.yaml trains the same model; null keys take the preset's values."""
    assert flatten(load_params(ROOT / "params.yaml")) == flatten(Params("robust"))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_null_takes_the_presets_value_and_a_value_overrides_it(preset: str) -> None:
    filled = parse_params({"preset": preset, "prototypes": {"gamma": None}})
    assert filled.prototypes.gamma == PRESETS[preset]["prototypes"]["gamma"]
    assert filled.concepts.model.pooling == PRESETS[preset]["concepts.model"]["pooling"]
    assert parse_params({"preset": preset, "prototypes": {"gamma": 7}}).prototypes.gamma == 7


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
            {"preset": "robust", "concepts": {"batch_size": 16}, "train": {"workers": 3}},
            "params.yaml: concepts.batch_size: 16 images, of all workers together, cannot be shared evenly by 3 "
            "(train.workers); take a multiple of 3",
        ),
        ({"preset": "robust", "concepts": {"batch_size": 6}, "train": {"workers": 3}}, "prototypes.batch_size: 64"),
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
        parse_params(content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: missing"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: is not YAML"):
        load_params(tmp_path / "bad.yaml")


def test_the_number_of_prototypes_may_be_auto() -> None:
    assert parse_params({"preset": "robust", "prototypes": {"per_concept": "auto"}}).prototypes.per_concept == "auto"


def test_a_model_abstains_only_if_it_is_told_to() -> None:
    assert load_params(ROOT / "params.yaml").export.abstain_risk is None
    assert parse_params({"preset": "robust", "export": {"abstain_risk": 0.05}}).export.abstain_risk == 0.05


def test_flatten_names_nested_keys() -> None:
    flat = flatten(parse_params({"preset": "paper"}))
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
