"""Stage ``register``: MLflow's registry gets ``build/bundle`` as a new version of ``csr``, unless it has it already.

The stage runs with every ``dvc repro``, since what a registry holds is none of the files that DVC knows: a bundle that
DVC brought back from its cache, or one that another registry has, is registered all the same.
"""

from __future__ import annotations

from csr.bundle.format import Bundle
from pipelines.registry import register
from pipelines.stage import BUNDLE, errors_for_people
from pipelines.tracking import MODEL_NAME


def main() -> None:
    """The command line; see the module's docstring."""
    with errors_for_people("register"):
        version = register(Bundle.open(BUNDLE))
        print(f"register: {BUNDLE} is version {version} of {MODEL_NAME!r}")


if __name__ == "__main__":
    main()
