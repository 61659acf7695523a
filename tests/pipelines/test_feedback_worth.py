"""The stages about what readers' corrections are worth: what DVC is told of them, and a tiny run."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from csr.comparison.feedback import ARMS
from csr.data.phantom import generate
from csr.errors import ConfigError, DataError
from pipelines.comparison import common, csr, feedback, feedback_report, shared_backbone
from tests.pipelines.conftest import ROOT, merge
from tests.pipelines.test_comparison import PRESETS, SMALL

FILE = "pipelines/feedback/dvc.yaml"
SEED = 0


def test_dvc_runs_every_arm_and_seed_on_the_deployed_model_and_then_the_report(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "pipelines/comparison/dvc.yaml", FILE, *PRESETS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        stages = {stage.name: stage for stage in repo.index.stages if stage.path == str(tmp_path / FILE)}
        waiting = {stage.name for stage in repo.index.graph.successors(stages["feedback_report"])}
    seeds = yaml.safe_load((ROOT / "params.yaml").read_text())["comparison"]["seeds"]
    arms = {f"feedback@{arm}-{seed}": (arm, seed) for arm in ARMS for seed in seeds}
    assert set(stages) == {"feedback_report", *arms}
    for name, (arm, seed) in arms.items():
        assert stages[name].cmd == f"python -m pipelines.comparison.feedback {arm} {seed}"
        needed = {dep.def_path for dep in stages[name].deps}
        assert {"build/comparison/shared_backbones/concepts_lse-0", "build/comparison/systems/csr_robust-0.pt"} < needed
        assert [out.def_path for out in stages[name].outs] == [f"reports/feedback/{arm}-{seed}.json"]
    assert waiting >= set(arms)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters for a tiny run, entered."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, SMALL)
    phantom = {"train": 60, "val": 30, "test": 30, "devices": 0.6}
    merge(content, {"data": {"side": 32, "near_bits": -1, "phantom": phantom}, "comparison": {"seeds": [SEED]}})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def test_a_run_trains_on_with_what_readers_said_and_the_report_says_what_it_was_worth(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = common.load_comparison()
    generate(params.data.phantom, params.data.side, workplace / "data/prepared")
    small = {
        name: replace(ARMS[name], studies=ARMS[name].studies and 20) for name in ("none", "right_200", "wrong30_200")
    }
    for module in (feedback, feedback_report):
        monkeypatch.setattr(module, "ARMS", small)
    monkeypatch.setattr("csr.comparison.feedback.POOL", 40)
    with pytest.raises(DataError, match=r"reports/feedback/none-0\.json: missing; run python -m"):
        feedback_report.build(params)
    shared_backbone.run("csr.comparison.concept_backbones:concepts_lse", SEED, params)
    csr.run("csr_robust", SEED, params)
    found = {}
    for name in small:
        feedback.run(name, SEED, params)
        found[name] = json.loads(
            (workplace / f"reports/feedback/{name}-0.json").read_text(), parse_constant=pytest.fail
        )
    assert "joined" not in found["none"] and found["right_200"]["joined"] == {"added": 20, "left_out": 0}
    assert not found["none"]["doubted"] and len(found["right_200"]["doubted"]) == feedback.EPOCHS
    assert all(len(each["classes"]) == 60 for each in found.values())
    assert not list((workplace / "build/comparison").glob("tmp*")), "nothing of the new studies is left"
    feedback_report.main()
    text = (workplace / "reports/feedback.md").read_text()
    assert all(each.title in text for each in small.values()) and "at least +2 points on shifted" in text
    assert (workplace / "reports/feedback.html").is_file()


def test_only_the_phantom_has_another_site(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = common.load_comparison()
    other = replace(params, data=replace(params.data, source="table"))
    with pytest.raises(ConfigError, match=r"data\.source: only the phantom"):
        feedback.run("none", SEED, other)
    monkeypatch.setattr(sys, "argv", ["feedback", "some", "0"])
    with pytest.raises(SystemExit):
        common.command_line("feedback", list(ARMS), feedback.run)
