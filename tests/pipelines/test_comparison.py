"""The comparison's pipeline: what DVC is told agrees with the code, and its stages run from data to report."""

from __future__ import annotations

import csv
import importlib
import json
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
import networkx
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from mlflow.entities import Run

from csr.baselines import cbm, scbm
from csr.baselines.protocol import Entry, load_system
from csr.comparison.ablations import VARIANTS
from csr.comparison.csr_system import CSRSystem
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.data.records import Collection
from csr.errors import ConfigError
from pipelines.comparison import (
    ablation,
    answers,
    boxes,
    claims_report,
    common,
    csr,
    faithfulness,
    fan_out,
    few_shot,
    held_out,
    interaction_report,
    missing_labels,
    recipes,
    refinement,
    report,
    rival,
    shared_backbone,
    trials,
)
from pipelines.params import load_params
from tests.csr.baselines.test_several_classes import with_targets
from tests.csr.synthetic import CONCEPTS, make_collection, make_prepared
from tests.pipelines.conftest import ROOT, merge

FILE = "pipelines/comparison/dvc.yaml"
PRESETS = [f"params/presets/{name}.yaml" for name in ("robust", "paper")]
CODE = ("csr/", "pipelines/")
REPORTS = {"report", "interaction_report", "claims_report"}
SMALL = {
    "concepts": {
        "model": {"backbone": "test_convnext", "width": 16},
        "epochs": 1,
        "batch_size": 8,
        "precision": "float32",
        "seed": 5,  # the comparison's own seeds replace it
    },
    "prototypes": {"epochs": 1, "width": 8, "per_concept": 2},
    "head": {"epochs": 3},
    "comparison": {"seeds": [0]},
    "train": {"threads": 1},
}


# what DVC is told


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    """The pipeline files in a folder of their own, with the parameters as they are shipped."""
    folder = tmp_path_factory.mktemp("repo")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", FILE, *PRESETS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with Repo.init(str(folder), no_scm=True) as made:
        yield made


@pytest.fixture(scope="module")
def stages(repo: Repo) -> list[PipelineStage]:
    """The stages of the comparison, every seed and system resolved."""
    return [stage for stage in repo.index.stages if stage.path == str(Path(repo.root_dir) / FILE)]


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return systems(recipes.recipes())


ON_IMAGES = {
    "cbm_joint",
    "cbm_joint_lse",
    "protopnet",
    "protopool",
    "prototree",
    "pipnet",
}  # the other systems rest on what is frozen
SEEDS = yaml.safe_load((ROOT / "params.yaml").read_text())["comparison"]["seeds"]


def files(stage: PipelineStage) -> list[str]:
    return [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]


def parameters(stage: PipelineStage) -> set[str]:
    return {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params}


def outputs(stage: PipelineStage) -> set[str]:
    return {out.def_path for out in stage.outs}


def commands(stages: list[PipelineStage], *programs: str) -> dict[tuple[str, str], PipelineStage]:
    """The stages of programs by what they make and the seed; each combination is there once."""
    modules = {f"pipelines.comparison.{program}" for program in programs}
    words = [(stage.cmd.split(), stage) for stage in stages]
    found = [((given[3].rpartition(":")[2], given[4]), stage) for given, stage in words if given[2] in modules]
    assert max(Counter(arguments for arguments, _ in found).values()) == 1
    return dict(found)


def covered(path: str, dependencies: list[str]) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in dependencies)


def expected(names: list[str]) -> set[tuple[str, str]]:
    return {(name, str(seed)) for name in names for seed in SEEDS}


def test_every_system_is_in_one_matrix_with_the_foundation_it_rests_on(
    stages: list[PipelineStage], entries: dict[str, Entry]
) -> None:
    found = commands(stages, "csr", "rival", "label_free")
    assert set(found) == expected(list(entries))
    for (name, seed), stage in found.items():
        kind = entries[name].shared_backbone
        own = {each for each in files(stage) if each.startswith("build/")}
        learns = name in ON_IMAGES
        assert own == ({f"build/comparison/shared_backbones/{kind}-{seed}"} if kind else set()) | (
            {f"build/comparison/trials/{name}.json"} if learns else set()
        )
        assert outputs(stage) == {
            f"build/comparison/predictions/{name}-{seed}.npz",
            f"build/comparison/systems/{name}-{seed}.pt",
            f"reports/comparison/{name}-{seed}.json",
        } | ({f"reports/comparison/curves/{name}-{seed}.json"} if learns else set())


