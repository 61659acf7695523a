"""``csr bench bundle`` measures what is served and writes what the server reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csr.bundle.format import Bundle
from csr.errors import BundleError, ConfigError
from serving.commands.bench import main
from serving.deploy.config import load_config
from serving.deploy.service import engine_maker
from serving.engines import measuring
from serving.engines.ort import OrtEngine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_VISIT", 0.001)
    monkeypatch.setattr(measuring, "_MOST_ROUNDS", measuring.ROUNDS)


def test_the_best_settings_are_told_and_written_where_the_server_reads_them(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text(f"model: {{bundle: {bundle.path}}} # ours\nengine: {{threads: 7}}\n")
    main(["bundle", str(bundle.path), "--out", str(file), "--cores", "1"])
    out = capsys.readouterr().out
    assert f"{bundle.manifest.backbone} at 64×64 in float32" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("cpu")]
    assert [(row[1], row[2]) for row in rows] == [("1", str(images)) for images in measuring.BATCHES]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
    config = load_config(file)
    assert (config.engine.threads, config.engine.device) == (1, "cpu")
    assert f"encoder_batch.images: {config.encoder_batch.images}" in out
    assert "# ours" in file.read_text()
    engine = engine_maker(config.engine)(bundle, "1")
    assert isinstance(engine, OrtEngine)


def test_without_out_nothing_is_written(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["bundle", str(bundle.path), "--cores", "1"])
    assert not list(tmp_path.iterdir())


def test_replicas_share_the_cores(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    file = tmp_path / "serving.yaml"
    file.write_text(f"model: {{bundle: {bundle.path}}}\nreplicas: {{most: 3}}\n")
    main(["bundle", str(bundle.path), "--out", str(file)])
    assert "best for one replica on 1 core:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text", "error", "message"),
    [
        (["--cores", "0"], None, ConfigError, "--cores: 0 is not from 1 to"),
        (["--cores", "9999"], None, ConfigError, "--cores: 9999 is not from 1 to"),
        (["--budget", "0.00001"], None, ConfigError, "--budget: 1e-05 seconds are too few"),
        ([], "engine: {kind: triton}", ConfigError, "engine.kind is triton, whose threads are set when its repository"),
        ([], "engin: {}", ConfigError, "unknown key engin"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    bundle: Bundle, tmp_path: Path, options: list[str], text: str | None, error: type[Exception], message: str
) -> None:
    file = tmp_path / "serving.yaml"
    if text is not None:
        file.write_text(f"model: {{bundle: b}}\n{text}\n")
    before = file.read_bytes() if file.exists() else None
    with pytest.raises(error, match=message):
        main(["bundle", str(bundle.path), "--out", str(file), *options])
    assert (file.read_bytes() if file.exists() else None) == before


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        main(["bundle", str(tmp_path)])
    with pytest.raises(SystemExit):
        main([])
