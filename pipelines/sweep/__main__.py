"""Tries settings of ``params.yaml`` side by side on Ray Tune, and says which the validation split likes best.

    python -m pipelines.sweep -S KEY=VALUES [-S ...] [--trials 8] [--metric val_auroc]

VALUES are ``log:LOW:HIGH``, ``uniform:LOW:HIGH``, ``int:LOW:HIGH`` or a list ``8,16``. Keys of ``concepts`` train stage
1 in each trial, keys of ``prototypes`` stages 2 and 3, keys of ``head`` stage 3, on what ``dvc repro`` has built of the
stages before. Started again after an interruption, the same command goes on where it was. `pipelines.sweep.search` says
how trials are judged and ended. Nothing in ``params.yaml`` or ``build`` changes; the last line is the command that runs
the pipeline with the best settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from csr.errors import CSRError, TrainingError
from pipelines.params import load_params
from pipelines.sweep.search import Outcome, best_command, sweep
from pipelines.sweep.space import check_values, parse_knob
from pipelines.sweep.trial import Judge


def table(by: Judge, outcomes: Sequence[Outcome]) -> list[str]:
    """A line a trial, the best first."""
    keys = list(dict.fromkeys(key for each in outcomes for key in each.settings))
    rows = [("trial", *keys, by.figure, "epochs", "ended")]
    for each in outcomes:
        values = [str(each.settings.get(key, "as it is")) for key in keys]
        figure = "–" if each.figure is None else f"{each.figure:.4f}"
        ended = each.failed or each.ended
        if each.ended == "stopped" and each.last is not None:
            ended = f"stopped at {by.by_epoch} {each.last:.4f}"
        rows.append((str(each.number), *values, figure, str(each.epochs), ended))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def conclusion(by: Judge, outcomes: Sequence[Outcome]) -> list[str]:
    """What to do now.

    Raises:
        TrainingError: no trial has a figure.
    """
    best = outcomes[0]
    if best.figure is None:
        raise TrainingError(f"all {len(outcomes)} trials failed; trial {best.number}: {best.failed}")
    if not best.settings:
        return [f"params.yaml as it is has the best {by.figure} of the validation split; there is nothing to change"]
    usual = next(each for each in outcomes if not each.settings)
    told = "failed" if usual.figure is None else f"has {usual.figure:.4f}"
    return [f"best: {by.figure} {best.figure:.4f} (params.yaml as it is {told})", best_command(best)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-S", "--sweep", action="append", default=[], metavar="KEY=VALUES", dest="knobs")
    parser.add_argument("--trials", type=int, default=8, help="of which the first is params.yaml as it is")
    parser.add_argument("--metric", help="the figure of the validation split that decides; the AUROC by default")
    given = parser.parse_args(arguments)
    try:
        params = load_params()
        knobs = [parse_knob(text, params) for text in given.knobs]
        check_values(knobs)
        by, outcomes = sweep(knobs, given.trials, given.metric, params)
        print(*table(by, outcomes), "", *conclusion(by, outcomes), sep="\n")
    except CSRError as error:
        sys.exit(f"sweep: {error}")


if __name__ == "__main__":
    main()
