"""Stage ``concepts``: trains the concept model (stage 1 of CSR)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from csr.datasets.prepared import PreparedSet
from csr.drafts import draft_folder
from csr.training.concepts import ConceptTrainingConfig, to_checkpoint, train_concepts
from csr.training.reporter import Reporter, State
from pipelines.figures import write_curves
from pipelines.params import Params
from pipelines.stage import CONCEPTS, PREPARED, REPORTS, run_stage
from pipelines.training import train


def fit(prepared: str, config: ConceptTrainingConfig, reporter: Reporter) -> State:
    """What one worker runs."""
    data = PreparedSet.open(Path(prepared))
    return to_checkpoint(train_concepts(data, config, reporter), data.collection.concepts)


def concepts(params: Params) -> None:
    """Trains and writes ``build/concepts/model.pt`` and the curves."""
    function = partial(fit, str(PREPARED.resolve()), params.concepts)
    inputs = [PreparedSet.open(PREPARED).digest()]
    checkpoint, history = train("concepts", function, params.concepts, inputs, params.train)
    with draft_folder(CONCEPTS) as folder:
        torch.save(checkpoint, folder / "model.pt")
    write_curves("concepts", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("concepts", concepts)