def test_every_foundation_is_trained_with_every_seed(stages: list[PipelineStage]) -> None:
    found = commands(stages, "shared_backbone")
    assert set(found) == expected(list(SHARED_BACKBONES))
    for (kind, seed), stage in found.items():
        assert outputs(stage) == {
            f"build/comparison/shared_backbones/{kind}-{seed}",
            f"reports/comparison/curves/{kind}-{seed}.json",
        }
        settings = shared_backbone.TRIALS_OF.get(kind, kind)
        assert [each for each in files(stage) if each.startswith("build/")] == [
            f"build/comparison/trials/{settings}.json"
        ]


def test_everything_that_learns_from_images_has_trials_before_it_is_trained(
    stages: list[PipelineStage], entries: dict[str, Entry]
) -> None:
    words = [(stage.cmd.split(), stage) for stage in stages]
    found = {given[3].rpartition(":")[2]: stage for given, stage in words if given[2] == "pipelines.comparison.trials"}
    assert set(found) == ON_IMAGES | set(SHARED_BACKBONES) - set(shared_backbone.TRIALS_OF)
    for name, stage in found.items():
        kind = entries[name].shared_backbone if name in entries else None
        own = [each for each in files(stage) if each.startswith("build/")]
        assert own == ([f"build/comparison/shared_backbones/{kind}-{SEEDS[0]}"] if kind else [])
        assert outputs(stage) == {f"build/comparison/trials/{name}.json", f"reports/comparison/trials/{name}.json"}
        assert parameters(stage) == {"concepts", "comparison.trials"}
        assert (name in trials.OWN_BACKBONE) == (kind is None)


def test_every_variant_is_in_the_ablation_with_the_foundation_it_rests_on(stages: list[PipelineStage]) -> None:
    found = commands(stages, "ablation")
    assert set(found) == expected(list(VARIANTS))
    for (name, seed), stage in found.items():
        own = [each for each in files(stage) if each.startswith("build/")]
        assert own == [f"build/comparison/shared_backbones/{VARIANTS[name].shared_backbone}-{seed}"]
        assert outputs(stage) == {f"reports/comparison/ablation/{name}-{seed}.json"}


@pytest.mark.parametrize(
    ("program", "names", "written"),
    [
        (
            "answers",
            list(answers.BACKBONES),
            ("reports/comparison/answers/{}.csv", "build/comparison/decisions/{}.npz"),
        ),
        ("boxes", ["csr_robust"], ("reports/comparison/boxes/{}.json",)),
        (
            "refinement",
            ["csr_robust", "csr_paper"],
            ("reports/comparison/refinement/{}.csv", "reports/comparison/refinement/{}.json"),
        ),
    ],
)
def test_what_readers_correct_rests_on_a_trained_system(
    stages: list[PipelineStage], entries: dict[str, Entry], program: str, names: list[str], written: tuple[str, ...]
) -> None:
    found = commands(stages, program)
    assert set(found) == expected(names)
    for (name, seed), stage in found.items():
        assert {each for each in files(stage) if each.startswith("build/")} == {
            f"build/comparison/shared_backbones/{entries[name].shared_backbone}-{seed}",
            f"build/comparison/systems/{name}-{seed}.pt",
        }
        assert outputs(stage) == {each.format(f"{name}-{seed}") for each in written}


def test_every_share_of_hidden_labels_is_trained_from_the_start(stages: list[PipelineStage]) -> None:
    found = commands(stages, "missing_labels")
    assert set(found) == expected(list(missing_labels.LEVELS))
    for (level, seed), stage in found.items():
        own = [each for each in files(stage) if each.startswith("build/")]
        assert own == ["build/comparison/trials/concepts_lse.json"]
        assert outputs(stage) == {f"reports/comparison/missing_labels/{level}-{seed}.json"}
        assert parameters(stage) >= {"concepts", "prototypes", "head"}


def test_the_report_waits_for_everything_else(repo: Repo, stages: list[PipelineStage]) -> None:
    (last,) = (stage for stage in stages if stage.name == "report")
    reports = {stage for stage in stages if stage.name in REPORTS}
    assert networkx.descendants(repo.index.graph, last) >= set(stages) - reports
    assert outputs(last) == {"reports/comparison.md", "reports/comparison.html"}
    assert last.cmd == "python -m pipelines.comparison.report"


