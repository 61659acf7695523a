"""Stage ``concepts``: trains the concept model (stage 1 of CSR)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError
from csr.network.checkpoint import write_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.training.callbacks import Callbacks, State
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from pipelines.figures.curves import write_curves
from pipelines.params import Params
from pipelines.stage import CONCEPTS, PREPARED, REPORTS, run_stage
from pipelines.training import train


def fit(prepared: Path, *weights: Path, config: ConceptTrainingConfig, callbacks: Callbacks) -> State:
    """What one worker runs; ``weights`` is the file to start from, where the configuration names one, by
    ``start`` or by ``model.checkpoint``."""
    for file in weights:
        if config.start:
            config = replace(config, start=str(file))
        else:
            config = replace(config, model=replace(config.model, checkpoint=str(file)))
    return concept_model_checkpoint(train_concepts(PreparedSet.open(prepared), config, callbacks))


def concepts(params: Params) -> None:
    """Trains and writes ``build/concepts/model.pt`` and the curves."""
    config = params.concepts
    named = {"concepts.start": config.start, "concepts.model.checkpoint": config.model.checkpoint}  # at most one is
    weights = [Path(file) for file in named.values() if file]
    for key, file in named.items():
        if file and not Path(file).is_file():
            raise ConfigError(f"{key}: no file {file!r}")
    checkpoint, history = train("concepts", partial(fit, config=config), config, [PREPARED, *weights], params.train)
    with atomic_folder(CONCEPTS) as folder:
        write_checkpoint(checkpoint, folder / "model.pt")
    write_curves("concepts", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("concepts", concepts)
