"""The server on a Ray cluster that is there: ``import_path: serving.app:build``, for ``serve deploy`` and RayService.

Its ``args`` are what a file such as ``infra/serving.yaml`` holds, checked as strictly. What differs from ``csr serve``,
which has a Ray of its own on one machine:

- the cluster's proxies listen, not we: ``http_options`` and ``grpc_options`` of the deployment's file say where;
- secrets are given, not made: two machines that each made one would seal two ledgers. `SECRETS` names the environment
  variables, or the files that the configuration names are mounted on every machine;
- the first API key is made by ``csr keys create``, beforehand;
- replicas on several machines share one PostgreSQL; SQLite is a file of one machine, so it serves one replica;
- ``/metrics`` of any replica answers for the replicas of all machines (`serving.deploy.numbers`).
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

from csr.errors import ConfigError
from serving.access.secrets import SECRETS
from serving.deploy.config import GRPCConfig, HTTPConfig, ServerConfig, parse_config

__all__ = ["SECRETS", "build"]


def build(args: dict[str, Any]) -> Any:
    """The application, not yet running. Everything is opened in its replicas, on whichever machine they are.

    Args:
        args: the configuration's content, see `serving.deploy.config.ServerConfig`.

    Raises:
        ConfigError: it is no configuration, or asks for what a cluster cannot do.
    """
    config = parse_config(args, "args")
    _require_shareable(config)
    from serving.deploy.deployment import build as build_deployment

    # One folder a machine and deployment: replicas of a machine add up their numbers in it.
    numbers = Path(tempfile.gettempdir()) / f"csr-metrics-{uuid.uuid4().hex}"
    return build_deployment(config, numbers, on_cluster=True)


def _require_shareable(config: ServerConfig) -> None:
    http, ours = config.http, HTTPConfig()
    if (http.host, http.port, http.tls) != (ours.host, ours.port, ours.tls):
        raise ConfigError(
            "args: http: on a cluster Ray's proxies listen; give host and port in the deployment file's http_options, "
            "and end TLS before them"
        )
    if config.grpc != GRPCConfig():
        raise ConfigError(
            "args: grpc.port: on a cluster Ray's proxies listen; give the port in the deployment file's grpc_options, "
            "with grpc_servicer_functions: [serving.interfaces.oip.grpc.add_open_inference_to_server]"
        )
    if config.replicas.most > 1 and config.store.address.startswith("sqlite"):
        raise ConfigError(
            f"args: replicas.most: {config.replicas.most} replicas can be on several machines, and the store "
            f"{config.store.address} is a file of one; give PostgreSQL's address in CSR_STORE_URL, or take one replica"
        )
