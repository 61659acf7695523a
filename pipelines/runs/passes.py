"""One run a pass of the pipeline, and below it one a stage, with the stage's own curves and time.

A pass is what one command runs: a ``dvc repro``, or the stages that a person calls from one shell. It is over when that
command is, or once a stage of it would run a second time. One in which a stage failed or was killed stays open: the
command that runs this stage again, with the same parameters and git revision, joins it. Which pass is open is kept in
``.state/run.json``, which is not tracked: outputs hold no run id, so that ``dvc repro`` stays a no-op.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Param, Run, RunStatus
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from csr.data.digests import file_digest
from pipelines.flatten import flatten
from pipelines.revision import revision
from pipelines.runs.inheritance import MADE_BY, OUTPUT, STAGE, inherit, known_run, output_digest, taken
from pipelines.runs.kinds import KIND
from pipelines.runs.processes import command, is_alive, is_here, own_process
from pipelines.runs.rows import data_inputs, differences, note, run_name, source_tags
from pipelines.runs.view import save_views
from pipelines.tracking import STATE, connect, experiment_id

if TYPE_CHECKING:
    from pipelines.params import Params

PROCESS = "csr.process"  # tag: which process works on a run
_FAILED, _FINISHED, _RUNNING = (
    RunStatus.to_string(each) for each in (RunStatus.FAILED, RunStatus.FINISHED, RunStatus.RUNNING)
)
_STATE_FILE = STATE / "run.json"
_BEFORE = {"atlas": ("prepare", "concepts", "features", "prototypes", "head")}  # of other stages: all before them


@contextmanager
def stage_run(
    stage: str, params: Params, last: bool = False, outputs: Mapping[str, Path] | None = None
) -> Iterator[str]:
    """Joins or opens the pass for one stage, with the stage's own run below it. Yields the pass's run id.

    An exception, SIGINT or SIGTERM marks both runs failed; runs whose process died without a word are marked failed
    when the next stage starts.

    Args:
        stage: name of the stage; its metrics are logged as ``<stage>.<name>``.
        params: all parameters; logged flattened when the pass is opened.
        last: whether the pass is over once this stage succeeds.
        outputs: what each stage of the pipeline writes, in order; figures of stages before this one that the pass did
            not run are taken from the passes that did (`pipelines.runs.inheritance`).
    """
    outputs = outputs or {}
    client = connect()
    pass_id = _open_pass(client, stage, params)
    own = _open_stage(client, pass_id, stage)
    both = (pass_id, own)
    mark_dead_runs(client, both)
    lock = Path("dvc.lock")
    tags = {STAGE: stage, PROCESS: own_process(), "dvc.lock": file_digest(lock) if lock.is_file() else "none"}
    for run_id in both:
        client.update_run(run_id, status=_RUNNING)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
    try:
        _inherit_before(client, pass_id, stage, outputs)
        if stage != "prepare":
            _log_data(client, pass_id, own, stage, params, outputs)
        with mlflow.start_run(run_id=own):
            yield pass_id
        _finish(client, pass_id, own, stage, params, outputs)
    except BaseException:
        for run_id in both:
            client.set_terminated(run_id, _FAILED)
        raise
    for run_id in both:
        client.set_terminated(run_id, _FINISHED)
    if last:
        _STATE_FILE.unlink(missing_ok=True)


def mark_dead_runs(client: MlflowClient, own: tuple[str, ...]) -> None:
    """Marks runs of this machine failed that claim to run although their process is gone (killed, power cut)."""
    for run in client.search_runs([experiment_id(client)], "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS, "")
        if run.info.run_id not in own and is_here(process) and not is_alive(process):
            client.set_terminated(run.info.run_id, _FAILED)


def children(client: MlflowClient, run: Run) -> list[Run]:
    """The runs below a run, oldest first."""
    below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"
    return list(client.search_runs([run.info.experiment_id], below, order_by=["attributes.start_time ASC"]))


def _open_pass(client: MlflowClient, stage: str, params: Params) -> str:
    key = hashlib.sha256(json.dumps([flatten(params), revision()], default=str).encode()).hexdigest()
    run = _joined(client, stage, key)
    if run is None:
        experiment = experiment_id(client)
        save_views(client, experiment)
        tags = source_tags("dvc.yaml") | {KIND: "pass"}
        run = client.create_run(experiment, run_name=run_name(params), tags=tags)
        for names in _chunks(list(flatten(params).items()), 100):
            client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in names])
    STATE.mkdir(exist_ok=True)
    _STATE_FILE.write_text(json.dumps({"key": key, "run_id": run.info.run_id, "command": command()}))
    return str(run.info.run_id)


def _joined(client: MlflowClient, stage: str, key: str) -> Run | None:
    """The open pass, if this stage is part of it."""
    state = json.loads(_STATE_FILE.read_text()) if _STATE_FILE.is_file() else {}
    run = known_run(client, state["run_id"]) if state.get("key") == key else None
    if run is None:
        return None
    status = {child.data.tags[STAGE]: child.info.status for child in children(client, run)}
    if status.get(stage) == _FINISHED:
        return None
    return run if is_alive(state.get("command", "")) or set(status.values()) - {_FINISHED} else None


def _open_stage(client: MlflowClient, pass_id: str, stage: str) -> str:
    """The stage's own run: that of an earlier, failed try in this pass, or a new one."""
    parent = client.get_run(pass_id)
    for child in children(client, parent):
        if child.data.tags[STAGE] == stage:
            return str(child.info.run_id)
    tags = source_tags(f"pipelines/{stage}.py") | {KIND: "stage", STAGE: stage, MLFLOW_PARENT_RUN_ID: pass_id}
    return str(client.create_run(parent.info.experiment_id, run_name=stage, tags=tags).info.run_id)


