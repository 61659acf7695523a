"""What `tests.bench.growth` measures: made-up sets, stores and tables of a given size, and the work on them.

Nothing is trained: what is measured is how the work grows, and that does not ask whether its numbers are good ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

Work = Callable[[], object]
SQL_SIZES = (15_625, 62_500, 250_000, 1_000_000)
CLASSES, CONCEPTS = ("clear", "ill"), ("round", "streak")
_SIDE = 96  # pixels of images where their number is what grows


@dataclass(frozen=True)
class Case:
    """One quantity.

    Args:
        name: what is done, and what its size counts.
        sizes: four, in geometric steps.
        quick: the same, that are done in a second; the smallest warms the process up.
        make: writes what the work needs into a folder, once; not measured.
        start: gives the work on that folder; not measured either.
        rounds: how often the work is measured.
        shares: name of the folder, where cases are made from the same.
    """

    name: str
    sizes: Sequence[int]
    quick: Sequence[int]
    start: Callable[[Path, int], Work]
    make: Callable[[Path, int], None] = lambda folder, size: None
    rounds: int = 3
    shares: str = ""


def make_table(folder: Path, images: int, side: int = _SIDE) -> None:
    """A set in the ``table`` layout: pictures unlike each other, two classes, two concepts, a box for each finding."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for index in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"images/{index}.png", compress_level=1)
        shown = rng.random(2) < 0.4
        split = ("train", "train", "train", "val", "test")[index % 5]
        rows.append((f"s{index}", f"{index}.png", split, CLASSES[index // 5 % 2], f"p{index}", *shown.astype(int)))
        for name in (name for name, has in zip(CONCEPTS, shown, strict=True) if has):
            left, top = rng.integers(0, side // 2, 2)
            boxes.append((f"s{index}", name, left, top, left + side // 4, top + side // 4))
    names = [f"concept:{name}" for name in CONCEPTS]
    columns = ["study_id", "image", "split", "label", "patient_id", *names]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "studies.csv", index=False)
    box_columns = ["study_id", "concept", "x_min", "y_min", "x_max", "y_max"]
    pd.DataFrame(boxes, columns=box_columns).to_csv(folder / "boxes.csv", index=False)


def _prepare(folder: Path, side: int) -> object:
    from csr.data.problems import Problems
    from csr.data.raw import prepare_raw
    from csr.data.sources.table import read_table
    from csr.data.splits import SplitShares

    problems = Problems()
    raw = read_table(folder, SplitShares(), problems)
    return prepare_raw(raw, folder / "prepared", side, 1, 1, problems)


def _check(folder: Path, images: int) -> Work:
    from csr.data.command import check
    from csr.data.sources.read import SourceOptions

    def work() -> None:
        checked = check(folder, "table", SourceOptions())
        assert checked.collection is not None, checked.problems.found[:3]

    return work


def _make_prepared(folder: Path, images: int) -> None:
    make_table(folder, images)
    _prepare(folder, _SIDE)


def _report(folder: Path, images: int) -> Work:
    from csr.data.html_report import to_html
    from csr.data.prepared import PreparedSet
    from csr.data.report import data_sections

    def work() -> object:
        data = PreparedSet.open(folder / "prepared")
        return to_html("Data", data_sections(data, 8, data.skipped()))

    return work


def _leaks(folder: Path, pictures: int) -> Work:
    from csr.data.leaks import Fingerprints, find_leaks

    rng = np.random.default_rng(0)
    prints, collection = Fingerprints(), _collection(pictures)
    prints.hashes = list(rng.integers(0, 2**64, (pictures, 4), np.uint64))
    prints.digests = [each.tobytes() for each in prints.hashes]
    return lambda: list(find_leaks(collection, prints))


def _problems(folder: Path, rows: int) -> Work:
    from csr.data.problems import Problems, grouped

    def work() -> object:
        problems = Problems()
        for row in range(rows):
            problems.add(f"studies.csv row {row}", f"label must be one of a, b, got {row!r}", kind="label")
        return grouped(problems.found), problems.table()

    return work


def _collection(studies: int, concepts: int = 2) -> Any:
    from csr.data.records import BOX_COLUMNS, Collection

    rng = np.random.default_rng(0)
    names = tuple(f"c{k}" for k in range(concepts))
    split = np.array(("train", "train", "train", "val", "test"))[np.arange(studies) % 5]
    ids = [f"s{row}" for row in range(studies)]
    present = rng.random((studies, concepts)) < min(0.4, 1.0 / concepts)
    about = {"study_id": ids, "image": ids, "split": split, "part": split, "patient_id": ids, "site": "A"}
    labels = {"label": np.array(CLASSES)[rng.integers(0, 2, studies)]}
    labels |= {f"concept:{name}": present[:, k].astype(np.float32) for k, name in enumerate(names)}
    boxes = [(ids[row], names[k], 8.0, 8.0, 40.0, 40.0) for row, k in np.argwhere(present)]
    return Collection(
        "made-up", names, CLASSES, pd.DataFrame(about | labels), pd.DataFrame(boxes, columns=list(BOX_COLUMNS))
    )


def _evaluation(studies: int, concepts: int) -> Work:
    from csr.evaluation.evaluate import evaluate_predictions, pointing_by_concept
    from csr.evaluation.predictions import Predictions

    collection, rng = _collection(studies, concepts), np.random.default_rng(1)
    rows = collection.rows("test")
    probabilities = rng.dirichlet((1, 1), len(rows))
    scores, peaks = rng.random((len(rows), concepts)), rng.random((len(rows), concepts, 2)) * _SIDE
    said = Predictions(rows, probabilities, scores, peaks)
    return lambda: (
        evaluate_predictions(collection, said, _SIDE),
        pointing_by_concept(collection, said, _SIDE),
    )


def _features(studies: int, concepts: int, cells: int = 12, width: int = 64) -> tuple[Any, Any, Any]:
    """f B×D×h×w, cam B×K×h×w, labels B×K in which a study shows two concepts, however many there are."""
    import torch

    rng = torch.Generator().manual_seed(0)
    features = torch.randn(studies, width, cells, cells, generator=rng)
    labels = torch.zeros(studies, concepts)
    labels.scatter_(1, torch.randint(concepts, (studies, 2), generator=rng), 1.0)
    return features, torch.randn(studies, concepts, cells, cells, generator=rng), labels


def _maps(folder: Path, concepts: int) -> Work:
    import torch

    from csr.network.concept_model import ConceptModelConfig, pool_maps
    from csr.training.losses import masked_bce

    features, _, labels = _features(32, concepts)
    to_maps, config = torch.nn.Conv2d(features.shape[1], concepts, 1, bias=False), ConceptModelConfig("regnetx_002")

    def work() -> None:
        for _ in range(10):
            masked_bce(pool_maps(to_maps(features), config), labels).backward()

    return work


def _objective(concepts: int, per_concept: int) -> Work:
    from csr.training.prototypes import PrototypeConfig, PrototypeObjective, build_prototype_model

    features, cam, labels = _features(32, concepts)
    config = PrototypeConfig(per_concept=per_concept, precision="float32")
    objective = PrototypeObjective(build_prototype_model(config, features.shape[1], concepts), config)

    def work() -> None:
        for _ in range(5):
            sum(objective(features, cam, labels).values()).backward()  # type: ignore[union-attr]

    return work


def _usage(folder: Path, prototypes: int) -> Work:
    import torch

    from csr.training.prototypes import PrototypeConfig, build_prototype_model, diagnose, usage

    model = build_prototype_model(PrototypeConfig(per_concept=prototypes // 10), 64, 10)
    rng = torch.Generator().manual_seed(0)
    vectors, concept = torch.randn(2000, 64, generator=rng), torch.randint(10, (2000,), generator=rng)
    alive = torch.ones(10, prototypes // 10)
    return lambda: (usage(model, vectors, concept, alive), diagnose(model, vectors, concept))


def _reason(concepts: int, per_concept: int, studies: int = 4, times: int = 20) -> Work:
    import torch

    from csr.network.reasoner import Reasoner

    reasoner = Reasoner(concepts, per_concept, 128, 4, clip=True, floor="absent").eval()
    patches = torch.nn.functional.normalize(torch.randn(studies, 128, 24, 24), dim=1)
    importance, answers = torch.ones(studies, 24, 24), torch.zeros(studies, concepts)

    @torch.no_grad()
    def work() -> None:
        for _ in range(times):
            reasoner(patches, importance, answers)

    return work


def _make_store(folder: Path, studies: int) -> None:
    from tests.bench.large_store import build_store

    folder.mkdir(parents=True)
    build_store(folder, studies)


def _open(folder: Path) -> Any:
    from serving.store import Store
    from tests.bench.large_store import KEY, address

    return Store.open(address(folder), KEY)


def _insert(folder: Path, studies: int) -> Work:
    """300 uploads, each a transaction: study, worklist row, prediction and ledger."""
    from csr.data.images import Placement
    from serving.store.entries import Caller, Entry
    from serving.store.studies import Assessment, StoredStudy, keep_study, study_row

    store, rng = _open(folder), np.random.default_rng()
    canvas, place = np.zeros((1, 8, 8), np.uint8), Placement.of(8, 8, 8)

    def work() -> None:
        for _ in range(300):
            digest = rng.bytes(32).hex()
            row = study_row(StoredStudy(digest, canvas, place))
            said = Assessment(
                digest, "b" * 64, "1", "ill", float(rng.random()), float(rng.random()), False, False, 0.9, (), True
            )
            caller = Caller("key:uploader", digest)
            store.ledger.append(
                [Entry("prediction", caller, "b" * 64, {"request": {}}, digest)],
                lambda connection, row=row, said=said, caller=caller: keep_study(connection, caller, row, None, said),
            )

    return work


def _pages(folder: Path, studies: int) -> Work:
    """A page of every order and filter, and the one after it."""
    from itertools import product
    from typing import get_args

    from serving.interfaces.schemas import Order, Progress
    from serving.store.worklist import WorklistQuery, worklist
    from tests.bench.large_store import READER

    store = _open(folder)

    def work() -> None:
        for order, progress, asks in product(get_args(Order), get_args(Progress), (None, True, False)):
            page = worklist(store.database, WorklistQuery(order, progress, asks), READER)
            if page.after is not None:
                worklist(store.database, WorklistQuery(order, progress, asks, after=page.after), READER)

    return work


def _verify(folder: Path, entries: int) -> Work:
    store = _open(folder)

    def work() -> None:
        assert store.ledger.verify().faults == ()

    return work


def _verify_studies(folder: Path, studies: int) -> Work:
    from serving.store.verification import verify_studies

    store = _open(folder)

    def work() -> None:
        assert verify_studies(store.database, 0).faults == ()

    return work


def _prepared_again(folder: Path, side: int) -> Work:
    def work() -> None:
        shutil.rmtree(folder / "prepared", ignore_errors=True)
        _prepare(folder, side)

    return work


_IMAGES, _QUICK_IMAGES = (250, 500, 1000, 2000), (40, 60, 90, 135)
_QUICK_SQL = (200, 400, 800, 1600)
CASES = tuple(
    Case(*each)
    for each in (
        ("data check, images", _IMAGES, _QUICK_IMAGES, _check, make_table, 3, "table"),
        ("prepare, images", _IMAGES, _QUICK_IMAGES, lambda folder, _: _prepared_again(folder, _SIDE), make_table, 3),
        (
            "prepare, pixels of 40 images",
            (128**2, 256**2, 512**2, 1024**2),
            (32**2, 48**2, 72**2, 108**2),
            lambda folder, pixels: _prepared_again(folder, round(pixels**0.5)),
            lambda folder, pixels: make_table(folder, 40, round(pixels**0.5)),
        ),
        ("data report, images", _IMAGES, _QUICK_IMAGES, _report, _make_prepared),
        ("near pictures in two splits, pictures", SQL_SIZES, (500, 1000, 2000, 4000), _leaks),
        ("problems of a set, rows", (25_000, 50_000, 100_000, 200_000), (500, 1000, 2000, 4000), _problems),
        (
            "evaluation report, studies",
            (5_000, 10_000, 20_000, 40_000),
            (200, 400, 800, 1600),
            lambda _, studies: _evaluation(studies, 10),
        ),
        ("evaluation report, concepts", (10, 20, 40, 80), (4, 6, 9, 13), lambda _, k: _evaluation(4_000, k)),
        ("stage 1, maps and loss, concepts", (16, 64, 256, 1024), (2, 4, 8, 16), _maps),
        ("stage 2, a step, concepts", (16, 32, 64, 128), (2, 4, 8, 16), lambda _, k: _objective(k, 5)),
        (
            "stage 2, a step, prototypes",
            (100, 400, 1600, 6400),
            (10, 20, 40, 80),
            lambda _, count: _objective(10, count // 10),
        ),
        ("prototypes' usage, prototypes", (400, 1600, 6400, 25_600), (10, 20, 40, 80), _usage),
        (
            "reasoner, prototypes",
            (50, 200, 800, 3200),
            (10, 20, 40, 80),
            lambda _, count: _reason(10, count // 10, times=5),
        ),
        ("reasoner, concepts", (10, 40, 160, 640), (2, 4, 8, 16), lambda _, k: _reason(k, 5, times=5)),
        ("worklist, studies", SQL_SIZES, _QUICK_SQL, _pages, _make_store, 3, "store"),
        ("ledger verification, entries", SQL_SIZES, _QUICK_SQL, _verify, _make_store, 1, "store"),
        ("studies against the ledger, studies", SQL_SIZES, _QUICK_SQL, _verify_studies, _make_store, 1, "store"),
        ("store insert, studies there", SQL_SIZES, _QUICK_SQL, _insert, _make_store, 3, "store"),  # last: it adds to it
    )
)
