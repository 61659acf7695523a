"""Stage ``concepts``: trains the concept model (stage 1 of CSR)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.network.checkpoint import write_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.training.callbacks import Callbacks, State
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from pipelines.figures.curves import write_curves
from pipelines.params import Params
from pipelines.stage import CONCEPTS, PREPARED, REPORTS, run_stage
from pipelines.training import train


def fit(prepared: str, config: ConceptTrainingConfig, callbacks: Callbacks) -> State:
    """What one worker runs."""
    data = PreparedSet.open(Path(prepared))
    return concept_model_checkpoint(train_concepts(data, config, callbacks))


def concepts(params: Params) -> None:
    """Trains and writes ``build/concepts/model.pt`` and the curves."""
    config, inputs = params.concepts, [PREPARED]
    if config.start is not None and (start := Path(config.start).resolve()).is_file():
        inputs.append(start)
        config = replace(config, start=str(start))  # workers have folders of their own
    function = partial(fit, str(PREPARED.resolve()), config)
    checkpoint, history = train("concepts", function, params.concepts, inputs, params.train)
    with atomic_folder(CONCEPTS) as folder:
        write_checkpoint(checkpoint, folder / "model.pt")
    write_curves("concepts", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("concepts", concepts)
