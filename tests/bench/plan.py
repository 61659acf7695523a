"""A plan past one machine, reckoned and simulated: 112,000 and 1,000,000 studies, and 1,000 interactions a second.

    python -m tests.bench.plan [--report reports/serving.md] [--growth reports/bench/growth.json] [--out FILE.md]
    python -m tests.bench.plan --store URL        # what a transaction of the ledger costs on an empty store of yours

Interactions are simulated (`tests.bench.queueing`) with the service times that ``reports/serving.md`` measured; storage
is arithmetic on shapes; GPU hours rest on printed throughputs, not on any that was measured here. Every other figure is
a field of `Assumptions`, with its source, and can be given with ``--set name=value``.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from csr.errors import ConfigError
from tests.bench.queueing import System, simulate
from tests.bench.report import shown
from tests.bench.results import read

STUDIES, RATES = (15_000, 112_000, 1_000_000), (100.0, 300.0, 1000.0)
REQUESTS = 40_000
_GROUPS, _GROUP_ROUNDS = (1, 4, 16, 64), 15
_GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What the plan rests on and no report of this project says.

    Args:
        raw_mb: of a study as published: 4.5 for DICOM of 2048² with 12 bits and RLE (docs/own_data.md), 0.37 for PNG of
            1024² (NIH ChestX-ray14: 42 GB, 112,120 files).
        side, channels: of prepared images, data.side and data.channels.
        stride, width: of the maps, and channels of the features: ConvNeXt-T's at stride 8.
        concepts, per_concept: K and M: ChestX-ray14's labels, and the paper's prototypes.
        epochs: of stage 1, as params.yaml; of the studies ``train_share`` are trained on.
        decode_s: processor time to decode and prepare a study, from docs/own_data.md: 179 s · 2 cores / 2,000.
        train_rate, infer_rate: images a second of one A100 at 224² in stage 1 and in the features' pass. Printed, not
            measured: ConvNeXt-T infers 1,943 images a second at 224² (Liu et al. 2022, appendix), and training is taken
            for three times that work. At another side both go by its square.
        busy: share of the replicas' cores that may be in use, so that queues stay short.
        commit_ms, entry_ms: of a transaction of the ledger and of each entry in it, on PostgreSQL; by ``--store``.
        entry_bytes: of an interaction's entry, by its JSON (1.8 kB) and other columns.
        wal_bytes: of PostgreSQL's log for an entry of a group, and ``wal_first_bytes`` right after a checkpoint, when
            whole pages are logged; both measured on an empty server.
        connections: that a replica may open, serving/store/database.py: a pool of 8, and SQLAlchemy's 10 beyond.
    """

    raw_mb: float = 4.5
    side: int = 384
    channels: int = 1
    stride: int = 8
    width: int = 192
    concepts: int = 14
    per_concept: int = 100
    epochs: int = 12
    train_share: float = 0.7
    decode_s: float = 0.18
    train_rate: float = 648.0
    infer_rate: float = 1943.0
    busy: float = 0.6
    commit_ms: float = 4.5
    entry_ms: float = 0.24
    entry_bytes: float = 2400.0
    wal_bytes: float = 1800.0
    wal_first_bytes: float = 11_000.0
    connections: int = 18

    @property
    def cells(self) -> int:
        """h·w of a map."""
        return (self.side // self.stride) ** 2


@dataclass(frozen=True)
class Served:
    """What ``reports/serving.md`` says of one machine.

    Args:
        cores: it was measured on, with the clients.
        rate: interactions a second by 32 readers.
        server_ms: of an interaction by the server's own clock, one reader.
        replica_mb: resident.
    """

    cores: int
    rate: float
    server_ms: float
    replica_mb: float

    @property
    def service_s(self) -> float:
        """Processor time of an interaction: all cores over the rate, so with proxy and clients, which is too much."""
        return self.cores / self.rate


_PATTERNS = {
    "cores": r"on (\d+) cores",
    "rate": r"all recorded[^:]*: ([\d,.]+) a second",
    "server_ms": r"of that on the server[^|]*\| ([\d.]+) ms",
    "replica_mb": r"A replica after [^:]*: (\d+)",
}


def read_served(report: Path) -> Served:
    """Raises:
    ConfigError: the report does not say what is needed.
    """
    text, found = report.read_text(), {}
    for name, pattern in _PATTERNS.items():
        match = re.search(pattern, text)
        if match is None:
            raise ConfigError(f"{report}: does not say {name} (no {pattern!r}); give it with --served {name}=VALUE")
        found[name] = float(match[1].replace(",", ""))
    return Served(int(found["cores"]), found["rate"], found["server_ms"], found["replica_mb"])


def storage(given: Assumptions, studies: int) -> dict[str, float]:
    """GB of each kind."""
    prepared = given.channels * given.side**2
    features, cam = 2 * given.width * given.cells, 4 * given.concepts * given.cells
    maps = 4 * given.concepts * given.per_concept * given.cells
    kinds = {"raw": given.raw_mb * 1e6, "prepared": prepared, "features": features, "stage-1 maps": cam}
    kinds["similarity maps, if they were kept"] = maps
    return {name: studies * each / _GB for name, each in kinds.items()}


def hours(given: Assumptions, studies: int) -> dict[str, float]:
    """Hours of one GPU, and of one core, of each stage."""
    smaller = (224 / given.side) ** 2
    trained = studies * given.train_share * given.epochs
    return {
        "decoding, core hours": studies * given.decode_s / 3600,
        "stage 1, GPU hours": trained / (given.train_rate * smaller) / 3600,
        "features, GPU hours": studies / (given.infer_rate * smaller) / 3600,
    }


def replicas(given: Assumptions, served: Served, rate: float) -> int:
    """Replicas of one core each, since one interpreter's lock is all that a replica has."""
    return max(1, math.ceil(rate * served.service_s / given.busy))


def interactions(given: Assumptions, served: Served, rate: float, requests: int = REQUESTS) -> dict[str, float]:
    """What readers would see at a rate, and what the database would.

    Raises:
        ValueError: more arrives than the ledger takes.
    """
    count = replicas(given, served, rate)
    system = System(rate, count, 1, served.service_s, given.commit_ms / 1e3, given.entry_ms / 1e3)
    seen = simulate(system, requests)
    return {
        "interactions a second": rate,
        "replicas": count,
        "memory, GB": count * served.replica_mb / 1024,
        "p50, ms": 1e3 * seen.percentile(50),
        "p99, ms": 1e3 * seen.percentile(99),
        "entries a transaction": seen.entries,
        "transactions a second": seen.commits,
        "ledger busy with entries": system.ledger_busy,
        "connections at most": count * given.connections,
        "WAL, MB a second": rate * given.wal_bytes / 1e6,
        "WAL after a checkpoint": rate * given.wal_first_bytes / 1e6,
        "ledger, GB a day of 8 h": rate * 8 * 3600 * given.entry_bytes / _GB,
    }


def measure_store(url: str) -> tuple[float, float]:
    """Milliseconds of a transaction of the ledger, and of each entry in it: a line through groups of several sizes."""
    from serving.store import Store
    from serving.store.entries import Caller, Entry

    store, rng = Store.open(url, b"a key for what is measured and gone"), np.random.default_rng()
    caller, sizes, times = Caller("key:plan", "plan"), [], []
    for _ in range(_GROUP_ROUNDS):  # in turn, so that a machine that is busier for a while is so for all
        for size in _GROUPS:
            body = {"request": {"values": rng.random(90).tolist()}}
            entries = [Entry("interaction", caller, "b" * 64, body, rng.bytes(32).hex()) for _ in range(size)]
            start = time.perf_counter()
            store.ledger.append(entries)
            sizes.append(size)
            times.append(1e3 * (time.perf_counter() - start))
    store.database.close()
    medians = [np.median([took for size, took in zip(sizes, times, strict=True) if size == each]) for each in _GROUPS]
    entry_ms, commit_ms = np.polyfit(_GROUPS, medians, 1)
    return float(commit_ms), float(entry_ms)


def growths(report: Path) -> list[tuple[str, str]]:
    """Name and exponent of each row of ``reports/bench/growth.json``."""
    return [(row.name, shown(row.exponent)) for row in read(report.read_text())[1]]


def table(rows: Sequence[Mapping[str, float]], corner: str, names: Sequence[str]) -> list[str]:
    """Markdown: a column each of ``rows``, a line for each of their keys."""
    lines = [f"| {corner} | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for key in rows[0]:
        lines.append(f"| {key} | {' | '.join(_shown(row[key]) for row in rows)} |")
    return [*lines, ""]


def _shown(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def plan(given: Assumptions, served: Served, growth: Path | None) -> list[str]:
    """The whole of it, as lines of Markdown."""
    names = [f"{studies:,} studies" for studies in STUDIES]
    lines = ["## Storage, GB", "", *table([storage(given, studies) for studies in STUDIES], "", names)]
    lines += ["## Hours (printed throughputs)", "", *table([hours(given, each) for each in STUDIES], "", names)]
    found = [interactions(given, served, rate) for rate in RATES]
    lines += ["## Interactions (simulated)", "", *table(found, "", [f"{rate:,.0f}/s" for rate in RATES])]
    most = 1e3 / given.entry_ms
    lines += [f"One ledger takes {most:,.0f} entries a second, however many replicas there are.", ""]
    if growth is not None:
        lines += ["## Growth (measured)", "", "| | exponent |", "|---|---|"]
        lines += [f"| {name} | {exponent} |" for name, exponent in growths(growth)]
        lines.append("")
    lines += ["## Assumptions", "", "| | |", "|---|---|"]
    lines += [f"| `{field.name}` | {getattr(given, field.name):g} |" for field in fields(given)]
    lines += [f"| `{field.name}` (served) | {getattr(served, field.name):g} |" for field in fields(served)]
    return lines


def _changed(given: Any, settings: Sequence[str], option: str) -> Any:
    """A dataclass of numbers with some of them replaced, ``name=value`` each."""
    values: dict[str, Any] = {}
    kinds = {field.name: type(getattr(given, field.name)) for field in fields(given)}
    for name, _, text in (setting.partition("=") for setting in settings):
        if name not in kinds:
            raise ConfigError(f"{option}: {name!r} is none of {', '.join(kinds)}")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise ConfigError(f"{option}: {name} must be a number, got {text!r}") from None
    return replace(given, **values)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plan")
    parser.add_argument("--report", type=Path, default=Path("reports/serving.md"))
    parser.add_argument("--growth", type=Path, metavar="FILE.json", help="what make bench wrote of growth")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="assumptions, see `Assumptions`")
    parser.add_argument("--served", nargs="+", default=[], metavar="NAME=VALUE", help="instead of what the report says")
    parser.add_argument("--store", metavar="URL", help="measure commit_ms and entry_ms on this store; it gets entries")
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    given = parser.parse_args(arguments)
    if given.store:
        commit_ms, entry_ms = measure_store(given.store)
        print(f"commit_ms={commit_ms:.2f} entry_ms={entry_ms:.3f}")
        return
    try:
        assumed = _changed(Assumptions(), given.set, "--set")
        known = len(given.served) == len(_PATTERNS)
        served = _changed(Served(1, 1.0, 1.0, 1.0) if known else read_served(given.report), given.served, "--served")
        text = "\n".join(plan(assumed, served, given.growth))
    except (ConfigError, ValueError, OSError) as error:
        parser.error(str(error))
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
