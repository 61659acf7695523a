"""``python -m pipelines.retrain`` for real: a first champion, a rejected candidate, a rollback."""

from __future__ import annotations

import yaml
from mlflow.tracking import MlflowClient

from tests.pipelines.conftest import Project


def champion(project: Project) -> str:
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    return str(client.get_model_version_by_alias("csr", "champion").version)


def test_promotion_rejection_and_rollback(project: Project) -> None:
    folder = project.folder
    gates = folder / "infra/promotion.yaml"
    # the small phantom is not learnable in two epochs: floors go, the comparison with the champion stays
    content = yaml.safe_load(gates.read_text())
    for gate in content["gates"]:
        gate["minimum"] = 0.0
        gate["max_drop"] = 0.5
    gates.write_text(yaml.safe_dump(content))

    done = project.run("pipelines.retrain")
    assert "was **promoted** over no champion yet" in done.stdout
    first = champion(project)
    assert "is the champion already" in project.run("pipelines.retrain").stdout

    before = (folder / "params.yaml").read_text()
    for gate in content["gates"]:
        gate["minimum"] = 0.999
    gates.write_text(yaml.safe_dump(content))
    project.params({"export": {"alpha": 0.3}})  # another bundle, made by the last stage alone
    try:
        rejected = project.run("pipelines.retrain", check=False)
        assert rejected.returncode == 3, rejected.stderr
        assert "was **rejected** against version" in rejected.stdout
        assert "below the minimum 0.999" in (folder / "reports/promotion.md").read_text()
        assert champion(project) == first

        for gate in content["gates"]:
            gate["minimum"] = 0.0
        gates.write_text(yaml.safe_dump(content))
        promoted = project.run("pipelines.retrain")
        assert f"was **promoted** over version {first}" in promoted.stdout
        second = champion(project)
        assert second != first

        project.run("pipelines.registry", "rollback", "--reason", "test")
        assert champion(project) == first
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


def test_promoting_an_unknown_version_is_refused(project: Project) -> None:
    done = project.run("pipelines.registry", "promote", "99", "--reason", "test", check=False)
    assert done.returncode == 1
    assert "version '99' of 'csr' does not exist" in done.stderr