def before(stage: str, outputs: Mapping[str, Path]) -> tuple[str, ...]:
    """The stages that one rests on."""
    names = list(outputs)
    return _BEFORE.get(stage, tuple(names[: names.index(stage)]) if stage in names else ())


def _inherit_before(client: MlflowClient, pass_id: str, stage: str, outputs: Mapping[str, Path]) -> None:
    run = client.get_run(pass_id)
    ran = [child.data.tags[STAGE] for child in children(client, run)]
    inherit(client, run, ran, {name: outputs[name] for name in before(stage, outputs) if name in outputs})


def _log_data(
    client: MlflowClient, pass_id: str, own: str, stage: str, params: Params, outputs: Mapping[str, Path]
) -> None:
    """Names what a stage reads as inputs of its run, and of the pass, which also has what stage ``evaluate`` read for
    it."""
    if not (prepared := outputs.get("prepare")) or not prepared.is_dir():
        return  # the stage itself says what is missing
    trained, judged = ("train", "val"), ("test",)
    client.log_inputs(own, data_inputs(params.data, prepared, judged if stage == "evaluate" else trained))
    run = client.get_run(pass_id)
    there = {each.dataset.name.rpartition(" ")[2] for each in (run.inputs.dataset_inputs if run.inputs else [])}
    evaluated = stage == "evaluate" or f"{MADE_BY}evaluate" in run.data.tags
    missing = [split for split in (*trained, *(judged if evaluated else ())) if split not in there]
    if missing:
        client.log_inputs(pass_id, data_inputs(params.data, prepared, tuple(missing)))


def _finish(
    client: MlflowClient, pass_id: str, own: str, stage: str, params: Params, outputs: Mapping[str, Path]
) -> None:
    """What a stage that succeeded leaves behind: the digest of its output, and the pass's note."""
    if (output := outputs.get(stage)) and (digest := output_digest(output)):
        client.set_tag(own, OUTPUT, digest)
    if stage == "prepare":
        _log_data(client, pass_id, own, stage, params, outputs)
    run = client.get_run(pass_id)
    client.set_tag(pass_id, MLFLOW_RUN_NOTE, note(run, differences(params), taken(client, run)))


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
