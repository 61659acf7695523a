"""Which interrupted training is continued, and what is said of one that is not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines import checkpoints
from pipelines.checkpoints import CHECKPOINTS, MadeOf, claim, forget


@dataclass(frozen=True)
class Config:
    epochs: int = 3


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input, and a stage whose code is a module and what it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setattr(checkpoints, "needed_files", lambda entries: {f"{name}.py" for name in (*entries, "losses")})
    (tmp_path / "data").mkdir()
    for name in ("data/images", "model.pt", "stage.py", "losses.py"):
        (tmp_path / name).write_text(name)
    return tmp_path


def made_of(config: Config = Config(), workers: int = 0) -> MadeOf:
    return MadeOf.of("concepts", config, [Path("data"), Path("model.pt")], workers, "stage")


def interrupted(what: MadeOf) -> Path:
    """A training that has left a checkpoint."""
    folder = CHECKPOINTS / claim("concepts", what)
    folder.mkdir()
    (folder / "state.pt").touch()
    return folder


def test_the_same_training_finds_its_checkpoint_and_says_nothing(capsys: pytest.CaptureFixture) -> None:
    folder = interrupted(made_of())
    assert CHECKPOINTS / claim("concepts", made_of()) == folder and (folder / "state.pt").exists()
    forget(folder.name)
    assert not list(CHECKPOINTS.iterdir())
    assert capsys.readouterr().out == ""


def test_a_training_made_of_anything_else_starts_anew_and_says_why(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begins_anew(what: MadeOf, why: str) -> None:
        assert CHECKPOINTS / claim("concepts", what) != folder and not folder.exists()
        assert capsys.readouterr().out == (
            f"concepts: an interrupted training is not continued but started anew: {why}\n"
        )

    for name, expression in (
        ("losses.py", "losses.py has changed"),
        ("data/images", "data has changed"),
        ("model.pt", "model.pt has changed"),
    ):
        folder = interrupted(made_of())
        (project / name).write_text("edited")
        begins_anew(made_of(), expression)
    folder = interrupted(made_of())
    begins_anew(made_of(replace(Config(), epochs=5)), "concepts.epochs is 5 and was 3")
    folder = interrupted(made_of(workers=2))
    begins_anew(made_of(), "train.workers is 0 and was 2")
    folder = interrupted(made_of())
    monkeypatch.setattr(checkpoints, "version", lambda name: "9.9")
    why = made_of().differences(MadeOf(**{"values": {}, "files": made_of().files}))
    assert "torch is 9.9 and was not there" in why and len(why) == 4
    begins_anew(made_of(), ", ".join(each for each in made_of().differences(_noted(folder))))
    folder = interrupted(made_of())
    monkeypatch.setattr(checkpoints, "needed_files", lambda entries: {"stage.py"})
    begins_anew(made_of(), "losses.py is gone")


def test_many_differences_are_counted(project: Path, capsys: pytest.CaptureFixture) -> None:
    interrupted(made_of())
    for name in ("data/images", "model.pt", "stage.py", "losses.py"):
        (project / name).write_text("edited")
    claim("concepts", made_of(workers=1))
    assert capsys.readouterr().out.endswith(
        "train.workers is 1 and was 0, data has changed, losses.py has changed and 2 more\n"
    )


def test_checkpoints_that_nothing_is_known_of_are_not_continued(capsys: pytest.CaptureFixture) -> None:
    (CHECKPOINTS / "concepts-0123456789abcdef").mkdir(parents=True)
    (CHECKPOINTS / "head-0123456789abcdef").mkdir()
    claim("concepts", made_of())
    assert "nothing says what it was made of" in capsys.readouterr().out
    assert [path.name for path in CHECKPOINTS.iterdir() if path.is_dir()] == ["head-0123456789abcdef"]


def _noted(folder: Path) -> MadeOf:
    return MadeOf(**json.loads(folder.with_suffix(".json").read_text()))
