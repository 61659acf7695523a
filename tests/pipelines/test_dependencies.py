"""What DVC is told a stage depends on is what the stage imports: all of it, and nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from csr.errors import ConfigError
from pipelines import dependencies
from pipelines.dependencies import differences, read_stages, write
from pipelines.imports import NEVER_IN_OUTPUTS, needed_files
from tests.pipelines.conftest import ROOT

# a project in small
TREE = {
    "csr/__init__.py": "from csr.loop import fit\n",
    "csr/errors.py": "import csr.hidden\n",
    "csr/hidden.py": "X = 1\n",
    "csr/loop.py": "from csr.errors import Nothing\nfrom csr.training import losses as used\n",
    "csr/needless.py": "X = 1\n",
    "csr/training/__init__.py": '"""Only a docstring."""\n',
    "csr/training/losses.py": "def loss():\n    from csr.training.late import late\n",
    "csr/training/late.py": "import numpy\nfrom . import near\n",
    "csr/training/near.py": "from ..kinds import Kind\n",
    "csr/kinds/__init__.py": "from csr.kinds.kind import Kind\n",
    "csr/kinds/kind.py": "import typing\nif typing.TYPE_CHECKING:\n    from csr import needless\nKind = 1\n",
    "csr/rivals/__init__.py": "",
    "csr/rivals/one.py": "from csr.rivals.common import X\n",
    "csr/rivals/two.py": "X = 1\n",
    "csr/rivals/common.py": "X = 1\n",
    "pipelines/__init__.py": "import os\n",
    "pipelines/head.py": "import csr.loop\n",
    "pipelines/rival.py": "import importlib\n",
    "pipelines/comparison/dvc.yaml": """\
# a comment of the file
stages:
  one:
    wdir: ../..
    matrix:
      seed: [0, 1]
    cmd: python -m pipelines.rival csr.rivals.one:one ${item.seed}
    deps:
      - data/prepared
""",
    "pipelines/forms/dvc.yaml": """\
stages:
  two:
    wdir: ../..
    cmd: python -m pipelines.rival csr.rivals.two:two
    deps:
      - data/prepared
""",
    "pipelines/feedback/dvc.yaml": """\
stages:
  three:
    wdir: ../..
    cmd: python -m pipelines.rival csr.rivals.one:one
    deps:
      - data/prepared
""",
    "dvc.yaml": """\
stages:
  # a comment of the stage
  head:
    cmd: python -m pipelines.head
    deps:
      - csr/needless.py
      - build/features   # a comment of the data
      - csr/loop.py
      - csr/errors.py
    outs:
      - build/head
  plain:
    cmd: echo pipelines/head.py
    deps: [build/head]
