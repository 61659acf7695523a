"""From the ledger to a feedback set: what is in it and what stays behind, the same bytes for the same ledger, and what
training knows of it in the end."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from PIL import Image

from csr.bundle.format import Bundle
from csr.data.digests import folder_digest
from csr.data.feedback import FeedbackBox, FeedbackSet
from csr.data.feedback.joining import PREFIX, join_feedback
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from serving.access.roles import Role
from serving.commands.feedback import main
from serving.core.feedback import NOT_AGREED, OTHER_BUNDLE, SUPERSEDED
from serving.deploy.service import Service
from serving.errors import AlteredStudyError
from serving.interfaces.rest.app import create_server
from serving.store import Store
from serving.store.database import Database
from serving.store.schema import metadata
from tests.serving.conftest import png
from tests.serving.postgres import postgres

Reader = Callable[..., TestClient]
CORRECTED = {
    "boxes": [
        {"kind": "finding", "concept": "nodule", "x_min": 5, "y_min": 6, "x_max": 30, "y_max": 31},
        {"kind": "ignore", "x_min": 40, "y_min": 40, "x_max": 60, "y_max": 64},
    ],
    "confirmed": ["mass"],
    "rejected": ["effusion"],
}


@pytest.fixture
def reader(service: Service) -> Reader:
    """Makes clients, each with a key of its own."""

    def make(name: str, role: Role = Role.REVIEWER) -> TestClient:
        key = service.keys.create(name, role)[1]
        headers = {"Authorization": f"Bearer {key}"}
        return TestClient(create_server(service), raise_server_exceptions=False, headers=headers)

    return make


@pytest.fixture
def export(tmp_path: Path, bundle: Bundle) -> Callable[..., FeedbackSet]:
    """Runs the command on the service's store."""

    def run(name: str = "set", url: str | None = None, config: str = "", bundles: int = 1) -> FeedbackSet:
        url = url or f"sqlite:///{tmp_path}/state/store.db"
        file = tmp_path / "serving.yaml"
        store = f"{{url: '{url}', ledger_key_file: '{tmp_path}/state/ledger.key'}}"
        file.write_text(f"model: {{bundle: '{bundle.path}'}}\nstore: {store}\n{config}")
        arguments = ["export", str(tmp_path / name), "--config", str(file)]
        assert main([*arguments, *(["--bundle", str(bundle.path)] * bundles)]) == 0
        return FeedbackSet.open(tmp_path / name)

    return run


def add(client: TestClient, image: bytes) -> str:
    return client.post("/v1/studies", files={"file": ("a.png", image)}).json()["digest"]


