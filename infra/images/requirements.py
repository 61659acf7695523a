"""What an image installs besides the project: requirements for pip, which takes their versions from requirements.lock.

    python infra/images/requirements.py serving cpu
    python infra/images/requirements.py training gpu
    python infra/images/requirements.py mlflow cpu

Serving starts without PyTorch, so its image has neither that nor what only training and export need. ONNX Runtime's GPU
wheel is four times the plain one; on a CPU the plain one takes its place.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

EXTRAS = {"serving": ("serving",), "training": ("pipeline", "serving", "s3"), "mlflow": ("tracking",)}
TRAINS = ("torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript")
RUNTIME = "onnxruntime"


def requirements(image: str, device: str) -> list[str]:
    """One a line, without markers: images are Linux."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    core = [] if image == "mlflow" else [each.partition(";")[0].strip() for each in project["dependencies"]]
    runtimes = [each for each in core if each.startswith(RUNTIME)]
    wanted = [each for each in core if each not in runtimes and not (image == "serving" and _name(each) in TRAINS)]
    for extra in EXTRAS[image]:
        wanted += project["optional-dependencies"][extra]
    if core:
        wanted += project["optional-dependencies"]["gpu"] if device == "gpu" else _plain(runtimes)
    return [each.partition(";")[0].strip() for each in wanted]


def _plain(runtimes: list[str]) -> list[str]:
    return [each for each in runtimes if _name(each) == RUNTIME]


def _name(requirement: str) -> str:
    return requirement.partition("==")[0].partition(">=")[0].partition("[")[0]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in EXTRAS or sys.argv[2] not in ("cpu", "gpu"):
        sys.exit(f"usage: requirements.py {'|'.join(EXTRAS)} cpu|gpu")
    print(*requirements(*sys.argv[1:]), sep="\n")
