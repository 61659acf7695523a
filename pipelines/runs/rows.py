"""What a row of MLflow's table says of itself: a name, where it comes from, the data, and the result in a sentence."""

from __future__ import annotations

import getpass
import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Run, SourceType
from mlflow.utils import mlflow_tags

from csr.data.prepared import PreparedSet
from csr.errors import ConfigError
from pipelines.digests import path_digest
from pipelines.flatten import flatten
from pipelines.imports import ROOT
from pipelines.revision import revision

if TYPE_CHECKING:
    from pipelines.params import DataParams, Params

REVISION = "git.revision"  # tag: as manifests name it, with -dirty
CONTEXTS = {"train": "training", "val": "validation", "test": "evaluation"}  # MLflow's words for what a split is for
_NOT_SHOWN = ("train.", "comparison.", "data.workers", "evaluate.")  # these change no figure
_RESULTS = {"macro_f1": "macro F1", "concept_auroc": "concept AUROC", "pointing_pair": "pointing game"}
_SHOWN = 4  # differences in a name
_DIGEST = 12  # digits of a data set's that its column shows; the tag data.digest has all 64, MLflow keeps up to 36


@cache
def source_tags(source: str) -> dict[str, str]:
    """MLflow's own tags of who made a run, with which code.

    Args:
        source: the file that a person would open, relative to the project.
    """
    code = revision()
    tags = {
        mlflow_tags.MLFLOW_USER: _user(),
        mlflow_tags.MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.LOCAL),
        mlflow_tags.MLFLOW_SOURCE_NAME: source,
        REVISION: code,
    }
    if code != "unknown":
        tags[mlflow_tags.MLFLOW_GIT_COMMIT] = code.removesuffix("-dirty")
        tags[mlflow_tags.MLFLOW_GIT_DIRTY] = str(code.endswith("-dirty")).lower()
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user without a name
        return "unknown"


def differences(params: Params) -> dict[str, Any]:
    """Parameters that are not the preset's defaults, by the shortest name that tells them from all others.

    First come those in which the committed ``params.yaml`` differs too: what this run, of those made of it, is about.
    """
    from pipelines.params import PRESETS, parse_params  # brings torch, timm and ONNX

    model = params.concepts.model
    weights = {"pretrained": model.pretrained, "checkpoint": model.checkpoint}  # other defaults fit them
    usual = {"preset": params.preset, "concepts": {"model": weights}}
    default = flatten(parse_params(usual, presets=ROOT / PRESETS)) | {
        "concepts.model.pretrained": False,
        "concepts.model.checkpoint": None,
    }
    given = flatten(params)
    changed = [
        name
        for name, value in given.items()
        if not name.startswith((*_NOT_SHOWN, "preset", "data.source")) and value != default.get(name)
    ]
    committed = _committed()
    changed.sort(key=lambda name: given[name] == committed.get(name, given[name]))
    return {short_name(name, given): given[name] for name in changed}


