"""Where a pass ran some stages only: the figures of the stages before them, taken from the passes that ran those.

Outputs hold no run id, or ``dvc repro`` would never be a no-op. So a stage's run keeps the digest of what it wrote, and
what lies in ``build`` now is looked up by its digest. Two runs that wrote the same bytes are one to this; the newer is
taken. A row then has all of its figures, and tags ``csr.made_by.<stage>`` name the passes that they are from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipelines.digests import path_digest

STAGE = "csr.stage"  # tag: of a stage's run its name, of a pass the last stage that ran
OUTPUT = "csr.output"  # tag of a stage's run: digest of what it wrote
MADE_BY = "csr.made_by."  # tag of a pass, a stage each: the pass that ran it
UNKNOWN = "unknown"  # a pass that this store does not have
_OF_DATA = ("data.name", "data.digest", "data.feedback")  # tags that stage `prepare` gives


def output_digest(output: Path) -> str | None:
    """SHA-256 of a stage's file or folder, if it is there."""
    return path_digest(output) if output.exists() else None


def inherit(client: MlflowClient, pass_run: Run, ran: Iterable[str], earlier: Mapping[str, Path]) -> None:
    """Gives a pass the figures of stages that it did not run.

    Args:
        ran: stages that the pass ran.
        earlier: every stage that what runs now rests on, with its output.
    """
    known = {tag.removeprefix(MADE_BY) for tag in pass_run.data.tags if tag.startswith(MADE_BY)}
    for stage, output in earlier.items():
        if stage in known or stage in ran or (digest := output_digest(output)) is None:
            continue
        maker = _maker(client, pass_run.info.experiment_id, stage, digest)
        origin = known_run(client, maker.data.tags[MLFLOW_PARENT_RUN_ID]) if maker else None
        run_id = pass_run.info.run_id
        if maker is None or origin is None:
            client.set_tag(run_id, MADE_BY + stage, UNKNOWN)
            continue
        metrics = [Metric(name, value, maker.info.end_time, 0) for name, value in maker.data.metrics.items()]
        client.log_batch(run_id, metrics=metrics)
        client.set_tag(run_id, MADE_BY + stage, origin.info.run_id)
        if stage == "prepare":
            for name in _OF_DATA:
                if name in origin.data.tags:
                    client.set_tag(run_id, name, origin.data.tags[name])


def taken(client: MlflowClient, pass_run: Run) -> dict[str, Run | None]:
    """Stages whose figures a pass has from other passes, with these; None where the store does not have it."""
    tags = {tag.removeprefix(MADE_BY): value for tag, value in pass_run.data.tags.items() if tag.startswith(MADE_BY)}
    origins = {run_id: known_run(client, run_id) for run_id in set(tags.values()) - {UNKNOWN}}
    return {stage: origins.get(run_id) for stage, run_id in tags.items()}


def known_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, unless the store does not have it or it was deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _maker(client: MlflowClient, experiment: str, stage: str, digest: str) -> Run | None:
    wanted = f"tags.`{STAGE}` = '{stage}' AND tags.`{OUTPUT}` = '{digest}' AND attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None
