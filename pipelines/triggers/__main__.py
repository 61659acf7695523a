"""Events from outside that start a workflow on GitHub; see `pipelines.triggers`.

python -m pipelines.triggers run             takes webhooks, watches the feedback, tells GitHub; until it is stopped
python -m pipelines.triggers check           looks at the feedback once, tells GitHub what is due, and ends: for a clock
python -m pipelines.triggers list            what GitHub was told, and what not yet
python -m pipelines.triggers register URL    makes MLflow send its webhooks to this receiver
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from csr.errors import ConfigError, CSRError
from pipelines.triggers.config import TriggersConfig, load_config, secret
from pipelines.triggers.outbox import Dispatch, Outbox
from pipelines.triggers.receiver import ALERTS_TOKEN, WEBHOOK_SECRET, create_receiver
from pipelines.triggers.sender import TOKEN, Github, Sender
from pipelines.triggers.watcher import KEY, Watcher, look

NAME = "csr-triggers"
EVENT = "model_version_alias", "created"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring. Returns the exit status.

    Raises:
        CSRError: it cannot be done, for the reason given.
    """
    about = "Events from outside that start a workflow on GitHub."
    parser = argparse.ArgumentParser(prog="python -m pipelines.triggers", description=about)
    parser.add_argument("--config", type=Path, default=Path("infra/triggers.yaml"), help="(%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="take webhooks, watch the feedback, tell GitHub; until it is stopped")
    commands.add_parser("check", help="look at the feedback once, tell GitHub what is due, and end: for a clock")
    commands.add_parser("list", help="what GitHub was told, and what not yet")
    webhook = commands.add_parser("register", help="make MLflow send its webhooks to this receiver")
    webhook.add_argument("url", help="of the receiver, ending in /webhooks/mlflow; https unless MLflow allows http")
    given = parser.parse_args(arguments)
    config = load_config(given.config)
    if given.command == "register":
        print(register(config, given.url))
        return 0
    outbox = Outbox(config.outbox)
    if given.command == "list":
        print(*[_line(each) for each in outbox.all()] or ["nothing yet"], sep="\n")
        return 0
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    with outbox.held():
        return check(config, outbox) if given.command == "check" else run(config, outbox)


def run(config: TriggersConfig, outbox: Outbox) -> int:
    """Everything that the configuration names, until SIGINT or SIGTERM.

    Raises:
        ConfigError: a secret is missing.
    """
    secret(config.github.token_file, TOKEN)
    github = Github(config.github)
    sender = Sender(outbox, github.tell)
    watcher = None
    if config.feedback is not None:
        secret(config.feedback.key_file, KEY)
        watcher = Watcher(config.feedback, outbox, sender.wake)
    with ExitStack() as running:
        running.callback(github.close)
        server = None
        if config.receiver is not None:
            server = _server(config, outbox, sender, watcher)
        for each in (sender, watcher):
            if each is not None:
                each.start()
                running.callback(each.stop)
        if server is None:
            _wait_for_signal()
        else:
            server.run()
            return 0 if server.started else 1
    return 0


def _server(config: TriggersConfig, outbox: Outbox, sender: Sender, watcher: Watcher | None) -> uvicorn.Server:
    about = config.receiver
    assert about is not None
    if about.mlflow is not None:
        secret(about.mlflow.secret_file, WEBHOOK_SECRET)
    if about.alertmanager is not None:
        secret(about.alertmanager.token_file, ALERTS_TOKEN)

    def problems() -> list[str]:
        return [each.problem for each in (sender, watcher) if each is not None and each.problem is not None]

    app = create_receiver(about, outbox, sender.wake, problems)
    certificate, key = (None, None) if about.tls is None else (str(about.tls.certificate), str(about.tls.key))
    own = uvicorn.Config(
        app, about.host, about.port, log_config=None, access_log=False, ssl_certfile=certificate, ssl_keyfile=key
    )
    return uvicorn.Server(own)


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: stopped.set())
    stopped.wait()


def check(config: TriggersConfig, outbox: Outbox) -> int:
    """One look and one try. Returns 1 if GitHub could not be told.

    Raises:
        CSRError: the server did not say how much feedback there is.
    """
    github = Github(config.github)
    sender = Sender(outbox, github.tell)
    try:
        if config.feedback is not None:
            print("there is enough feedback" if look(config.feedback, outbox) else "there is not enough feedback yet")
        sender.send_due()
    finally:
        github.close()
    return 0 if sender.problem is None else 1


def register(config: TriggersConfig, url: str) -> str:
    """Makes, or changes, the webhook `NAME` of the MLflow server that ``MLFLOW_TRACKING_URI`` names.

    Returns:
        A sentence on what was done.

    Raises:
        ConfigError: MLflow refuses it.
    """
    from mlflow.entities.webhook import WebhookEvent
    from mlflow.exceptions import MlflowException

    from pipelines.tracking import connect

    if config.receiver is None or config.receiver.mlflow is None:
        raise ConfigError("receiver.mlflow: is null, so nothing would take MLflow's webhooks")
    key = secret(config.receiver.mlflow.secret_file, WEBHOOK_SECRET)
    client = connect()
    try:
        known = [each for each in client.list_webhooks() if each.name == NAME]
        if known:
            client.update_webhook(
                known[0].webhook_id, url=url, events=[WebhookEvent(*EVENT)], secret=key, status="ACTIVE"
            )
        else:
            client.create_webhook(NAME, url, [WebhookEvent(*EVENT)], "moves of aliases, for the workflows", key)
    except MlflowException as error:
        raise ConfigError(f"MLflow refuses the webhook ({error.message})") from None
    return f"webhook {NAME}: {'.'.join(EVENT)} → {url} ({'changed' if known else 'made'})"


def _line(dispatch: Dispatch) -> str:
    told = f"told at {dispatch.sent_at}" if dispatch.sent_at else f"not told yet, {dispatch.tries} tries"
    why = f" ({dispatch.refused})" if dispatch.refused else ""
    return f"{dispatch.number}  {dispatch.made_at}  {dispatch.event}  {told}{why}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CSRError as error:
        sys.exit(f"triggers: {error}")
