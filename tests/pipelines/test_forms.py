"""The stages about two forms a concept: what DVC is told of them, and a tiny run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from csr.comparison.forms import RECIPES
from csr.errors import DataError
from pipelines.comparison import common, forms, forms_report, shared_backbone
from tests.csr.comparison.test_forms import with_forms
from tests.csr.synthetic import make_collection, make_prepared
from tests.pipelines.conftest import ROOT, merge
from tests.pipelines.test_comparison import PRESETS, SMALL

FILE = "pipelines/forms/dvc.yaml"


def test_dvc_runs_a_stage_a_seed_on_its_backbone_and_then_the_report(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "pipelines/comparison/dvc.yaml", FILE, *PRESETS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        stages = {stage.name: stage for stage in repo.index.stages if stage.path == str(tmp_path / FILE)}
        waiting = {stage.name for stage in repo.index.graph.successors(stages["forms_report"])}
    seeds = yaml.safe_load((ROOT / "params.yaml").read_text())["comparison"]["seeds"]
    assert set(stages) == {"forms_report", *(f"forms@{seed}" for seed in seeds)}
    for seed in seeds:
        stage = stages[f"forms@{seed}"]
        assert stage.cmd == f"python -m pipelines.comparison.forms concepts_lse {seed}"
        assert f"build/comparison/shared_backbones/concepts_lse-{seed}" in {dep.def_path for dep in stage.deps}
        assert [out.def_path for out in stage.outs] == [f"reports/forms/{seed}.json"]
    assert waiting >= {f"forms@{seed}" for seed in seeds}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters for a tiny run, entered."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, SMALL)
    content["data"]["phantom"]["forms"] = 0.3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def test_a_run_measures_every_recipe_and_the_report_says_so(workplace: Path) -> None:
    make_prepared(workplace / "data/prepared", with_forms(make_collection(test=30)))
    params = common.load_comparison()
    with pytest.raises(DataError, match=r"reports/forms/0\.json: missing; run python -m"):
        forms_report.build(params)
    shared_backbone.run("csr.comparison.concept_backbones:concepts_lse", 0, params)
    forms.run("concepts_lse", 0, params)
    report = json.loads((workplace / "reports/forms/0.json").read_text(), parse_constant=pytest.fail)
    assert list(report["recipes"]) == list(RECIPES)
    assert report["recipes"]["one_prototype"]["sorting"]["recall"] == 0
    for own in (*(each["sorting"] for each in report["recipes"].values()), *report["clusters"].values()):
        assert 0 <= own["purity"] <= 1 and 0 < own["coverage"] <= 1 and own["purity_high"] >= own["purity_chance"]
    forms_report.main()
    text = (workplace / "reports/forms.md").read_text()
    assert all(title in text for title, _ in RECIPES.values()) and "in 30% of its studies" in text
    assert (workplace / "reports/forms.html").is_file()


def test_a_set_without_forms_is_refused_before_anything_is_trained(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_prepared(workplace / "data/prepared", make_collection())
    with pytest.raises(DataError, match=r"params/forms\.yaml"):
        forms.run("concepts_lse", 0, common.load_comparison())
    monkeypatch.setattr(sys, "argv", ["forms_report"])
    with pytest.raises(SystemExit, match=r"forms_report: made-up: its studies have no column"):
        forms_report.main()
    assert not list((workplace / "reports").iterdir())
