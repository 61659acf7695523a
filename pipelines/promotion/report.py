"""The report of a decision: ``promotion.md`` for a pull request, ``promotion.html`` with plots, and the verdicts."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt

from csr.data.html_report import Section, Table, to_html, to_markdown
from csr.evaluation.bootstrap import Interval
from csr.evaluation.evaluate import rounded
from pipelines.promotion.verdicts import Verdict

TITLE = "Promotion"
COLUMNS = ("measure", "where", "candidate", "champion", "difference", "limit", "margin", "gate")


def write_report(
    folder: Path, sentence: str, grounds: Sequence[str], verdicts: Sequence[Verdict] = (), error: float = 0.05
) -> None:
    """Writes ``promotion.md``, ``promotion.html`` and ``verdicts.json``.

    Args:
        sentence: what was decided.
        grounds: sentences on what it rests on.
        verdicts: none, if nothing had to be judged.
        error: of each bound.
    """
    sections = [Section("Decision", (sentence,))]
    if verdicts:
        sections += [
            Section("What it rests on", tuple(grounds)),
            Section("Gates", (_explained(error),), (_table(verdicts),), tuple(_plots(verdicts))),
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "promotion.md").write_text(to_markdown(TITLE, sections))
    (folder / "promotion.html").write_text(to_html(TITLE, sections))
    (folder / "verdicts.json").write_text(json.dumps(rounded([asdict(each) for each in verdicts]), indent=2) + "\n")


def _explained(error: float) -> str:
    return (
        f"Candidate and difference come with the interval whose ends are one-sided {1 - error:.0%} bounds, by a "
        "bootstrap over patients in which both bundles answer the same studies. A gate holds if the bound on the bad "
        "side is within the limit, and no further from 0 than the margin (of costs, a factor). Where less is better "
        "the measure is marked ↓."
    )


def _table(verdicts: Sequence[Verdict]) -> Table:
    rows = [
        (
            each.measure + (" ↓" if each.better == "less" else ""),
            each.where,
            _shown(each.candidate),
            "–" if each.champion is None else f"{each.champion:.3f}",
            _shown(each.difference),
            "–" if each.limit is None else f"{each.limit:g}",
            "–" if each.margin is None else f"{each.margin:g}",
            ("holds" if each.passed else "**fails**") + (f": {each.reason}" if each.reason else ""),
        )
        for each in sorted(verdicts, key=lambda each: each.passed)
    ]
    return Table("", COLUMNS, rows)


def _shown(value: Interval | None) -> str:
    if value is None:
        return "–"
    if value.low == value.high:
        return f"{value.mean:.3g}"
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _plots(verdicts: Sequence[Verdict]) -> list[str]:
    """Differences with their margins, as SVG: costs are ratios and stay in the table."""
    drawn = [each for each in verdicts if each.difference is not None and each.margin is not None and each.margin < 1]
    if not drawn:
        return []
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(drawn)), layout="constrained")
    for row, each in enumerate(reversed(drawn)):
        assert each.difference is not None and each.margin is not None
        sign = 1 if each.better == "more" else -1
        ends = sorted((sign * each.difference.low, sign * each.difference.high))
        colour = "#1b7837" if each.passed else "#b2182b"
        axes.plot(ends, (row, row), color=colour, linewidth=2)
        axes.plot(sign * each.difference.mean, row, "o", color=colour)
        axes.plot(-each.margin, row, "|", color="black", markersize=14)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [f"{each.measure}, {each.where}" for each in reversed(drawn)])
    axes.set_xlabel("candidate better than champion by; | is the margin")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return [text.getvalue()[text.getvalue().index("<svg") :]]
