"""MLflow's table of runs as a person wants it, and the server that shows it: ``make mlflow``.

    python -m pipelines.runs.view [--port 5000]

MLflow's page keeps a view of an experiment's table, shared by its link, as a tag of the experiment. This one has the
figures first: what the validation split says, by which the rows are sorted and settings may be chosen, and what the
test parts say, which report and choose nothing. Rows are passes and sweeps; stages and trials are below them, and the
comparison's runs are left out.
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

KEY = "best"
_TAG = f"mlflow.sharedViewState.{KEY}"
SORTED_BY = "metrics.`head.val_macro_f1`"
COLUMNS = (
    SORTED_BY,
    *(f"metrics.`{part}.{name}`" for name in ("macro_f1", "pointing_pair") for part in ("iid", "shifted", "test")),
    "metrics.`concepts.val_auroc`",
    "attributes.`Dataset`",
    "attributes.`Source`",
    "attributes.`Version`",
)
_VIEW = {
    "searchFilter": "tags.comparison IS NULL",
    "orderByKey": SORTED_BY,
    "orderByAsc": False,
    "selectedColumns": list(COLUMNS),
}


def save_view(client: MlflowClient, experiment: str) -> None:
    """Gives an experiment the view, in its present form."""
    view = json.dumps(_VIEW)
    if client.get_experiment(experiment).tags.get(_TAG) != view:
        client.set_experiment_tag(experiment, _TAG, view)


def view_link(server: str, experiment: str) -> str:
    """Where a server shows the view."""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={KEY}"


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.runs.view")
    parser.add_argument("--port", type=int, default=5000)
    given = parser.parse_args()
    client = connect()
    experiment = experiment_id(client, EXPERIMENT)
    save_view(client, experiment)
    link = view_link(f"http://127.0.0.1:{given.port}", experiment)
    print(f"mlflow: which run is best, on what data and why: {link}", flush=True)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(link)
    store = ["--backend-store-uri", os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")]
    command = [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--port", str(given.port)]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