def test_a_new_seed_or_folder_changes_nothing_that_has_run(stages: list[PipelineStage]) -> None:
    assert {stage.name for stage in stages if "comparison" in parameters(stage)} == REPORTS
    for stage in stages:
        kind = stage.name.partition("@")[0]
        needed = {"shared_backbone": {"concepts"}, "ablation": {"prototypes", "head"}, "refinement": {"head"}}
        assert parameters(stage) >= needed.get(kind, set())
        if kind == "csr":
            assert parameters(stage) >= {"prototypes", "head"}
        if stage in commands(stages, "rival").values():
            assert "concepts" in parameters(stage)


def test_tuning_csr_does_not_repeat_its_rivals(stages: list[PipelineStage]) -> None:
    for stage in stages:
        if stage in commands(stages, "shared_backbone", "rival").values():
            assert not parameters(stage) & {"prototypes", "head"}
            assert not {"csr/training/head.py", "csr/training/prototypes.py"} & set(files(stage))


def test_an_edit_to_a_rival_repeats_it_and_those_that_borrow_from_it(stages: list[PipelineStage]) -> None:
    borrowed = {
        "posthoc_cbm": {"label_free_cbm"},
        "protopnet": {"protopool", "prototree"},
        "black_box": {"class_backbone"},
    }
    borrowed["cbm"] = {"cbm_joint", "intcem", "missing_labels", "answers", "scbm", "joint_trials"}
    borrowed["cbm"] |= {"few_shot", "faithfulness", "claims_report"}
    borrowed["intcem"] = borrowed["scbm"] = {"answers"}
    borrowed["black_box"] |= {"class_trials"}
    borrowed["protopnet"] |= {"protopnet_trials", "protopool_trials", "prototree_trials"}
    for name in ("pipnet", "protopool", "prototree"):
        borrowed[name] = {f"{name}_trials"}
    names = ("black_box", "cbm", "intcem", "pipnet", "posthoc_cbm", "protopnet", "protopool", "prototree", "scbm")
    for name in names:
        found = {stage.name.partition("@")[0] for stage in stages if f"csr/baselines/{name}.py" in files(stage)}
        assert found == {name, "report"} | borrowed.get(name, set())


def test_stages_need_what_they_take_in(stages: list[PipelineStage], repo: Repo) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo.root_dir)
        graph = fan_out.needs()
    assert sorted(graph) == sorted(stage.name for stage in stages)
    groups: dict[str, set[str]] = {}
    for name, others in graph.items():
        groups.setdefault(name.partition("@")[0], set()).update(other.partition("@")[0] for other in others)
    assert not groups["concept_trials"] | groups["class_trials"] | groups["joint_trials"]
    assert groups["shared_backbone"] == groups["held_out"] == {"concept_trials"}
    assert groups["pipnet_trials"] == {"class_backbone"} and groups["class_backbone"] == {"class_trials"}
    assert groups["csr"] == {"shared_backbone"} and groups["pipnet"] == {"class_backbone", "pipnet_trials"}
    assert groups["refinement"] == {"csr", "shared_backbone"} and groups["few_shot"] > {"held_out"}
    assert groups["report"] == set(groups) - REPORTS - {"held_out"}


def test_code_that_stages_depend_on_exists_and_bytecode_is_not_part_of_it(
    repo: Repo, stages: list[PipelineStage]
) -> None:
    for stage in stages:
        code = [each for each in files(stage) if each.startswith(CODE)]
        assert code and all((ROOT / each).exists() for each in code)
        assert stage.cmd.split()[2].replace(".", "/") + ".py" in code
        assert "data/prepared" in files(stage)
    assert repo.dvcignore.is_ignored_dir(str(Path(repo.root_dir) / "csr/baselines/__pycache__"))


