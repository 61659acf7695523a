"""Stage ``held_out``: CSR where nobody knows some of the concepts, for one seed.

    python -m pipelines.comparison.held_out FOLD SEED

A fold is every third concept (`csr.data.held_out.concept_fold`). Stage ``few_shot`` adds them later.
"""

from __future__ import annotations

from dataclasses import replace

from csr.baselines.protocol import ExperimentContext, save_system
from csr.comparison.concept_backbones import BACKBONES
from csr.comparison.csr_system import train_csr
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.data.atomic_folder import atomic_folder
from csr.data.held_out import FOLDS, concept_fold, without_concepts
from pipelines.comparison.common import (
    BUILD,
    SHARED_BACKBONES_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.comparison.recipes import recipes
from pipelines.comparison.settings import chosen_settings, with_settings
from pipelines.params import Params

HELD_OUT_FOLDER = BUILD / "held_out"


def held_out_context(context: ExperimentContext, fold: int) -> ExperimentContext:
    """The context without the concepts of a fold."""
    whole = context.data.collection
    partial = without_concepts(whole, concept_fold(whole.concepts, fold))
    return replace(context, data=replace(context.data, collection=partial))


def run(fold: str, seed: int, params: Params) -> None:
    """Writes ``build/comparison/shared_backbones/held_out_<fold>-<seed>``, stage 1, and
    ``build/comparison/held_out/<fold>-<seed>.pt``, all three."""
    name = f"held_out_{fold}"
    settings = chosen_settings("concepts_lse")
    context = held_out_context(with_settings(make_context(params, seed, name), settings), int(fold))
    with comparison_run("held_out", fold, seed, params, context.config):
        with atomic_folder(SHARED_BACKBONES_FOLDER / f"{name}-{seed}") as folder:
            train_shared_backbone(BACKBONES["concepts_lse"], context, folder)
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{name}-{seed}")
        system = train_csr(replace(context, shared_backbone=shared), recipes()["robust"])
    HELD_OUT_FOLDER.mkdir(parents=True, exist_ok=True)
    save_system(system, HELD_OUT_FOLDER / f"{fold}-{seed}.pt")


if __name__ == "__main__":
    command_line("held_out", [str(fold) for fold in range(FOLDS)], run)