""",
}
HEAD = {"csr/loop.py", "csr/training/losses.py", "csr/training/late.py", "csr/training/near.py"}
HEAD |= {"csr/kinds/__init__.py", "csr/kinds/kind.py", "pipelines/head.py"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_into_functions_packages_and_up_but_not_for_types_or_past_ignored_modules(
    tree: Path,
) -> None:
    assert needed_files(["pipelines.head"], tree) == HEAD


def test_missing_and_needless_files_are_found_and_written(tree: Path) -> None:
    found = differences(tree)
    assert "dvc.yaml: stage head needs csr/training/late.py" in found
    assert "dvc.yaml: stage head does not need csr/needless.py" in found
    assert "dvc.yaml: stage head does not need csr/errors.py" in found
    assert "pipelines/comparison/dvc.yaml: stage one needs csr/rivals/common.py" in found
    assert "pipelines/forms/dvc.yaml: stage two needs csr/rivals/two.py" in found
    assert not [each for each in found if "csr/loop.py" in each or "one needs csr/rivals/two.py" in each]
    assert not [each for each in found if "stage plain" in each]
    for file in dependencies.FILES:
        assert write(file, tree)
        assert not write(file, tree)
    assert differences(tree) == []
    text = (tree / "dvc.yaml").read_text()
    lines = "".join(f"      - {name}\n" for name in sorted(HEAD))
    assert text == TREE["dvc.yaml"].replace("      - csr/needless.py\n", "").replace(
        "      - csr/loop.py\n      - csr/errors.py\n", lines
    )
    deps = yaml.safe_load((tree / "pipelines/comparison/dvc.yaml").read_text())["stages"]["one"]["deps"]
    assert deps == ["data/prepared", "csr/rivals/common.py", "csr/rivals/one.py", "pipelines/rival.py"]


def test_an_edit_is_noticed_and_the_command_says_what_to_do(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(dependencies, "differences", lambda: differences(tree))
    monkeypatch.setattr(dependencies, "write", lambda file: write(file, tree))

    def call(action: str) -> object:
        monkeypatch.setattr(sys, "argv", ["dependencies", action])
        try:
            dependencies.main()
        except SystemExit as end:
            return end.code
        return capsys.readouterr().out

    assert "dvc.yaml was written anew" in str(call("--write"))
    assert "nothing has changed" in str(call("--write"))
    assert call("--check") == ""
    (tree / "csr/kinds/kind.py").write_text("from csr.needless import X\nKind = X\n")
    assert call("--check") == (
        "dvc.yaml: stage head needs csr/needless.py\ndependencies: run make dvc, which writes them anew"
    )


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        (
            "csr/training/near.py",
            "\nfrom csr.nowhere import X\n",
            r"csr/training/near\.py:2: imports csr\.nowhere, which",
        ),
        (
            "csr/training/near.py",
            "from csr import fit\n",
            r"takes 'fit' from csr; import it from the module",
        ),
        (
            "dvc.yaml",
            "stages: {head: {cmd: python -m pipelines.gone, deps: [a]}}\n",
            r"pipelines\.gone: there is no such",
        ),
        ("dvc.yaml", "stages: {head: {cmd: python -m pipelines.head}}\n", "stage head: has no deps"),
    ],
)
def test_what_cannot_be_followed_is_an_error(tree: Path, file: str, text: str, sentence: str) -> None:
    (tree / file).write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        differences(tree)


# this project


def test_every_stage_of_both_pipelines_depends_on_what_it_imports_and_on_nothing_else() -> None:
    """A missing file is a stale model, a needless one a needless hour; `make dvc` mends both."""
    assert differences() == []


def test_nothing_but_the_code_dependencies_would_be_written_anew(tmp_path: Path) -> None:
    for name in ("csr", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in dependencies.FILES:
        text = (ROOT / file).read_text()
        lines = text.splitlines(keepends=True)
        shorn = [line for line in lines if not line.startswith(("      - csr/", "      - pipelines/"))]
        assert len(shorn) < len(lines)
        (tmp_path / file).write_text("".join(shorn))
        write(file, tmp_path)
        assert (tmp_path / file).read_text() == text


def test_ignored_modules_exist_and_have_a_reason() -> None:
    for module, reason in NEVER_IN_OUTPUTS.items():
        needed_files([module], ignored=())
        assert reason


@pytest.fixture(scope="module")
def code() -> dict[str, set[str]]:
    """What each stage of the default pipeline needs."""
    return {stage.name: stage.needed for stage in read_stages(Path("dvc.yaml"))}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("csr/data/sources/table.py", {"prepare"}),
        ("csr/data/html_report.py", {"data_report"}),
        ("csr/data/report.py", {"data_report"}),
        ("csr/training/temperature.py", {"head"}),
        ("csr/interaction/naming_fit.py", {"export"}),
        ("csr/training/class_losses.py", {"head", "atlas", "export"}),
        ("csr/evaluation/evaluate.py", {"evaluate"}),
        ("csr/evaluation/pointing.py", {"evaluate", "export"}),
        ("csr/bundle/onnx_export.py", {"export"}),
        ("csr/bundle/writing.py", {"export"}),
        ("pipelines/figures/evaluation.py", {"evaluate"}),
    ],
)
def test_an_edit_runs_the_stages_that_use_it(code: dict[str, set[str]], file: str, stages: set[str]) -> None:
    assert {name for name, needed in code.items() if file in needed} == stages


def test_data_know_no_training_and_stage_1_knows_nothing_of_what_follows(code: dict[str, set[str]]) -> None:
    for stage in ("prepare", "data_report"):
        assert not [file for file in code[stage] if file.startswith(("csr/training", "csr/network"))]
    later = ("csr/training/prototype", "csr/training/head", "csr/network/projector", "csr/network/reasoner")
    later += ("csr/interaction", "csr/bundle", "csr/baselines")
    assert not [file for stage in ("concepts", "features") for file in code[stage] if file.startswith(later)]
    assert {"csr/training/losses.py", "csr/training/runtime.py", "csr/network/prototypes.py"} <= code["head"]
