"""Runs the pipeline with an overlay of ``params.yaml``: every key of the overlay becomes a ``-S`` of ``dvc exp run``.

    python -m pipelines.overlay OVERLAY [-S section.key=value ...] [STAGE ...]

DVC writes the values into ``params.yaml``, so that ``dvc params diff``, ``dvc exp show`` and later runs see them.
``git checkout params.yaml`` goes back. With stages only these are run, and what they need.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from csr.errors import ConfigError, CSRError
from pipelines.params import PARAMS_FILE, parse_params


def overlay_settings(overlay: Any, source: str, base: Any, prefix: str = "") -> list[str]:
    """Nested keys as ``section.key=value``, values in the YAML that DVC parses.

    Args:
        base: what the overlay is laid over; DVC wants ``++`` before keys that it lacks, below a null for example.

    Raises:
        ConfigError: the overlay is not a mapping.
    """
    if not isinstance(overlay, dict):
        raise ConfigError(f"{source}: must hold sections as in params.yaml")
    settings = []
    for key, value in overlay.items():
        name, there = f"{prefix}{key}", isinstance(base, dict) and key in base
        if isinstance(value, dict) and value:
            settings += overlay_settings(value, source, base[key] if there else None, f"{name}.")
        else:
            settings.append(f"{'' if there else '++'}{name}={json.dumps(value, ensure_ascii=False)}")
    return settings


def merged(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the overlay's keys in place of its own."""
    result = dict(base)
    for key, value in overlay.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.overlay")
    parser.add_argument("overlay", type=Path)
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    given = parser.parse_intermixed_args()  # stages may follow -S
    try:
        if not given.overlay.is_file():
            raise ConfigError(f"{given.overlay}: missing")
        content = yaml.safe_load(given.overlay.read_text())
        base = yaml.safe_load(PARAMS_FILE.read_text())
        settings = overlay_settings(content, str(given.overlay), base)
        parse_params(merged(base, content), str(given.overlay))
    except CSRError as error:
        sys.exit(f"overlay: {error}")
    command = [sys.executable, "-m", "dvc", "exp", "run"]
    for setting in settings + given.set_param:
        command += ["-S", setting]
    command += given.stages
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
