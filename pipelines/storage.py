"""Where the machines of a cluster find what a training reads, and leave its checkpoints: ``train.storage``.

The address of a folder: of an object store (``s3://bucket/folder``, ``gs://…``, ``abfs://…``), any other that fsspec
knows with the package for it, or a path that all machines see (NFS). Below it lie

- ``files/<SHA-256>``: what trainings read, each file once, whichever data sets and runs it is part of;
- ``checkpoints/<training>``: Ray Train's, gone once the stage has its result.

Each machine fetches a training's files once, into a folder of its own (`cache_folder`), and compares them with their
digests; trainings then read them there as they read the project's. Batches are drawn from all over the set, so every
worker needs all of it (docs/gpus_and_clusters.md has the figures). Credentials are never here: each machine has its
own, from its environment or its role, as the object store's documentation says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from filelock import FileLock
from pyarrow import fs as filesystems

from csr.data.atomic_folder import atomic_folder
from csr.errors import ConfigError, TrainingError, cause_of
from pipelines.digests import digests_below, path_digest

CACHE_VARIABLE = "CSR_NODE_CACHE"
CHECKPOINT_FOLDER = "checkpoints"
_KEY = "train.storage"
_WHOLE_AT_CLOSE = ("s3", "gcs", "abfs")  # object stores: a file is there once it is all there
_AT_ONCE = 8  # files that are on their way
_CHUNK = 8 << 20
_FAULTS = (OSError, pa.ArrowException, ImportError, ValueError)


@dataclass(frozen=True)
class Listing:
    """A file or folder by what is in it.

    Args:
        name: of the file or folder.
        files: SHA-256 of each file, by its path below the folder; of a file alone, by its name.
        is_folder: which of the two.
    """

    name: str
    files: dict[str, str]
    is_folder: bool

    @classmethod
    def of(cls, path: Path) -> Listing:
        """Reads all that is there, but for files that were read before and are untouched."""
        if path.is_dir():
            return cls(path.name, digests_below(path), True)
        return cls(path.name, {path.name: path_digest(path)}, False)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Storage:
    """An open storage.

    Args:
        url: as it was given.
        system: Arrow's file system. root: the folder on it.
    """

    url: str
    system: filesystems.FileSystem
    root: str

    @classmethod
    def open(cls, url: str) -> Storage:
        """Opens it; nothing is read or written.

        Raises:
            ConfigError: nothing here knows such an address.
        """
        if "://" not in url and not Path(url).is_absolute():
            raise ConfigError(f"{_KEY}: {url!r} must be an address (s3://bucket/folder) or an absolute path")
        if urlsplit(url).password:
            raise ConfigError(
                f"{_KEY}: no place for credentials, which everybody could read; leave them to the environment"
            )
        try:
            try:
                system, root = filesystems.FileSystem.from_uri(url)
            except pa.ArrowInvalid:
                other, root = fsspec.core.url_to_fs(url)
                system = filesystems.PyFileSystem(filesystems.FSSpecHandler(other))
        except _FAULTS as error:
            raise ConfigError(f"{_KEY}: {url} cannot be opened ({cause_of(error)})") from None
        return cls(url, system, root.rstrip("/"))

    def check(self) -> None:
        """Raises:
        ConfigError: it cannot be reached, or not written.
        """
        probe = f"{self.root}/.probe-{uuid.uuid4().hex}"
        try:
            self.system.create_dir(self.root)
            with self.system.open_output_stream(probe) as stream:
                stream.write(b"csr")
            self.system.delete_file(probe)
        except _FAULTS as error:
            raise ConfigError(
                f"{_KEY}: {self.url} cannot be reached or written from here ({cause_of(error)}); check the address, "
                "the credentials in this environment and that the bucket or folder is there"
            ) from None

    @property
    def checkpoints(self) -> str:
        """The folder on `system` that holds Ray Train's runs."""
        return f"{self.root}/{CHECKPOINT_FOLDER}"

    def has_checkpoints(self, name: str) -> bool:
        return self.system.get_file_info(f"{self.checkpoints}/{name}").type == filesystems.FileType.Directory

    def forget_checkpoints(self, name: str) -> None:
        """Removes a training's checkpoints, if there are any."""
        if self.has_checkpoints(name):
            self.system.delete_dir(f"{self.checkpoints}/{name}")

    def publish(self, path: Path) -> Listing:
        """Brings a file or folder there, but for what is there.

        Raises:
            ConfigError: it cannot be written.
        """
        listing = Listing.of(path)
        sources = {digest: path / name if listing.is_folder else path for name, digest in sorted(listing.files.items())}
        try:
            self.system.create_dir(f"{self.root}/files")
            with ThreadPoolExecutor(_AT_ONCE, "publish") as pool:
                list(pool.map(self._put, sources.values(), sources))
        except _FAULTS as error:
            raise ConfigError(f"{_KEY}: {path} cannot be brought to {self.url} ({cause_of(error)})") from None
        return listing

    def _put(self, source: Path, digest: str) -> None:
        target = self._file(digest)
        found = self.system.get_file_info(target)
        if found.is_file and found.size == source.stat().st_size:
            return
        draft = target if self.system.type_name in _WHOLE_AT_CLOSE else f"{target}.{uuid.uuid4().hex}"
        with source.open("rb") as read, self.system.open_output_stream(draft) as written:
            shutil.copyfileobj(read, written, _CHUNK)
        if draft != target:
            self.system.move(draft, target)

    def fetch(self, listing: Listing) -> Path:
        """Where a published file or folder lies on this machine; brought here first, unless it was before.

        Several processes may ask at once: one fetches, the others wait.

        Raises:
            TrainingError: this machine cannot get it, or what it gets is not what was published.
        """
        cache = cache_folder()
        place = cache / "inputs" / listing.digest
        try:
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(cache / ".lock"):
                if not place.exists():
                    (cache / "files").mkdir(exist_ok=True)
                    with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
                        list(pool.map(lambda digest: self._get(digest, cache), set(listing.files.values())))
                    _link(listing, cache, place)
        except _FAULTS as error:
            raise TrainingError(
                f"{socket.gethostname()}: {listing.name} cannot be fetched from {self.url} into {cache} "
                f"({cause_of(error)}); every machine of the cluster must reach {_KEY} with credentials of its own, and "
                f"have room there ({CACHE_VARIABLE} names another folder)"
            ) from None
        return place if listing.is_folder else place / listing.name

    def _get(self, digest: str, cache: Path) -> None:
        target = cache / "files" / digest
        if target.exists():
            return
        draft, total = target.with_name(f"{digest}.partial"), hashlib.sha256()
        with self.system.open_input_stream(self._file(digest)) as read, draft.open("wb") as written:
            while chunk := read.read(_CHUNK):
                total.update(chunk)
                written.write(chunk)
        if total.hexdigest() != digest:
            draft.unlink()
            raise TrainingError(
                f"{socket.gethostname()}: {self.url}/files/{digest} is damaged: its content has another digest; remove "
                "it there, and run the stage again"
            )
        draft.chmod(0o444)
        draft.rename(target)

    def _file(self, digest: str) -> str:
        return f"{self.root}/files/{digest}"


def cache_folder() -> Path:
    """This machine's folder for what it fetched: ``CSR_NODE_CACHE``, by default ``~/.cache/csr/node``.

    It may be removed whenever nothing is trained.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/csr/node")


def _link(listing: Listing, cache: Path, place: Path) -> None:
    """The folder made of files that are here; they take no room a second time."""
    with atomic_folder(place) as folder:
        for name, digest in listing.files.items():
            target = folder / PurePosixPath(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(cache / "files" / digest, target)