def sign(client: TestClient, digest: str, decision: str = "keep", **more: Any) -> Any:
    answer = client.post(f"/v1/studies/{digest}/readings", json={"decision": decision, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def samples(bundle: Bundle, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted((bundle.path / "samples").glob("*.png"))[:count]]


def test_a_signed_reading_is_a_row(reader: Reader, bundle: Bundle, export: Callable[..., FeedbackSet]) -> None:
    ann, (image, *_) = reader("dr.mueller"), samples(bundle, 1)
    digest = add(ann, image)
    said = sign(ann, digest, state=CORRECTED, comment="Frau Schmidt, geb. 1950")
    (row,) = (found := export()).readings
    assert (row.study, row.decision, row.number) == (digest, "keep", said["record"]["number"])
    assert (row.bundle, row.model, row.month) == (bundle.digest, said["model"]["version"], said["at"][:7])
    assert row.found == tuple(sorted(said["found"])) and set(row.classes) == set(bundle.manifest.classes)
    assert (row.confirmed, row.rejected) == (("mass",), ("effusion",))
    assert row.boxes == (
        FeedbackBox("finding", "nodule", 5, 6, 30, 31),
        FeedbackBox("ignore", None, 40, 40, 60, 64),
    )
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    np.testing.assert_array_equal(found.canvas(digest)[0], pixels)
    written = b"".join(file.read_bytes() for file in found.path.rglob("*") if file.is_file())
    for private in (b"mueller", b"Schmidt", said["at"].encode()):
        assert private not in written, "de-identified"
    assert json.loads((found.path / "manifest.json").read_text())["ledger"] == {
        "number": row.number,
        "hash": said["record"]["hash"],
    }


def test_what_is_new_is_counted_by_study_and_reader(reader: Reader, bundle: Bundle) -> None:
    ann, bob = reader("ann"), reader("bob")
    first, second = (add(ann, image) for image in samples(bundle, 2))

    def new(after: int = 0) -> tuple[int, int, int]:
        found = ann.get("/v1/feedback", params={"after": after}).json()
        return found["readings"], found["reviews"], found["through"]

    assert new()[:2] == (0, 0)
    for who, digest in ((ann, first), (ann, first), (bob, first)):
        number = sign(who, digest)["record"]["number"]
    assert new() == (2, 0, number)
    last = sign(ann, second)["record"]["number"]
    assert new(number) == (1, 0, last) and new(last) == (0, 0, last) and new(last + 9) == (0, 0, last)
    entries = ann.get("/v1/atlas").json()["entries"][:2]
    said = [{"concept": each["concept"], "index": each["index"], "verdict": "prune"} for each in entries]
    for who in (ann, ann, bob):
        assert who.post("/v1/reviews", json={"reviews": said}).status_code == 201
    assert new(last)[:2] == (0, 4)
    assert ann.get("/v1/feedback", params={"after": -1}).status_code == 422


def test_what_nobody_signed_stays_behind(reader: Reader, bundle: Bundle, export: Callable[..., FeedbackSet]) -> None:
    ann, bob = reader("ann"), reader("bob")
    first, second, third = (add(ann, image) for image in samples(bundle, 3))
    ann.post(f"/v1/studies/{first}/interactions", json=CORRECTED)
    ann.post(f"/v1/studies/{second}/skips", json={"reason": "not my field"})
    empty = export()
    assert (empty.readings, empty.studies, dict(empty.left_out)) == ((), (), {})
    sign(ann, third, "revert", state=CORRECTED)
    sign(ann, third, state={"rejected": ["mass"]})
    sign(bob, third, state={"confirmed": ["mass"]})
    found = export()
    assert found.studies == (third,) and dict(found.left_out) == {SUPERSEDED: 1}
    assert [(each.decision, each.confirmed, each.rejected) for each in found.readings] == [
        ("keep", (), ("mass",)),
        ("keep", ("mass",), ()),
    ]
    assert len({each.reader for each in found.readings}) == 2
    assert {label.name: label.present for label in found.labels if label.kind == "concept"} == {"mass": None}


def test_boxes_are_where_they_were_drawn_whatever_the_image_was_uploaded_as_later(
    reader: Reader, bundle: Bundle, export: Callable[..., FeedbackSet]
) -> None:
    ann, side = reader("ann"), bundle.manifest.side
    pixels = (np.indices((side // 2, side)).sum(0) % 251).astype(np.uint8)
    small, large = (png(pixels.repeat(times, 0).repeat(times, 1)) for times in (4, 8))
    box, top = {"kind": "focus", "x_min": 0, "y_min": 0, "x_max": 40, "y_max": 80}, side // 4
    digest = add(ann, small)
    sign(ann, digest, state={"boxes": [box]})
    assert add(ann, large) == digest, "the network sees the same of both"
    sign(reader("bob"), digest, state={"boxes": [box]})
    first, second = export().readings
    assert first.boxes == (FeedbackBox("focus", None, 0, top, 10, top + 20),), "in the middle of the square"
    assert second.boxes == (FeedbackBox("focus", None, 0, top, 5, top + 10),)


def test_the_same_ledger_gives_the_same_bytes_and_so_does_one_that_grew_by_anything_else(
    reader: Reader, service: Service, bundle: Bundle, export: Callable[..., FeedbackSet], tmp_path: Path
) -> None:
    ann, bob = reader("ann"), reader("bob")
    digests = [add(ann, image) for image in samples(bundle, 3)]
    for digest in reversed(digests):
        sign(bob, digest, state=CORRECTED)
        sign(ann, digest, state={"rejected": ["nodule"]})
    atlas = [each for each in ann.get("/v1/atlas").json()["entries"] if each["sources"]]
    for entry, verdict in zip(atlas, ("prune", "keep"), strict=False):
        assert (
            ann.post(f"/v1/atlas/{entry['concept']}/{entry['index']}/review", json={"verdict": verdict}).status_code
            < 300
        )
    first = export("first")
    assert len(first.readings) == 6 and len(first.reviews) == 2
    assert folder_digest(export("first").path) == folder_digest(first.path), "again, in place of the first"
    ann.post(f"/v1/studies/{digests[0]}/interactions", json={"rejected": ["mass"]})
    add(ann, samples(bundle, 4)[3])
    assert folder_digest(export("grown").path) == folder_digest(first.path)


def test_postgresql_gives_the_bytes_of_sqlite_in_whatever_order_its_rows_lie(
    reader: Reader, service: Service, bundle: Bundle, export: Callable[..., FeedbackSet], tmp_path: Path
) -> None:
    ann, bob = reader("ann"), reader("bob")
    for image in samples(bundle, 3):
        digest = add(ann, image)
        sign(ann, digest, state=CORRECTED)
        sign(bob, digest)
    first = export("sqlite")
    with postgres() as server:
        Store.open(server.url, (tmp_path / "state/ledger.key").read_bytes().strip()).database.close()
        given, taken = Database(f"sqlite:///{tmp_path}/state/store.db"), Database(server.url)
        with given.read() as source, taken.write() as target:
            for table in reversed(metadata.sorted_tables):
                target.execute(table.delete())
            for table in metadata.sorted_tables:
                if rows := [dict(row) for row in source.execute(sa.select(table)).mappings()]:
                    target.execute(table.insert(), rows[::-1])
        given.close()
        taken.close()
        assert folder_digest(export("postgresql", url=server.url).path) == folder_digest(first.path)


def test_a_ledger_that_is_not_whole_is_refused(
    reader: Reader, service: Service, sample: bytes, export: Callable[..., FeedbackSet], tmp_path: Path, capsys: Any
) -> None:
    ann = reader("ann")
    sign(ann, add(ann, sample), state=CORRECTED)
    kept = folder_digest(export().path)
    with service.store.database.write() as connection:
        connection.execute(
            sa.text("UPDATE ledger SET body = replace(body, 'effusion', 'nodule') WHERE kind = 'reading'")
        )
    arguments = ["export", str(tmp_path / "set"), "--config", str(tmp_path / "serving.yaml")]
    assert main(arguments) == 1
    assert "nothing was exported: the ledger is not whole" in capsys.readouterr().err
    assert folder_digest(tmp_path / "set") == kept


def test_pixels_that_were_altered_are_refused(
    reader: Reader, service: Service, bundle: Bundle, tmp_path: Path, export: Callable[..., FeedbackSet]
) -> None:
    ann, (one, two) = reader("ann"), samples(bundle, 2)
    sign(ann, add(ann, one))
    export("other")
    with service.store.database.write() as connection:
        connection.execute(sa.text("UPDATE study SET canvas = :canvas"), {"canvas": two})
    arguments = ["export", str(tmp_path / "set"), "--config", str(tmp_path / "serving.yaml")]
    with pytest.raises(AlteredStudyError, match="does not hold what was added"):
        main(arguments)
    assert not (tmp_path / "set").exists()


def test_reviews_that_are_agreed_come_with_what_the_reviewer_saw(
    reader: Reader, bundle: Bundle, export: Callable[..., FeedbackSet]
) -> None:
    ann, bob = reader("ann"), reader("bob")
    one, two, *_ = (entry for entry in bundle.atlas() if entry.sources)
    for client, entry in ((ann, one), (bob, one), (ann, two)):
        asked = {
            "reviews": [{"concept": entry.concept, "index": entry.index, "verdict": "prune", "reason": "artefact"}]
        }
        assert client.post("/v1/reviews", json=asked).status_code == 201
    found = export()
    assert [(each.concept, each.index, each.verdict) for each in found.reviews] == [
        (each.concept, each.index, "prune") for each in (one, two)
    ]
    assert [(each.study_id, each.similarity) for each in found.reviews[0].sources] == [
        (each.study_id, each.similarity) for each in one.sources
    ]
    assert (found.reviews[0].reason, len(found.reviews[0].reviewers), len(found.reviews[1].reviewers)) == (
        "artefact",
        2,
        1,
    )
    second = export("second", config="review: {second_reader: true}\n")
    assert [(each.concept, each.index) for each in second.reviews] == [(one.concept, one.index)]
    assert dict(second.left_out) == {NOT_AGREED: 1}
    assert dict(export("none", bundles=0).left_out) == {OTHER_BUNDLE: 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[PreparedSet]:
    path = tmp_path_factory.mktemp("prepared") / "set"
    generate(PhantomConfig(train=40, val=20, test=20, seed=5), bundle.manifest.side, path)
    yield PreparedSet.open(path)


def test_what_readers_said_is_what_training_knows(
    reader: Reader, bundle: Bundle, export: Callable[..., FeedbackSet], prepared: PreparedSet, tmp_path: Path
) -> None:
    ann, (image, *_) = reader("ann"), samples(bundle, 1)
    digest = add(ann, image)
    said = sign(ann, digest, state=CORRECTED)
    collection, _ = join_feedback(prepared, export(), tmp_path / "joined")
    row = len(collection.studies) - 1
    assert collection.studies["study_id"].iat[row] == PREFIX + digest
    known = dict(zip(collection.concepts, collection.concept_labels()[row], strict=True))
    assert {name: value for name, value in known.items() if value == value} == {"nodule": 1, "mass": 1, "effusion": 0}
    np.testing.assert_array_equal(collection.boxes_of(row, "nodule"), [[5, 6, 30, 31]])
    assert collection.diagnosis(row) == said["found"][0]
    assert row in collection.rows("train") and row in collection.class_rows("train")
