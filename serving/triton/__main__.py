"""``python -m serving.triton``: a bundle on disk becomes a version in a Triton model repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from csr.bundle import Bundle
from csr.errors import CSRError
from serving.triton.config import Backend
from serving.triton.repository import build_repository


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds, or exits with 1 and one sentence on the standard error stream."""
    parser = argparse.ArgumentParser(prog="python -m serving.triton", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"), help="default: %(default)s")
    parser.add_argument("--repository", type=Path, default=Path("build/triton"), help="default: %(default)s")
    parser.add_argument("--backend", choices=get_args(Backend), default="onnxruntime", help="default: %(default)s")
    parser.add_argument("--model-version", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each model; default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(chosen.bundle)
        build_repository(bundle, chosen.repository, chosen.model_version, chosen.backend, chosen.threads)
    except (CSRError, OSError) as error:
        sys.exit(str(error))
    print(f"{chosen.repository}: version {chosen.model_version} is bundle {bundle.digest[:12]}, {chosen.backend} form")


if __name__ == "__main__":
    main()
