"""GitHub is told everything, once, however it answers; a crossing of the feedback threshold is dispatched once."""

from __future__ import annotations

import time
from typing import Any

import pytest

from csr.errors import ConfigError
from pipelines.triggers.config import TriggersConfig, load_config, parse_config
from pipelines.triggers.outbox import Dispatch, Outbox
from pipelines.triggers.sender import Github, RefusedError, Sender
from pipelines.triggers.watcher import look
from tests.infra.test_project_files import ROOT
from tests.pipelines.triggers.github import FakeGithub


def sender(config: TriggersConfig, outbox: Outbox, first_wait_s: float = 0.0) -> Sender:
    return Sender(outbox, Github(config.github).tell, first_wait_s)


def test_github_is_told_event_and_payload(config: TriggersConfig, outbox: Outbox, github: FakeGithub) -> None:
    outbox.put(["a"], "champion-moved", {"version": "7"})
    assert sender(config, outbox).send_due() is None
    assert github.told == [{"event_type": "champion-moved", "client_payload": {"version": "7", "dispatch": 1}}]
    assert outbox.unsent() == [] and outbox.all()[0].sent_at is not None
    assert sender(config, outbox).send_due() is None and github.asked == 1, "and another process tells nothing again"


def test_it_is_tried_until_github_takes_it(config: TriggersConfig, outbox: Outbox, github: FakeGithub) -> None:
    github.statuses = [(503, {}), (502, {}), (429, {"Retry-After": "0"})]
    outbox.put(["a"], "drift-alert", {})
    own = sender(config, outbox)
    waits = [own.send_due() for _ in range(3)]
    assert None not in waits and own.problem is not None
    assert own.send_due() is None and own.problem is None
    assert (github.asked, len(github.told)) == (4, 1)


def test_waits_grow_and_github_may_ask_for_longer_ones(
    config: TriggersConfig, outbox: Outbox, github: FakeGithub
) -> None:
    outbox.put(["a"], "drift-alert", {})
    tell = Github(config.github).tell
    for tries in range(12):
        github.statuses = [(503, {})]
        wait = Sender(outbox, tell, 2.0).send_due()
        assert wait is not None
        assert 0.75 * min(900, 2 * 2**tries) <= wait <= min(900, 2 * 2**tries)
    github.statuses = [(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 3000)})]
    assert Sender(outbox, tell).send_due() == pytest.approx(3000, abs=2)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "make another"), (403, "Contents"), (404, "hospital/csr"), (422, "as it is")]
)
def test_what_a_person_must_mend_is_said_in_words(
    config: TriggersConfig, outbox: Outbox, github: FakeGithub, status: int, says: str
) -> None:
    github.statuses = [(status, {})]
    outbox.put(["a"], "drift-alert", {})
    own = sender(config, outbox)
    own.send_due()
    assert own.problem is not None and says in own.problem and "Bad credentials" in own.problem
    assert outbox.all()[0].refused == own.problem


def test_nobody_listens_or_there_is_no_token(config: TriggersConfig, outbox: Outbox) -> None:
    dispatch = Dispatch(1, "a", {}, "", 0, None, None)
    away = config.github.model_copy(update={"api": "http://127.0.0.1:9"})
    with pytest.raises(RefusedError, match="does not answer"):
        Github(away).tell(dispatch)
    config.github.token_file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no secret"):
        Github(config.github).tell(dispatch)
    config.github.token_file.unlink()
    with pytest.raises(ConfigError, match="CSR_GITHUB_TOKEN"):
        Github(config.github).tell(dispatch)


def test_two_processes_do_not_hold_one_outbox(outbox: Outbox, config: TriggersConfig) -> None:
    with outbox.held(), pytest.raises(ConfigError, match="another process"), Outbox(config.outbox).held():
        pass
    with Outbox(config.outbox).held():
        pass


def test_a_crossing_counts_once_wherever_the_process_dies(outbox: Outbox, config: TriggersConfig) -> None:
    assert outbox.counted() is None
    assert outbox.count(None, 40, "feedback-threshold", {"readings": 2})
    assert not outbox.count(None, 40, "feedback-threshold", {"readings": 2}), "an older look, finished later"
    again = Outbox(config.outbox)
    assert again.counted() == 40 and len(again.all()) == 1
    assert again.count(40, 90, "feedback-threshold", {}) and len(again.all()) == 2


def test_errors_of_the_server_are_said_in_words(config: TriggersConfig, outbox: Outbox, github: FakeGithub) -> None:
    assert config.feedback is not None
    for url, says in ((github.url, "refused with status 501"), ("http://127.0.0.1:9", "does not answer")):
        with pytest.raises(Exception, match=says):
            look(config.feedback.model_copy(update={"url": url}), outbox)
    assert outbox.counted() is None


# configuration


def test_the_file_says_the_defaults() -> None:
    file = ROOT / "infra/triggers.yaml"
    assert load_config(file) == parse_config({"github": {"repository": "owner/name"}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"githb": {}}, "did you mean 'github'"),
        ({"receiver": {"mlfow": {}}}, "unknown key receiver.mlfow; did you mean 'mlflow'"),
        ({"github": {"repository": "nowhere"}}, "github.repository"),
        ({"receiver": None, "feedback": None}, "nothing to do"),
        ({"feedback": {"event": "a b"}}, "feedback.event"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(content: dict[str, Any], change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(content | change)
