"""The comparison: its registry, how runs are kept and set against each other, its report, and all of it in one call."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from csr.baselines.protocol import Answer, Foundation, Setting, System, predict
from csr.comparison import __main__ as command
from csr.comparison.ablations import VARIANTS
from csr.comparison.csr_system import Recipe
from csr.comparison.foundations import FOUNDATIONS, foundation_setting, open_foundation, train_foundation
from csr.comparison.published import PUBLISHED
from csr.comparison.report import (
    OURS,
    Runs,
    f1_difference,
    interval,
    main_sections,
    pointing_difference,
    published_section,
    spread,
)
from csr.comparison.systems import Result, encode_latency, load_predictions, run_system, save_predictions, systems
from csr.errors import DataError
from csr.evaluation import Predictions, judge
from csr.network.concept_model import ConceptModelConfig
from csr.pages import Section, Table, to_html, to_markdown
from csr.presets import PRESETS
from csr.records import Collection
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig
from csr.training.reporter import SilentReporter
from tests.csr.synthetic import CLASSES, CONCEPTS, SIDE, make_collection, make_prepared

ROBUST = Recipe(PrototypeConfig(per_concept=2, width=8, epochs=1), HeadConfig(epochs=2))
PAPER = Recipe(PrototypeConfig(per_concept=7, width=8, epochs=1), HeadConfig(epochs=2, clip=False, floor="zero"))
ENTRIES = systems({"robust": ROBUST, "paper": PAPER})
NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16)


# the registry


def test_every_system_of_the_comparison_is_there_with_what_it_rests_on():
    """The rivals are those of CSR's paper, the black box, and the CBM on the same stage 1."""
    foundations = {name: entry.foundation for name, entry in ENTRIES.items()}
    assert foundations["csr_robust"] == foundations["cbm_shared"] == "concepts_lse"
    assert foundations["csr_paper"] == "concepts_average"
    assert foundations["cbm_sequential"] == foundations["cbm_independent"] == "concepts_average"
    assert foundations["cbm_joint"] is None
    from_the_black_box = {"posthoc_cbm", "posthoc_cbm_hybrid", "protopnet", "protopool", "prototree", "pipnet"}
    assert {name for name, each in foundations.items() if each == "classes"} == from_the_black_box | {"black_box"}
    assert set(foundations.values()) <= {None, *FOUNDATIONS}
    assert len({entry.title for entry in ENTRIES.values()}) == len(ENTRIES) == 13
    assert next(iter(ENTRIES)) == OURS


def test_foundations_differ_in_what_their_names_say():
    assert get_args(Foundation) == FOUNDATIONS
    own = Setting(None, ConceptTrainingConfig(model=NET), SilentReporter())  # type: ignore[arg-type]
    models = {kind: foundation_setting(kind, own).config.model for kind in FOUNDATIONS if kind != "classes"}
    for preset, kind in (("robust", "concepts_lse"), ("paper", "concepts_average")):
        assert models[kind] == replace(NET, **PRESETS[preset]["concepts.model"])
    assert models["concepts_lse"].pooling == "lse" and models["concepts_average"].pooling == "average"
    assert models["concepts_coarse"] == replace(models["concepts_lse"], stride=16, context=None)


def test_an_ablation_takes_out_one_ingredient_and_leaves_the_rest():
    preset = PRESETS["robust"]
    robust = Recipe(PrototypeConfig(**preset["prototypes"]), HeadConfig(**preset["head"]))
    plain = asdict(robust)
    assert VARIANTS["robust"].recipe(robust) == robust and VARIANTS["robust"].foundation == "concepts_lse"
    seen = [("concepts_lse", plain)]
    for variant in list(VARIANTS.values())[1:]:
        changed = asdict(variant.recipe(robust))
        for stage, keys in (("prototypes", variant.prototypes), ("head", variant.head)):
            differing = {key for key, value in plain[stage].items() if changed[stage][key] != value}
            assert differing == set(keys)
        seen.append((variant.foundation, changed))
        assert variant.foundation in FOUNDATIONS and variant.foundation != "classes"
    assert all(each not in seen[:index] for index, each in enumerate(seen))
    assert len({variant.title for variant in VARIANTS.values()}) == len(VARIANTS)