@pytest.mark.parametrize(
    "program",
    [
        *("shared_backbone", "csr", "rival", "ablation", "missing_labels", "answers", "boxes", "refinement"),
        *("held_out", "few_shot", "faithfulness"),
    ],
)
def test_every_command_line_is_one_that_the_program_takes(
    stages: list[PipelineStage], entries: dict[str, Entry], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is run as DVC runs it, but for its work."""
    module, real, taken = f"pipelines.comparison.{program}", common.command_line, []

    def without_work(program: str, choices: list[str] | None, body: object) -> None:
        real(program, choices, lambda name, seed, params: taken.append((name, str(seed))))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(common, "command_line", without_work)
    monkeypatch.delitem(sys.modules, module)
    wanted = [tuple(stage.cmd.split()[3:]) for stage in commands(stages, program).values()]
    for arguments in wanted:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")
    assert taken == wanted
    tables = {"shared_backbone": ("BACKBONES", SHARED_BACKBONES), "rival": ("SYSTEMS", entries)}
    if program in tables:
        table, known = tables[program]
        for name, _ in wanted:
            assert common.listed(name, table)[0] in known
        with pytest.raises(ConfigError, match="nobody' is not MODULE:NAME"):
            common.listed("csr.baselines.cbm:nobody", table)
        return
    monkeypatch.setattr(sys, "argv", [module, "nobody", "0"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__")
    assert caught.value.code == 2


# what the stages do

DONE = {
    "shared_backbone": ["csr.comparison.concept_backbones:concepts_lse", "csr.baselines.black_box:classes"],
    "csr": ["csr_robust"],
    "rival": [
        "csr.baselines.cbm:cbm_shared",
        "csr.baselines.intcem:intcem_shared",
        "csr.baselines.scbm:scbm_shared",
        "csr.baselines.black_box:black_box",
    ],
    "ablation": ["robust", "no_absence"],
    "missing_labels": ["50", "90", "90_text"],
    "answers": ["csr_robust", "cbm_shared", "scbm_shared", "intcem_shared"],
    "boxes": ["csr_robust"],
    "refinement": ["csr_robust"],
    "held_out": ["1"],
    "few_shot": ["1"],
    "faithfulness": ["cbm_shared"],
}
SYSTEMS = ["csr_robust", "cbm_shared", "scbm_shared", "intcem_shared", "black_box"]


SEVERAL = {
    "shared_backbone": DONE["shared_backbone"],
    "csr": ["csr_robust"],
    "rival": [
        "csr.baselines.cbm:cbm_shared",
        "csr.baselines.scbm:scbm_shared",
        "csr.baselines.black_box:black_box",
        "csr.baselines.protopnet:protopnet",
    ],
    "ablation": ["robust"],
    "answers": ["csr_robust", "scbm_shared"],
    "refinement": ["csr_robust"],
}


@contextmanager
def worked(folder: Path, collection: Collection, done: dict[str, list[str]]) -> Iterator[Path]:
    """A folder in which stages and the reports have run on a made-up set."""
    make_prepared(folder / "data/prepared", collection)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, SMALL)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "params", folder / "params")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setattr(scbm, "TRIES", scbm.TRIES[:1])
        params = common.load_comparison()
        systems_first = (shared_backbone, csr, rival, ablation, missing_labels, answers, boxes, refinement)
        for stage in (*systems_first, held_out, few_shot, faithfulness):
            for name in done.get(stage.__name__.rpartition(".")[2], ()):
                stage.run(name, 0, params)
        report.main()
        interaction_report.main()
        if "few_shot" in done:
            claims_report.main()
        yield folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the stages of `DONE` have run."""
    with worked(tmp_path_factory.mktemp("comparison"), make_collection(), DONE) as folder:
        yield folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the stages of `SEVERAL` have run on studies that can have several classes."""
    collection = with_targets(make_collection(train=48, val=24))
    with worked(tmp_path_factory.mktemp("several"), collection, SEVERAL) as folder:
        yield folder


def logged(folder: Path) -> list[Run]:
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "reports/comparison" / name).read_text())


def test_stages_write_what_dvc_is_told(workplace: Path, stages: list[PipelineStage]) -> None:
    promised = {
        f"reports/comparison{kind}.{ending}" for kind in ("", "_interaction", "_claims") for ending in ("md", "html")
    }
    for program, names in DONE.items():
        for name in names:
            promised |= outputs(commands(stages, program)[name.rpartition(":")[2], "0"])
    assert all((workplace / each).exists() for each in promised)
    roots = {workplace / "build", workplace / "reports"}
    written = {path.relative_to(workplace) for root in roots for path in root.rglob("*") if path.is_file()}
    assert all(covered(str(path), sorted(promised)) for path in written)


def test_every_stage_has_a_run_of_its_own_in_mlflow(workplace: Path) -> None:
    found = logged(workplace)
    tags = [(run.data.tags["comparison"], run.data.tags["system"], run.data.tags["seed"]) for run in found]
    kinds = {"csr": "system", "rival": "system"}
    done = [(kinds.get(program, program), name.rpartition(":")[2]) for program, own in DONE.items() for name in own]
    assert sorted(tags) == sorted((*each, "0") for each in done)
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found:
        assert run.data.params["system"] == run.data.tags["system"]
        assert run.data.params["concepts.model.backbone"] == "test_convnext"
        assert run.data.params["seed"] == run.data.params["concepts.seed"] == "0"
        assert run.data.tags["git.revision"]
    by_name = {(run.data.tags["comparison"], run.data.tags["system"]): run.data.metrics for run in found}
    robust = read(workplace, "csr_robust-0.json")
    logged_robust = by_name["system", "csr_robust"]
    assert logged_robust["test.macro_f1"] == pytest.approx(robust["test"]["macro_f1"], abs=1e-6)
    assert logged_robust["test.pointing_pair"] == pytest.approx(robust["test"]["pointing_game"]["pair"], abs=1e-6)
    assert logged_robust["system.prototypes"] == 3 * 2
    assert "csr_robust.train_contrastive" in logged_robust and "csr_robust.val_macro_f1" in logged_robust
    assert "concepts_lse.val_auroc" in by_name["shared_backbone", "concepts_lse"]


def test_the_variant_without_changes_is_csr_itself(workplace: Path) -> None:
    robust, same, other = (
        read(workplace, name) for name in ("csr_robust-0.json", "ablation/robust-0.json", "ablation/no_absence-0.json")
    )
    assert same["test"] == robust["test"]
    assert other["test"] != robust["test"]
    trained = load_system(CSRSystem, workplace / "build/comparison/systems/csr_robust-0.pt")
    assert trained.csr.concepts == CONCEPTS
    for each, name in ((same, "robust"), (other, "no_absence")):
        assert (each["variant"], each["title"], each["seed"]) == (name, VARIANTS[name].title, 0)
        assert each["val"]["studies"] == 16 and each["test"]["studies"] == 12


def test_hidden_labels_change_what_is_learned_and_all_labels_judge_it(workplace: Path) -> None:
    half, tenth, text = (read(workplace, f"missing_labels/{level}-0.json") for level in missing_labels.LEVELS)
    for name in missing_labels.SYSTEMS:
        whole = read(workplace, f"{name}-0.json")["test"]
        for partly in (half[name]["test"], tenth[name]["test"], text[name]["test"]):
            assert partly["studies"] == whole["studies"] == 12
            assert partly["pointing_game"]["pairs"] == whole["pointing_game"]["pairs"]
        judged = [(each["concept_auroc"], each["ece"]) for each in (whole, half[name]["test"], tenth[name]["test"])]
        assert len(set(judged)) == 3
    report = (workplace / "reports/comparison.md").read_text()
    rows = report.partition("## Missing concept labels")[2].partition("\n## ")[0]
    for hidden, found in (("50%", half), ("90%", tenth), ("90%, encoder of AUROC 0.85", text)):
        macro_f1 = found["csr_robust"]["test"]["macro_f1"]
        assert f"| CSR, robust | {hidden} | {macro_f1:.3f} |" in rows
    assert not list((workplace / "build/comparison").glob("tmp*"))


def test_refinement_judges_before_masked_and_retrained(workplace: Path) -> None:
    found = read(workplace, "refinement/csr_robust-0.json")
    with (workplace / "reports/comparison/refinement/csr_robust-0.csv").open() as stream:
        verdicts = list(csv.DictReader(stream))
    assert len(verdicts) == 3 * 2
    left = sum(row["prune"] == "False" for row in verdicts)
    assert [found[kind]["prototypes"] for kind in ("before", "masked", "retrained")] == [6, left, left]
    before, system_report = found["before"]["test"], read(workplace, "csr_robust-0.json")["test"]
    assert before["macro_f1"] == pytest.approx(system_report["macro_f1"], abs=0.1)  # cached features are float16


def test_answers_are_on_record_of_csr_and_of_rivals(workplace: Path) -> None:
    report = (workplace / "reports/comparison_interaction.md").read_text()
    for name in DONE["answers"]:
        table = pd.read_csv(workplace / f"reports/comparison/answers/{name}-0.csv")
        kind = answers.KINDS[name]
        assert set(table["tool"]) == set(kind.tools) and set(table["trigger"]) == {"all", "uncertain"}
        assert set(table["policy"]) == set(kind.policies) >= {"effect", "worthwhile"}
        assert sorted(set(table["budget"])) == list(range(6)) and sorted(set(table["error"])) == [0, 0.1, 0.2, 0.3]
        start = table[table["budget"] == 0]
        assert start["macro_f1"].nunique() == 1 and (start[["replies", "seconds"]] == 0).all(axis=None)
        assert f"| {interaction_report.SYSTEMS[name]} | effect | 0% | {start['macro_f1'].iloc[0]:.3f}" in report


def test_what_was_decided_gives_the_figures_of_the_curves(workplace: Path) -> None:
    decisions = np.load(workplace / "build/comparison/decisions/csr_robust-0.npz")
    table = pd.read_csv(workplace / "reports/comparison/answers/csr_robust-0.csv")
    collection = make_collection()
    truth = collection.truth()[collection.rows("test")]
    for (tool, policy, error, trigger), group in table.groupby(["tool", "policy", "error", "trigger"]):
        decided = decisions[f"{tool}/{policy}/{error}/{trigger}"]
        found = (decided == truth).mean(1)
        np.testing.assert_allclose(found, group.sort_values("budget")["accuracy"], atol=1e-6)


def test_several_classes_are_compared_at_thresholds_of_val_and_rivals_of_one_are_left_out(
    several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (several / "reports/comparison.md").read_text()
    assert "chooses on the validation split" in text and "| mAP | F1, rare |" in text
    assert text.count("is published for studies with one class each, and those of made-up can have several.") == 3
    left_out = read(several, "protopnet-0.json")
    assert "one class each" in left_out["left_out"] and "test" not in left_out
    assert (several / "build/comparison/systems/protopnet-0.pt").stat().st_size == 0
    assert "| ProtoPNet |" not in text.partition("## What the paper reports")[0]
    for name in ("csr_robust", "cbm_shared", "scbm_shared", "black_box"):
        found = read(several, f"{name}-0.json")
        assert f"| {found['title']} | {found['test']['macro_f1']:.3f} |" in text
        assert 0 < found["test"]["mean_average_precision"] <= 1 and found["test"]["rare_f1"] is None
    assert read(several, "ablation/robust-0.json")["test"] == read(several, "csr_robust-0.json")["test"]
    start = pd.read_csv(several / "reports/comparison/answers/scbm_shared-0.csv").query("budget == 0 and error == 0")
    assert start["macro_f1"].iloc[0] == pytest.approx(read(several, "scbm_shared-0.json")["test"]["macro_f1"], abs=0.1)
    assert "## With the same reader" in (several / "reports/comparison_interaction.md").read_text()


def test_the_report_of_interaction_tells_all_that_readers_did(workplace: Path) -> None:
    text = (workplace / "reports/comparison_interaction.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Setting",
        "Questions and answers",
        "Boxes in place of keys",
        "With the same reader",
        "Boxes",
        "Atlas refinement",
    ]
    boxes = read(workplace, "boxes/csr_robust-0.json")["test"]
    assert f"| first guess right | {boxes['top1']:.3f} |" in text
    assert f"| … mean change of its probability | {boxes['matters_change']:+.3f} |" in text
    assert "nan" not in text
    assert text.count("| robust, ") == 4 and "| robust, relearned from drawn findings |" in text
    page = (workplace / "reports/comparison_interaction.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 1


def test_the_report_names_systems_that_have_not_been_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "load_images", lambda *_: torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    (tmp_path / "cbm_joint-0.json").write_text("{}")
    data = SimpleNamespace(collection=SimpleNamespace(rows=lambda _: [0]))
    entries = {"cbm_joint": cbm.SYSTEMS["cbm_joint"]}
    assert report._runs(tmp_path, [0, 1], data, entries) == ({}, ["CBM, joint has not been run with seed 1"])


def test_the_report_tells_all_that_has_run(workplace: Path) -> None:
    text = (workplace / "reports/comparison.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Setting",
        "Test part: test",
        "Left out",
        "Cost",
        "Calibration and abstaining",
        "Leakage",
        "What the paper reports",
        "Pointing by concept",
        "Learning curves",
        "Trials",
        "Ablation",
        "Missing concept labels",
        "Interaction",
    ]
    assert text.startswith("# Comparison on made-up\n") and "reports/comparison_interaction.md" in text
    assert "40 train, 16 val, 12 test studies of 32² pixels, 3 concepts, 3 classes" in text
    for name in SYSTEMS:
        assert f"| {read(workplace, f'{name}-0.json')['title']} | " in text
        assert f"{read(workplace, f'{name}-0.json')['test']['macro_f1']:.3f}" in text
    cost = text[text.index("## Cost") : text.index("## Calibration")]
    assert "–" not in cost and "| 1.00 |" in cost  # every latency was measured, the black box's against itself
    for name in DONE["ablation"]:
        assert f"| {VARIANTS[name].title} | 1 |" in text
    assert "ProtoTree | – |" in text and "| ProtoTree | 0" not in text  # only as published
    curves = text[text.index("## Learning curves") : text.index("## Trials")]
    assert (
        "| CSR's stage 1 (shared backbone) | concepts | concept AUROC | " in curves
        and "| 40 | 1 | fixed length |" in curves
    )
    page = (workplace / "reports/comparison.html").read_text()
    assert page.count("<h2>") == len(headings) and page.count("<svg") == 1


def test_a_report_covers_systems_that_have_run_with_every_seed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    before = (workplace / "reports/comparison.md").read_text()
    file = workplace / "params.yaml"
    content = file.read_text()
    file.write_text(content.replace("- 0\n", "- 0\n  - 1\n", 1))
    assert common.load_comparison().comparison.seeds == (0, 1)
    try:
        with pytest.raises(SystemExit) as caught:
            report.main()
    finally:
        file.write_text(content)
    assert str(caught.value.code) == (
        "report: reports/comparison: holds no run of csr_robust; run dvc repro pipelines/comparison/dvc.yaml first"
    )
    assert (workplace / "reports/comparison.md").read_text() == before


@pytest.mark.parametrize(
    ("program", "name", "missing"),
    [
        ("rival", "csr.baselines.cbm:cbm_sequential", "shared_backbones/concepts_average-0/model.pt"),
        ("ablation", "coarse_maps", "shared_backbones/concepts_coarse-0/model.pt"),
        ("refinement", "csr_paper", "shared_backbones/concepts_average-0/model.pt"),
    ],
)
def test_a_stage_without_its_foundation_ends_with_one_sentence_and_a_failed_run(
    workplace: Path, program: str, name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace / 'mlflow.db'}")
    monkeypatch.setattr(sys, "argv", [program, name, "0"])
    module = importlib.import_module(f"pipelines.comparison.{program}")
    before = set((workplace / "reports").rglob("*"))
    with pytest.raises(SystemExit) as caught:
        common.command_line(program, None, module.run)
    expected = f"{program} {name}: build/comparison/{missing}: missing; train this shared backbone first"
    assert str(caught.value.code) == expected
    assert set((workplace / "reports").rglob("*")) == before
    found = logged(workplace)
    (failed,) = (run for run in found if run.data.tags["system"] == name.rpartition(":")[2])
    assert failed.info.status == "FAILED"
    mlflow.delete_run(failed.info.run_id)


def test_presets_differ_in_their_recipes_and_parameters_hold_for_both(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    found = recipes.recipes()
    robust, paper = found["robust"], found["paper"]
    assert (robust.prototypes.gamma, paper.prototypes.gamma) == (10, 1000)
    assert (robust.head.clip, paper.head.clip) == (True, False)
    pooling = {preset: load_params(preset=preset).concepts.model.pooling for preset in found}
    assert pooling == {"robust": "lse", "paper": "average"}  # as the shared backbones that they rest on have it
    assert robust.prototypes.per_concept == paper.prototypes.per_concept == 2


def test_the_papers_prototypes_see_no_box_though_those_of_the_robust_recipe_may(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    content = yaml.safe_load(Path("params.yaml").read_text())
    merge(content, {"prototypes": {"located": True}})
    Path("params.yaml").rename("params.before")
    try:
        Path("params.yaml").write_text(yaml.safe_dump(content))
        found = recipes.recipes()
    finally:
        Path("params.before").rename("params.yaml")
    assert found["robust"].prototypes.located and not found["paper"].prototypes.located
