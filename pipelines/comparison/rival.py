"""Stages of the systems that CSR is compared with: one is trained with one seed.

python -m pipelines.comparison.rival MODULE:NAME SEED

MODULE lists the system in its ``SYSTEMS``, as `csr.baselines.pipnet` does.
"""

from __future__ import annotations

from pipelines.comparison.common import command_line, listed
from pipelines.comparison.system import train_and_keep
from pipelines.params import Params


def run(reference: str, seed: int, params: Params) -> None:
    """See `pipelines.comparison.system.train_and_keep`."""
    name, entry = listed(reference, "SYSTEMS")
    train_and_keep(name, entry, seed, params)


if __name__ == "__main__":
    command_line("rival", None, run)
