"""``python -m serving.engines.triton``: a bundle on disk becomes a version in a Triton model repository.

With ``--load`` a running server then takes it up; ``--unload`` builds nothing and makes a server let go of the models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from csr.bundle.format import Bundle
from csr.errors import CSRError
from serving.engines.triton.config import Backend
from serving.engines.triton.control import load_models, unload_models
from serving.engines.triton.repository import build_repository


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds, loads or unloads, or exits with 1 and one sentence on the standard error stream."""
    parser = argparse.ArgumentParser(prog="python -m serving.engines.triton", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"), help="default: %(default)s")
    parser.add_argument("--repository", type=Path, default=Path("build/triton"), help="default: %(default)s")
    parser.add_argument("--backend", choices=get_args(Backend), default="onnxruntime", help="default: %(default)s")
    parser.add_argument("--model-version", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each model; default: %(default)s")
    parser.add_argument("--instances", type=int, default=1, help="of each model, at once; default: %(default)s")
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--load", metavar="HOST:PORT", help="then load it into the server with this gRPC endpoint")
    server.add_argument("--unload", metavar="HOST:PORT", help="only unload the models from this server")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.unload:
            unload_models(chosen.unload)
            print(f"{chosen.unload}: unloaded")
            return
        bundle, version = Bundle.open(chosen.bundle), chosen.model_version
        build_repository(bundle, chosen.repository, version, chosen.backend, chosen.threads, chosen.instances)
        print(f"{chosen.repository}: version {version} is bundle {bundle.digest[:12]}, {chosen.backend} form")
        if chosen.load:
            load_models(chosen.load, version)
            print(f"{chosen.load}: version {version} is ready")
    except (CSRError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
