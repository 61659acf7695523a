"""The files that only machines read: lock, Makefile, workflows, overlays."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.overlay import merged, overlay_settings
from pipelines.params import parse_params

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_pins_every_dependency_within_its_range_and_names_no_address() -> None:
    pins = [Requirement(line) for line in LOCK.splitlines() if line]
    assert "://" not in LOCK and "--" not in LOCK
    assert all(len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in pins)
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"pipeline", "serving", "gpu", "weights", "tracking", "s3", "all", "dev"}
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], *chain.from_iterable(extras.values()))]
    for requirement in wanted:
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(extras)
            continue
        versions = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
        assert versions, f"{requirement.name} is not locked; run make lock"
        for pin in versions:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{requirement} is locked at {version}; run make lock"


def test_one_onnx_runtime_is_installed_whatever_the_machine() -> None:
    """Two wheels hold the same module; side by side one of them is half overwritten."""
    wheels = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name.startswith("onnxruntime")]
    for system in ("linux", "darwin", "win32"):
        for machine in ("x86_64", "aarch64", "arm64", "AMD64"):
            place = {"sys_platform": system, "platform_machine": machine}
            (chosen,) = (each.name for each in wheels if each.marker and each.marker.evaluate(place))
            assert (chosen == "onnxruntime-gpu") == (place == {"sys_platform": "linux", "platform_machine": "x86_64"})


def test_the_tools_that_check_the_page_are_pinned_and_their_lock_names_no_address_of_a_package() -> None:
    wanted = json.loads((ROOT / "infra/page/package.json").read_text())["devDependencies"]
    packages = json.loads((ROOT / "infra/page/package-lock.json").read_text())["packages"]
    assert packages[""]["devDependencies"] == wanted
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    del packages[""]
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert all("resolved" not in package for package in packages.values())
    assert all(packages[f"node_modules/{name}"]["version"] == version for name, version in wanted.items())


def test_the_licence_is_whole_and_the_citation_names_the_version_and_the_paper() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["authors"][0]["family-names"] == "Huy" and len(paper["authors"]) == 10
    assert paper["identifiers"][0]["value"] == "arXiv:2503.06873"


def _outside_make() -> dict[str, str]:
    """The environment as a person's shell has it: a make that runs these tests must not speak through ours."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}


def test_make_help_lists_what_the_readme_names() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, env=_outside_make(), capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE))
    assert {
        "setup",
        "demo",
        "repro",
        "dvc",
        "serve",
        "mlflow",
        "lint",
        "test",
        "retrain",
        "compare",
        "triton",
    } <= listed
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named - {"and"} <= listed | {"help"}


@pytest.mark.parametrize("file", sorted((ROOT / "params").glob("*.yaml")), ids=lambda file: file.stem)
def test_overlays_fit_the_parameters(file: Path) -> None:
    overlay = yaml.safe_load(file.read_text())
    base = yaml.safe_load((ROOT / "params.yaml").read_text())
    params = parse_params(merged(base, overlay), str(file), ROOT / "params/presets")
    settings = overlay_settings(overlay, str(file), base)
    if file.stem == "devices":  # the phantom again, a harder one
        assert params.data.phantom.devices and "data.phantom.train=1200" in settings
    elif file.stem == "feedback":  # the same, smaller
        assert params.data.phantom.devices and "data.side=96" in settings
    elif file.stem == "comparison":  # the phantom, smaller, by one rule for all
        assert params.comparison.trials == 3 and params.concepts.patience == 3 and "data.side=96" in settings
    elif file.stem == "forms":  # and another
        assert params.data.phantom.forms and "data.phantom.forms=0.2" in settings
    elif file.stem == "pretrained":
        assert params.concepts.decay_norms is False and params.concepts.model.checkpoint
    else:
        assert params.data.source == "table" and 'data.source="table"' in settings
    assert all(re.fullmatch(r"[a-z_.]+=.+", setting) for setting in settings)


def test_every_stage_of_the_pipeline_has_a_module() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    training = ["concepts", "features", "prototypes", "head"]
    order = ["prepare", "data_report", *training, "evaluate", "atlas", "export", "register"]
    assert list(stages) == order
    for name in order:
        assert stages[name]["cmd"] == f"python -m pipelines.{name}"
        assert (ROOT / f"pipelines/{name}.py").is_file()


@pytest.mark.parametrize("target", ["repro", "demo", "retrain", "compare"])
def test_a_copy_without_git_is_told_that_a_clone_is_needed_before_anything_is_installed(
    tmp_path: Path, target: str
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = _outside_make() | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(
        ["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert f"{tmp_path} is no git clone, and DVC needs one" in done.stderr and not done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["Makefile"]


def test_who_bounds_a_time_runs_alone() -> None:
    """A bound that holds on a quiet machine fails beside another test that takes the processor."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in ast.walk(ast.parse(path.read_text())):
            if isinstance(test, ast.FunctionDef) and any(map(_bounds_a_time, ast.walk(test))):
                marks = {ast.unparse(mark) for mark in test.decorator_list}
                assert marks & {"pytest.mark.timed", "pytest.mark.faults"}, f"{path.name}: {test.name}"


def _bounds_a_time(node: ast.AST) -> bool:
    """Whether it asserts that what passed since a moment is below a limit."""
    passed = re.compile(r"time\.(monotonic|perf_counter)\(\) - \w+ < ")
    return isinstance(node, ast.Assert) and bool(passed.search(ast.unparse(node.test)))