# predictions on disk


@pytest.mark.parametrize("bare", [False, True])
def test_predictions_come_back_as_they_were(tmp_path, bare):
    rng = np.random.default_rng(0)

    def made(rows: list[int]) -> Predictions:
        n = len(rows)
        concepts, peaks = (None, None) if bare else (rng.random((n, 3)), 32 * rng.random((n, 3, 2)))
        return Predictions(np.array(rows), rng.random((n, 4)), concepts, peaks, rng.integers(0, 9, n))

    result = Result({}, validation=made([5, 2]), test=made([7, 9, 8]), report={})
    save_predictions(result, tmp_path / "deep/a.npz")
    for split in ("validation", "test"):
        expected, found = getattr(result, split), load_predictions(tmp_path / "deep/a.npz", split)
        np.testing.assert_array_equal(found.rows, expected.rows)
        assert found.rows.dtype.kind == "i"
        for name in ("probabilities", "concepts", "peaks", "explanations"):
            if bare and name in ("concepts", "peaks"):
                assert getattr(found, name) is None
            else:
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)


# setting systems against each other


def two_parts(seed: int = 0) -> Collection:
    """Sixty test studies in two parts, all classes and boxes in both."""
    collection = make_collection(train=30, val=30, test=60, seed=seed)
    studies = collection.studies.copy()
    test = np.flatnonzero(studies["split"] == "test")
    studies.loc[test[:30], "part"], studies.loc[test[30:], "part"] = "iid", "shifted"
    return replace(collection, studies=studies)


COLLECTION = two_parts()
TRUTH, BOXES = COLLECTION.class_labels(), COLLECTION.boxes_by_pair()
CONFIDENCE = 0.9


def predictions(rows: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> Predictions:
    """90 % sure of the true class, or of the next one in ``wrong`` rows; points at boxes, or off them in ``missed``."""
    claimed = (TRUTH[rows] + np.isin(rows, wrong)) % len(CLASSES)
    probabilities = np.full((len(rows), len(CLASSES)), (1 - CONFIDENCE) / (len(CLASSES) - 1))
    probabilities[np.arange(len(rows)), claimed] = CONFIDENCE
    peaks = np.full((len(rows), len(CONCEPTS), 2), SIDE - 1.0)
    for i, row in enumerate(rows):
        for k in range(len(CONCEPTS)):
            if (int(row), k) in BOXES and row not in missed:
                peaks[i, k] = BOXES[int(row), k][0].reshape(2, 2).mean(0)
    labels = COLLECTION.concept_labels()[rows]
    return Predictions(rows, probabilities, labels, peaks, np.full(len(rows), 3))


def runs(
    wrong: Callable[[int], np.ndarray],
    missed: Callable[[int], np.ndarray] = lambda seed: np.array([]),
    title: str = "system",
    seeds: tuple[int, ...] = (0, 1, 2),
    bare: bool = False,
    latency: float | None = None,
) -> Runs:
    """A system's runs; which rows each seed gets wrong and misses."""
    test, validation, reports = [], [], []
    for seed in seeds:
        answers = {split: predictions(COLLECTION.rows(split), wrong(seed), missed(seed)) for split in ("val", "test")}
        if bare:
            answers = {split: replace(each, concepts=None, peaks=None) for split, each in answers.items()}
        validation.append(answers["val"])
        test.append(answers["test"])
        about = {"prototypes": 4, "explanations": 3.0, "parameters": 1234, "seconds": 10.0 + seed}
        reports.append({"seed": seed, **about, **judge(COLLECTION, test[-1], SIDE)})
    return Runs(title, reports, validation, test, latency)


def none(seed: int) -> np.ndarray:
    return np.array([])


def everything(seed: int) -> np.ndarray:
    return np.arange(len(TRUTH))


def first_of_each_part(count: int) -> Callable[[int], np.ndarray]:
    """As many studies of each test part, more with each seed."""

    def rows(seed: int) -> np.ndarray:
        return np.concatenate([COLLECTION.rows("test", part)[: count + 3 * seed] for part in ("iid", "shifted")])

    return rows


def test_differences_are_ours_minus_theirs_and_bootstrapped_over_studies_and_seeds():
    right, some, nothing = runs(none), runs(first_of_each_part(6)), runs(everything)
    certain = f1_difference(COLLECTION, right, nothing, "iid")
    assert (certain.mean, certain.low, certain.high) == (1, 1, 1)
    assert f1_difference(COLLECTION, right, right, "iid").mean == 0
    gain = f1_difference(COLLECTION, right, some, "iid")
    expected = np.mean([1 - report["iid"]["macro_f1"] for report in some.reports])
    assert gain.mean == pytest.approx(expected, abs=1e-6) and 0.1 < expected < 0.6
    assert 0 < gain.low < gain.mean < gain.high < 1
    loss = f1_difference(COLLECTION, some, right, "iid")
    assert (loss.mean, loss.low, loss.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))


