"""``csr`` on the command line: what people see, and what status it ends with."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import uvicorn
from PIL import Image

from csr.__main__ import main
from csr.bundle.format import Bundle
from serving.access.roles import Role
from serving.deploy.service import Service
from serving.interfaces.rest.app import create_server
from tests.serving.conftest import make_service
from tests.serving.dicom.files import dataset, written

CORRECTION = (
    *("--reject", "effusion", "--confirm", "nodule", "--alpha", "0.1"),
    *("--focus", "5,5,30,30", "--ignore", "31,31,60,60", "--finding", "mass=6,6,20,20"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run; the store lies where they look for it."""
    monkeypatch.chdir(tmp_path)
    for name in ("CSR_URL", "CSR_API_KEY", "CSR_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def served(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A server whose address and key are in the environment."""
    service = make_service(bundle.path, folder / ".state/serving")
    server = uvicorn.Server(uvicorn.Config(create_server(service), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.02)
    monkeypatch.setenv("CSR_URL", f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    monkeypatch.setenv("CSR_API_KEY", service.keys.create("someone", Role.REVIEWER)[1])
    yield service
    server.should_exit = True
    thread.join(10)
    service.close()


def run(*arguments: str) -> int | str | None:
    """The status that a command ends with."""
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def test_a_reading_from_the_command_line(
    served: Service, bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(str(file) for file in (bundle.path / "samples").glob("*.png"))[:2]
    assert run("predict", *files) == 0
    said = capsys.readouterr().out
    assert all(file in said for file in files) and "concepts" in said and "mass" in said
    digest = next(line.split()[-1] for line in said.splitlines() if line.startswith("  study "))
    assert run("interact", digest, *CORRECTION) == 0
    assert "on record as entry 7" in capsys.readouterr().out
    assert run("interact", digest, *CORRECTION, "--json") == 0
    corrected = json.loads(capsys.readouterr().out)
    assert corrected["alpha"] == 0.1
    said = {each["name"]: each["answer"] for each in corrected["after"]["concepts"] if each["answer"] != "none"}
    assert said == {"effusion": "rejected", "nodule": "confirmed", "mass": "confirmed"}
    assert run("probe", digest, "--box", "6,6,20,20") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(bundle.manifest.concepts)
    assert all("like prototype" in line for line in lines)
    assert run("probe", digest, "--box", "6,6,20,20", "--json") == 0
    assert json.loads(capsys.readouterr().out)["box"] == {"x_min": 6.0, "y_min": 6.0, "x_max": 20.0, "y_max": 20.0}
    assert run("interact", digest, "--confirm", "mass", "--reject", "mass") == (
        "csr: confirmed and rejected both name 'mass'; a concept is one or the other (invalid_interaction, status 422)"
    )
    assert run("interact", digest, "--reject", "mass", "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == digest
    assert run("predict", "--json", files[0]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == digest
    assert run("atlas", "review", "mass", "1", "prune", "--reason", "artefact", "--comment", "a clip") == 0
    assert "mass 1: prune, agreed" in capsys.readouterr().out
    assert run("atlas", "list") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith("prune (agreed)")]
    assert run("atlas", "reviews", "--agreed") == 0
    assert re.search(r"mass +1  prune  agreed +key:\S+ prune \(artefact\): a clip", capsys.readouterr().out)
    assert run("atlas", "show", "mass", "1") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("mass 1: usage") and shown.count("similar to") == 5
    assert run("atlas", "preview", "mass:1") == 0
    assert re.search(r"macro F1 +0\.\d{3} → 0\.\d{3}  [+−]0\.\d{3}", capsys.readouterr().out)
    assert run("atlas", "preview", "mass") == 2
    assert "'mass' is not CONCEPT:INDEX" in capsys.readouterr().err
    assert run("status") == 0
    assert f"champion: version 1, bundle {bundle.digest[:12]}" in capsys.readouterr().out


def test_a_day_of_reading_from_the_command_line(
    served: Service, sample: bytes, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(sample)).convert("L"))
    about = {"Rows": pixels.shape[0], "Columns": pixels.shape[1], "PixelData": pixels.tobytes()}
    (folder / "a.dcm").write_bytes(written(dataset(**about, BitsAllocated=8, BitsStored=8, HighBit=7)))
    (folder / "b.png").write_bytes(sample)
    assert run("predict", "--json", "a.dcm") == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    assert run("worklist", "--order", "newest", "--progress", "unread") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].startswith(f"{digest}  unread") and listed[1:] == ["1 of 1 studies"]
    assert run("skip", digest, "--reason", "in a hurry") == 0
    assert "skipped, on record" in capsys.readouterr().out
    assert run("sign", digest, *CORRECTION, "--comment", "seen", "--report", "r.dcm") == 0
    said = capsys.readouterr().out
    assert "key:someone signed with the corrections" in said and '"seen"' in said and "bytes in r.dcm" in said
    text = str(pydicom.dcmread("r.dcm"))
    assert "seen" in text and "Signed with the reader's corrections" in text and "key.someone" in text
    assert run("sign", digest, *CORRECTION, "--revert", "--json") == 0
    reading = json.loads(capsys.readouterr().out)
    assert reading["decision"] == "revert" and reading["state"]["rejected"] == ["effusion"]
    assert run("readings", digest) == 0
    said = capsys.readouterr().out
    assert f"in place of entry {reading['supersedes']}" in said and "readers: 1, agreement: one" in said
    assert run("readings", digest, "--json") == 0
    assert json.loads(capsys.readouterr().out)["readings"] == [reading]
    assert run("worklist", "--progress", "signed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["mine"] == "signed"
    assert run("worklist", "--progress", "unread", "--no-asks-for-help") == 0
    assert capsys.readouterr().out == "0 of 0 studies\n"
    assert "already_signed" in str(run("skip", digest))
    assert "unknown_study" in str(run("sign", "0" * 64))
    assert "comment: String should have at most" in str(run("sign", digest, "--comment", "a" * 2001))
    assert run("sign", digest, "--source", "1") == 2


def test_what_a_server_refuses_is_one_sentence(served: Service, bundle: Bundle, folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    assert "not a PNG" in str(run("predict", "notes.txt"))
    assert "unknown_study" in str(run("interact", "0" * 64))
    assert run("predict", "nothing.png") == "csr: nothing.png: cannot be read (No such file or directory)"
    assert run("predict", str(folder)) == f"csr: {folder}: cannot be read (Is a directory)"
    assert run("interact", "0" * 64, "--focus", "1,2,3") == 2
    assert run("interact", "0" * 64, "--focus", "a,b,c,d") == 2
    for wrong in ("1,2,3,4", "=1,2,3,4", "mass=1,2,3", "mass"):
        assert run("interact", "0" * 64, "--finding", wrong) == 2
    assert run("probe", "0" * 64) == 2
    assert "unknown_study" in str(run("probe", "0" * 64, "--box", "1,2,3,4"))
    number = "Input should be a finite number"
    assert run("interact", "0" * 64, "--ignore", "1,2,nan,4") == f"csr: boxes.0.x_max: {number}"
    assert "alpha: Input should be less than or equal to 1" in str(run("interact", "0" * 64, "--alpha", "7"))
    assert "comment: String should have at most" in str(
        run("atlas", "review", "mass", "1", "prune", "--comment", "a" * 2000)
    )


@pytest.mark.parametrize("content", [b" ", "ключ".encode(), b"two\nlines", b"\xff\xfe"])
def test_a_file_without_a_key(folder: Path, content: bytes) -> None:
    (folder / "key").write_bytes(content)
    assert "key: holds no API key" in str(run("status", "--key-file", "key"))


def test_what_is_no_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSR_API_KEY", "csr_key")
    assert "--url: 'http://[::bad' is no address" in str(run("status", "--url", "http://[::bad"))


def test_a_reader_of_the_output_may_leave(served: Service) -> None:
    command = f"{sys.executable} -m csr atlas list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 1)


def test_the_ledger_is_verified_from_the_command_line(
    served: Service, bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", str(bundle.path / "samples/00.png"))
    capsys.readouterr()
    assert run("audit", "verify") == 0
    said = capsys.readouterr().out.strip()
    assert said.splitlines()[0] == "1 of 1 studies recomputed, whole"
    assert said.splitlines()[1].startswith("4 entries, whole; head 4:")
    head = said.rpartition(" ")[2]
    assert run("audit", "verify", "--noted", head) == 0
    assert run("audit", "export", "--after", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["kind"] == "prediction"
    with served.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE ledger SET actor = 'nobody' WHERE number = 2")
    assert run("audit", "verify") == 1
    assert "entry 2: was changed" in capsys.readouterr().err
    assert run("audit", "verify", "--noted", "x") == run("audit", "verify", "--studies", "some") == 2
    (folder / ".state/serving/ledger.key").unlink()
    assert "ledger.key: missing, and CSR_LEDGER_KEY is not set" in str(run("audit", "verify"))


def test_studies_are_verified_from_the_command_line(
    served: Service, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", *(str(file) for file in sorted((bundle.path / "samples").glob("*.png"))[:3]))
    capsys.readouterr()
    assert run("audit", "verify", "--studies", "2") == 0
    assert capsys.readouterr().out.startswith("2 of 3 studies recomputed, whole\n8 entries, whole; head 8:")
    with served.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE study SET canvas = (SELECT canvas FROM study ORDER BY digest LIMIT 1)")
    assert run("audit", "verify", "--studies", "all") == 1
    said = capsys.readouterr()
    assert said.out.startswith("3 of 3 studies recomputed, 2 faults\n8 entries, whole; head 8:")
    assert said.err.count("its pixels have another digest") == 2
    assert run("audit", "verify", "--studies", "0") == 0


def test_keys_are_verified_from_the_command_line(served: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "create", "dr.a") == run("keys", "create", "dr.b") == run("keys", "revoke", "dr.b") == 0
    capsys.readouterr()
    assert run("audit", "verify") == 0
    with served.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE api_key SET role = 'admin' WHERE name = 'dr.a'")
        connection.exec_driver_sql("UPDATE api_key SET revoked_at = NULL WHERE name = 'dr.b'")
    assert run("audit", "verify") == 1
    said = capsys.readouterr()
    assert said.err.count("key ") == 2 and "role was changed" in said.err and "revoked_at was changed" in said.err
    assert "5 entries, 2 faults" in said.out


def test_a_store_of_an_earlier_version_is_not_brought_to_this_one_by_verifying_it(
    served: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    with served.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 2")
    assert "has tables of version 2" in str(run("audit", "verify"))


def test_a_report_from_the_command_line(served: Service, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(written(dataset()))
    run("predict", "a.dcm")
    digest = next(line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("  study "))
    assert run("interact", digest, "--reject", "mass", "--report", "one.dcm") == 0
    assert "in one.dcm" in capsys.readouterr().out
    run("predict", "b.dcm")
    assert "name one as source: 1 (DX, 80×60" in str(run("interact", digest, "--report", "two.dcm"))
    assert not (folder / "two.dcm").exists()
    assert run("interact", digest, "--report", "two.dcm", "--source", "2") == 0
    uids = {pydicom.dcmread(folder / name).StudyInstanceUID for name in ("one.dcm", "two.dcm")}
    assert len(uids) == 2
    assert "unknown_source" in str(run("interact", digest, "--report", "two.dcm", "--source", "3"))
    assert "source: Input should be greater than" in str(run("interact", digest, "--report", "x", "--source", "0"))
    assert run("interact", digest, "--source", "1") == 2
    assert "cannot be written" in str(run("interact", digest, "--report", "nowhere/x.dcm", "--source", "1"))


def test_there_is_nothing_to_audit(folder: Path) -> None:
    key = folder / ".state/serving/ledger.key"
    key.parent.mkdir(parents=True)
    key.write_text("k" * 64)
    assert "there is no such store" in str(run("audit", "verify"))
    assert not list(folder.rglob("*.db"))


def test_keys_are_made_and_ended(
    served: Service, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("keys", "create", "dr.a", "--role", "reviewer") == 0
    secret = capsys.readouterr().out.strip()
    assert served.keys.find(secret).actor.name == "key:dr.a"  # type: ignore[union-attr]
    (folder / "key").write_text(secret)
    monkeypatch.delenv("CSR_API_KEY")
    assert run("status", "--key-file", "key") == 0
    assert "choose another" in str(run("keys", "create", "dr.a"))
    assert run("keys", "revoke", "dr.a") == 0
    assert "no key of this name is in use" in str(run("keys", "revoke", "dr.a"))
    capsys.readouterr()
    assert run("keys", "list") == 0
    listed = capsys.readouterr().out
    assert "dr.a" in listed and "revoked" in listed and secret not in listed
    assert secret not in (folder / ".state/serving/store.db").read_bytes().decode("latin-1")


def test_sessions_are_listed_and_ended(served: Service, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = served.keys.list()[0]
    secret = served.authenticator.sessions.open(key.actor)
    assert run("keys", "sessions") == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 1 and "key:someone" in listed[0] and secret not in listed[0]
    session = listed[0].split()[0]
    assert run("keys", "end-session", session) == 0
    assert served.authenticator.sessions.find(secret) is None
    assert "no session of this id is open" in str(run("keys", "end-session", session))
    capsys.readouterr()
    assert run("keys", "sessions") == 0
    assert capsys.readouterr().out == ""


def test_no_key_is_named(folder: Path) -> None:
    assert "no API key" in str(run("status"))
    assert "cannot be read" in str(run("status", "--key-file", "nowhere"))


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    listed = capsys.readouterr().out
    assert run() == 2
    for command in ("data", "serve", "predict", "interact", "atlas", "status", "audit", "keys", "models"):
        assert command in listed
        assert run(command, "--help") == 0
    assert "did you mean 'predict'" in str(run("prdict"))
