"""The CSR paper's protocol on a data set as published, and our numbers beside those that the paper prints.

    python -m pipelines.reproduce {tbx11k,vindr_cxr,isic2017} FOLDER [--out OUT] [-S section.key=value ...]

FOLDER is the data set as its publisher ships it (docs/published_data.md). The overlay ``params/reproduce/<set>.yaml``
is laid over ``params.yaml``, ``-S`` over both; presets ``paper`` and ``robust`` are trained on the same backbone,
images, splits and budget, with every seed of ``comparison.seeds``. All of it lies in OUT (``build/reproduce/<set>``),
the report as ``<set>.md`` and ``.html``. What is done is not repeated, a stage that was stopped goes on from its last
epoch; ``settings.json`` keeps runs with other settings out of the folder. Features are removed once a run has its
numbers.

Rivals are not trained here: their published numbers stand beside ours, and `make compare` trains them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from csr.data.html_report import to_html, to_markdown
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, CSRError, DataError
from csr.evaluation.evaluate import evaluate_predictions, pointing_by_concept, rounded
from csr.network.checkpoint import Checkpoint, Kind, read_checkpoint, write_checkpoint
from csr.network.prototypes import prototype_model_checkpoint, prototype_model_from_checkpoint
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks, State
from csr.training.concepts import train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import train_head
from csr.training.located import attended_cache
from csr.training.prediction import predict
from csr.training.prototypes import train_prototypes
from csr.training.runtime import use_device
from csr.training.temperature import calibrate_temperature
from pipelines.overlay import merged
from pipelines.params import PARAMS_FILE, PRESETS, Params, parse_params
from pipelines.prepare import prepare_real
from pipelines.reproduce_report import SETS, STAGES, TITLES, report_sections
from pipelines.stage import cores
from pipelines.training import LocalCallbacks

OVERLAYS = Path("params/reproduce")
OPEN = "# open: "  # begins a line of an overlay that says what the paper leaves open and how it is set


class TimedCallbacks(LocalCallbacks):
    """Keeps a checkpoint each epoch, as the stages do, and how long each epoch took."""

    def __init__(self, stage: str, folder: Path) -> None:
        super().__init__(stage, folder)
        self._since = time.perf_counter()

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        now = time.perf_counter()
        super().epoch({**metrics, "seconds": now - self._since}, state)
        self._since = now
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self.history[-1].items())
        print(f"  {self._stage}  {shown}", flush=True)


@dataclass(frozen=True)
class Run:
    """One preset with one seed.

    Args:
        folder: what it has made so far.
        params: whose ``seed`` of every stage is this run's.
    """

    folder: Path
    params: Params

    def stage(self, name: str, kind: Kind, train: Callable[[Callbacks], Checkpoint]) -> Checkpoint:
        """What a training stage made, now or earlier. ``kind`` is what its checkpoint says it holds."""
        file, state = self.folder / f"{name}.pt", self.folder / "state" / name
        if not file.is_file():
            callbacks = TimedCallbacks(name, state)
            content = train(callbacks)
            seconds = sum(epoch["seconds"] for epoch in callbacks.history)
            self.note(name, {"seconds": seconds, "epochs": len(callbacks.history)})
            draft = file.with_suffix(".draft")
            write_checkpoint(content, draft)
            draft.rename(file)
            shutil.rmtree(state, ignore_errors=True)
        return read_checkpoint(file, kind)

    def note(self, name: str, cost: dict[str, float]) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(cost) + "\n")


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="default: build/reproduce/<set>")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    out = given.out or Path("build/reproduce") / given.set
    try:
        print(reproduce(given.set, given.folder, out, given.set_param))
    except CSRError as error:
        sys.exit(f"reproduce: {error}")


def reproduce(name: str, folder: Path, out: Path, settings: Sequence[str] = ()) -> str:
    """Trains and judges what is not there yet, writes the report and returns it as Markdown.

    Args:
        name: of a set in `SETS`.
        folder: the data set as published.
        out: where everything goes.
        settings: ``section.key=value`` over the overlay.

    Raises:
        ConfigError: a setting that is none, or a folder that holds runs with other settings.
        DataError: the data set is not there, or something is wrong with it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {SETS[name].get}")
    overlay = OVERLAYS / f"{name}.yaml"
    params = {preset: read_params(overlay, folder, settings, preset) for preset in TITLES}
    out.mkdir(parents=True, exist_ok=True)
    _claim(out / "settings.json", {"data": str(folder.resolve())} | {preset: asdict(p) for preset, p in params.items()})
    shared = params["robust"]
    use_device(shared.train.device)
    if shared.train.threads:
        torch.set_num_threads(shared.train.threads)
    data = _prepared(shared, out / "prepared")
    for seed in shared.comparison.seeds:
        for preset, each in params.items():
            run = Run(out / f"{preset}-{seed}", _seeded(each, seed))
            if not (run.folder / "metrics.json").is_file():
                print(f"{TITLES[preset]}, seed {seed}", flush=True)
                _train_and_judge(run, data, seed)
    title = f"CSR's protocol on {SETS[name].title}"
    sections = report_sections(name, out, data, shared, open_points(overlay.read_text()))
    text = to_markdown(title, sections)
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.html").write_text(to_html(title, sections))
    return text


