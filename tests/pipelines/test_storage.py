"""What a training reads gets to every machine whole, once, or a person is told why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from csr.data.digests import folder_digest
from csr.errors import ConfigError, TrainingError
from csr.training.callbacks import Callbacks, State
from pipelines.params import TrainParams
from pipelines.storage import CACHE_VARIABLE, Storage, cache_folder
from pipelines.training import _own_code, _places, train
from serving.deploy.cluster import free_port
from tests.object_store import ENVIRONMENT


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.object_store", "127.0.0.1", str(port), "bucket"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and b"ready\n" in iter(process.stdout.readline, b"")
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["folder", "s3", "fsspec"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """On each kind of file system; the object store is the only one with a server."""
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("endpoint"))
    urls = {
        "folder": str(tmp_path / "shared"),
        "s3": f"s3://bucket/{tmp_path.name}",
        "fsspec": f"memory://{tmp_path.name}",
    }
    storage = Storage.open(urls[request.param])
    storage.check()
    return storage


def make_folder(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    for name, content in (("collection.json", b"{}"), ("images/0.npy", b"\0" * 5000), ("images/1.npy", b"\0" * 5000)):
        (folder / name).write_bytes(content)
    return folder


def stored(storage: Storage) -> list[str]:
    from pyarrow.fs import FileSelector

    return sorted(each.base_name for each in storage.system.get_file_info(FileSelector(f"{storage.root}/files")))


def test_a_folder_and_a_file_arrive_as_they_are(storage: Storage, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "prepared")
    there = storage.fetch(storage.publish(folder))
    assert folder_digest(there) == folder_digest(folder)
    assert len(stored(storage)) == 2, "a file that is there twice is stored once, and no draft stays"
    (tmp_path / "weights.pth").write_bytes(b"weights")
    weights = storage.fetch(storage.publish(tmp_path / "weights.pth"))
    assert weights.name == "weights.pth" and weights.read_bytes() == b"weights"


def test_what_is_there_is_neither_brought_nor_fetched_again(storage: Storage, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "prepared")
    listing = storage.publish(folder)
    storage.fetch(listing)
    names = stored(storage)
    for name in names:
        with storage.system.open_output_stream(f"{storage.root}/files/{name}") as stream:
            stream.write(b"x" * (5000 if name == listing.files["images/0.npy"] else 2))
    assert storage.publish(folder) == listing
    assert folder_digest(storage.fetch(listing)) == folder_digest(folder)
    (folder / "collection.json").write_bytes(b"{1}")
    with pytest.raises(TrainingError, match="is damaged: its content has another digest; remove it there"):
        (cache_folder() / "files" / listing.files["images/0.npy"]).unlink()
        storage.fetch(storage.publish(folder))
    assert len(stored(storage)) == 3


def test_many_processes_of_a_machine_fetch_once(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, fetched = storage.publish(make_folder(tmp_path / "prepared")), []
    monkeypatch.setattr(
        Storage, "_get", lambda self, digest, cache: fetched.append(digest) or original(self, digest, cache)
    )
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda _: Storage.open(storage.url).fetch(listing), range(8)))
    assert len(places) == 1 and len(fetched) == 2


original = Storage._get


def test_checkpoints_go_with_the_training(storage: Storage) -> None:
    assert not storage.has_checkpoints("concepts-1")
    storage.forget_checkpoints("concepts-1")
    storage.system.create_dir(f"{storage.checkpoints}/concepts-1")
    with storage.system.open_output_stream(f"{storage.checkpoints}/concepts-1/state.pt") as stream:
        stream.write(b"1")
    assert storage.has_checkpoints("concepts-1")
    storage.forget_checkpoints("concepts-1")
    assert not storage.has_checkpoints("concepts-1")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("shared/csr", "must be an address .* or an absolute path"),
        ("nowhere://bucket/csr", "cannot be opened .*nowhere"),
        ("s3://name:secret@bucket/csr", "no place for credentials"),
    ],
)
def test_an_address_that_says_nothing_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"train.storage: .*{why}") as refused:
        Storage.open(url)
    assert "secret" not in str(refused.value)


def test_a_storage_that_cannot_be_used_ends_a_stage_before_it_starts(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for url in ("s3://no-such-bucket/csr", str(tmp_path / "file/csr")):
        params = TrainParams(workers=1, storage=url)
        with pytest.raises(ConfigError, match=f"train.storage: {url} cannot be reached or written from here"):
            train("concepts", never, params, [], params, code="pipelines.concepts")


def never(callbacks: Callbacks) -> State:
    raise AssertionError("a training that must not start")


def test_without_workers_nothing_goes_to_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "prepared")
    params = TrainParams(storage="s3://no-such-bucket/csr")
    state, _ = train("concepts", partial(where, config=1), params, [folder], params)
    assert state == {"place": str(folder)}


def where(place: Path, config: int, callbacks: Callbacks) -> State:
    return {"place": str(place)}


def test_a_machine_without_the_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"data/prepared is not on this machine; .* train\.storage"):
        _places([str(tmp_path / "data/prepared")], None)
    storage = Storage.open(str(tmp_path / "shared"))
    listing = storage.publish(make_folder(tmp_path / "prepared"))
    away = Storage.open(str(tmp_path / "another"))
    with pytest.raises(
        TrainingError, match=r"prepared cannot be fetched from .*another into .* with credentials of its own"
    ):
        away.fetch(listing)


def test_ray_brings_the_stage_s_own_code_unless_a_job_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert [Path(each).name for each in _own_code()["py_modules"]] == ["csr", "pipelines"]
    assert all((Path(each) / "__init__.py").is_file() for each in _own_code()["py_modules"])
    for job, brought in (({"working_dir": "gcs://x.zip"}, False), ({"env_vars": {"A": "1"}}, True)):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job}))
        assert bool(_own_code()) == brought
