"""What a sweep tries: what is drawn, and what is refused with a sentence for people."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from csr.errors import ConfigError
from pipelines.flatten import flatten
from pipelines.params import parse_params
from pipelines.sweep.space import Knob, check_values, parse_knob, settings_of, stage_of, with_settings
from tests.pipelines.conftest import PRESETS, ROOT

FILE = ROOT / "params.yaml"
PARAMS = parse_params(yaml.safe_load(FILE.read_text()), presets=PRESETS)


def knobs(*texts: str) -> list[Knob]:
    return [parse_knob(text, PARAMS) for text in texts]


@pytest.mark.parametrize(
    ("text", "knob"),
    [
        ("concepts.learning_rate=log:0.001:0.01", Knob("concepts.learning_rate", "log", (0.001, 0.01))),
        ("head.concept_dropout=uniform:0:0.5", Knob("head.concept_dropout", "uniform", (0.0, 0.5))),
        ("head.epochs=int:10:60", Knob("head.epochs", "int", (10, 60))),
        ("concepts.model.stride=8,16", Knob("concepts.model.stride", "choice", (8, 16))),
        ("concepts.model.context=null,16", Knob("concepts.model.context", "choice", (None, 16))),
        ("concepts.sampling=balanced", Knob("concepts.sampling", "choice", ("balanced",))),
        ("head.clip=true,false", Knob("head.clip", "choice", (True, False))),
    ],
)
def test_a_knob_is_read(text: str, knob: Knob) -> None:
    assert knobs(text) == [knob]
    check_values([knob], FILE)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["concepts.learning_rat=log:0.1:1"], "unknown key 'concepts.learning_rat'; did you mean 'concepts.learning_r"),
        (["learning_rate=1,2"], "unknown key 'learning_rate'; did you mean '"),
        (["data.side=64,96"], r"data.side: belongs to 'data', .* Change it with dvc exp run -S data.side="),
        (["export.alpha=0.1,0.2"], "belongs to 'export'"),
        (["preset=paper"], "belongs to 'preset'"),
        (["concepts.epochs"], "must be KEY=VALUES, such as concepts.learning_rate=log"),
        (["concepts.epochs="], "must be KEY=VALUES"),
        (["concepts.epochs=int:9:3"], "int:9:3 is empty; the first number must be the smaller one"),
        (["concepts.epochs=int:1.5:3"], "int: needs two whole numbers"),
        (["concepts.learning_rate=log:0:1"], "log:0.0:1.0 must begin above 0"),
        (["concepts.learning_rate=log:0.1"], "log: needs two numbers, log:LOW:HIGH, got '0.1'"),
        (["concepts.learning_rate=logg:0.1:1"], "'logg' is no range; there are log, uniform, int"),
        (["concepts.epochs=4,4"], "names a value twice"),
        (["concepts.epochs=twelve"], "sweep: concepts.epochs: .* valid integer.*'twelve'"),
        (["concepts.model.stride=uniform:8:16.5"], "sweep: concepts.model.stride: "),
        (["concepts.epochs=4,6", "head.epochs=10,20"], "cannot be swept together; sweep stage 1 first"),
        (["concepts.epochs=4,6", "concepts.epochs=8,9"], "concepts.epochs: is swept twice"),
        ([], "name at least one key to sweep"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_a_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        given = knobs(*texts)
        stage_of(given)
        check_values(given, FILE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "stage"),
    [
        (["concepts.epochs=4,6", "concepts.clip=null,1.0"], "concepts"),
        (["prototypes.gamma=5,10"], "prototypes"),
        (["head.epochs=10,20", "prototypes.gamma=5,10"], "prototypes"),
        (["head.epochs=10,20"], "head"),
    ],
)
def test_the_keys_decide_what_is_trained(texts: list[str], stage: str) -> None:
    assert stage_of(knobs(*texts)) == stage


def test_draws_lie_in_their_ranges_and_depend_on_the_trial_alone() -> None:
    given = knobs("concepts.learning_rate=log:0.001:0.1", "concepts.epochs=int:3:5", "concepts.model.stride=8,16")
    many, few = settings_of(given, 60, PARAMS), settings_of(given, 3, PARAMS)
    assert few == many[:3] and many[0] == {}
    rates = [each["concepts.learning_rate"] for each in many[1:]]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert 15 < sum(rate < 0.01 for rate in rates) < 45  # as many below the middle of a logarithmic scale as above
    assert {each["concepts.epochs"] for each in many[1:]} == {3, 4, 5}
    assert {each["concepts.model.stride"] for each in many[1:]} == {8, 16}


def test_values_are_tried_in_all_combinations_once_but_for_what_is_set() -> None:
    given = knobs("concepts.model.stride=8,16", "concepts.sampling=plain,balanced")
    found = settings_of(given, 99, PARAMS)
    assert found[0] == {} and len(found) == 4
    assert {tuple(each.values()) for each in found[1:]} == {(8, "balanced"), (16, "plain"), (16, "balanced")}
    assert settings_of(given, 3, PARAMS) == found[:3]
    with pytest.raises(ConfigError, match="--trials: must be 2 or more"):
        settings_of(given, 1, PARAMS)


def test_settings_take_the_place_of_the_files() -> None:
    given: dict[str, Any] = {"concepts.model.stride": 16, "concepts.epochs": 3, "prototypes.gamma": 5.0}
    changed, before = flatten(with_settings(FILE, given)), flatten(PARAMS)
    assert {key: value for key, value in changed.items() if value != before[key]} == given