def read_params(overlay: Path, folder: Path, settings: Sequence[str], preset: str) -> Params:
    """``params.yaml`` with the overlay and the settings laid over it, in that order.

    Raises:
        ConfigError: a setting that is not ``section.key=value``, or that the parameters do not know.
    """
    content = merged(yaml.safe_load(PARAMS_FILE.read_text()), yaml.safe_load(overlay.read_text()))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise ConfigError(f"{setting!r} is not of the form section.key=value")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{setting!r}: {text!r} is not a value in YAML") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        content = merged(content, value)
    content = merged(content, {"preset": preset, "data": {"path": str(folder)}})
    return parse_params(content, f"{overlay} over {PARAMS_FILE}", PRESETS)


def open_points(overlay: str) -> list[str]:
    """What the paper leaves open and how an overlay sets it, as the overlay's own comments say."""
    return [line.removeprefix(OPEN) for line in overlay.splitlines() if line.startswith(OPEN)]


def _claim(file: Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings in the folder, unless runs with others are in it. Where it runs makes no difference."""
    plain = json.loads(json.dumps(settings, default=str))
    for preset in TITLES:
        del plain[preset]["train"], plain[preset]["comparison"]
    noted = json.loads(file.read_text()) if file.is_file() else plain
    if noted != plain:
        differing = ", ".join(sorted(_differing(noted, plain)))
        raise ConfigError(f"{file}: the runs here have other settings ({differing}); give another folder, or remove it")
    file.write_text(json.dumps(plain, indent=2) + "\n")


def _differing(one: Any, other: Any, name: str = "") -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [name]
    keys = one.keys() | other.keys()
    return [found for key in keys for found in _differing(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))]


def _prepared(params: Params, path: Path) -> PreparedSet:
    if not path.is_dir():
        gpu = params.train.gpu == "auto" and torch.cuda.is_available()
        prepare_real(params.data, path, params.data.workers or cores(), torch.device("cuda" if gpu else "cpu"))
    return PreparedSet.open(path)


def _seeded(params: Params, seed: int) -> Params:
    return replace(
        params,
        concepts=replace(params.concepts, seed=seed),
        prototypes=replace(params.prototypes, seed=seed),
        head=replace(params.head, seed=seed),
    )


def _train_and_judge(run: Run, data: PreparedSet, seed: int) -> None:
    """The three stages and the numbers, ``metrics.json``."""
    collection, params = data.collection, run.params
    run.folder.mkdir(parents=True, exist_ok=True)

    def concepts(callbacks: Callbacks) -> Checkpoint:
        return concept_model_checkpoint(train_concepts(data, params.concepts, callbacks))

    concept_model = concept_model_from_checkpoint(run.stage("concepts", "concept model", concepts))
    features = run.folder / "features"
    if not features.is_dir():
        draft, start = run.folder / "features.draft", time.perf_counter()
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        precision = params.concepts.precision
        compute_features(concept_model, data, draft, TimedCallbacks("features", draft), precision=precision)
        run.note("features", {"seconds": time.perf_counter() - start})
        draft.rename(features)
    stage2 = params.prototypes
    cache = attended_cache(data, FeatureCache.open(features), stage2.located, stage2.reader_boxes)

    def prototypes(callbacks: Callbacks) -> Checkpoint:
        return prototype_model_checkpoint(train_prototypes(collection, cache, stage2, callbacks))

    prototype_model = prototype_model_from_checkpoint(run.stage("prototypes", "prototype model", prototypes))

    def head(callbacks: Callbacks) -> Checkpoint:
        reasoner = train_head(collection, cache, prototype_model, params.head, callbacks, side=data.side)
        csr = TrainedCSR(concept_model, prototype_model, reasoner, collection.concepts, collection.classes)
        calibrate_temperature(data, cache, csr)
        return csr.to_checkpoint()

    run.stage("head", "trained CSR", head)
    csr = TrainedCSR.load(run.folder / "head.pt")
    predictions = predict(data, cache, csr)
    report = {
        "seed": seed,
        "parts": evaluate_predictions(collection, predictions, data.side),
        "by_concept": pointing_by_concept(collection, predictions, data.side),
        "prototypes": int(csr.reasoner.alive.sum()),
        "cost": {name: json.loads((run.folder / f"{name}.json").read_text()) for name in STAGES},
    }
    (run.folder / "metrics.json").write_text(json.dumps(rounded(report), indent=2) + "\n")
    shutil.rmtree(features)


if __name__ == "__main__":
    main()
