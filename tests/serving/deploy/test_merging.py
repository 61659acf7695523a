"""Settings get into a configuration without touching what people wrote there."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csr.errors import ConfigError
from serving.deploy.config import load_config
from serving.deploy.merging import merge_settings, write_settings

ROOT = Path(__file__).parents[3]
SETTINGS: dict[str, dict[str, str | int | float]] = {
    "engine": {"threads": 6, "device": "cuda"},
    "encoder_batch": {"images": 16},
}


def test_only_the_lines_of_the_settings_change() -> None:
    before = (ROOT / "infra/serving.yaml").read_text()
    after = merge_settings(before, SETTINGS, "serving.yaml")
    changed = [
        (old.strip(), new.strip())
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    assert [old.partition(" #")[0].strip() for old, _ in changed] == ["threads: 1", "device: cpu", "images: 8"]
    assert [new for _, new in changed] == ["threads: 6", "device: cuda               # or cuda", "images: 16"]
    assert merge_settings(after, SETTINGS, "serving.yaml") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "# mine\nmodel: {bundle: b}  # here\n",
            "# mine\nmodel: {bundle: b}  # here\nengine:\n  threads: 6\n  device: cuda\nencoder_batch:\n  images: 16\n",
        ),
        (
            "model: {bundle: b}\nengine:\n    # ours\n    timeout_s: 3\nencoder_batch: {wait_ms: 2} # why\n",
            "model: {bundle: b}\nengine:\n    # ours\n    threads: 6\n    device: cuda\n    timeout_s: 3\n"
            "encoder_batch: {images: 16, wait_ms: 2} # why\n",
        ),
        (
            "encoder_batch: {}\nengine: {threads: 1, device: 'cpu'}\nmodel: {bundle: b}",
            "encoder_batch: {images: 16}\nengine: {threads: 6, device: cuda}\nmodel: {bundle: b}\n",
        ),
        ("{model: {bundle: b}}\n", None),
        ("model:\r\n  bundle: b\r\nencoder_batch:\r\n  wait_ms: 1\r\n", None),
        ("# ä ü 🫁\nmodel: {bundle: ä}\nengine: {threads: 1} # 🫁\n", None),
    ],
)
def test_every_form(before: str, after: str | None) -> None:
    found = merge_settings(before, SETTINGS, "serving.yaml")
    if after is not None:
        assert found == after
    content = yaml.safe_load(before)
    wanted = content | {name: content.get(name, {}) | values for name, values in SETTINGS.items()}
    assert yaml.safe_load(found) == wanted
    assert found.count("#") == before.count("#")
    assert ("\n" in found.replace("\r\n", "")) == ("\n" in before.replace("\r\n", ""))


sections = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries({"bundle": st.text("abcä #:'\"{", min_size=1)})},
    optional={
        "engine": st.fixed_dictionaries({}, optional={"threads": st.integers(1, 9), "timeout_s": st.floats(0.1, 9)}),
        "encoder_batch": st.fixed_dictionaries({}, optional={"wait_ms": st.integers(0, 9)}),
        "cache_mb": st.integers(1, 9),
    },
)


@given(sections, st.sampled_from([True, False, None]), st.booleans())
def test_whatever_was_said_is_still_said(content: dict, flow: bool | None, ordered: bool) -> None:
    text = yaml.safe_dump(content, default_flow_style=flow, sort_keys=ordered, allow_unicode=True)
    found = yaml.safe_load(merge_settings(text, SETTINGS, "x"))
    assert found == content | {name: content.get(name, {}) | values for name, values in SETTINGS.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {bundle: b}\nengine: &e {threads: 1}\nencoder_batch: *e\n", "unknown key encoder_batch.threads"),
        (
            "model: {bundle: b}\ncache_mb: &n 1\nengine: {threads: *n}\n",
            "write into it by hand: engine.threads: 6, eng",
        ),
        ("model: {bundle: b}\n...\n", "cannot be edited"),
        ("model: [\n", "is not YAML"),
        ("", "x: the file"),
        ("model: {bundle: b}\nengin: {}\n", "unknown key engin; did you mean 'engine'"),
    ],
)
def test_what_cannot_be_edited_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge_settings(text, SETTINGS, "x")


def test_a_file_keeps_its_rights_and_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "real.yaml", tmp_path / "serving.yaml"
    file.write_text("model: {bundle: b}\n")
    file.chmod(0o640)
    link.symlink_to(file)
    write_settings(link, SETTINGS, {})
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert load_config(link).engine.threads == 6
    assert sorted(each.name for each in tmp_path.iterdir()) == ["real.yaml", "serving.yaml"]


def test_a_file_that_is_missing_is_made_and_one_that_is_refused_stays(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    write_settings(file, SETTINGS, {"model": {"bundle": "build/bundle"}})
    config = load_config(file)
    assert (config.model.bundle, config.engine.device, config.encoder_batch.images) == (
        Path("build/bundle"),
        "cuda",
        16,
    )
    file.write_text("model: {}\n")
    with pytest.raises(ConfigError, match="name either"):
        write_settings(file, SETTINGS, {})
    assert file.read_text() == "model: {}\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_settings(tmp_path / "none" / "serving.yaml", SETTINGS, {"model": {"bundle": "b"}})
    assert [each.name for each in tmp_path.iterdir()] == ["serving.yaml"]
