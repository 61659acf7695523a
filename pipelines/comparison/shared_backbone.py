"""Stage ``shared_backbone``: trains one shared backbone with one seed and caches its features.

    python -m pipelines.comparison.shared_backbone MODULE:KIND SEED

MODULE lists the kind in its ``BACKBONES``: `csr.comparison.concept_backbones` or `csr.baselines.black_box`.
"""

from __future__ import annotations

from csr.comparison.shared_backbones import train_shared_backbone
from csr.data.atomic_folder import atomic_folder
from pipelines.comparison.common import (
    SHARED_BACKBONES_FOLDER,
    command_line,
    comparison_run,
    listed,
    make_context,
    write_curves,
)
from pipelines.comparison.settings import chosen_settings, with_settings, write_settings
from pipelines.params import Params

TRIALS_OF = {"concepts_coarse": "concepts_lse"}  # the ablation's: what differs is the ingredient alone


def run(reference: str, seed: int, params: Params) -> None:
    """Writes ``build/comparison/shared_backbones/<kind>-<seed>`` and how it learned."""
    kind, train = listed(reference, "BACKBONES")
    settings = chosen_settings(TRIALS_OF.get(kind, kind))
    context = with_settings(make_context(params, seed, kind), settings)
    with (
        comparison_run("shared_backbone", kind, seed, params, context.config),
        atomic_folder(SHARED_BACKBONES_FOLDER / f"{kind}-{seed}") as folder,
    ):
        train_shared_backbone(train, context, folder)
        write_settings(folder, settings)
    write_curves(context, kind, seed, params, settings)


if __name__ == "__main__":
    command_line("shared_backbone", None, run)
