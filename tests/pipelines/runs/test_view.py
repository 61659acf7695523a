"""The views of MLflow's table, in a real browser: the figures first, the best run on top, stages below their pass."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import socket

import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

from pipelines.runs.view import VIEWS, save_views, view_link
from pipelines.tracking import connect, experiment_id

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROW = ".ag-pinned-left-cols-container [role=row]"


def make_runs(client: MlflowClient) -> None:
    """Two passes with a stage each, the better on the validation split made first, and a run of the comparison."""
    experiment = experiment_id(client)
    for name, val, test in (("better", 0.9, 0.7), ("worse", 0.8, 0.75)):
        row = client.create_run(experiment, run_name=name, tags={"csr.kind": "pass"}).info.run_id
        stage = client.create_run(
            experiment, run_name=f"head of {name}", tags={"csr.kind": "stage", "mlflow.parentRunId": row}
        ).info.run_id
        for run_id in (row, stage):
            client.log_metric(run_id, "head.val_macro_f1", val)
            client.set_terminated(run_id)
        for metric in ("iid.macro_f1", "shifted.macro_f1", "iid.pointing_pair", "prepare.seconds"):
            client.log_metric(row, metric, test)
    rival = client.create_run(experiment, run_name="rival", tags={"comparison": "system"}).info.run_id
    client.log_metric(rival, "head.val_macro_f1", 0.99)


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        client = connect()
        make_runs(client)
        save_views(client, experiment_id(client))
    with closing(socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = ["mlflow", "ui", "--backend-store-uri", store, "--host", "127.0.0.1", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)], cwd=folder)
    deadline = time.monotonic() + 240
    while not _answers(f"http://127.0.0.1:{port}/health"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "the view is tested in a real browser: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Page:
    """Of its own for each view: MLflow's page reads a shared view as it is loaded."""
    opened = browser.new_page(viewport={"width": 2400, "height": 700})
    opened.set_default_timeout(120_000)
    return opened


def expect_rows(page: Page, names: list[str]) -> None:
    page.wait_for_function(
        """([row, names]) => {
            const rows = [...document.querySelectorAll(row)].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
            const found = rows.map(each => each.querySelector("a").innerText.trim())
            return JSON.stringify(found) === JSON.stringify(names)
        }""",
        arg=[ROW, names],
    )


def test_the_view_has_the_figures_first_and_the_best_run_on_top(server: str, page: Page) -> None:
    page.goto(view_link(server, "1", "best"))
    expect_rows(page, ["better", "worse"])  # neither stages nor the comparison's run
    page.wait_for_selector('.ag-header-viewport [col-id="attributes.`Dataset`"]')
    cells = page.locator(".ag-header-viewport .ag-header-cell")
    places = cells.evaluate_all("all => all.map(cell => [cell.getBoundingClientRect().x, cell.getAttribute('col-id')])")
    shown = [name for _, name in sorted(places)]
    assert shown[:4] == [
        "metrics.`head.val_macro_f1`",
        "metrics.`iid.macro_f1`",
        "metrics.`shifted.macro_f1`",
        "metrics.`iid.pointing_pair`",
    ]
    assert "attributes.`Dataset`" in shown and "metrics.`prepare.seconds`" not in shown


def test_the_other_view_has_stages_below_their_pass(server: str, page: Page) -> None:
    page.goto(view_link(server, "1", "stages"))
    expect_rows(page, ["worse", "better"])  # the newest first
    page.locator(f"{ROW} button[data-component-id*=runnamecellrenderer]").first.click()
    expect_rows(page, ["worse", "head of worse", "better"])


def test_views_are_kept_with_the_experiment_and_renewed(client: MlflowClient) -> None:
    experiment = experiment_id(client)
    client.set_experiment_tag(experiment, "mlflow.sharedViewState.best", "old")
    save_views(client, experiment)
    tags = client.get_experiment(experiment).tags
    assert {name: json.loads(tags[f"mlflow.sharedViewState.{name}"]) for name in VIEWS} == VIEWS
