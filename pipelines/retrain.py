"""Retrains and, if the gates hold, promotes: what CI calls on a schedule, or when data or feedback arrive.

    python -m pipelines.retrain [--wait MINUTES]

1. ``dvc pull``, if a remote is configured: data, feedback, judging sets, and what other machines have computed.
2. ``dvc repro``, and the new bundle becomes a version in the registry.
3. Candidate and champion are judged on a frozen set that nobody learned from (`pipelines.promotion.judging_sets`), on
   every signed reading of ``data/feedback`` replayed, and side by side in time and size.
4. The gates of ``infra/promotion.yaml`` decide (`pipelines.promotion.verdicts`); report and model card go to
   ``reports/promotion`` and, with the decision, to MLflow (`pipelines.promotion.decisions`).
5. If all hold, the alias ``champion`` moves (`csr.bundle.champion`).

Killed anywhere, it is simply run again: each step finds what was done before and goes on, and no step leaves half a
thing behind. One retraining runs at a time, whatever the machine, by a lock in the registry's store.

Exit status: 0 promoted, or nothing to promote; 3 refused by the gates; 4 another one is running; 1 an error.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from mlflow.tracking import MlflowClient

from csr.bundle.format import Bundle
from csr.bundle.registry_lock import LockedError, RegistryLock
from csr.bundle.runtime import BundleRunner
from csr.data.digests import file_digest
from csr.data.feedback import FeedbackSet
from csr.data.prepared import PreparedSet
from csr.errors import CSRError
from pipelines.champion import champion, promote, settle
from pipelines.feedback_set import learned_from, the_only_one
from pipelines.params import load_params
from pipelines.promotion.costs import costs_of
from pipelines.promotion.decisions import DecisionRecord, Grounds, Outcome, uses_by_set
from pipelines.promotion.gates import GATES_FILE, Gates, load_gates
from pipelines.promotion.judging import answers_of, check_fits, readings_of, replayed, signed, studies_of
from pipelines.promotion.judging_sets import JudgingSet, check_unseen, next_set
from pipelines.promotion.model_card import write_card
from pipelines.promotion.report import write_report
from pipelines.promotion.verdicts import Judged, Verdict, apply_gates
from pipelines.registry import fetch, register
from pipelines.stage import BUNDLE, PREPARED, REPORTS, cores
from pipelines.tracking import MODEL_NAME, connect

REFUSED, RUNNING = 3, 4
FOLDER = REPORTS / "promotion"
Done = Literal["promoted", "refused", "unchanged"]


def retrain(wait: float = 0.0) -> Done:
    """Reproduces the pipeline and decides; see the module's docstring.

    Args:
        wait: seconds to wait for another retraining to end.

    Raises:
        LockedError: another one is running.
        CSRError: the pipeline failed, or the bundles cannot be judged.
    """
    gates = load_gates()
    client = connect()
    with RegistryLock(client, MODEL_NAME, "retraining", wait) as lock:
        for told in settle(client):
            print(told, file=sys.stderr)
        _pull()
        if subprocess.run([sys.executable, "-m", "dvc", "repro"], check=False).returncode:
            raise CSRError("dvc repro failed; its own message above says why. The champion stays as it was")
        version, current = register(Bundle.open(BUNDLE)), champion(client)
        if version == current:
            write_report(FOLDER, f"Version {version} is the champion already; nothing to do.", ())
            _show()
            return "unchanged"
        outcome = _decided(client, gates, version, current)
        if outcome == "passed":
            lock.check()
            promote(client, version, f"retrain: all gates hold against {_named(current)}")
        _show()
        return "promoted" if outcome == "passed" else "refused"


def _pull() -> None:
    remotes = subprocess.run([sys.executable, "-m", "dvc", "remote", "list"], capture_output=True, check=False)
    if not remotes.stdout.strip():
        return
    if subprocess.run([sys.executable, "-m", "dvc", "pull", "--run-cache", "--allow-missing"], check=False).returncode:
        raise CSRError("dvc pull failed; its own message above says why. The champion stays as it was")


def _decided(client: MlflowClient, gates: Gates, version: str, current: str | None) -> Outcome:
    """What the gates say of a version against the champion; made once, then kept on record."""
    feedback = _feedback()
    with tempfile.TemporaryDirectory() as folder:
        candidate = Bundle.open(BUNDLE)
        rival = fetch(current, Path(folder)) if current else None
        grounds = Grounds(
            candidate=candidate.digest,
            champion=rival.digest if rival else "",
            version=version,
            current=current or "",
            gates=file_digest(GATES_FILE),
            feedback=feedback.version if feedback else "",
        )
        record = DecisionRecord(client, grounds)
        shutil.rmtree(FOLDER, ignore_errors=True)
        if record.outcome is not None:
            FOLDER.mkdir(parents=True)
            record.fetch(FOLDER)
            return record.outcome
        judging = next_set(load_params(), gates.judging, uses_by_set(client, but=record.run_id))
        check_fits(candidate, judging.data)
        check_unseen(judging, PreparedSet.open(PREPARED))
        record.judge_on(judging.name, judging.digest)
        verdicts = judge(gates, candidate, rival, judging, feedback)
        failed = [verdict for verdict in verdicts if not verdict.passed]
        outcome: Outcome = "refused" if failed else "passed"
        said = f"{len(failed)} of {len(verdicts)} gates fail" if failed else f"all {len(verdicts)} gates hold"
        sentence = f"Version {version} **{outcome}** against {_named(current)}: {said}."
        judged_on = (
            f"{judging.name}, {len(judging.data.collection.studies)} studies that no split of the data set holds, "
            f"digest {judging.digest[:12]}"
        )
        replay = f"{len(feedback.readings)} signed readings of feedback {feedback.version}" if feedback else "none"
        write_report(FOLDER, sentence, (f"Judging set: {judged_on}.", f"Readings: {replay}."), verdicts, gates.error)
        write_card(FOLDER, candidate, version, time.strftime("%Y-%m-%d", time.gmtime()), judged_on, verdicts)
        metrics = {"gates": float(len(verdicts)), "failed": float(len(failed))}
        record.close(outcome, sentence, metrics, FOLDER)
        return outcome


def judge(
    gates: Gates, candidate: Bundle, champion: Bundle | None, judging: JudgingSet, feedback: FeedbackSet | None
) -> list[Verdict]:
    """Every gate's verdict on a candidate.

    Raises:
        BundleError: the champion's task or input is not the judging set's.
    """
    bundles = [candidate] if champion is None else [candidate, champion]
    for bundle in bundles:
        check_fits(bundle, judging.data)
    runners = [BundleRunner(bundle, cores()) for bundle in bundles]
    own, *others = (answers_of(runner, judging.data) for runner in runners)
    judged = Judged(studies_of(judging.data), own, others[0] if others else None)
    readings = _readings(runners, feedback)
    alone = [BundleRunner(bundle, 1) for bundle in bundles]
    image = judging.data.images[0]
    costs = costs_of(alone[0], alone[1] if others else None, image, gates.error)
    return apply_gates(gates, judged, readings, costs, runners[0].golden_error())


def _readings(runners: list[BundleRunner], feedback: FeedbackSet | None) -> Judged | None:
    replayable = readings_of(feedback, runners[0].bundle) if feedback else []
    if feedback is None or not replayable:
        return None
    own, *others = (replayed(runner, feedback, replayable) for runner in runners)
    return Judged(signed(replayable, runners[0].bundle), own, others[0] if others else None)


def _feedback() -> FeedbackSet | None:
    """What readers signed, whether the training reads it or not."""
    folder = learned_from(load_params().data) or the_only_one()
    return FeedbackSet.open(folder) if folder else None


def _named(current: str | None) -> str:
    return f"version {current}" if current else "no champion yet"


def _show() -> None:
    print((FOLDER / "promotion.md").read_text())


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.retrain")
    parser.add_argument("--wait", type=float, default=0.0, metavar="MINUTES", help="for another retraining to end")
    given = parser.parse_args()
    try:
        done = retrain(60 * given.wait)
    except LockedError as error:
        print(f"retrain: {error}", file=sys.stderr)
        sys.exit(RUNNING)
    except CSRError as error:
        sys.exit(f"retrain: {error}")
    sys.exit(REFUSED if done == "refused" else 0)


if __name__ == "__main__":
    main()
