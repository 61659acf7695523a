"""A copy of the project in a folder of its own, with a small phantom, reproduced once for the whole session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.csr.conftest import short_bottlenecks

__all__ = ["short_bottlenecks"]

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "params/presets"
SMALL = {
    "data": {"side": 64, "workers": 2, "phantom": {"train": 160, "val": 60, "test": 60, "contrast": 2.0}},
    "concepts": {"epochs": 2, "precision": "float32"},
    "prototypes": {"epochs": 2, "width": 32, "per_concept": 3},
    "head": {"epochs": 10},
    "evaluate": {"montage": 2},
    "export": {"parity_images": 8, "samples": 5},
    "train": {"threads": 2},
}


@dataclass(frozen=True)
class Project:
    """A working copy and the commands a user would type in it."""

    folder: Path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs ``python -m ...`` in the copy; the output is part of the failure message."""
        home = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        # dvc starts stages by a bare `python`: it must be the one that runs the tests
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=home | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=560,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def params(self, changes: dict[str, Any]) -> None:
        """Merges changes into the copy's params.yaml."""
        file = self.folder / "params.yaml"
        content = yaml.safe_load(file.read_text())
        merge(content, changes)
        file.write_text(yaml.safe_dump(content, sort_keys=False))

    def commit(self, message: str) -> None:
        """Commits all that git does not ignore."""
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(self.folder)]
        for command in (["add", "-A"], ["commit", "-q", "-m", message]):
            subprocess.run([*git, *command], check=True, capture_output=True)


def merge(content: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            merge(content[key], value)
        else:
            content[key] = value


def copy_project(folder: Path) -> Project:
    """Copies what git tracks (and is new, not ignored) into ``folder`` as a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("reports/", "tests/")) or name.endswith("dvc.lock") or not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q", str(folder)], check=True, capture_output=True)
    made = Project(folder)
    made.commit("copy")
    return made


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduced once; tests that change it put it back or take a copy of what they need."""
    made = copy_project(tmp_path_factory.mktemp("project"))
    made.params(SMALL)
    made.run("dvc", "repro")
    made.commit("reproduced")  # dvc.lock and the reports, as one does
    return made
