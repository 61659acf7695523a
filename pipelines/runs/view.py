"""MLflow's table of runs as a person wants it, and the server that shows it: ``make mlflow``.

    python -m pipelines.runs.view [--port 5000]

MLflow's page keeps the views of a table that are shared by a link as tags of the experiment. There are two. ``best``
has a row for each pass and sweep, the figures first: that of the validation split, by which the rows are sorted and
settings may be chosen, then those of the test parts, which report and choose nothing. ``stages`` is the same, newest
first, with stages below their pass and trials below their sweep: MLflow nests rows only where they are sorted by time.
The comparison's runs are in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import webbrowser

from mlflow.tracking import MlflowClient

from pipelines.tracking import EXPERIMENT, connect, experiment_id

_TAG = "mlflow.sharedViewState."
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # training, not GenAI
SORTED_BY = "metrics.`head.val_macro_f1`"
_PARTS = ("iid", "shifted", "test")  # of the phantom, and of real sets
COLUMNS = (
    SORTED_BY,
    *(f"metrics.`{part}.{name}`" for name in ("macro_f1", "pointing_pair") for part in _PARTS),
    "metrics.`concepts.val_auroc`",
    "attributes.`Dataset`",
    "duration",
    "attributes.`Source`",
    "attributes.`Version`",
)
_WIDTHS = {"attributes.`Run Name`": 330, "attributes.`Dataset`": 260} | {
    name: 115 for name in COLUMNS if name.startswith("metrics")
}
_TABLE = {"selectedColumns": list(COLUMNS), "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *COLUMNS]}
_NO_COMPARISON = "tags.comparison IS NULL"
VIEWS = {
    "best": _TABLE
    | {
        "columnWidths": _WIDTHS,
        "searchFilter": f"{_NO_COMPARISON} AND tags.`mlflow.parentRunId` IS NULL",
        "orderByKey": SORTED_BY,
        "orderByAsc": False,
    },
    "stages": _TABLE
    | {
        "columnWidths": _WIDTHS,
        "searchFilter": _NO_COMPARISON,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    },
}


def save_views(client: MlflowClient, experiment: str) -> None:
    """Gives an experiment the views, in their present form."""
    wanted = _KIND | {_TAG + name: json.dumps(view) for name, view in VIEWS.items()}
    given = client.get_experiment(experiment).tags
    for name, value in wanted.items():
        if given.get(name) != value:
            client.set_experiment_tag(experiment, name, value)


def view_link(server: str, experiment: str, name: str) -> str:
    """Where a server shows a view."""
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={name}"


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.runs.view")
    parser.add_argument("--port", type=int, default=5000)
    given = parser.parse_args()
    client = connect()
    experiment = experiment_id(client, EXPERIMENT)
    save_views(client, experiment)
    server = f"http://127.0.0.1:{given.port}"
    best = view_link(server, experiment, "best")
    print(f"mlflow: which run is best, on what data: {best}")
    print(f"mlflow: stages and trials below them:    {view_link(server, experiment, 'stages')}", flush=True)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(best)
    store = ["--backend-store-uri", os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")]
    where = ["--host", "127.0.0.1", "--port", str(given.port), "--workers", "1"]  # one person
    command = [sys.executable, "-m", "mlflow", "ui", *store, *where]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
