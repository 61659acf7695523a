"""The loop, closed, with nothing faked but the readers: train, serve, correct and review by the real API, export what
they said, retrain, judge, promote while the server answers, roll back twice, and a ledger that verifies.

On a phantom that is small enough for a test nothing can be said of how much better the model gets:
``reports/feedback.md`` has that.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from serving.client import Box, Client, ClientError, InteractionRequest
from serving.deploy.cluster import free_port
from serving.interfaces.schemas.atlas import NamedReview, ReviewsRequest
from serving.interfaces.schemas.readings import ReadingRequest
from tests.pipelines.conftest import SMALL, Project, copy_project
from tests.pipelines.test_retrain import LENIENT, champion, write_gates

pytestmark = pytest.mark.faults
STUDIES = 12


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a first champion; the harder phantom."""
    made = copy_project(tmp_path_factory.mktemp("loop"))
    made.params(SMALL | {"data": SMALL["data"] | {"phantom": SMALL["data"]["phantom"] | {"devices": 0.7}}})
    replay = {"measure": "accuracy", "part": "readings", "margin": 0.9}
    write_gates(made, gates=[*LENIENT["gates"], replay], judging=LENIENT["judging"] | {"uses": 5})
    made.run("pipelines.retrain")
    return made


@dataclass
class Asker:
    """A client that asks all the time, and what it was answered by."""

    client: Client
    digest: str
    versions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _ask(self) -> None:
        while not self._done.wait(0.05):
            try:
                self.versions.append(self.client.interact(self.digest, InteractionRequest()).model.version)
            except ClientError as error:
                self.failures.append(str(error))


@contextmanager
def serving(project: Project) -> Iterator[str]:
    port = free_port()
    store = f"sqlite:///{project.folder / 'mlflow.db'}"
    config = {
        "model": {"alias": "champion", "registry": {"uri": store, "poll_s": 1}},
        "http": {"port": port},
        "grpc": {"port": free_port()},
        "replicas": {"least": 1, "most": 1, "cpus": 0.5},
    }
    (project.folder / "serving.yaml").write_text(yaml.safe_dump(config))
    log = project.folder / "serving.log"
    environment = os.environ | {"PYTHONPATH": str(project.folder)}
    command = [sys.executable, "-m", "serving.deploy.app", "--config", "serving.yaml"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=project.folder, env=environment, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while url not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def as_file(canvas: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(canvas[0]).save(file, "PNG")
    return file.getvalue()


def correct_and_sign(client: Client, data: PreparedSet, row: int) -> None:
    """What a reader does who sees every finding: boxes it, rejects all other concepts, and signs."""
    collection = data.collection
    digest = client.add_study(("film.png", as_file(data.images[row]))).digest
    labels = dict(zip(collection.concepts, collection.concept_labels()[row], strict=True))
    boxes = [
        Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max, kind="finding", concept=name)
        for name, value in labels.items()
        if value == 1
        for x_min, y_min, x_max, y_max in collection.boxes_of(row, name).tolist()
    ]
    said = InteractionRequest(boxes=boxes, rejected=[name for name, value in labels.items() if value == 0])
    client.sign(digest, ReadingRequest(state=said, decision="keep"))


def wait_for(client: Client, version: str) -> None:
    deadline = time.monotonic() + 60
    while next(each.version for each in client.models().models if each.role == "champion") != version:
        assert time.monotonic() < deadline, f"the server does not follow to version {version}"
        time.sleep(0.2)


def test_what_readers_said_becomes_the_next_model_and_the_way_back_is_open(own: Project, tmp_path: Path) -> None:
    first = champion(own)
    generate(PhantomConfig(train=100, val=60, test=STUDIES, contrast=2.0, devices=0.7, seed=99), 64, tmp_path / "new")
    new = PreparedSet.open(tmp_path / "new")
    rows = new.collection.rows("test", "shifted")
    with serving(own) as url:
        key = (own.folder / ".state/serving/admin.key").read_text().strip()
        with Client(url, key=key) as client:
            for row in rows:
                correct_and_sign(client, new, int(row))
            entry = next(entry for entry in client.atlas().entries if entry.alive)
            pruned = NamedReview(concept=entry.concept, index=entry.index, verdict="prune", reason="artefact")
            client.review_all(ReviewsRequest(reviews=[pruned]))
            export = ("feedback", "export", "data/feedback/set", "--config", "serving.yaml", "--bundle", "build/bundle")
            assert f"{STUDIES} readings of {STUDIES} studies, 1 reviews" in own.run("csr", *export).stdout
            own.run("dvc", "add", "data/feedback/set")

            asker = Asker(client, client.add_study(("film.png", as_file(new.images[int(rows[0])]))).digest)
            with asker.asking():
                report = own.run("pipelines.retrain").stdout
                second = champion(own)
                wait_for(client, second)
                own.params({"export": {"alpha": 0.3}})
                own.run("pipelines.retrain")
                third = champion(own)
                wait_for(client, third)
                assert len({first, second, third}) == 3
                for before in (second, first):
                    own.run("pipelines.registry", "rollback", "--reason", "story")
                    wait_for(client, before)
            assert asker.failures == [] and {first, second, third} == set(asker.versions)
        assert "accuracy | readings" in report and f"{STUDIES} signed readings" in report
        own.run("csr", "audit", "verify", "--config", "serving.yaml")  # whose status says whether it holds
    learned = PreparedSet.open(own.folder / "data/prepared").collection.studies
    assert learned["study_id"].str.startswith("feedback-").sum() == STUDIES
