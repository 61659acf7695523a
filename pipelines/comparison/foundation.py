"""Stage ``foundation``: trains one shared backbone with one seed and caches its features.

python -m pipelines.comparison.foundation {concepts_lse,concepts_average,concepts_coarse,classes} SEED
"""

from __future__ import annotations

from typing import cast

from csr.baselines.protocol import Foundation
from csr.comparison.foundations import FOUNDATIONS, train_foundation
from csr.drafts import draft_folder
from pipelines.comparison.common import FOUNDATIONS_FOLDER, command_line, comparison_run, make_setting
from pipelines.params import Params


def run(kind: str, seed: int, params: Params) -> None:
    """Writes ``build/comparison/foundations/<kind>-<seed>``."""
    with (
        comparison_run("foundation", kind, seed, params),
        draft_folder(FOUNDATIONS_FOLDER / f"{kind}-{seed}") as folder,
    ):
        train_foundation(cast(Foundation, kind), make_setting(params, seed, kind), folder)


if __name__ == "__main__":
    command_line("foundation", list(FOUNDATIONS), run)
