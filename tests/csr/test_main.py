"""The command line ``csr``: what it says when a command is unknown, fails, or lacks what an extra brings."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from csr import __main__ as program
from csr.errors import DataError


def refuse(arguments: list[str]) -> None:
    raise DataError(f"{arguments[0]}: is no folder")


def lack(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Command(EntryPoint):
    """An entry point whose module says where it is, and which runs what it is told."""

    def load(self):
        return {
            "serve": lambda arguments: lack("fastapi.responses"),
            "models": lambda arguments: lack("mlflow"),
            "status": lambda arguments: lack("serving.commands.state"),
            "data": lambda arguments: lack("pandas"),
            "check": refuse,
            "count": len,
        }[self.name]


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Command(name, f"{package}.module:main", program.GROUP)
        for package, name in (
            ("serving", "serve"),
            ("serving", "status"),
            ("pipelines", "models"),
            ("csr", "data"),
            ("csr", "check"),
            ("csr", "count"),
        )
    ]
    monkeypatch.setattr(program, "entry_points", lambda group: found)


def said(*arguments: str) -> int | str | None:
    """The status that a command ends with."""
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    return end.value.code


def test_a_missing_extra_is_one_sentence_that_says_how_to_get_it() -> None:
    assert said("serve") == "csr serve needs the extra serving (fastapi is missing): pip install 'csr[serving]'"
    assert said("models") == "csr models needs the extra pipeline (mlflow is missing): pip install 'csr[pipeline]'"


@pytest.mark.parametrize("command", ["status", "data"])
def test_what_no_extra_brings_is_a_bug_and_keeps_its_traceback(command: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        program.main([command])


def test_what_a_person_can_mend_is_one_sentence() -> None:
    assert said("check", "there") == "csr: there: is no folder"
    assert str(said("chek")).startswith("csr: unknown command 'chek'; did you mean 'check'? commands: check, count")


def test_a_commands_number_is_the_status_and_none_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert said("count", "a", "b") == 2
    program.main(["count"])
    assert said("--help") == 0
    assert said() == 2
    assert "commands: check, count, data, models, serve, status" in capsys.readouterr().out
