"""What a sweep tries: keys of ``params.yaml``, each with values or a range, and the settings drawn from them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from csr.errors import ConfigError
from csr.training.runtime import seeds
from pipelines.flatten import flatten
from pipelines.params import PARAMS_FILE, PRESETS, Params, parse_params

Stage = Literal["concepts", "prototypes", "head"]
STAGES: tuple[Stage, ...] = ("concepts", "prototypes", "head")  # sections whose keys can be swept
RANGES = ("log", "uniform", "int")
_EXAMPLE = "such as concepts.learning_rate=log:0.001:0.01, head.epochs=int:10:60 or concepts.model.stride=8,16"
_SOURCE = "sweep"


@dataclass(frozen=True)
class Knob:
    """One key and what it may be.

    Args:
        kind: ``choice`` of the values, or from the first to the second of them: evenly on a logarithmic scale (``log``)
            or a plain one (``uniform``), or whole numbers (``int``), both ends included.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        """One value; numbers have three digits, which a person can read and type."""
        if self.kind == "choice":
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "int":
            return int(random.integers(low, high + 1))
        share = float(random.uniform())
        value = low * (high / low) ** share if self.kind == "log" else low + (high - low) * share
        return float(min(max(float(f"{value:.3g}"), low), high))


def parse_knob(text: str, params: Params) -> Knob:
    """Reads ``KEY=VALUES``: ``log:LOW:HIGH``, ``uniform:LOW:HIGH``, ``int:LOW:HIGH``, or values with commas between.

    Raises:
        ConfigError: it has another form, a sweep cannot have that key, or the range is none.
    """
    key, found, values = text.partition("=")
    key = key.strip()
    if not found or not values.strip():
        raise ConfigError(f"-S {text!r}: must be KEY=VALUES, {_EXAMPLE}")
    _check_key(key, params)
    kind, *ends = values.strip().split(":")
    if kind in RANGES:
        return Knob(key, kind, _ends(key, kind, ends))
    choices = yaml.safe_load(f"[{values}]") if not values.lstrip().startswith("[") else yaml.safe_load(values)
    if ends and not any(isinstance(each, dict) for each in choices):
        raise ConfigError(f"-S {text!r}: {kind!r} is no range; there are {', '.join(RANGES)}")
    if len({repr(each) for each in choices}) < len(choices):
        raise ConfigError(f"-S {text!r}: names a value twice")
    return Knob(key, "choice", tuple(choices))


def _check_key(key: str, params: Params) -> None:
    known = flatten(params)
    section = key.partition(".")[0]
    if key in known and section not in STAGES:
        raise ConfigError(
            f"{key}: belongs to {section!r}, and a sweep is over {', '.join(STAGES)}: it trains on the data that are "
            f"prepared. Change it with dvc exp run -S {key}=..."
        )
    sweepable = [name for name in known if name.partition(".")[0] in STAGES]
    if key not in sweepable:
        (near,) = difflib.get_close_matches(key, sweepable, n=1, cutoff=0)
        raise ConfigError(f"unknown key {key!r}; did you mean {near!r}?")


def _ends(key: str, kind: str, ends: Sequence[str]) -> tuple[Any, Any]:
    try:
        number = int if kind == "int" else float
        low, high = (number(each) for each in ends)
    except ValueError:
        what = "two whole numbers" if kind == "int" else "two numbers"
        raise ConfigError(f"{key}: {kind}: needs {what}, {kind}:LOW:HIGH, got {':'.join(ends)!r}") from None
    if not low < high or not np.isfinite([low, high]).all():
        raise ConfigError(f"{key}: {kind}:{low}:{high} is empty; the first number must be the smaller one")
    if kind == "log" and low <= 0:
        raise ConfigError(f"{key}: log:{low}:{high} must begin above 0")
    return low, high


def stage_of(knobs: Sequence[Knob]) -> Stage:
    """The stage that a sweep begins with: the first that one of its keys changes.

    Raises:
        ConfigError: no key, a key twice, or keys of stage 1 together with keys of what rests on it.
    """
    if not knobs:
        raise ConfigError(f"name at least one key to sweep: -S KEY=VALUES, {_EXAMPLE}")
    keys = [knob.key for knob in knobs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"{twice}: is swept twice")
    sections = {key.partition(".")[0] for key in keys}
    if "concepts" in sections and len(sections) > 1:
        raise ConfigError(
            f"keys of concepts, judged by the concepts' AUROC, and of {' and '.join(sorted(sections - {'concepts'}))}, "
            "judged by the classes', cannot be swept together; sweep stage 1 first, then what rests on it"
        )
    return next(stage for stage in STAGES if stage in sections)


def settings_of(knobs: Sequence[Knob], trials: int, params: Params) -> list[dict[str, Any]]:
    """The settings of each trial. Trial 0 has none: it is ``params.yaml`` as it is, to which the others compare.

    The others are drawn, with numbers that depend on the trial alone; where every knob is a choice they are the
    combinations, in random order and each once, so there may be fewer of them than asked for.
    """
    if trials < 2:
        raise ConfigError(f"--trials: must be 2 or more, the first being params.yaml as it is, got {trials}")
    keys = [knob.key for knob in knobs]
    if any(knob.kind != "choice" for knob in knobs):
        drawn = [_drawn(knobs, number) for number in range(1, trials)]
        return [{}, *({key: each[key] for key in keys} for each in drawn)]
    current = flatten(params)
    combinations = [dict(zip(keys, each, strict=True)) for each in itertools.product(*(knob.values for knob in knobs))]
    others = [each for each in combinations if any(current[key] != value for key, value in each.items())]
    order = np.random.default_rng(seeds(0, "sweep")).permutation(len(others))
    return [{}, *(others[place] for place in order[: trials - 1])]


def _drawn(knobs: Sequence[Knob], number: int) -> dict[str, Any]:
    random = np.random.default_rng(seeds(0, "sweep", number))
    return {knob.key: knob.draw(random) for knob in knobs}


def with_settings(file: Path, settings: Mapping[str, Any]) -> Params:
    """``params.yaml`` with settings in place of its own, checked.

    Raises:
        ConfigError: a value is of the wrong type or range.
    """
    content = yaml.safe_load(file.read_text())
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = content
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[name] = value
    return parse_params(content, _SOURCE, file.parent / PRESETS)


def check_values(knobs: Sequence[Knob], file: Path = PARAMS_FILE) -> None:
    """Tries every value and both ends of every range, so that a mistake in one costs no training.

    Raises:
        ConfigError: a value is of the wrong type or range.
    """
    for knob in knobs:
        for value in knob.values:
            with_settings(file, {knob.key: value})
