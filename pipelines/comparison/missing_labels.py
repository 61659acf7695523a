"""Stage ``missing_labels``: CSR and a CBM on its stage 1, trained from the start on some of the concept labels.

python -m pipelines.comparison.missing_labels LEVEL SEED

Labels of split ``train`` are hidden at random, a level says how many; every stage is trained on what is left, with
`csr.training.few_labels`, and judged on all of them. A level may fill hidden labels by an image-text encoder
(`csr.data.text_concepts`). No encoder knows what the phantom's findings look like, so it is simulated, with an AUROC
such as real ones have without an example of a finding (0.89 in the mean of five on CheXpert, Tiu et al. 2022).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from csr.baselines import cbm
from csr.baselines.protocol import predict
from csr.comparison.concept_backbones import BACKBONES
from csr.comparison.csr_system import csr_systems
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.data.missing import hide_concept_labels
from csr.data.records import Collection
from csr.data.text_concepts.labels import TextConcept, TextConceptConfig, fill_labels
from csr.data.text_concepts.simulated import simulated_scores
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.evaluation.thresholds import validation_thresholds
from pipelines.comparison.common import BUILD, command_line, comparison_run, make_context
from pipelines.comparison.recipes import recipes
from pipelines.comparison.settings import chosen_settings, with_settings
from pipelines.params import Params


@dataclass(frozen=True)
class Level:
    """How many concept labels are hidden, in percent, and the AUROC of the encoder that fills some of them, if any."""

    hidden: int
    encoder: float | None = None

    @property
    def title(self) -> str:
        return f"{self.hidden}%" + (f", encoder of AUROC {self.encoder:g}" if self.encoder else "")


LEVELS = {"50": Level(50), "90": Level(90), "90_text": Level(90, 0.85)}
SYSTEMS = ("csr_robust", "cbm_shared")  # the systems that rest on the robust stage 1


def partly_labelled(whole: Collection, level: Level, seed: int) -> tuple[Collection, dict[str, float]]:
    """The collection at a level, and what the encoder did: the share of the training labels that it filled, and the
    share of those that are right."""
    hidden = hide_concept_labels(whole, level.hidden / 100, seed)
    if level.encoder is None:
        return hidden, {}
    rows = whole.rows("train")
    rates = np.nanmean(hidden.concept_labels()[rows], 0).clip(0.01, 0.99)
    concepts = {name: TextConcept(prevalence=float(rate)) for name, rate in zip(whole.concepts, rates, strict=True)}
    config = TextConceptConfig("simulated", "simulated", concepts)
    filled, _ = fill_labels(hidden, simulated_scores(whole, level.encoder, seed), config)
    own = (np.isnan(filled.judged_labels()) & ~np.isnan(filled.concept_labels()))[rows]
    right = (filled.concept_labels() == whole.concept_labels())[rows]
    return filled, {"filled": float(own.mean()), "right": float(right[own].mean()) if own.any() else float("nan")}


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/missing_labels/<level>-<seed>.json``."""
    context = with_settings(make_context(params, seed, f"missing_{name}"), chosen_settings("concepts_lse"))
    entries = csr_systems(recipes()) | cbm.SYSTEMS
    whole, level = context.data.collection, LEVELS[name]
    collection, encoder = partly_labelled(whole, level, seed)
    partly = replace(context, data=replace(context.data, collection=collection))
    report: dict[str, Any] = {"hidden": level.hidden, "seed": seed} | ({"encoder": encoder} if encoder else {})
    BUILD.mkdir(parents=True, exist_ok=True)
    with (
        comparison_run("missing_labels", name, seed, params, context.config),
        tempfile.TemporaryDirectory(dir=BUILD) as folder,
    ):
        train_shared_backbone(BACKBONES["concepts_lse"], partly, Path(folder))
        shared, _ = open_shared_backbone(Path(folder))
        for system_name in SYSTEMS:
            system = entries[system_name].train(replace(partly, shared_backbone=shared))
            thresholds = validation_thresholds(whole, predict(system, context.data, whole.rows("val")))
            predictions = predict(system, context.data, whole.rows("test"))
            report[system_name] = evaluate_predictions(whole, predictions, context.data.side, thresholds)
    out = params.comparison.folder / "missing_labels"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")


if __name__ == "__main__":
    command_line("missing_labels", list(LEVELS), run)
