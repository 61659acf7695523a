"""How fast stage ``prepare`` is beside bare decoding, and whether its memory grows with the number of images.

    make bench-prepare        (python -m pipelines.bench_prepare [--images 300] [--side 1024])

Both run in turns on the same images and threads, and the medians are compared. Bare decoding reads a file and unpacks
its pixels (Pillow, pydicom) and nothing else. Memory is the peak of a process of its own for each number of images.

    python -m pipelines.bench_prepare --recipe 2000 --side 2048

Time, disk and memory of preparing so many DICOM files once.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless, generate_uid
from scipy.ndimage import gaussian_filter

from csr.data.problems import Problems
from csr.data.raw import prepare_raw
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares
from pipelines.stage import cores

ROUNDS = 5
TARGET = 192  # pixels that images are prepared to, as by default


def make_set(folder: Path, kind: str, count: int, side: int) -> None:
    """A set in the ``table`` layout: smooth noise, every picture another."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.standard_normal((2 * side, 2 * side)), side / 64)
    scene = (4095 * (scene - scene.min()) / np.ptp(scene)).astype(np.uint16)
    rows = []
    for index in range(count):
        y, x = rng.integers(0, side, 2)
        crop = np.ascontiguousarray(scene[y : y + side, x : x + side]) ^ rng.integers(0, 64, (side, side), np.uint16)
        name = f"{index:05d}.{kind}"
        if kind == "png":
            Image.fromarray((crop >> 4).astype(np.uint8)).save(folder / "images" / name, compress_level=3)
        else:
            _dicom(crop).save_as(folder / "images" / name)
        rows.append(
            (name, name, ("train", "train", "train", "val", "test")[index % 5], "ab"[index // 5 % 2], index % 3 % 2)
        )
    columns = ["study_id", "image", "split", "label", "concept:some"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "studies.csv", index=False)


def _dicom(pixels: np.ndarray) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.tobytes()
    data.compress(RLELossless)
    return data


def decode_bare(folder: Path, workers: int) -> None:
    """Reads and unpacks every image of a set."""

    def unpack(file: Path) -> None:
        data = file.read_bytes()
        if file.suffix == ".dcm":
            pydicom.dcmread(io.BytesIO(data)).pixel_array  # noqa: B018
        else:
            Image.open(io.BytesIO(data)).load()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(unpack, sorted((folder / "images").iterdir())))


def prepare(folder: Path, out: Path, workers: int) -> None:
    """What stage ``prepare`` does, but for MLflow and the report."""
    problems = Problems()
    raw = read_table(folder, SplitShares(), problems)
    prepare_raw(raw, out, TARGET, 1, workers, problems, near_bits=-1)


def weigh(folder: Path, out: Path, workers: int) -> tuple[float, float]:
    """Seconds, and peak resident memory in MB, of a process of its own that prepares a set."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_weigh_here, (folder, out, workers))


def _weigh_here(folder: Path, out: Path, workers: int) -> tuple[float, float]:
    seconds = _seconds(lambda: prepare(folder, out, workers))
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, int(
        line.split()[1]
    ) / 1024  # not ru_maxrss, which begins with that of the process that started this one


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench_prepare")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--memory", type=int, nargs="+", default=[500, 5000], help="numbers of images to weigh")
    parser.add_argument("--recipe", type=int, help="number of DICOM files to prepare once, instead of the comparison")
    parser.add_argument("--workers", type=int, default=cores())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.recipe:
            recipe(Path(scratch), given.recipe, given.side, given.workers)
            return
        for kind in ("png", "dcm"):
            folder, out = Path(scratch) / kind, Path(scratch) / "prepared"
            make_set(folder, kind, given.images, given.side)
            times: dict[str, list[float]] = {"bare": [], "prepare": []}
            for _ in range(ROUNDS):
                times["bare"].append(_seconds(lambda: decode_bare(folder, given.workers)))  # noqa: B023
                times["prepare"].append(_seconds(lambda: prepare(folder, out, given.workers)))  # noqa: B023
                shutil.rmtree(out)
            bare, ours = (given.images / statistics.median(own) for own in times.values())
            print(
                f"{kind}, {given.side}²: bare decoding {bare:.1f} images/s, prepare {ours:.1f} images/s, "
                f"{ours / bare:.0%} of it, on {given.workers} threads"
            )
        for count in given.memory:
            folder = Path(scratch) / f"memory-{count}"
            make_set(folder, "png", count, 256)
            print(f"{count} images: peak {weigh(folder, Path(scratch) / 'prepared', given.workers)[1]:.0f} MB")


def recipe(scratch: Path, count: int, side: int, workers: int) -> None:
    """Prints what preparing so many DICOM files takes."""
    make_set(scratch / "set", "dcm", count, side)
    seconds, peak = weigh(scratch / "set", scratch / "prepared", workers)
    source, prepared = (
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        for folder in (scratch / "set", scratch / "prepared")
    )
    print(
        f"{count} DICOM files of {side}² (RLE, {source / count:.1f} MB each): {seconds:.0f} s on {workers} threads, "
        f"{prepared:.0f} MB prepared to {TARGET}², peak {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
