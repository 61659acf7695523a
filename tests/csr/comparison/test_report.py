"""Systems against each other: differences with their intervals, and the sections of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from csr.comparison.concept_pointing import concept_pointing_section
from csr.comparison.published import PUBLISHED
from csr.comparison.report import (
    OURS,
    f1_difference,
    interval,
    intervals,
    main_sections,
    pointing_difference,
    published_section,
    spread,
)
from csr.comparison.runs import Runs
from csr.data.html_report import Section
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.bootstrap import Difference, bootstrap_interval, paired_bootstrap
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.metrics import macro_f1
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_thresholds
from tests.csr.synthetic import CLASSES, CONCEPTS, SIDE, make_collection


def two_parts(seed: int = 0) -> Collection:
    """Sixty test studies in two parts, all classes and boxes in both."""
    collection = make_collection(train=30, val=30, test=60, seed=seed)
    studies = collection.studies.copy()
    test = np.flatnonzero(studies["split"] == "test")
    studies.loc[test[:30], "part"], studies.loc[test[30:], "part"] = "iid", "shifted"
    return replace(collection, studies=studies)


COLLECTION = two_parts()
TRUTH, BOXES = COLLECTION.truth(), COLLECTION.boxes_by_pair()
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
        reports.append({"seed": seed, **about, **evaluate_predictions(COLLECTION, test[-1], SIDE)})
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


def test_patients_with_several_studies_are_drawn_as_a_whole_and_the_report_says_so():
    studies = COLLECTION.studies.copy()
    test = np.flatnonzero(studies["split"] == "test")
    studies.loc[test, "patient_id"] = [f"p{i // 3}" for i in range(len(test))]
    of_patients = replace(COLLECTION, studies=studies)
    pair = runs(none, title="CSR"), runs(first_of_each_part(6), first_of_each_part(9))
    for difference in (f1_difference, pointing_difference):
        whole, alone = difference(of_patients, *pair, "iid"), difference(COLLECTION, *pair, "iid")
        assert whole.mean == alone.mean
        assert whole.high - whole.low > 1.2 * (alone.high - alone.low)
    notes = [main_sections(each, {OURS: pair[0]})[0].paragraphs[0] for each in (of_patients, COLLECTION)]
    assert "interval over the 10 patients (each with all their studies) and seeds" in notes[0]
    assert "interval over studies and seeds" in notes[1]


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
    assert black["macro F1"] == "0.000 ± 0.000" and black["Δ F1"] == "+1.000 [+1.000, +1.000] *"
    for column in ("concept AUROC", "pointing, pair", "pointing, image", "Δ pointing"):
        assert black[column] == "–"
    f1 = [report["iid"]["macro_f1"] for report in runs(first_of_each_part(6)).reports]
    assert middling["macro F1"] == f"{np.mean(f1):.3f} ± {np.std(f1, ddof=1):.3f}"
    for column in ("Δ F1", "Δ pointing"):
        mean, low, high = (float(value) for value in middling[column].translate(str.maketrans("[],*", "    ")).split())
        assert 0 < low <= mean <= high
    note = sections[0].paragraphs[0]
    pairs = sum((int(row), k) in BOXES for row in COLLECTION.rows("test", "iid") for k in range(3))
    assert "30 studies, seeds 0, 1, 2" in note and f"over {pairs} (image, concept) pairs" in note


def test_a_star_needs_a_difference_among_all_of_its_column():
    once, sure = Difference(0.1, 0.01, 0.19, 0.03), Difference(0.2, 0.15, 0.25, 0.001)
    assert intervals({"a": once}) == {"a": "+0.100 [+0.010, +0.190] *"}
    shown = intervals({"a": once, "b": sure, "c": Difference(0.0, -0.1, 0.1, 0.9), "d": None})
    assert shown["a"] == "+0.100 [+0.010, +0.190]" and shown["b"].endswith(" *") and shown["d"] == "–"


def test_cost_sets_latency_against_the_black_box_where_it_was_measured(sections):
    table = table_of(sections, "Cost")
    assert list(table["CSR"].values()) == ["CSR", "11 ± 1", "1,234", "4.0", "2.00"]
    assert list(table["middling"].values())[3:] == ["–", "–"]
    assert list(table["black box"].values())[3:] == ["2.0", "1.00"]
    (note,) = next(each for each in sections if each.title == "Cost").paragraphs
    assert "the shared backbone that a system rests on and the computing of its features" in note
    assert "in one memory format" in note


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


@pytest.fixture(scope="module")
def several() -> tuple[Collection, dict[str, Runs]]:
    """Of CSR every probability is on the right side of .3, of the rival on that of .7 with one seed's test reversed."""
    studies = COLLECTION.studies.drop(columns="label")
    truth = np.stack([TRUTH == 1, TRUTH == 2], 1).astype(np.float32)
    truth[COLLECTION.rows("test")[:3], 0] = np.nan
    truth[COLLECTION.rows("train"), 1] = 0
    truth[COLLECTION.rows("train")[0], 1] = 1  # one of 30
    columns = {f"target:{name}": truth[:, t] for t, name in enumerate(("mild", "severe"))}
    collection = replace(COLLECTION, task="multilabel", classes=("mild", "severe"), studies=studies.assign(**columns))

    def made(title: str, middle: float, wrong: bool) -> Runs:
        found = runs(none, title=title)
        kinds = {"validation": found.validation, "test": found.test}
        for kind, each in kinds.items():
            sign = -1 if wrong and kind == "test" else 1
            said = [middle + sign * 0.1 * (2 * np.nan_to_num(truth[one.rows]) - 1) for one in each]
            kinds[kind] = [replace(one, probabilities=p) for one, p in zip(each, said, strict=True)]
        reports = []
        for seed, (validation, test) in enumerate(zip(kinds["validation"], kinds["test"], strict=True)):
            thresholds = validation_thresholds(collection, validation)
            judged = evaluate_predictions(collection, test, SIDE, thresholds)
            reports.append(
                {"seed": seed, **{k: v for k, v in found.reports[seed].items() if k not in judged}, **judged}
            )
        return replace(found, reports=reports, **kinds)

    return collection, {OURS: made("CSR", 0.3, False), "rival": made("rival", 0.7, True)}


