"""What a node may do to us, and what may get into a request to it: against a server that answers as the test says."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csr.errors import ConfigError
from serving.dicom.node_config import NodeConfig, Secret
from serving.dicom.nodes import MAX_RESULTS, Node, Query
from serving.errors import InvalidDicomQueryError, NodeError, NodeStoreError, TooLargeError, UnknownInstanceError
from tests.serving.dicom.files import dataset, read, written

DICOM_JSON = "application/dicom+json"
UIDS = ("1.2.3", "1.2.4", "1.2.5")
ANY = Query(modality="DX")
Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Scripted:
    """A server that gives one answer to everything, and what it was asked."""

    server: ThreadingHTTPServer | None = None
    url: str = ""
    answer: Answer = lambda handler: None
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def node(self, answer_bytes: int = 1 << 20, **config: Any) -> Node:
        return Node("fake", NodeConfig(**{"url": self.url, "timeout_s": 5} | config), answer_bytes)


@pytest.fixture
def fake() -> Iterator[Scripted]:
    scripted = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            scripted.asked.append((self.path, dict(self.headers)))
            self.close_connection = True
            scripted.answer(self)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    scripted.server = server
    scripted.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(body: bytes, kind: str = DICOM_JSON, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def multipart(*parts: bytes) -> Answer:
    body = b"".join(b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts) + b"\r\n--x--"
    return says(body, 'multipart/related; type="application/dicom"; boundary=x')


def stored(*uids: str, failed: dict[str, int] | None = None) -> bytes:
    def item(uid: str, **more: Any) -> dict[str, Any]:
        return {"00081155": {"vr": "UI", "Value": [uid]}, **more}

    answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": [item(uid) for uid in uids]}}
    if failed:
        reasons = [item(uid, **{"00081197": {"vr": "US", "Value": [reason]}}) for uid, reason in failed.items()]
        answer["00081198"] = {"vr": "SQ", "Value": reasons}
    return json.dumps(answer).encode()


def test_a_search_asks_for_what_it_was_given_and_no_more(fake):
    fake.answer = says(b"[]")
    assert fake.node().search("studies", Query("1.2.3", "P 1&x=1/é", "20240101-", "DX"), limit=7, offset=2) == []
    fake.node().search("instances", Query("1.2.3", modality="DX"))
    fake.node().search("instances", Query(accession_number="A 9/1"))
    assert [path for path, _ in fake.asked] == [
        "/dicom-web/studies?ModalitiesInStudy=DX&PatientID=P+1%26x%3D1%2F%C3%A9&StudyDate=20240101-"
        "&StudyInstanceUID=1.2.3&limit=7&offset=2",
        "/dicom-web/studies/1.2.3/instances?Modality=DX&limit=100&offset=0",
        "/dicom-web/instances?AccessionNumber=A+9%2F1&limit=100&offset=0",
    ]
    assert fake.asked[0][1]["Host"] == fake.url.split("/")[2]


def test_a_node_that_ignores_the_limit_is_cut(fake):
    fake.answer = says(json.dumps([{"0020000D": {"vr": "UI", "Value": ["1.2"]}}] * 9).encode())
    assert len(fake.node().search("studies", ANY, limit=4)) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"study_uid": "1.2/../3"},
        {"study_uid": "1..2"},
        {"study_uid": "1." + "2" * 63},
        {"study_uid": "1.2\n"},
        {"patient_id": "P*"},
        {"patient_id": "P?"},
        {"patient_id": "a\\b"},
        {"patient_id": ""},
        {"patient_id": "x" * 65},
        {"study_date": "2024"},
        {"study_date": "20240101-20240102-20240103"},
        {"study_date": "-"},
        {"modality": "dx"},
        {"modality": "D*"},
        {"accession_number": "A*"},
        {"accession_number": ""},
        {"accession_number": "x" * 17},
    ],
)
def test_a_query_that_is_none_is_refused(wrong):
    with pytest.raises(InvalidDicomQueryError) as raised:
        Query(**wrong)
    assert (raised.value.code, raised.value.status) == ("invalid_dicom_query", 422)


@pytest.mark.parametrize(("limit", "offset"), [(0, 0), (MAX_RESULTS + 1, 0), (1, -1)])
def test_limits_are_limited(fake, limit, offset):
    with pytest.raises(InvalidDicomQueryError, match="limit"):
        fake.node().search("studies", ANY, limit, offset)
    assert not fake.asked


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("uid", ["", "..", "1.2/3", "1.2?x=1", "1.2%2f3", "1" * 65, "1.2 ", "1.2\n", "١.٢"])
def test_no_other_than_a_uid_gets_into_an_address(fake, place, uid):
    uids = [*UIDS[:place], uid, *UIDS[place + 1 :]]
    for ask in (fake.node().retrieve, fake.node().header):
        with pytest.raises(InvalidDicomQueryError, match="not a DICOM UID"):
            ask(*uids)
    assert not fake.asked


@given(st.text(max_size=70))
def test_a_uid_is_digits_and_dots(text):
    right = len(text) <= 64 and text != "" and all(part.isascii() and part.isdecimal() for part in text.split("."))
    if right:
        assert Query(study_uid=text).study_uid == text
    else:
        with pytest.raises(InvalidDicomQueryError):
            Query(study_uid=text)


def test_an_instance_comes_whole_and_must_be_the_one_asked_for(fake):
    made = dataset(SOPInstanceUID="1.2.5")
    fake.answer = multipart(written(made))
    back = read(fake.node().retrieve(*UIDS))
    assert back.PixelData == made.PixelData
    assert fake.asked[0][0] == "/dicom-web/studies/1.2.3/series/1.2.4/instances/1.2.5"
    with pytest.raises(NodeError, match="another instance"):
        fake.node().retrieve("1.2.3", "1.2.4", "1.2.6")


def test_a_header_leaves_pixels_where_they_are(fake):
    header = {
        "00080018": {"vr": "UI", "Value": ["1.2.5"]},
        "7FE00010": {"vr": "OW", "BulkDataURI": f"{fake.url}/bulk"},
    }
    fake.answer = says(json.dumps([header]).encode())
    found = fake.node().header(*UIDS)
    assert not found.PixelData
    assert [path for path, _ in fake.asked] == ["/dicom-web/studies/1.2.3/series/1.2.4/instances/1.2.5/metadata"]


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_unknown(fake, status):
    fake.answer = says(b"", status=status)
    with pytest.raises(UnknownInstanceError, match=r"fake: has no instance 1\.2\.5") as raised:
        fake.node().header(*UIDS)
    assert (raised.value.code, raised.value.status) == ("unknown_instance", 404)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_refusal_is_an_error_at_once(fake, status):
    fake.answer = says(b"secret text", status=status)
    with pytest.raises(NodeError, match=rf"refuses to search \(status {status}\)") as raised:
        fake.node().search("studies", Query(patient_id="P-4711"))
    assert (raised.value.code, raised.value.status) == ("dicom_node_unavailable", 502)
    assert len(fake.asked) == 1  # nothing is tried twice


def test_redirects_are_not_followed(fake):
    fake.answer = says(b"", status=307, Location=f"{fake.url}/elsewhere")
    for call in (lambda: fake.node().search("studies", ANY), lambda: fake.node().store([written(dataset())])):
        fake.asked.clear()
        with pytest.raises(NodeError, match="redirects"):
            call()
        assert len(fake.asked) == 1


def test_a_large_answer_is_refused(fake):
    fake.answer = says(b"[" + b" " * 20_000 + b"]")
    with pytest.raises(TooLargeError, match="10,000 bytes"):
        fake.node(answer_bytes=10_000).search("studies", ANY)


def test_a_compressed_bomb_is_refused(fake):
    body = gzip.compress(b" " * 50_000_000)
    assert len(body) < 100_000
    fake.answer = says(body, Content_Encoding="gzip")
    with pytest.raises(TooLargeError):
        fake.node(answer_bytes=1_000_000).search("studies", ANY)


def test_an_endless_answer_is_refused(fake):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        except OSError:
            return

    fake.answer = answer
    with pytest.raises(TooLargeError):
        fake.node(answer_bytes=100_000).search("studies", ANY)


def test_chunked_answers_are_read(fake):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", f"{DICOM_JSON};charset=UTF-8")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"1\r\n[\r\n1\r\n]\r\n0\r\n\r\n")

    fake.answer = answer
    assert fake.node().search("studies", ANY) == []


@pytest.mark.timed
@pytest.mark.parametrize("pause", [0.05, 30])
def test_a_slow_answer_is_given_up(fake, pause):
    done = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            while not done.wait(pause):
                handler.wfile.write(b" ")
        except OSError:
            return

    fake.answer = answer
    started = time.monotonic()
    with pytest.raises(NodeError, match="does not answer"):
        fake.node(timeout_s=0.5).search("studies", ANY)
    done.set()
    assert time.monotonic() - started < 5


def test_an_answer_cut_short_is_none(fake):
    made = dataset(SOPInstanceUID="1.2.5")
    data = written(made)
    fake.answer = says(
        b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n" + data[: len(data) // 2],
        'multipart/related; type="application/dicom"; boundary=x',
        Content_Length=str(len(data)),
    )
    with pytest.raises(NodeError):
        fake.node().retrieve(*UIDS)


@pytest.mark.filterwarnings("ignore:message sent by origin server:UserWarning")
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'[{"00080018": 3}]', b"<html>", b"\xff", b"[]"])
def test_a_malformed_answer_is_an_error_of_the_node(fake, body):
    fake.answer = says(body)
    with pytest.raises(NodeError):
        fake.node().header(*UIDS)
    with pytest.raises(NodeError):
        fake.node().retrieve(*UIDS)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of dicomweb-client and pydicom, about the noise
@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=30)
def test_no_answer_raises_anything_but_our_errors(noise):
    for answer in (says(noise), multipart(noise), multipart(bytes(128) + b"DICM" + noise)):
        _answered(answer)


def _answered(answer: Answer) -> None:
    """One retrieval from a server of one answer, which must fail with our error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(NodeError):
            Node("noise", NodeConfig(url=f"http://127.0.0.1:{server.server_port}")).retrieve(*UIDS)
        thread.join()


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dicom-web"
    with pytest.raises(NodeError, match=r"node gone: does not answer \(ConnectionError\)") as raised:
        Node("gone", NodeConfig(url=url, timeout_s=2)).search("studies", Query(patient_id="P-4711"))
    assert "P-4711" not in str(raised.value)


