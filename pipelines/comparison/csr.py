"""Stage ``csr``: CSR by one preset, stages 2 and 3 on a shared backbone, with one seed.

python -m pipelines.comparison.csr {csr_robust,csr_paper} SEED
"""

from __future__ import annotations

from csr.comparison.csr_system import csr_systems
from pipelines.comparison.common import command_line
from pipelines.comparison.recipes import recipes
from pipelines.comparison.system import train_and_keep
from pipelines.params import Params


def run(name: str, seed: int, params: Params) -> None:
    """See `pipelines.comparison.system.train_and_keep`."""
    train_and_keep(name, csr_systems(recipes())[name], seed, params)


if __name__ == "__main__":
    command_line("csr", ["csr_robust", "csr_paper"], run)
