"""``python -m pipelines.retrain`` for real: a first champion, a refused candidate, a second try, a rollback."""

from __future__ import annotations

import json
from typing import Any

import yaml
from mlflow.tracking import MlflowClient

from tests.pipelines.conftest import Project

# The small phantom is not learnable in two epochs: floors go, the comparison with the champion stays.
LENIENT = {
    "gates": [
        {"measure": "macro_f1", "margin": 0.5},
        {"measure": "pointing", "margin": 0.5},
        {"measure": "answer_gain", "margin": 0.5},
        {"measure": "encode_ms", "margin": 5},
    ],
    "draws": 200,
    "judging": {"uses": 2, "phantom_studies": 40},
}


def client_of(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")


def champion(project: Project) -> str:
    return str(client_of(project).get_model_version_by_alias("csr", "champion").version)


def write_gates(project: Project, **changes: Any) -> None:
    (project.folder / "infra/promotion.yaml").write_text(yaml.safe_dump(LENIENT | changes))


def decisions(project: Project) -> list[tuple[str, str]]:
    """Judging set and outcome of each, oldest first."""
    client = client_of(project)
    experiment = client.get_experiment_by_name("csr-decisions")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    return [(run.data.tags["judging.set"], run.data.tags["outcome"]) for run in runs]


def test_promotion_refusal_and_rollback(project: Project) -> None:
    folder, before = project.folder, (project.folder / "params.yaml").read_text()
    report = folder / "reports/promotion"
    write_gates(project)
    done = project.run("pipelines.retrain")
    assert "**passed** against no champion yet" in done.stdout
    first = champion(project)
    assert "is the champion already" in project.run("pipelines.retrain").stdout
    try:
        write_gates(project, gates=[{"measure": "macro_f1", "limit": 0.999}])
        project.params({"export": {"alpha": 0.3}})  # another bundle, made by the last stage alone
        for _ in range(2):  # the second time the decision is only read again
            refused = project.run("pipelines.retrain", check=False)
            assert refused.returncode == 3, refused.stderr
            assert f"**refused** against version {first}" in refused.stdout
            assert "is beyond the limit" in (report / "promotion.md").read_text()
            assert champion(project) == first and len(decisions(project)) == 2

        write_gates(project)
        project.run("pipelines.retrain")
        second = champion(project)
        assert second != first
        assert [outcome for _, outcome in decisions(project)] == ["passed", "refused", "passed"]
        used = [name for name, _ in decisions(project)]
        assert used[0] == used[1] != used[2]  # two decisions were all that the first set was good for

        card = json.loads((report / "model_card.json").read_text())
        assert card["model_details"]["version"]["name"] == second
        assert {each["type"] for each in card["quantitative_analysis"]["performance_metrics"]} >= {"macro F1"}
        version = client_of(project).get_model_version("csr", second)
        kept = {each.path for each in client_of(project).list_artifacts(version.tags["decision"])}
        assert kept >= {"promotion.md", "promotion.html", "model_card.json", "model_card.md", "verdicts.json"}
        assert "<svg" in (report / "promotion.html").read_text()

        project.run("pipelines.registry", "rollback", "--reason", "test")
        assert champion(project) == first
        fetched = project.run("pipelines.registry", "fetch", "champion", "build/champion").stdout
        assert client_of(project).get_model_version("csr", first).tags["bundle.digest"] in fetched
        history = project.run("pipelines.registry", "history").stdout.splitlines()
        assert [line.split("  ")[0] for line in history] == [
            f"none → {first}",
            f"{first} → {second}",
            f"{second} → {first}",
        ]
    finally:
        (folder / "params.yaml").write_text(before)
        project.run("dvc", "repro")


def test_a_failing_pipeline_leaves_the_champion_and_exits_with_an_error(project: Project) -> None:
    before = (project.folder / "params.yaml").read_text()
    project.params({"head": {"learning_rate": 1e30}})
    try:
        done = project.run("pipelines.retrain", check=False)
    finally:
        (project.folder / "params.yaml").write_text(before)
        project.run("dvc", "repro")
    assert done.returncode == 1
    assert "retrain: dvc repro failed" in done.stderr


def test_a_second_one_at_the_same_time_says_so_and_ends(project: Project) -> None:
    from csr.bundle.registry_lock import RegistryLock

    with RegistryLock(client_of(project), "csr", "retraining"):
        done = project.run("pipelines.retrain", check=False)
    assert done.returncode == 4
    assert "has been at retraining since" in done.stderr
    assert [each.name for each in client_of(project).search_registered_models()] == ["csr"]


def test_promoting_an_unknown_version_is_refused(project: Project) -> None:
    done = project.run("pipelines.registry", "promote", "99", "--reason", "test", check=False)
    assert done.returncode == 1
    assert "version '99' of 'csr' does not exist" in done.stderr
