"""``csr serve``, or ``python -m serving.deploy.app``: serves with Ray Serve until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from csr.bundle.format import Bundle
from csr.errors import CSRError
from serving.access.keys import KeyStore
from serving.access.roles import Role
from serving.deploy.cluster import ray_serve, set_environment
from serving.deploy.config import ServerConfig, load_config, parse_config
from serving.deploy.probe import wait_until_ready
from serving.store import Store

READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Path | None
    bundle: Path | None
    host: str | None
    port: int | None


class _Stopped(BaseException):
    """A signal asked the server to stop; not an Exception, so that nothing on the way swallows it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status."""
    started = time.monotonic()
    options = _parse(arguments)
    try:
        config = _config(options)
        if config.model.bundle is not None:
            Bundle.open(config.model.bundle)  # what cannot be served is said now, not in a replica's log
        _require_free(config)
        _prepare_store(config)
        if problem := set_environment(config):
            print(
                f"HAProxy is not used ({problem}); Ray's Python proxy is: about 8 ms slower, and nothing cuts off who"
                " sends a request's headers slowly",
                file=sys.stderr,
            )
        with _signals_stop(), ray_serve(config):
            _serve(config, started)
    except _Stopped:
        print("stopped", flush=True)
    except (CSRError, OSError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="csr serve", description="Serves with Ray Serve until it is stopped.")
    parser.add_argument("--config", type=Path, help="a file such as infra/serving.yaml; without it, defaults")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder; without --config build/bundle")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (8000)")
    return Options(**vars(parser.parse_args(arguments)))


def _config(options: Options) -> ServerConfig:
    """The file, with what the command line says instead.

    Raises:
        ConfigError: they are not a configuration.
    """
    content: dict[str, Any] = {"model": {"bundle": "build/bundle"}}
    if options.config is not None:
        content = load_config(options.config).model_dump(exclude_unset=True)
    if options.bundle is not None:
        content["model"] = {"bundle": str(options.bundle)}
    http = {"host": options.host, "port": options.port}
    content["http"] = content.get("http", {}) | {key: value for key, value in http.items() if value is not None}
    return parse_config(content, str(options.config or "command line"))


def _require_free(config: ServerConfig) -> None:
    """Raises:
    OSError: nothing can listen at a port that the configuration names.
    """
    host = config.http.host
    with contextlib.ExitStack() as held:  # each is taken while the next is tried: they must differ
        for port, another in ((config.http.port, "with --port"), (config.grpc.port, "as grpc.port")):
            if port is None:
                continue
            try:
                held.enter_context(socket.create_server((host, port)))
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise OSError(f"cannot listen on {host}:{port} ({reason}); choose another {another}") from None


def _prepare_store(config: ServerConfig) -> None:
    """Makes what must be there before replicas start, and a first key if there is none: without one nobody gets in.

    Raises:
        StoreError, ConfigError: it cannot be made.
    """
    config.check_secrets()
    store = Store.open(config.store.address, config.store.ledger_key())
    try:
        keys = KeyStore(store)
        if not keys.list():
            _, key = keys.create("admin", Role.ADMIN)
            file = config.access.admin_key_file
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            file.write_text(key + "\n")
            print(f"made a first API key, an admin's, in {file}; `csr keys create` makes others", flush=True)
    finally:
        store.database.close()


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


def _serve(config: ServerConfig, started: float) -> None:
    url = f"{'https' if config.http.tls else 'http'}://{config.http.host}:{config.http.port}"
    tls = config.http.tls
    wait_until_ready(url, READY_WITHIN_S, tls.certificate if tls else None)
    print(f"{url}  (ready in {time.monotonic() - started:.1f} s)", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