def test_pointing_is_compared_by_pairs_in_the_part_that_is_asked_for():
    shifted = COLLECTION.rows("test", "shifted")
    ours, theirs = runs(none), runs(none, missed=lambda seed: shifted[: 10 + seed])
    assert pointing_difference(COLLECTION, ours, theirs, "iid").mean == 0
    gain = pointing_difference(COLLECTION, ours, theirs, "shifted")
    pairs = np.array([sum((int(row), k) in BOXES for k in range(3)) for row in shifted])
    expected = np.mean([pairs[: 10 + seed].sum() / pairs.sum() for seed in range(3)])
    assert gain.mean == pytest.approx(expected)
    assert 0 < gain.low < gain.mean < gain.high
    assert pointing_difference(COLLECTION, ours, runs(none, bare=True), "iid") is None
    assert pointing_difference(replace(COLLECTION, boxes=COLLECTION.boxes[:0]), ours, theirs, "iid") is None


def table_of(sections: list[Section], title: str, index: int = 0) -> dict[str, dict[str, str]]:
    """A section's table as system → column → cell."""
    (section,) = (each for each in sections if each.title == title)
    table = section.tables[index]
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    """CSR is right everywhere, the black box nowhere and without a map, a third in between."""
    return main_sections(
        COLLECTION,
        {
            OURS: runs(none, title="CSR", latency=0.004),
            "middling": runs(first_of_each_part(6), first_of_each_part(9), title="middling"),
            "black_box": runs(everything, title="black box", bare=True, latency=0.002),
        },
    )


def test_the_report_has_a_section_a_part_and_one_for_each_other_question(sections):
    assert [section.title for section in sections] == [
        "Test part: iid",
        "Test part: shifted",
        "Cost",
        "Calibration and abstaining",
        "Leakage",
        "What the paper reports",
    ]


def test_a_part_shows_every_system_beside_ours(sections):
    table = table_of(sections, "Test part: iid")
    ours, middling, black = table["CSR"], table["middling"], table["black box"]
    assert ours["macro F1"] == ours["AUROC"] == ours["concept AUROC"] == ours["pointing, pair"] == "1.000 ± 0.000"
    assert ours["Δ F1"] == ours["Δ pointing"] == ""
    assert (ours["prototypes"], ours["explanations"]) == ("4", "3.0")
    assert black["macro F1"] == "0.000 ± 0.000" and black["Δ F1"] == "+1.000 [+1.000, +1.000]"
    for column in ("concept AUROC", "pointing, pair", "pointing, image", "Δ pointing"):
        assert black[column] == "–"
    f1 = [report["iid"]["macro_f1"] for report in runs(first_of_each_part(6)).reports]
    assert middling["macro F1"] == f"{np.mean(f1):.3f} ± {np.std(f1, ddof=1):.3f}"
    for column in ("Δ F1", "Δ pointing"):
        mean, low, high = (float(value) for value in middling[column].translate(str.maketrans("[],", "   ")).split())
        assert 0 < low <= mean <= high
    note = sections[0].paragraphs[0]
    pairs = sum((int(row), k) in BOXES for row in COLLECTION.rows("test", "iid") for k in range(3))
    assert "30 studies, seeds 0, 1, 2" in note and f"over {pairs} (image, concept) pairs" in note


