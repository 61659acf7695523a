"""Writes a bundle into a Triton model repository.

    csr_encoder/config.pbtxt    csr_encoder/3/model.onnx    (and model.py in the ``python`` form)
    csr_reasoner/config.pbtxt   csr_reasoner/3/model.onnx
    csr/config.pbtxt            csr/3/bundle                (the ensemble; the file only keeps the folder alive)
    …/warmup/image …            the golden case of the first version; it warms up the later ones as well

A repository may be in use: a server in EXPLICIT mode reads it when it is told to load a model, and the folder itself
is often a mount that cannot be swapped. So the version folders are drafted inside it and renamed into place, and the
configurations, replaced last, are the record: each names the bundle of every version in a parameter
``bundle_<version>``. A version folder that its configuration does not name is the rest of a build that was cut off.
The ensemble's configuration is replaced after its models': whenever a server reads it, the version that it names is
there, whole, and in both.

A version is never overwritten. Clients must name the version they want, the same for both models: patches of one
bundle mean nothing to another's reasoner. Whoever may write here may run code in the server: keep it read-only there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig

from csr.bundle.format import INTERACTION_INPUTS, Bundle
from csr.bundle.runtime import BundleRunner
from csr.errors import BundleError, ConfigError
from serving.engines.triton.config import (
    BUNDLE_KEY,
    ENCODER,
    ENSEMBLE,
    REASONER,
    Backend,
    bundle_key,
    encoder_config,
    ensemble_config,
    reasoner_config,
)

CONFIG = "config.pbtxt"
WARMUP = "warmup"
_DRAFT = ".partial"
_MODEL_PY = Path(__file__).with_name("python_model.py")


def build_repository(
    bundle: Bundle, path: Path, version: int, backend: Backend, threads: int = 1, instances: int = 1
) -> None:
    """Adds a version of both models, and moves the ensemble to it if none is newer: all or, on any error, nothing.
    Adding it again changes nothing.

    Args:
        bundle: a verified bundle.
        path: the repository; made if it is missing, other versions in it are kept.
        version: from 1, for example the version of the registered model.
        backend: ``onnxruntime`` (NVIDIA's image) or ``python`` (any server; CPU only).
        threads: ONNX Runtime's intra-op threads on a CPU.
        instances: of each model, that run at once: on a CPU, one for each of its cores that it may take whole.

    Raises:
        BundleError: a graph is missing or not the one that the manifest names.
        ConfigError: the version is taken by another bundle, or other versions have other shapes or another backend.
    """
    if min(version, threads, instances) < 1:
        raise ConfigError(f"version {version}, threads {threads}, instances {instances}: all count from 1")
    graphs = {ENCODER: _graph(bundle, "encoder.onnx"), REASONER: _graph(bundle, "reasoner.onnx")}
    made = [make(bundle.manifest, backend, threads, instances) for make in (encoder_config, reasoner_config)]
    configs = {each.name: each for each in made if _record(path / each.name, each, version, bundle.digest)}
    ensemble = _ensemble(path / ENSEMBLE, bundle, made[0])
    if not configs and ensemble is None:
        return
    with _draft(path) as draft:
        for name, config in configs.items():
            folder = draft / name / str(version)
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(graphs[name])
            if backend == "python":
                shutil.copyfile(_MODEL_PY, folder / "model.py")
            if not (path / name / CONFIG).exists():
                _write_warmup(draft / name / WARMUP, config, bundle)
            (draft / name / CONFIG).write_text(text_format.MessageToString(config))
        if ensemble is not None:
            _write_ensemble(draft / ENSEMBLE, ensemble)
        _place(draft, path)


def _ensemble(folder: Path, bundle: Bundle, encoder: ModelConfig) -> ModelConfig | None:
    """The ensemble of the newest version that the encoder's configuration records; None if it is there already."""
    known = {int(key.removeprefix(BUNDLE_KEY)): each for key, each in encoder.parameters.items() if _names(key)}
    newest = max(known)
    config = ensemble_config(bundle.manifest, newest, known[newest].string_value)
    file = folder / CONFIG
    if file.exists() and (folder / str(newest)).is_dir() and _read(file) == config:
        return None
    return config


def _write_ensemble(folder: Path, config: ModelConfig) -> None:
    (version,) = config.version_policy.specific.versions
    (folder / str(version)).mkdir(parents=True)
    digest = config.parameters[bundle_key(version)].string_value
    # Object stores and archives drop empty folders, and Triton wants one for every version.
    (folder / str(version) / "bundle").write_text(f"{digest}\n")
    (folder / CONFIG).write_text(text_format.MessageToString(config))


def _write_warmup(folder: Path, config: ModelConfig, bundle: Bundle) -> None:
    """The inputs of a model in the golden case's first study, as raw bytes."""
    golden = {name: array[:1] for name, array in bundle.golden().items() if name in ("image", *INTERACTION_INPUTS)}
    golden["patches"] = BundleRunner(bundle).encode(golden["image"])
    folder.mkdir()
    for each in config.input:
        (folder / each.name).write_bytes(golden[each.name].tobytes())


def _graph(bundle: Bundle, name: str) -> bytes:
    """A graph's bytes, verified as they are written: the file may have changed since the bundle was opened."""
    try:
        content = (bundle.path / name).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{bundle.path / name}: missing; the bundle is incomplete") from None
    if hashlib.sha256(content).hexdigest() != bundle.manifest.files.get(name):
        raise BundleError(
            f"{bundle.path / name}: digest differs from the manifest's; the file was altered after export"
        )
    return content


def _record(folder: Path, config: ModelConfig, version: int, digest: str) -> bool:
    """Writes into ``config`` which bundle each version is, those already there and the new one.

    Returns:
        False if the new one is already there too.

    Raises:
        ConfigError: see `build_repository`.
    """
    file = folder / CONFIG
    known = _known(file, config) if file.exists() else {}
    key = bundle_key(version)
    if (taken := known.get(key, digest)) != digest:
        raise ConfigError(f"{folder / str(version)}: is taken by bundle {taken[:12]}; name another version")
    for name, value in (known | {key: digest}).items():
        config.parameters[name].string_value = value
    return not (key in known and (folder / str(version)).is_dir())


def _known(file: Path, config: ModelConfig) -> dict[str, str]:
    """The bundles that a configuration records, provided that it otherwise is ``config``."""
    found = _read(file)
    known = {key: value.string_value for key, value in found.parameters.items() if _names(key)}
    for key in known:
        del found.parameters[key]
    if found != config:
        raise ConfigError(f"{file}: its versions have other shapes, options or backend; build into an empty folder")
    return known


def _read(file: Path) -> ModelConfig:
    try:
        return text_format.Parse(file.read_text(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); build into an empty folder") from None


def _names(parameter: str) -> bool:
    """Whether a parameter names a version's bundle."""
    return parameter.startswith(BUNDLE_KEY)


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A hidden folder inside the repository, on the same file system; servers ignore it, and it never stays."""
    draft = path / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(draft: Path, path: Path) -> None:
    """Moves a draft's folders into the repository and then its configurations, models before the ensemble."""
    names = [name for name in (ENCODER, REASONER, ENSEMBLE) if (draft / name).is_dir()]
    before = {name: (path / name / CONFIG).read_text() for name in names if (path / name / CONFIG).exists()}
    placed: list[Path] = []
    replaced: list[str] = []
    try:
        for name in names:
            (path / name).mkdir(exist_ok=True)
            for folder in (each for each in (draft / name).iterdir() if each.is_dir()):
                target = path / name / folder.name
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
                placed.append(target)
        for name in names:
            (draft / name / CONFIG).replace(path / name / CONFIG)
            replaced.append(name)
    except BaseException:
        for name in replaced:
            _take_back(draft / CONFIG, path / name / CONFIG, before.get(name))
        for target in placed:
            shutil.rmtree(target, ignore_errors=True)
        raise


def _take_back(draft: Path, file: Path, before: str | None) -> None:
    if before is None:
        file.unlink()
    else:
        draft.write_text(before)
        draft.replace(file)
