"""The whole comparison in one process, with no pipeline around it: csr's own dependencies are all that it needs.

    python -m csr.comparison OUT [--train 24000 --side 384 --backbone convnext_tiny --seeds 0 1 2 ...]

Made for a machine with a GPU, at ten times the default images, 384² and ConvNeXt-T (CSR's backbone); a small call runs
anywhere. Draws a phantom, trains every system with every seed and writes ``comparison.md``, ``comparison.html`` and one
JSON file a run into OUT. A run whose JSON file exists is not repeated, so a stopped comparison goes on where it was;
``settings.json`` keeps one with other settings out of its folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from csr.baselines.protocol import ExperimentContext
from csr.comparison.csr_system import Recipe
from csr.comparison.report import OURS, main_sections
from csr.comparison.runs import read_runs, save_predictions
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import Entry, run_system, systems
from csr.data.html_report import to_html, to_markdown
from csr.data.phantom.generate import generate
from csr.data.phantom.plan import PhantomConfig
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, CSRError
from csr.evaluation.evaluate import rounded
from csr.network.concept_model import ConceptModelConfig
from csr.presets import PRESETS
from csr.training.callbacks import SilentCallbacks, State
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig

# options that every run of a folder shares; systems and seeds may be added
SHARED = ("train", "val", "test", "side", "backbone", "epochs", "batch_size", "learning_rate")


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
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw the phantom; 0: one a core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", metavar="NAME", choices=list(_entries()), help="default: all")
    given = parser.parse_args()
    try:
        compare(given)
    except CSRError as error:
        sys.exit(f"comparison: {error}")


def compare(given: argparse.Namespace) -> None:
    """Draws the phantom, trains and judges every system, and writes the report.

    Raises:
        ConfigError: the folder holds a comparison with other settings.
    """
    given.out.mkdir(parents=True, exist_ok=True)
    _claim(given)
    prepared = given.out / "prepared"
    if not prepared.is_dir():
        phantom = PhantomConfig(train=given.train, val=given.val, test=given.test)
        _say(f"drawing {given.train + given.val + 2 * given.test} images of {given.side}²")
        generate(phantom, given.side, prepared, given.workers or len(os.sched_getaffinity(0)))
    data = PreparedSet.open(prepared)
    entries = _entries()
    chosen = {name: entries[name] for name in given.systems or entries}
    for seed in given.seeds:
        config = ConceptTrainingConfig(
            model=ConceptModelConfig(backbone=given.backbone),
            epochs=given.epochs,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            seed=seed,
        )
        context = ExperimentContext(data, config, _Progress())
        for kind in dict.fromkeys(entry.shared_backbone for entry in chosen.values()):
            own = {name: entry for name, entry in chosen.items() if entry.shared_backbone == kind}
            open_names = [name for name in own if not (given.out / f"{name}-{seed}.json").is_file()]
            if not open_names:
                continue
            with tempfile.TemporaryDirectory(dir=given.out) as folder:
                seconds = 0.0
                resting = context
                if kind is not None:
                    _say(f"seed {seed}: {kind}")
                    train_shared_backbone(kind, context, Path(folder))
                    trained, seconds = open_shared_backbone(Path(folder))
                    resting = replace(context, shared_backbone=trained)
                for name in open_names:
                    _say(f"seed {seed}: {name}")
                    _, result = run_system(own[name], resting, seconds)
                    save_predictions(given.out / f"{name}-{seed}.npz", result.validation, result.test)
                    report = {"system": name, "title": own[name].title, "seed": seed, **result.about, **result.report}
                    (given.out / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")
    runs = {name: read_runs(given.out, given.out, name, given.seeds) for name in chosen}
    if OURS not in runs:
        _say(f"no report: it sets every system against {OURS}, which is not among --systems")
        return
    title = f"Comparison: {given.train} images, {given.side}², {given.backbone}"
    sections = main_sections(data.collection, runs)
    (given.out / "comparison.md").write_text(to_markdown(title, sections))
    (given.out / "comparison.html").write_text(to_html(title, sections))


class _Progress(SilentCallbacks):
    """Prints an epoch a line."""

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        super().epoch(metrics, state)
        print("  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)


def _claim(given: argparse.Namespace) -> None:
    """Notes the settings in the folder, or compares them with those noted there."""
    file, settings = given.out / "settings.json", {name: getattr(given, name) for name in SHARED}
    if not file.is_file():
        file.write_text(json.dumps(settings, indent=2) + "\n")
    noted = json.loads(file.read_text())
    if other := [name for name in SHARED if noted[name] != settings[name]]:
        raise ConfigError(
            f"{file}: the runs here have {other[0]} {noted[other[0]]}, not {settings[other[0]]}; give another folder"
        )


def _entries() -> dict[str, Entry]:
    return systems({name: _recipe(name) for name in ("robust", "paper")})


def _recipe(preset: str) -> Recipe:
    values = PRESETS[preset]
    return Recipe(PrototypeConfig(**values["prototypes"]), HeadConfig(**values["head"]))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
