"""Stage ``feedback_report``: what stage ``feedback`` has found, as ``reports/feedback.md`` and ``.html``.

python -m pipelines.comparison.feedback_report
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from csr.comparison.feedback import ARMS, MAIN, POOL
from csr.comparison.report import spread
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.bootstrap import Difference, paired_bootstrap
from pipelines.comparison.feedback import EPOCHS, FOLDER, RATE
from pipelines.comparison.writing import write_report
from pipelines.params import Params
from pipelines.stage import PREPARED

Report = dict[str, Any]
PARTS = ("iid", "shifted")
GAIN, LOSS = 0.02, 0.01  # of F1: what right feedback must bring, and wrong feedback may cost


def build(params: Params) -> tuple[str, list[Section]]:
    """The report's title and sections.

    Raises:
        DataError: an arm of the main table is missing for a seed.
    """
    data = PreparedSet.open(PREPARED)
    found: dict[str, dict[int, Report]] = {name: {} for name in ARMS}
    for name in ARMS:
        for seed in params.comparison.seeds:
            file = FOLDER / f"{name}-{seed}.json"
            if file.is_file():
                found[name][seed] = json.loads(file.read_text())
    for name in ("none", "right_200", "wrong30_200"):
        if missing := [seed for seed in params.comparison.seeds if seed not in found[name]]:
            raise DataError(
                f"{FOLDER / f'{name}-{missing[0]}.json'}: missing; run python -m pipelines.comparison.feedback {name} "
                f"{missing[0]} first"
            )
    return "What readers' corrections are worth", [
        _setting(params, data),
        _verdicts(found, data.collection),
        _arms("By studies and errors", found, data.collection, [name for name in ARMS if name in MAIN and found[name]]),
        _arms("Ablation", found, data.collection, [n for n in ARMS if n not in MAIN and found[n]]),
    ]


def _setting(params: Params, data: PreparedSet) -> Section:
    phantom, config, collection = params.data.phantom, params.concepts, data.collection
    counts = ", ".join(f"{split} {len(collection.rows(split))}" for split in ("train", "val", "test"))
    text = (
        f"The phantom in images of {data.side}² pixels ({counts} studies), contrast {phantom.contrast:g}, devices that "
        f"go with findings at strength {phantom.devices:g} in all studies but the shifted test half. Deployed: the "
        f"robust recipe, {config.epochs} epochs of stage 1 from random weights, seed {params.comparison.seeds[0]}. "
        f"It meets {POOL} new studies drawn as the shifted half is; simulated readers correct those that it is least "
        f"sure of. Then stage 1 is trained on for {EPOCHS} epochs at a rate of {RATE:g} with or without them, and "
        "stages 2 and 3 anew. A seed is one of new studies, readers and training. Classes carry "
        f"{phantom.label_noise:.0%} label noise. Wrong: each concept word the opposite, each ignore box on a finding, "
        "each class another one, with that chance (csr.comparison.feedback)."
    )
    corrected = max(arm.studies for arm in ARMS.values())
    judged = (
        "Differences are to no feedback, paired by seed and study, with 95 % intervals over test studies and seeds; "
        "with one seed they hold nothing of what other new studies or readers would change. New: macro F1 on the "
        f"{POOL - corrected} new studies that nobody corrected."
    )
    return Section("Setting", (text, judged))


def _verdicts(found: Mapping[str, Mapping[int, Report]], collection: Collection) -> Section:
    lines = []
    right, wrong = (
        {part: difference(found[name], found["none"], collection, part) for part in PARTS}
        for name in ("right_200", "wrong30_200")
    )
    held = _held(right["shifted"], GAIN)
    lines.append(
        f"200 studies, none wrong: at least {100 * GAIN:+.0f} points on shifted {held}: {_shown(right['shifted'])}."
    )
    for part in PARTS:
        held = _held(wrong[part], -LOSS)
        lines.append(
            f"200 studies, 30 % wrong: at most {100 * LOSS:.0f} point below no feedback on {part} {held}: "
            f"{_shown(wrong[part])}."
        )
    return Section("Verdict", tuple(lines))


def _held(found: Difference, least: float) -> str:
    if found.mean < least:
        return "does not hold"
    return "holds" if found.low >= least else "holds in the mean, not for the whole interval"


def _arms(
    title: str, found: Mapping[str, Mapping[int, Report]], collection: Collection, names: Sequence[str]
) -> Section:
    rows = []
    for name in names:
        own = list(found[name].values())
        cells: list[str] = []
        for part in PARTS:
            cells.append(spread([each["parts"][part]["macro_f1"] for each in own]))
            same = name == "none"
            cells.append("–" if same else _shown(difference(found[name], found["none"], collection, part)))
        cells.append(spread([each["uncorrected"] for each in own]))
        for key in ("concept_auroc", "pointing"):
            cells += [spread([_figure(each["parts"][part], key) for each in own]) for part in PARTS]
        doubted = [each["doubted"][-1] for each in own if each["doubted"]]
        rows.append((ARMS[name].title, str(len(own)), *cells, spread(doubted) if doubted else "–"))
    columns: tuple[str, ...] = ("arm", "seeds")
    for part in PARTS:
        columns += (f"F1, {part}", "points more than none")
    columns += ("F1, new", *(f"{key}, {part}" for key in ("concept AUROC", "pointing") for part in PARTS), "doubted")
    return Section(title, (), (Table("", columns, rows),)) if rows else Section(title, ("Not run.",))


def difference(
    ours: Mapping[int, Report], theirs: Mapping[int, Report], collection: Collection, part: str
) -> Difference:
    """Macro F1 of an arm less that of another on a part, over the seeds that both have."""
    seeds, test = sorted(set(ours) & set(theirs)), collection.rows("test")
    chosen = np.isin(test, collection.rows("test", part))
    truth = collection.truth()[test][chosen]
    one, other = (np.array([each[seed]["classes"] for seed in seeds])[:, chosen] for each in (ours, theirs))
    return paired_bootstrap(truth, one, other, len(collection.classes))


def _figure(part: Report, key: str) -> float:
    return float(part["pointing_game"]["pair"] if key == "pointing" else part[key])


def _shown(found: Difference) -> str:
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def main() -> None:
    """Writes the report."""
    write_report("feedback_report", build, folder=FOLDER)


if __name__ == "__main__":
    main()