def test_cost_sets_latency_against_the_black_box_where_it_was_measured(sections):
    table = table_of(sections, "Cost")
    assert list(table["CSR"].values()) == ["CSR", "11 ± 1", "1,234", "4.0", "2.00"]
    assert list(table["middling"].values())[3:] == ["–", "–"]
    assert list(table["black box"].values())[3:] == ["2.0", "1.00"]


def test_calibration_and_abstaining_are_judged_part_by_part(sections):
    """A system that is 90 % sure and always right is 0.1 off, one that is always wrong 0.9."""
    (section,) = (each for each in sections if each.title == "Calibration and abstaining")
    assert [table.title for table in section.tables] == ["iid", "shifted"]
    for index in range(2):
        table = table_of(sections, section.title, index)
        assert table["CSR"]["ECE"] == "0.100 ± 0.000" and table["black box"]["ECE"] == "0.900 ± 0.000"
        assert table["CSR"]["ECE, calibrated"] == table["CSR"]["AURC"] == "0.000 ± 0.000"
        assert table["CSR"]["error at 80%"] == "0.000 ± 0.000"
        assert table["black box"]["error at 80%"] == table["black box"]["AURC"] == "1.000 ± 0.000"
        assert float(table["CSR"]["temperature"].split()[0]) < 1 < float(table["black box"]["temperature"].split()[0])
        assert table["middling"]["temperature"] == table["CSR"]["temperature"]  # it errs on test studies alone
        assert table["middling"]["ECE"] != table["CSR"]["ECE"]


def test_leakage_is_told_of_systems_with_concept_scores(sections):
    table = table_of(sections, "Leakage")
    assert list(table) == ["CSR", "middling"]
    assert set(list(table["CSR"].values())[1:]) == {"0.000 ± 0.000"}  # scores that are the labels


def test_systems_with_other_seeds_or_studies_are_refused():
    ours = runs(none, title="CSR")
    other = runs(none, title="late", seeds=(1, 0, 2))
    with pytest.raises(DataError, match=r"late has seeds \[1, 0, 2\], CSR \[0, 1, 2\]"):
        main_sections(COLLECTION, {OURS: ours, "late": other})
    with pytest.raises(DataError, match="short has seeds"):
        main_sections(COLLECTION, {OURS: ours, "short": runs(none, title="short", seeds=(0, 1))})
    moved = [replace(test, rows=test.rows[::-1]) for test in ours.test]
    with pytest.raises(DataError, match="elsewhere and CSR were judged on different studies"):
        main_sections(COLLECTION, {OURS: ours, "there": replace(ours, title="elsewhere", test=moved)})


def test_numbers_are_printed_as_mean_and_deviation_or_as_nothing():
    assert spread([0.1, 0.2, 0.6]) == "0.300 ± 0.265"
    assert spread([0.25]) == "0.250"
    assert spread([1200.4, None, float("nan")], 0) == "1200"
    assert spread([None, float("nan")]) == spread([]) == "–"
    assert interval(None) == "–"
    assert interval(f1_difference(COLLECTION, runs(everything), runs(none), "iid")) == "-1.000 [-1.000, -1.000]"


# what the paper prints


def test_the_published_numbers_are_the_papers():
    """arXiv 2503.06873: macro F1 on TBX11K, VinDr-CXR, ISIC-2017; prototypes, explanations and pointing on TBX11K."""
    printed = """
        CBM, joint           88.6  50.1  45.5  –     14    55.1
        ProtoPNet            94.1  –     38.5  3000  3000  8.8
        ProtoPool            –     –     31.0  –     –     –
        ProtoTree            –     –     66.1  –     –     7.8
        PIP-Net              94.0  45.1  69.9  768   158   19.5
        CSR                  94.4  54.6  71.5  1400  14    60.9
        CSR, atlas refined   94.0  –     –     –     –     79.5
    """
    expected = [line.strip().rsplit(maxsplit=6) for line in printed.strip().splitlines()]
    (table,) = published_section().tables
    assert [list(row) for row in table.rows] == expected
    assert len(table.columns) == 7 and len(PUBLISHED) == 7


