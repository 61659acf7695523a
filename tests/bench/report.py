"""The tables and plots of ``reports/bench``, from its JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.results import Combined, Spread, read

LIMITS = Path(__file__).with_name("limits.yaml")
TITLES = {
    "serving": "Serving",
    "training": "Training",
    "ray_train": "Ray Train",
    "growth": "Growth",
}


@dataclass(frozen=True)
class Limit:
    """What is asked of a row's ``ratio`` or ``exponent``: at most or at least a number."""

    of: str
    way: str
    number: float

    @classmethod
    def parse(cls, content: Mapping[str, Mapping[str, float]]) -> Limit:
        """From ``{ratio: {at_most: 3.0}}``."""
        ((of, bound),) = content.items()
        ((way, number),) = bound.items()
        if of not in ("ratio", "exponent") or way not in ("at_most", "at_least"):
            raise ValueError(
                f"{LIMITS}: a limit is {{ratio or exponent: {{at_most or at_least: number}}}}, not {content}"
            )
        return cls(of, way, number)

    def judged(self, row: Combined) -> str:
        """In words: what is asked, and whether the median holds it."""
        found: Spread | None = getattr(row, self.of)
        assert found is not None, row.name
        held = found.median <= self.number if self.way == "at_most" else found.median >= self.number
        return f"{'≤' if self.way == 'at_most' else '≥'} {self.number:g}: {'held' if held else '**missed**'}"


def limits(suite: str, rows: Sequence[Combined]) -> dict[str, Limit]:
    """What is asked of a suite's rows, by name; ``*`` in the file stands for all that are not named.

    Raises:
        ValueError: something is asked of a row that there is none of.
    """
    content = yaml.safe_load(LIMITS.read_text()).get(suite) or {}
    asked = {name: Limit.parse(each) for name, each in content.items()}
    others = asked.pop("*", None)
    if unknown := asked.keys() - {row.name for row in rows}:
        raise ValueError(f"{LIMITS}: {suite} has no row {sorted(unknown)[0]!r}")
    return {row.name: others for row in rows if others is not None} | asked


def page(folder: Path) -> str:
    """The Markdown page of all suites that have a file in ``folder``.

    Raises:
        ValueError: a limit is asked of a row that its suite does not have.
    """
    lines = ["# What it costs", "", "Made by `make bench`; the limits are those of `tests/bench/limits.yaml`.", ""]
    for suite, title in TITLES.items():
        file = folder / f"{suite}.json"
        if not file.is_file():
            continue
        header, rows = read(file.read_text())
        asked = limits(suite, rows)
        about = ", ".join(f"{key} {value}" for key, value in header.items())
        lines += [f"## {title}", "", f"{about}. In brackets the lowest and highest of the runs.", ""]
        lines += ["| | median | beside | ratio | grows as size to the | asked |", "|---|---|---|---|---|---|"]
        for row in rows:
            lines.append(
                f"| {row.name} | {quantity(row)} | {row.ratio_to or ''} | {shown(row.ratio)} "
                f"| {shown(row.exponent)} | {asked[row.name].judged(row) if row.name in asked else ''} |"
            )
        lines += ["", f"![{title}]({suite}.png)", ""]
    return "\n".join(lines)


def quantity(row: Combined) -> str:
    """The median with its unit; seconds below one as milliseconds."""
    own = row.median
    if row.unit != "s" or own.median >= 1:
        return f"{shown(own)} {row.unit}"
    return f"{shown(Spread(own.median * 1e3, own.low * 1e3, own.high * 1e3))} ms"


def shown(spread: Spread | None) -> str:
    """``2.1 (2.0 to 2.4)``, with three digits that count; nothing for None."""
    if spread is None:
        return ""
    median, low, high = (digits(value) for value in (spread.median, spread.low, spread.high))
    return f"{median} ({low} to {high})" if low != high else median


def digits(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}') if abs(value) > 1e-9 else 0:g}"


def draw(suite: str, rows: Sequence[Combined], file: Path) -> None:
    """Ratios as bars with their spread and limits; growth as lines on logarithmic axes."""
    compared = [row for row in rows if row.ratio is not None]
    grown = [row for row in rows if row.sizes]
    panels = bool(compared) + bool(grown)
    if not panels:
        return
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(compared) + 4.5 * bool(grown)), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    if compared:
        _bars(axes[0], compared, limits(suite, rows))
    if grown:
        _lines(axes[-1], grown)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90, metadata={"Software": None})


def _bars(axes: Axes, rows: Sequence[Combined], asked: Mapping[str, Limit]) -> None:
    for place, row in enumerate(reversed(rows)):
        ratio = row.ratio
        assert ratio is not None
        axes.barh(place, ratio.median, color="#5b7fa6")
        axes.plot([ratio.low, ratio.high], [place, place], color="black", linewidth=1)
        limit = asked.get(row.name)
        if limit is not None and limit.of == "ratio":
            axes.plot([limit.number] * 2, [place - 0.4, place + 0.4], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(rows)), [f"{row.name}\nto {row.ratio_to}" for row in reversed(rows)], fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("ratio; black: lowest to highest run; red: asked")


def _lines(axes: Axes, rows: Sequence[Combined]) -> None:
    for row in rows:
        assert row.sizes and row.values and row.exponent is not None
        start = row.values[0]
        relative = [value / start for value in row.values]
        sizes = [size / row.sizes[0] for size in row.sizes]
        style = "--" if row.unit == "MB" else "-"
        label = f"{row.name}: {round(row.exponent.median, 2) + 0:.2f}"
        axes.plot(sizes, relative, style, marker=".", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="black", linewidth=2, alpha=0.4, label="proportional")
    axes.set_xlabel("size, of the smallest measured")
    axes.set_ylabel("cost, of the smallest's")
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1.02))