def test_a_plain_server_is_no_https_one(fake):
    node = fake.node(url=fake.url.replace("http:", "https:"))
    with pytest.raises(NodeError, match="SSLError"):
        node.search("studies", ANY)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # urllib3's, for verify: false
def test_certificates_are_checked_against_the_bundle(fake, tmp_path):
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    fake.server.socket = context.wrap_socket(fake.server.socket, server_side=True)
    fake.answer = says(b"[]")
    url = fake.url.replace("http:", "https:")
    assert fake.node(url=url, ca_bundle=certificate).search("studies", ANY) == []
    assert fake.node(url=url, verify=False).search("studies", ANY) == []
    with pytest.raises(NodeError, match="SSLError"):
        fake.node(url=url).search("studies", ANY)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody else vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "archive")])
    today = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(built.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private


def test_all_stored(fake):
    made = [dataset(), dataset()]
    fake.answer = says(stored(*(each.SOPInstanceUID for each in made)), f"{DICOM_JSON}; charset=utf-8")
    fake.node().store([written(each) for each in made])
    ((path, headers),) = fake.asked
    assert path == "/dicom-web/studies"
    assert headers["Accept"] == DICOM_JSON
    assert int(headers["Content-Length"]) > 2 * len(made[0].PixelData)


@pytest.mark.parametrize("status", [200, 202, 409])
def test_a_partial_store_says_which(fake, status):
    made = [dataset(), dataset()]
    good, bad = (str(each.SOPInstanceUID) for each in made)
    fake.answer = says(stored(good, failed={bad: 0x0110}), status=status)
    with pytest.raises(NodeStoreError, match="did not store 1 of 2 files") as raised:
        fake.node().store([written(each) for each in made])
    assert f"{bad} (reason 0x0110)" in str(raised.value) and good not in str(raised.value)
    assert (raised.value.code, raised.value.status) == ("dicom_store_failed", 502)


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_store_that_is_not_confirmed_is_an_error(fake, body):
    fake.answer = says(body)
    with pytest.raises(NodeStoreError, match="not confirmed"):
        fake.node().store([written(dataset())])


def test_secrets_come_from_where_the_configuration_says(fake, monkeypatch, tmp_path):
    fake.answer = says(b"[]")
    file = tmp_path / "token"
    file.write_text("Bearer one\n")
    monkeypatch.setenv("PACS_KEY", "two")
    node = fake.node(headers={"Authorization": {"file": str(file)}, "X-Api-Key": {"env": "PACS_KEY"}})
    node.search("studies", ANY)
    file.write_text("Bearer three")
    node.search("studies", ANY)
    sent = [(headers["Authorization"], headers["X-Api-Key"]) for _, headers in fake.asked]
    assert sent == [("Bearer one", "two"), ("Bearer three", "two")]
    file.unlink()
    with pytest.raises(NodeError, match="token is missing"):
        node.search("studies", ANY)


@pytest.mark.parametrize("value", [None, "", "  ", "s3cret\nX: y", "s3crét"])
def test_a_secret_that_is_none_stops_the_start_and_is_not_quoted(fake, monkeypatch, value):
    monkeypatch.delenv("PACS_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("PACS_KEY", value)
    with pytest.raises(ConfigError, match="node fake, header Authorization: environment variable PACS_KEY") as raised:
        fake.node(headers={"Authorization": {"env": "PACS_KEY"}})
    assert "s3cr" not in str(raised.value)


def test_the_environments_proxies_and_passwords_play_no_part(fake, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fake.answer = says(b"[]")
    fake.node().search("studies", ANY)
    assert "Authorization" not in fake.asked[0][1]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"url": "file:///etc/passwd"}, "http or https"),
        ({"url": "archive/dicom-web"}, "http or https"),
        ({"url": "http://user:pass@archive/"}, "credentials into headers"),
        ({"url": "http://archive/?x=1"}, "query"),
        ({"url": "http://archive", "retries": 3}, "retries"),
        ({"url": "http://archive", "timeout_s": 0}, "timeout_s"),
        ({"url": "http://archive", "headers": {"A:b": {"env": "X"}}}, "not a header"),
        ({"url": "http://archive", "headers": {"A": {"env": "X", "file": "y"}}}, "either env"),
        ({"url": "http://archive", "headers": {"A": {}}}, "either env"),
        ({"url": "http://archive", "headers": {"A": "secret"}}, "headers"),
        ({"url": "http://archive", "ca_bundle": "no/such/file.pem"}, "ca_bundle"),
        ({"url": "http://archive", "ca_bundle": ssl.__file__, "verify": False}, "contradict"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong, text):
    with pytest.raises(ValidationError, match=text):
        NodeConfig(**wrong)


def test_a_configuration_is_as_it_was_given():
    config = NodeConfig(url="https://archive:8443/dicom-web/", headers={"Authorization": Secret(env="X")})
    assert config.url == "https://archive:8443/dicom-web"
    assert config.verify and config.ca_bundle is None
    with pytest.raises(ValidationError):
        config.url = "http://elsewhere"
