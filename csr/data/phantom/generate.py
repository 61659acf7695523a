"""Renders a whole phantom into a prepared folder, in parallel; the bytes do not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from csr.data.orientation import CHEST
from csr.data.phantom.devices import DEVICES
from csr.data.phantom.plan import CLASSES, CONCEPTS, FORM_PREFIX, PhantomConfig, draw_plan
from csr.data.phantom.render import Renderer, Rendering
from csr.data.prepared import PreparedWriter
from csr.data.records import BOX_COLUMNS, Collection, check_collection

_renderer: Renderer  # one a worker process, set by `_start_worker`


def _start_worker(config: PhantomConfig, side: int) -> None:
    global _renderer
    _renderer = Renderer(config, side)


def _render_packed(
    row: int, present: np.ndarray, marker: bool, devices: list[str], second: list[str]
) -> tuple[Rendering, list[np.ndarray]]:
    rendering = _renderer(row, present, marker, devices, second)
    packed = [np.packbits(finding.mask) for finding in rendering.findings]
    return rendering, packed


def _render_all(config: PhantomConfig, side: int, plan: pd.DataFrame, workers: int) -> Iterator:
    present = plan[[f"concept:{name}" for name in CONCEPTS]].to_numpy(np.int8)
    devices, second = _named(plan, "device:", DEVICES), _named(plan, FORM_PREFIX, CONCEPTS)
    jobs = (range(len(plan)), present, plan["marker"].to_numpy(bool), devices, second)
    if workers <= 1:
        _start_worker(config, side)
        yield from map(_render_packed, *jobs)
        return
    context = get_context("spawn")  # fork is unsafe once numerical libraries have started threads
    with ProcessPoolExecutor(workers, context, _start_worker, (config, side)) as pool:
        yield from pool.map(_render_packed, *jobs, chunksize=32)


def _named(plan: pd.DataFrame, prefix: str, names: Iterable[str]) -> list[list[str]]:
    """Of each study, the names whose column of that prefix, where there is one, holds 1."""
    there = [name for name in names if prefix + name in plan]
    return [[name for name in there if study[prefix + name] == 1] for study in plan.to_dict("records")]


def generate(
    config: PhantomConfig,
    side: int,
    path: Path,
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Collection:
    """Writes the phantom to ``path`` as a prepared set with one channel, boxes and masks.

    The studies table has, beyond the common columns, ``marker`` (0/1) and ``marker_x_min`` … ``marker_y_max``: where
    the planted shortcut is, so that work on shortcuts can be judged, and what else `csr.data.phantom.plan` says.

    Args:
        config: size and difficulty.
        side: image side in pixels.
        path: folder to write; see `csr.data.prepared`.
        workers: processes to render with.
        progress: wraps the iterator of ``total`` studies, for a progress bar.

    Raises:
        DataError: a split that is too small to hold every class, or a concept nobody has.
    """
    plan = draw_plan(config)
    empty = pd.DataFrame(columns=list(BOX_COLUMNS))
    check_collection(Collection("phantom", CONCEPTS, CLASSES, plan, empty), "data.phantom")
    boxes, masks, marker_boxes = [], [], []
    with PreparedWriter(path, len(plan), channels=1, side=side) as writer:
        for row, (rendering, packed) in enumerate(progress(_render_all(config, side, plan, workers), len(plan))):
            writer.write_image(row, rendering.pixels[None])
            boxes += [(plan["study_id"].iat[row], finding.concept, *finding.box) for finding in rendering.findings]
            masks += packed
            marker_boxes.append(rendering.marker_box or (np.nan,) * 4)
        corners = pd.DataFrame(marker_boxes, columns=[f"marker_{corner}" for corner in BOX_COLUMNS[2:]])
        studies = pd.concat([plan, corners], axis=1)
        table = pd.DataFrame(boxes, columns=list(BOX_COLUMNS)).assign(mask=np.arange(len(boxes)))
        collection = Collection("phantom", CONCEPTS, CLASSES, studies, table, display=CHEST)
        writer.write_tables(collection)
        writer.write_masks(masks)
    return collection
