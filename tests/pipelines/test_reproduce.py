"""The paper's protocol on generated sets in the published layouts: what is trained, resumed, refused, written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from csr.comparison.published import PUBLISHED
from csr.errors import ConfigError, DataError
from pipelines import reproduce as module
from pipelines.reproduce import OVERLAYS, open_points, read_params, reproduce
from pipelines.reproduce_report import SETS, TITLES
from tests.pipelines.conftest import ROOT
from tests.pipelines.published_layouts import write_isic2017, write_tbx11k, write_vindr_cxr

WRITERS = {"tbx11k": write_tbx11k, "vindr_cxr": write_vindr_cxr, "isic2017": write_isic2017}
SMALL = [
    "concepts.model.backbone=test_convnext",
    "concepts.model.pretrained=false",
    "concepts.epochs=2",
    "concepts.batch_size=8",
    "concepts.learning_rate=0.004",
    "concepts.precision=float32",
    "prototypes.epochs=2",
    "prototypes.per_concept=3",
    "prototypes.width=8",
    "head.epochs=3",
    "data.side=64",
    "data.workers=1",
    "comparison.seeds=[0]",
    "train.threads=1",
]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each set, reproduced: ``set``, ``out`` in it."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, write in WRITERS.items():
            folders[name] = tmp_path_factory.mktemp(name)
            reproduce(name, write(folders[name] / "set"), folders[name] / "out", settings(name))
    return folders


def settings(name: str) -> list[str]:
    return [*SMALL, *(["data.tbx11k.located=[cavity]", "prototypes.located=true"] if name == "tbx11k" else [])]


@pytest.mark.parametrize("name", list(SETS))
def test_a_set_is_trained_with_both_presets_and_set_beside_the_paper(name: str, made: dict[str, Path]) -> None:
    out = made[name] / "out"
    text = (out / f"{name}.md").read_text()
    assert (out / f"{name}.html").is_file()
    (table,) = (section for section in text.split("\n## ") if section.startswith("Beside the paper"))
    rows = {row.split(" | ")[0].lstrip("| "): row.split(" | ") for row in table.splitlines() if row.startswith("| ")}
    for preset, title in TITLES.items():
        metrics = json.loads((out / f"{preset}-0" / "metrics.json").read_text())
        part = metrics["parts"]["test"]
        assert rows[title][1] == f"{100 * part['macro_f1']:.1f}"
        assert rows[title][2] == f"{100 * part['pointing_game']['pair']:.1f}"
        assert not (out / f"{preset}-0" / "features").exists() and not (out / f"{preset}-0" / "state/concepts").exists()
    for row in PUBLISHED:
        value = getattr(row, SETS[name].f1)
        assert (f"{row.system}, paper" in rows) == (value is not None)
        if value is not None:
            assert rows[f"{row.system}, paper"][1] == f"{value:.1f}"
    for point in open_points((OVERLAYS / f"{name}.yaml").read_text()):
        assert point in text


def test_what_is_done_is_not_repeated_and_what_was_stopped_goes_on(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, given = made["tbx11k"] / "set", tmp_path / "out", settings("tbx11k")
    whole = (made["tbx11k"] / "out/tbx11k.md").read_text()

    class Stopped(module.TimedCallbacks):
        def epoch(self, metrics, state):
            super().epoch(metrics, state)
            if self._stage == "concepts" and "robust" in str(self._folder):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "TimedCallbacks", Stopped)
        reproduce("tbx11k", folder, out, given)
    done = (out / "paper-0" / "metrics.json").stat().st_mtime_ns
    assert (out / "robust-0/state/concepts/state.pt").is_file()
    text = reproduce("tbx11k", folder, out, given)
    assert (out / "paper-0" / "metrics.json").stat().st_mtime_ns == done
    assert json.loads((out / "robust-0/concepts.json").read_text())["epochs"] == 2
    assert text.partition("## Cost")[0] == whole.partition("## Cost")[0]  # what is learned is the same
    assert reproduce("tbx11k", folder, out, given) == text


@pytest.mark.parametrize("name", list(SETS))
def test_a_folder_that_is_not_there_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; .*name the folder that holds"):
        reproduce(name, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"missing|has neither"):
        reproduce(name, tmp_path / "empty", tmp_path / "out", SMALL)


def test_a_folder_of_other_settings_is_refused_and_where_it_runs_is_none(made: dict[str, Path]) -> None:
    folder, out, given = made["tbx11k"] / "set", made["tbx11k"] / "out", settings("tbx11k")
    reproduce("tbx11k", folder, out, [*given, "train.gpu=never"])
    with pytest.raises(ConfigError, match=r"paper\.head\.epochs, robust\.head\.epochs"):
        reproduce("tbx11k", folder, out, [*given, "head.epochs=4"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("epochs", "not of the form"), ("concepts.epoch=3", "did you mean 'concepts.epochs'"), ("a=[", "not a value")],
)
def test_settings_that_are_none_are_refused(setting: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_params(OVERLAYS / "tbx11k.yaml", tmp_path, [setting], "paper")


@pytest.mark.parametrize("name", list(SETS))
def test_the_overlays_are_the_paper_s_protocol(name: str, tmp_path: Path) -> None:
    file = OVERLAYS / f"{name}.yaml"
    assert len(open_points(file.read_text())) >= 8
    for preset, pooling, count in (("paper", "average", 100), ("robust", "lse", 5)):
        params = read_params(file, tmp_path, [], preset)
        assert params.data.source == name and params.comparison.seeds == (0, 1, 2)
        assert params.concepts.model.backbone == "convnext_tiny" and params.concepts.model.pretrained
        assert params.concepts.model.pooling == pooling and params.prototypes.per_concept == count
    assert set(yaml.safe_load(file.read_text())) <= {"data", "concepts", "prototypes", "head"}
