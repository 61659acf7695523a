"""Which real data sets can be read, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from csr.data.problems import Problems
from csr.data.raw import RawSet
from csr.data.sources.isic2017 import read_isic2017
from csr.data.sources.isic2018 import read_isic2018
from csr.data.sources.table import read_table
from csr.data.sources.tbx11k import TBX11KConfig, read_tbx11k
from csr.data.sources.vindr_cxr import VinDrConfig, read_vindr_cxr
from csr.data.splits import SplitShares
from csr.data.tasks import TaskChoice, choose_task

Source = Literal["table", "tbx11k", "vindr_cxr", "isic2017", "isic2018"]


@dataclass(frozen=True)
class SourceOptions:
    """What sources leave to the user.

    Args:
        shares: of studies that the publisher put in no split.
        tbx11k, vindr_cxr: of these data sets.
        workers: threads, where reading decodes images.
        choice: which labels are learned, and as what.
    """

    shares: SplitShares = field(default_factory=SplitShares)
    tbx11k: TBX11KConfig = field(default_factory=TBX11KConfig)
    workers: int = 1
    choice: TaskChoice = field(default_factory=TaskChoice)
    vindr_cxr: VinDrConfig = field(default_factory=VinDrConfig)


def read_source(
    source: Source,
    folder: Path,
    options: SourceOptions,
    problems: Problems,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> RawSet:
    """Reads a data set as its publisher ships it; see the source's module for the layout.

    Raises:
        DataError: a missing file or column, or nothing to learn the task from.
        ConfigError: a label that the data set does not have.
    """
    match source:
        case "table":
            raw = read_table(folder, options.shares, problems)
        case "tbx11k":
            raw = read_tbx11k(folder, options.tbx11k, options.shares, problems)
        case "isic2017":
            raw = read_isic2017(folder, options.workers, problems, progress)
        case "isic2018":
            raw = read_isic2018(folder, options.shares, options.workers, problems, progress)
        case "vindr_cxr":
            raw = read_vindr_cxr(folder, options.vindr_cxr, options.shares, problems)
    return choose_task(raw, options.choice)