def test_several_classes_are_decided_by_every_system_s_own_thresholds(several):
    collection, both = several
    sections = main_sections(collection, both, ["ProtoX is published for studies with one class each"])
    ours, rival = (table_of(sections, "Test part: iid")[title] for title in ("CSR", "rival"))
    assert ours["macro F1"] == ours["mAP"] == ours["F1, rare"] == "1.000 ± 0.000"  # at a half it would find nothing
    assert rival["macro F1"] == rival["F1, rare"] == "0.000 ± 0.000"
    assert rival["Δ F1"] == "+1.000 [+1.000, +1.000] *"
    note = sections[0].paragraphs[0]
    assert "rare if fewer than 5% of the training studies have it: that is severe." in note
    assert [each.paragraphs for each in sections if each.title == "Left out"] == [
        ("ProtoX is published for studies with one class each.",)
    ]
    table = table_of(sections, "Calibration and abstaining")
    assert table["CSR"]["AURC"] == "0.000 ± 0.000" and table["rival"]["AURC"] == "1.000 ± 0.000"
    assert float(table["CSR"]["temperature"].split()[0]) != 1
    assert table_of(sections, "Leakage")["CSR"]["concepts-task, iid"] == "0.000 ± 0.000"


def test_the_difference_of_several_classes_is_that_of_their_macro_f1(several):
    collection = several[0]
    rows = collection.rows("test", "iid")
    truth = collection.truth()[rows]
    rng = np.random.default_rng(0)
    said = rng.integers(0, 2, (2, 3, len(rows), 2))
    ours, theirs = (bootstrap_interval(truth, each, 2, draws=200) for each in said)
    for interval_, each in ((ours, said[0]), (theirs, said[1])):
        assert interval_.mean == pytest.approx(np.mean([macro_f1(truth, one, 2) for one in each]))
        assert interval_.low < interval_.mean < interval_.high
    difference = paired_bootstrap(truth, *said, 2, draws=200)
    assert difference.mean == pytest.approx(ours.mean - theirs.mean)
    with pytest.raises(ValueError, match="one row a seed"):
        bootstrap_interval(truth, said[0][0], 2)


def test_what_ends_below_its_own_start_is_no_row_and_is_named():
    val = COLLECTION.rows("val")
    start = runs(lambda seed: val[:6], title="black box")
    worse = replace(runs(lambda seed: val[: 6 + seed], title="worse"), start="black_box")
    level = replace(runs(lambda seed: val[:6], title="level"), start="black_box")
    alone = runs(everything, title="alone")
    given = {OURS: runs(none, title="CSR"), "worse": worse, "level": level, "alone": alone, "black_box": start}
    sections = main_sections(COLLECTION, given)
    assert list(table_of(sections, "Test part: iid")) == ["CSR", "level", "alone", "black box"]
    assert list(table_of(sections, "Cost")) == ["CSR", "level", "alone", "black box"]
    (row,) = table_of(sections, "Below their own start").values()
    f1 = [macro_f1(TRUTH[val], worse.validation[seed].probabilities.argmax(1), len(CLASSES)) for seed in range(3)]
    assert row["system"] == "worse" and row["its start"] == "black box"
    assert row["validation F1"] == spread(f1)
    assert row["macro F1, iid"] == spread([report["iid"]["macro_f1"] for report in worse.reports])
    with pytest.MonkeyPatch.context() as patch:  # by less than that it is a row
        patch.setattr("csr.comparison.report.BELOW", 0.5)
        assert "worse" in table_of(main_sections(COLLECTION, given), "Test part: iid")
    # without what it starts from nothing can be said
    del given["black_box"]
    assert "worse" in table_of(main_sections(COLLECTION, given), "Test part: iid")


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


def test_pointing_is_told_concept_by_concept_beside_chance_and_centre():
    shifted = COLLECTION.rows("test", "shifted")
    systems = {
        OURS: runs(none, title="CSR"),
        "missing": runs(none, missed=lambda seed: shifted, title="missing"),
        "black_box": runs(none, title="black box", bare=True),
    }
    (section,) = concept_pointing_section(COLLECTION, systems, SIDE)
    assert [table.title for table in section.tables] == ["iid", "shifted"]
    for table, missed in zip(section.tables, ("1.000 ± 0.000", "0.000 ± 0.000"), strict=True):
        assert table.columns == ("concept", "pairs", "chance", "centre", "CSR", "missing")
        rows = COLLECTION.rows("test", table.title)
        for concept, pairs, chance, centre, ours, theirs in table.rows:
            k = CONCEPTS.index(concept)
            assert int(pairs) == sum((int(row), k) in BOXES for row in rows) > 0
            assert 0 < float(chance) < 0.5 and 0 <= float(centre) <= 1
            assert (ours, theirs) == ("1.000 ± 0.000", missed)


def test_there_is_no_table_of_pointing_without_maps_or_boxes():
    bare, ours = {OURS: runs(none, bare=True)}, {OURS: runs(none)}
    assert concept_pointing_section(COLLECTION, bare, SIDE) == []
    assert concept_pointing_section(replace(COLLECTION, boxes=COLLECTION.boxes[:0]), ours, SIDE) == []