# tables

AWKWARD = [
    Section(
        "Parts & <kinds>",
        ("1 < 2 & 3",),
        (Table("a|b", ("name | unit", "<b>"), [("x|y", "1 & <2>"), ("", "–")], note="p < 0.05"),),
        ("<svg><text>drawn</text></svg>",),
    ),
    Section("Empty", ("nothing",), (Table("", ("only",), []),)),
]


def test_markdown_tables_are_whole_whatever_the_cells_hold():
    lines = to_markdown("A title", AWKWARD).splitlines()
    assert lines[:4] == ["# A title", "", "## Parts & <kinds>", ""]
    start = lines.index(r"| name \| unit | <b> |")
    assert lines[start + 1 : start + 4] == ["|---|---|", r"| x\|y | 1 & <2> |", "|  | – |"]
    assert lines[start - 1] == "" and lines[start + 4] == ""
    assert "p < 0.05" in lines and "### a|b" in lines
    assert "drawn" not in "\n".join(lines)
    assert to_markdown("A title", AWKWARD).endswith("|---|\n")


class Page(HTMLParser):
    """Collects texts by tag and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open:
            self.texts.append((self.open[-1], data))


def test_html_is_well_formed_escaped_and_needs_nothing_else():
    page = Page()
    page.feed(to_html("T < U", AWKWARD))
    page.close()
    assert not page.open and not page.addresses
    texts = [text for text in page.texts if text[0] != "style"]
    assert texts == [
        ("title", "T < U"),
        ("h1", "T < U"),
        ("h2", "Parts & <kinds>"),
        ("p", "1 < 2 & 3"),
        ("h3", "a|b"),
        ("p", "p < 0.05"),
        ("th", "name | unit"),
        ("th", "<b>"),
        ("td", "x|y"),
        ("td", "1 & <2>"),
        ("td", "–"),
        ("text", "drawn"),
        ("h2", "Empty"),
        ("p", "nothing"),
        ("th", "only"),
    ]


# latency


class Slow(System):
    """Notes its calls, and takes as many seconds as it is told."""

    def __init__(self, name: str, log: list[str], clock: list[float], seconds: list[float]) -> None:
        super().__init__()
        self.name, self.log, self.clock, self.seconds = name, log, clock, seconds

    def answer(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.log.append(self.name)
        self.clock[0] += self.seconds[(len(self.log) - 1) // 2 % len(self.seconds)]
        return Answer(images, None, None, images)


def test_every_systems_latency_is_the_median_of_answers_taken_in_turns(monkeypatch):
    log: list[str] = []
    clock = [0.0]
    monkeypatch.setattr("csr.comparison.systems.time.perf_counter", lambda: clock[0])
    members = {"a": Slow("a", log, clock, [9, 1, 2, 1]), "b": Slow("b", log, clock, [0, 3, 3, 50])}
    assert encode_latency(members, torch.zeros(1), rounds=3) == pytest.approx({"a": 1, "b": 3})
    assert log == ["a", "b"] * 4  # one to warm up


# foundations and systems on a tiny set


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    data = make_prepared(tmp_path_factory.mktemp("data") / "prepared", make_collection())
    config = ConceptTrainingConfig(model=NET, epochs=2, batch_size=8, seed=3, precision="float32")
    return Setting(data, config, SilentReporter())


@pytest.fixture(scope="module")
def foundations(setting, tmp_path_factory) -> Path:
    """A folder of all foundations."""
    folder = tmp_path_factory.mktemp("foundations")
    for kind in FOUNDATIONS:
        (folder / kind).mkdir()
        train_foundation(kind, setting, folder / kind)
    return folder


@pytest.mark.parametrize("kind", FOUNDATIONS)
def test_a_foundation_comes_back_with_its_features_and_the_time_it_took(setting, foundations, kind):
    trained, seconds = open_foundation(foundations / kind)
    about = json.loads((foundations / kind / "about.json").read_text())
    assert seconds == about["seconds"] > 0
    assert about["parameters"] == sum(parameter.numel() for parameter in trained.model.parameters())
    cells = SIDE // (16 if kind == "concepts_coarse" else 8)
    data = setting.data
    assert trained.cache.cam.shape == (len(data.images), 3, cells, cells)
    rows = np.array([0, 41, 67])
    with torch.no_grad():
        features = trained.model.features(torch.from_numpy(data.images[rows]))
        maps = trained.model.maps(features)
    np.testing.assert_allclose(trained.cache.features[rows], features, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(trained.cache.cam[rows], maps, atol=1e-4, rtol=1e-4)
    assert trained.model.config.pooling == ("lse" if kind in ("concepts_lse", "concepts_coarse") else "average")
    names = torch.load(foundations / kind / "model.pt", weights_only=True)["concepts"]
    assert tuple(names) == (CLASSES if kind == "classes" else CONCEPTS)


@pytest.mark.parametrize("missing", ["model.pt", "about.json", "features.npy", "cam.npy"])
def test_an_incomplete_foundation_is_named(foundations, tmp_path, missing):
    for file in (foundations / "classes").iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(DataError, match=missing):
        open_foundation(tmp_path)


@pytest.fixture(scope="module")
def robust(setting, foundations) -> tuple[System, Result]:
    trained, _ = open_foundation(foundations / "concepts_lse")
    return run_system(ENTRIES["csr_robust"], replace(setting, foundation=trained), foundation_seconds=1000.0)


def test_csr_is_judged_with_all_its_prototypes_and_one_explanation_a_concept(robust):
    system, result = robust
    assert result.about["prototypes"] == system.prototypes == 3 * 2
    assert result.about["explanations"] == 3
    assert 1000 < result.about["seconds"] < 1100
    assert result.about["parameters"] == sum(parameter.numel() for parameter in system.parameters())
    assert not any(module.training for module in system.modules())


def test_a_result_holds_both_splits_and_the_report_of_the_test_parts(robust, setting):
    system, result = robust
    collection = setting.data.collection
    for split, found in (("val", result.validation), ("test", result.test)):
        np.testing.assert_array_equal(found.rows, collection.rows(split))
        again = predict(system, setting.data, collection.rows(split))
        np.testing.assert_array_equal(found.probabilities, again.probabilities)
        np.testing.assert_array_equal(found.peaks, again.peaks)
    assert result.report == judge(collection, result.test, SIDE)
    assert list(result.report) == ["test"]


def test_a_recipe_and_the_settings_seed_reach_csr(setting, foundations):
    trained, _ = open_foundation(foundations / "concepts_average")
    own = replace(setting, foundation=trained)
    paper, result = run_system(ENTRIES["csr_paper"], own)
    assert result.about["prototypes"] == 3 * 7
    assert not paper.network.reasoner.clip and paper.network.reasoner.floor == "zero"
    assert paper.stage2.config.seed == 3
    _, other = run_system(ENTRIES["csr_paper"], replace(own, config=replace(setting.config, seed=4)))
    assert not np.array_equal(result.test.probabilities, other.test.probabilities)


def test_a_system_trains_for_its_share_of_the_budget(setting):
    seen = []

    class Nothing(System):
        def answer(self, images):
            n = len(images)
            return Answer(torch.full((n, 3), 1 / 3), None, None, torch.zeros(n))

    def train(own: Setting) -> System:
        seen.append(own.config.epochs)
        return Nothing()

    own = replace(setting, config=replace(setting.config, epochs=8))
    for share in (1.0, 0.5):
        _, result = run_system(replace(ENTRIES["black_box"], train=train, epochs=share), own)
    assert seen == [8, 4]
    assert result.about["prototypes"] == result.about["parameters"] == 0


# everything in one call

SYSTEMS = ["csr_robust", "black_box", "cbm_shared"]
SIZE = (
    "--train 48 --val 24 --test 24 --side 64 --backbone test_convnext --epochs 1 --batch-size 8 --workers 1 --seeds 0"
)
STRANGERS = ("ray", "mlflow", "dvc", "fastapi", "pydantic", "onnx", "pipelines", "serving")
PROGRAM = f"""
import runpy, sys
runpy.run_module("csr.comparison", run_name="__main__", alter_sys=True)
found = sorted({{name.partition(".")[0] for name in sys.modules}} & set({STRANGERS!r}))
print("strangers:", found)
"""


def call(out: Path, *more: str) -> None:
    """``python -m csr.comparison`` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["comparison", str(out), *SIZE.split(), *more])
        command.main()


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[Path, str]:
    """The folder that a process of its own filled with three systems, and what it printed."""
    out = tmp_path_factory.mktemp("compared")
    arguments = [str(out), *SIZE.split(), "--systems", *SYSTEMS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_one_call_writes_the_report_and_every_run(compared):
    out, _ = compared
    left = {"prepared", "settings.json", "comparison.md", "comparison.html"}
    assert {file.name for file in out.iterdir()} == left | {f"{n}-0.{end}" for n in SYSTEMS for end in ("json", "npz")}
    markdown, page = (out / "comparison.md").read_text(), (out / "comparison.html").read_text()
    for name in SYSTEMS:
        report = json.loads((out / f"{name}-0.json").read_text())
        assert (report["system"], report["seed"], report["title"]) == (name, 0, ENTRIES[name].title)
        assert set(report) >= {"iid", "shifted", "prototypes", "explanations", "parameters", "seconds"}
        assert report["seconds"] > 0 and report["parameters"] > 10_000
        assert f"{report['iid']['macro_f1']:.3f}" in markdown
        assert markdown.count(f"| {report['title']} |") >= 5 and report["title"].partition("'")[0] in page
    assert 10 <= json.loads((out / "csr_robust-0.json").read_text())["prototypes"] <= 10 * 5  # without unused ones
    assert "Comparison: 48 images, 64², test_convnext" in markdown


def test_it_imports_none_of_the_pipelines_or_servers_frameworks(compared):
    assert compared[1].splitlines()[-1] == "strangers: []"


def test_a_stopped_comparison_goes_on_and_trains_what_is_left(compared, capsys):
    """Here all other systems, which thereby run on the phantom once each."""
    out, _ = compared
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*-0.*")}
    call(out)
    printed = capsys.readouterr().out
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert "drawing" not in printed and "seed 0: concepts_lse" not in printed
    for name, entry in ENTRIES.items():
        assert (f"seed 0: {name}\n" in printed) == (name not in SYSTEMS)
        assert f"| {entry.title} |" in (out / "comparison.md").read_text()
        report = json.loads((out / f"{name}-0.json").read_text())
        assert 0 <= report["iid"]["macro_f1"] <= 1 and 0 <= report["shifted"]["pointing_game"]["pair"] <= 1
        assert (report["iid"]["concept_auroc"] is not None) == (name.startswith(("csr", "cbm", "posthoc")))
    call(out)
    assert "seed 0" not in capsys.readouterr().out


def test_a_folder_holds_one_comparison(compared):
    out, _ = compared
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.raises(SystemExit) as caught:
        call(out, "--train", "50", "--systems", "pipnet")
    message = str(caught.value.code)
    assert message.startswith("comparison: ") and "settings.json: the runs here have train 48, not 50" in message
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_a_missing_split_or_an_unknown_system_ends_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        call(tmp_path / "small", "--val", "2")
    assert str(caught.value.code).startswith("comparison: ") and "has no study in split 'val'" in str(caught.value)
    with pytest.raises(SystemExit):
        call(tmp_path / "unknown", "--systems", "csr_rebust")
    assert "invalid choice: 'csr_rebust'" in capsys.readouterr().err
    assert not (tmp_path / "unknown").exists()


def test_without_our_system_there_is_nothing_to_set_the_others_against(compared, capsys):
    out, _ = compared
    before = (out / "comparison.md").stat().st_mtime_ns
    call(out, "--systems", "black_box")
    assert "no report" in capsys.readouterr().out
    assert (out / "comparison.md").stat().st_mtime_ns == before