@cache
def _committed() -> Mapping[str, Any]:
    """The parameters of the git revision, flattened; none where it has no valid ones."""
    from pipelines.params import PARAMS_FILE, PRESETS, parse_params

    command = ["git", "show", f"HEAD:./{PARAMS_FILE}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return flatten(parse_params(yaml.safe_load(found.stdout), presets=ROOT / PRESETS))
    except (ConfigError, yaml.YAMLError):
        return {}


def short_name(name: str, all_names: Mapping[str, Any]) -> str:
    """The last part of a key if no other key ends so, else with what stands before it.

    >>> short_name("data.side", {"data.side": 1, "head.epochs": 2, "concepts.epochs": 3})
    'side'
    >>> short_name("head.epochs", {"data.side": 1, "head.epochs": 2, "concepts.epochs": 3})
    'head.epochs'
    """
    parts = name.split(".")
    for count in range(1, len(parts)):
        short = ".".join(parts[-count:])
        if sum(other == short or other.endswith(f".{short}") for other in all_names) == 1:
            return short
    return name


def said(settings: Mapping[str, Any], shown: int = _SHOWN) -> str:
    """Settings as ``key=value``, the first few of them."""
    listed = [f"{name}={_short(value)}" for name, value in settings.items()]
    more = len(listed) - shown
    return " ".join(listed[:shown] + ([f"+{more} more"] if more > 0 else []))


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def run_name(params: Params) -> str:
    """Preset and data, and what differs from the default: ``robust-phantom side=128``."""
    return f"{params.preset}-{params.data.source} {said(differences(params))}".strip()


def data_inputs(params: DataParams, prepared: Path, splits: tuple[str, ...]) -> list[DatasetInput]:
    """The prepared set as inputs of a run, one a split: its name, its digest and where it came from."""
    data = PreparedSet.open(prepared)
    digest, collection = path_digest(prepared)[:_DIGEST], data.collection
    kind: str
    source: dict[str, Any]
    if params.source == "phantom":
        kind, source = "code", {"tags": {"mlflow.source.name": "csr/data/phantom", **flatten(params.phantom)}}
    else:
        kind, source = "local", {"uri": params.path}
    if params.feedback is not None:
        source["feedback"] = params.feedback
    made = []
    for split in splits:
        profile = {
            "studies": len(collection.rows(split)),
            "side": data.side,
            "classes": list(collection.classes),
            "concepts": list(collection.concepts),
        }
        name, text = f"{collection.name} {split}", json.dumps(source, default=str)
        dataset = Dataset(name, digest, kind, text, profile=json.dumps(profile))
        made.append(DatasetInput(dataset, [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, CONTEXTS[split])]))
    return made


def note(run: Run, differs: Mapping[str, Any], taken: Mapping[str, Run | None]) -> str:
    """The result of a pass in a sentence, its data, what differs from the default, and what other passes made, in
    Markdown.

    Args:
        run: the pass.
        taken: stages that other passes ran, with their run, or None where MLflow knows none.
    """
    sentences = [f"**{result(run.data.metrics)}.**"] if result(run.data.metrics) else []
    inputs = run.inputs.dataset_inputs if run.inputs else []
    if inputs:
        sets = {_split(each): json.loads(each.dataset.profile or "{}").get("studies") for each in inputs}
        counts = ", ".join(f"{count} studies for {CONTEXTS[split]}" for split, count in sets.items())
        first = inputs[0].dataset
        sentences.append(f"Data: {first.name.rpartition(' ')[0]} {first.digest[:8]} ({counts}).")
    told = said(differs, len(differs))
    sentences.append(f"Differs from the default in: {told}." if told else "The preset's defaults.")
    for origin in {each.info.run_id: each for each in taken.values() if each is not None}.values():
        stages = ", ".join(name for name, each in taken.items() if each is not None and _same(each, origin))
        link = f"#/experiments/{origin.info.experiment_id}/runs/{origin.info.run_id}"
        sentences.append(f"Made by [{origin.info.run_name}]({link}), figures taken from there: {stages}.")
    if lost := [name for name, each in taken.items() if each is None]:
        sentences.append(f"Made by a run that this store does not have: {', '.join(lost)}.")
    return "\n\n".join(sentences)


def result(metrics: Mapping[str, float]) -> str:
    """What ``evaluate`` found, as a sentence without its full stop; nothing before it ran."""
    parts = sorted({name.rpartition(".")[0] for name in metrics if name.rpartition(".")[2] in _RESULTS})
    told = []
    for metric, words in _RESULTS.items():
        figures = [f"{metrics[f'{part}.{metric}']:.3f} on {part}" for part in parts if f"{part}.{metric}" in metrics]
        if figures:
            told.append(f"{words} {' and '.join(figures)}")
    text = ", ".join(told)
    return text[:1].upper() + text[1:]


def _split(each: DatasetInput) -> str:
    return each.dataset.name.rpartition(" ")[2]


def _same(one: Run, other: Run) -> bool:
    return bool(one.info.run_id == other.info.run_id)
