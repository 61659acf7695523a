"""The whole comparison in one process, with no pipeline around it: csr's own dependencies are all that it needs.

    python -m csr.comparison OUT [--paper params/presets/paper.yaml] [--train 24000 --side 384 --seeds 0 1 2 ...]

Made for a machine with a GPU, at ten times the default images, 384² and ConvNeXt-T (CSR's backbone); a small call runs
anywhere. Draws a phantom, trains every system with every seed and writes ``comparison.md``, ``comparison.html`` and one
JSON file a run into OUT. A run whose JSON file exists is not repeated, so a stopped comparison goes on where it was;
``settings.json`` keeps one with other settings out of its folder.

``csr_robust`` is CSR by its configurations' defaults. ``csr_paper`` is CSR to the letter: ``--paper`` names the file
that holds what it does otherwise; without it this system is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml

from csr.baselines.protocol import Entry, ExperimentContext, SharedBackbone
from csr.comparison.concept_pointing import concept_pointing_section
from csr.comparison.csr_system import Recipe
from csr.comparison.report import OURS, main_sections
from csr.comparison.runs import read_runs, save_predictions
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.comparison.training import run_system
from csr.data.html_report import to_html, to_markdown
from csr.data.phantom.generate import generate
from csr.data.phantom.plan import PhantomConfig
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, CSRError
from csr.evaluation.evaluate import rounded
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks, State
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig

# options that every run of a folder shares; systems and seeds may be added
SHARED = ("train", "val", "test", "side", "backbone", "epochs", "patience", "batch_size", "learning_rate")


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m csr.comparison", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=24000)
    parser.add_argument("--val", type=int, default=4000)
    parser.add_argument("--test", type=int, default=6000, help="of each half")
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--backbone", default="convnext_tiny")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--patience", type=int, help="epochs without a rise that end a training; --epochs is the cap")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw the phantom; 0: one a core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--paper", type=Path, metavar="FILE", help="CSR to the letter: sections prototypes and head")
    names = list(systems({"robust": Recipe(), "paper": Recipe()}, encoder=False))
    parser.add_argument("--systems", nargs="+", metavar="NAME", choices=names, help="default: all")
    given = parser.parse_args()
    try:
        compare(given)
    except CSRError as error:
        sys.exit(f"comparison: {error}")


def compare(given: argparse.Namespace) -> None:
    """Draws the phantom, trains and judges every system, and writes the report.

    Raises:
        ConfigError: the folder holds a comparison with other settings, or ``csr_paper`` lacks its file.
    """
    recipes = {"robust": Recipe()} | ({"paper": read_recipe(given.paper)} if given.paper else {})
    entries = systems(recipes, encoder=False)  # none knows by name what the phantom shows
    if absent := [name for name in given.systems or () if name not in entries]:
        raise ConfigError(f"{absent[0]} needs --paper FILE, which says what CSR to the letter is")
    given.out.mkdir(parents=True, exist_ok=True)
    _claim(given, recipes)
    data = _phantom(given)
    chosen = {name: entries[name] for name in given.systems or entries}
    for seed in given.seeds:
        config = ConceptTrainingConfig(
            model=ConceptModelConfig(backbone=given.backbone),
            epochs=given.epochs,
            patience=given.patience,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            seed=seed,
        )
        context = ExperimentContext(data, config, _Progress())
        missing = {name: each for name, each in chosen.items() if not (given.out / f"{name}-{seed}.json").is_file()}
        for kind in dict.fromkeys(entry.shared_backbone for entry in missing.values()):
            own = {name: entry for name, entry in missing.items() if entry.shared_backbone == kind}
            _train(own, kind, context, given.out)
    _report(given, data, chosen)


def _phantom(given: argparse.Namespace) -> PreparedSet:
    """The phantom, drawn if it is not there."""
    prepared = given.out / "prepared"
    if not prepared.is_dir():
        phantom = PhantomConfig(train=given.train, val=given.val, test=given.test)
        _say(f"drawing {given.train + given.val + 2 * given.test} images of {given.side}²")
        generate(phantom, given.side, prepared, given.workers or len(os.sched_getaffinity(0)))
    return PreparedSet.open(prepared)


def _train(entries: Mapping[str, Entry], kind: SharedBackbone | None, context: ExperimentContext, out: Path) -> None:
    """Trains, after the shared backbone that they rest on, systems of one seed, and writes what they say and are."""
    seed = context.config.seed
    with tempfile.TemporaryDirectory(dir=out) as folder:
        seconds = 0.0
        if kind is not None:
            _say(f"seed {seed}: {kind}")
            train_shared_backbone(SHARED_BACKBONES[kind], context, Path(folder))
            trained, seconds = open_shared_backbone(Path(folder))
            context = replace(context, shared_backbone=trained)
        for name, entry in entries.items():
            _say(f"seed {seed}: {name}")
            _, result = run_system(entry, context, seconds)
            save_predictions(out / f"{name}-{seed}.npz", result.validation, result.test)
            report = {"system": name, "title": entry.title, "seed": seed, **result.about, **result.report}
            (out / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")


def _report(given: argparse.Namespace, data: PreparedSet, chosen: Mapping[str, Entry]) -> None:
    """Writes ``comparison.md`` and ``comparison.html``."""
    if OURS not in chosen:
        _say(f"no report: it sets every system against {OURS}, which is not among --systems")
        return
    runs = {name: read_runs(given.out, given.out, name, given.seeds, entry.start) for name, entry in chosen.items()}
    title = f"Comparison: {given.train} images, {given.side}², {given.backbone}"
    sections = [
        *main_sections(data.collection, runs),
        *concept_pointing_section(data.collection, runs, data.side),
    ]
    (given.out / "comparison.md").write_text(to_markdown(title, sections))
    (given.out / "comparison.html").write_text(to_html(title, sections))


class _Progress(SilentCallbacks):
    """Prints an epoch a line."""

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        super().epoch(metrics, state)
        print("  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)


def _claim(given: argparse.Namespace, recipes: Mapping[str, Recipe]) -> None:
    """Notes the settings in the folder, unless they differ from those noted there."""
    file, settings = given.out / "settings.json", {name: getattr(given, name) for name in SHARED}
    if "paper" in recipes:
        settings["paper"] = asdict(recipes["paper"])
    noted = {"patience": None} | json.loads(file.read_text()) if file.is_file() else {}
    for name, value in settings.items():
        if noted.get(name, value) != value:
            what = "another --paper" if name == "paper" else f"{name} {noted[name]}, not {value}"
            raise ConfigError(f"{file}: the runs here have {what}; give another folder")
    file.write_text(json.dumps(noted | settings, indent=2) + "\n")


def read_recipe(file: Path) -> Recipe:
    """Stages 2 and 3 as a preset's file says; what it leaves out is as in the recipe ``robust``.

    Raises:
        ConfigError: the file is missing, is not YAML with sections, or has a key that the stage does not.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    configs: dict[str, Any] = {}
    for section, kind in (("prototypes", PrototypeConfig), ("head", HeadConfig)):
        values = content.get(section) if isinstance(content, dict) else None
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: has no section {section!r}")
        known = {each.name for each in fields(kind)}
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(f"{file}: unknown key '{section}.{unknown[0]}'")
        configs[section] = kind(**values)
    return Recipe(**configs)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
