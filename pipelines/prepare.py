"""Stage ``prepare``: the data set named in ``params.yaml`` → ``data/prepared``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from csr.datasets.phantom import generate
from csr.datasets.prepared import PreparedSet
from csr.datasets.table import prepare_table, read_table
from pipelines.params import Params
from pipelines.stage import PREPARED, cores, run_stage
from pipelines.tracking import log_metrics, log_tag


def prepare(params: Params) -> None:
    """Writes the prepared set and logs its size and digest."""
    data = params.data
    workers = data.workers or cores()

    def progress(items: Iterable, total: int) -> Iterable:
        return tqdm(items, "prepare", total, leave=False, mininterval=0.5, disable=None)

    if data.source == "phantom":
        collection = generate(data.phantom, data.side, PREPARED, workers, progress)
    else:
        folder = Path(data.path)
        collection = read_table(folder, data.validation_share, data.test_share, data.split_seed)
        collection = prepare_table(collection, folder, PREPARED, data.side, data.channels, workers, progress)
    log_tag("data.name", collection.name)
    log_tag("data.digest", PreparedSet.open(PREPARED).digest())
    counts = collection.studies["split"].value_counts()
    log_metrics("prepare", {"boxes": len(collection.boxes)} | {f"{split}_studies": n for split, n in counts.items()})


if __name__ == "__main__":
    run_stage("prepare", prepare)
