"""Decisions on record: each is a run of the experiment ``csr-decisions``, opened before anything is judged.

A decision is named by candidate, champion, gates and readings. One that was made is never made again, so a candidate
that was refused cannot be tried on one judging set after the other until it passes by luck, and a retraining that was
cut short after its decision goes on from it. One that was cut short before is made again in its own run, on the same
judging set, and counts as one use of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipelines.tracking import MODEL_NAME, open_experiment

DECISIONS = "csr-decisions"
_KEY, _SET, _OUTCOME = "csr.decision", "judging.digest", "outcome"
Outcome = Literal["passed", "refused"]


@dataclass(frozen=True)
class Grounds:
    """What a decision rests on.

    Args:
        candidate, champion: digests of the bundles; the champion's is empty before the first promotion.
        version, current: their versions.
        gates: digest of the gates' file.
        feedback: version of the feedback set that is replayed; empty without.
    """

    candidate: str
    champion: str
    version: str
    current: str
    gates: str
    feedback: str

    @property
    def key(self) -> str:
        """The decision's name."""
        parts = [self.candidate, self.champion, self.gates, self.feedback]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class DecisionRecord:
    """One decision in MLflow.

    Args:
        client: MLflow's.
        grounds: what it rests on.
    """

    def __init__(self, client: MlflowClient, grounds: Grounds) -> None:
        self._client, self._grounds = client, grounds
        experiment = _experiment()
        runs = client.search_runs([experiment], f"tags.`{_KEY}` = '{grounds.key}'", order_by=["start_time ASC"])
        self._run: Run = runs[0] if runs else self._open(experiment)

    @property
    def run_id(self) -> str:
        return str(self._run.info.run_id)

    @property
    def outcome(self) -> Outcome | None:
        """What was decided; None until `close`."""
        tags: dict[str, Any] = self._run.data.tags
        return tags.get(_OUTCOME)

    def judge_on(self, name: str, digest: str) -> None:
        """Notes, before it is read, the judging set that is used."""
        self._client.set_tag(self.run_id, "judging.set", name)
        self._client.set_tag(self.run_id, _SET, digest)

    def close(self, outcome: Outcome, sentence: str, metrics: Mapping[str, float], files: Path) -> None:
        """Keeps the report with the decision, and then the decision: the tag is the last thing that is written."""
        client, run = self._client, self.run_id
        client.log_artifacts(run, str(files))
        for name, value in metrics.items():
            client.log_metric(run, name, value)
        client.set_tag(run, "mlflow.note.content", sentence)
        client.set_model_version_tag(MODEL_NAME, self._grounds.version, "decision", run)
        client.update_model_version(MODEL_NAME, self._grounds.version, sentence)
        client.set_tag(run, _OUTCOME, outcome)
        client.set_terminated(run)
        self._run = client.get_run(run)

    def fetch(self, folder: Path) -> None:
        """Brings the report of a decision that was made before to ``folder``."""
        for each in self._client.list_artifacts(self.run_id):
            self._client.download_artifacts(self.run_id, each.path, str(folder))

    def _open(self, experiment: str) -> Run:
        grounds = self._grounds
        tags = {
            _KEY: grounds.key,
            "candidate": grounds.version,
            "champion": grounds.current,
            "feedback": grounds.feedback,
            "gates": grounds.gates,
        }
        name = f"{grounds.version} against {grounds.current or 'none'}"
        return self._client.create_run(experiment, tags=tags, run_name=name)


def uses_by_set(client: MlflowClient, but: str = "") -> dict[str, int]:
    """How many decisions each judging set was used for, by digest.

    Args:
        but: id of a run that does not count.
    """
    counted: Counter[str] = Counter()
    token: str | None = None
    while True:
        page: Any = client.search_runs([_experiment()], page_token=token)
        used = (run.data.tags.get(_SET) for run in page if run.info.run_id != but)
        counted.update(digest for digest in used if digest)
        token = page.token
        if not token:
            return dict(counted)


def _experiment() -> str:
    return open_experiment(DECISIONS)
