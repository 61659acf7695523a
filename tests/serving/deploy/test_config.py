from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from csr.errors import ConfigError
from serving.access.secrets import SECRETS, read_secret
from serving.deploy.config import ServerConfig, load_config, parse_config

ROOT = Path(__file__).parents[3]
VARIABLE = "CSR_LEDGER_KEY"
LEAST: dict[str, Any] = {"model": {"bundle": "b"}}


def test_the_example_says_every_default_there_is() -> None:
    """`infra/serving.yaml` is what people start from: what it leaves out they would never learn of."""
    example = load_config(ROOT / "infra/serving.yaml")
    given = example.model_dump(exclude_unset=True)
    for section, known in ServerConfig.model_fields.items():
        assert section in given, section
        if isinstance(given[section], dict) and hasattr(known.annotation, "model_fields"):
            assert set(known.annotation.model_fields) == set(given[section]), section  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LEAST | {"modle": 1}, "unknown key modle; did you mean 'model'"),
        (LEAST | {"http": {"prot": 1}}, "unknown key http.prot; did you mean 'port'"),
        ({"model": {"alias": "x", "registry": {"url": "x"}}}, "unknown key model.registry.url; did you mean 'uri'"),
        (LEAST | {"challenger": {"alias": "x", "mod": "shadow"}}, "unknown key challenger.mod; did you mean 'mode'"),
        ({"model": {}}, "model: name either a bundle's folder or an alias"),
        ({"model": {"bundle": "b", "alias": "a"}}, "model: name either"),
        (LEAST | {"challenger": {"alias": "x", "mode": "weighted"}}, "needs a share"),
        (LEAST | {"challenger": {"alias": "x", "mode": "weighted", "share": 2}}, "challenger.share"),
        (LEAST | {"replicas": {"least": 3, "most": 2}}, "most: 2 is less than least: 3"),
        (LEAST | {"http": {"port": 0}}, "http.port"),
        (LEAST | {"http": {"trusted_proxies": ["nginx"]}}, "http.trusted_proxies.0: value is not a valid IPv4 or IPv6"),
        (LEAST | {"http": {"trusted_proxies": "10.0.0.1"}}, "http.trusted_proxies: Input should be a valid tuple"),
        (LEAST | {"access": {"sessions": {"hours": 0}}}, "access.sessions.hours"),
        (
            LEAST | {"access": {"sessions": {"idle": 5}}},
            "unknown key access.sessions.idle; did you mean 'idle_minutes'",
        ),
        (LEAST | {"engine": {"kind": "magic"}}, "engine.kind"),
        (LEAST | {"access": {"oidc": {"issuer": "x"}}}, "access.oidc.audience"),
        (LEAST | {"cache_mb": "many"}, "cache_mb"),
        (None, "the file"),
        ([], "the file"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"config: ") as refusal:
        parse_config(content)
    assert message in str(refusal.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("model: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")


def test_proxies_are_addresses_and_networks() -> None:
    config = parse_config(LEAST | {"http": {"trusted_proxies": ["10.0.0.5", "10.1.0.0/16", "fd00::/8"]}})
    assert [str(each) for each in config.http.trusted_proxies] == ["10.0.0.5/32", "10.1.0.0/16", "fd00::/8"]
    assert parse_config(config.model_dump(exclude_unset=True)) == config
    assert parse_config(LEAST).http.trusted_proxies == ()


def test_limits_by_kind_of_body() -> None:
    http = parse_config(LEAST | {"http": {"upload_mb": 2, "batch_mb": 5}}).http

    def limit(path: str, content_type: bytes = b"application/json") -> int:
        return http.body_bytes({"path": path, "headers": [(b"content-type", content_type)]})

    form = b"multipart/form-data; boundary=x"
    assert limit("/v1/studies/x/interactions") == 1 << 20
    assert 2 << 20 < limit("/v1/studies", form) < 3 << 20
    assert 5 << 20 < limit("/v1/studies/batch", form) < 6 << 20
    assert limit("/v2/models/csr/infer", b"application/octet-stream") == 2 << 20


def test_a_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / "secret"
    first = read_secret(file, VARIABLE)
    assert len(first) >= 32 and read_secret(file, VARIABLE) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("short")
    with pytest.raises(ConfigError, match="a secret needs 32"):
        read_secret(file, VARIABLE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secret(tmp_path / "folder", VARIABLE)


def test_a_secret_may_come_from_the_environment_and_need_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    with pytest.raises(ConfigError, match=f"secret: missing, and {VARIABLE} is not set; this secret is not made here"):
        read_secret(file, VARIABLE, make=False)
    monkeypatch.setenv(VARIABLE, "k" * 40 + "\n")
    assert read_secret(file, VARIABLE) == b"k" * 40 and not file.exists()
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigError, match=f"{VARIABLE}: holds 5 bytes, a secret needs 32"):
        read_secret(file, VARIABLE)


def test_every_secret_has_a_variable_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    oidc = {"issuer": "i", "audience": "a", "jwks_file": "keys.json", "roles": {"r": "reader"}}
    config = parse_config(LEAST | {"access": {"oidc": oidc}})
    for name in SECRETS:
        with pytest.raises(ConfigError, match=f"missing, and {name} is not set"):
            config.check_secrets(make=False)
        monkeypatch.setenv(name, name * 3)
    config.check_secrets(make=False)
    read = (config.store.ledger_key(), config.dicom.salt(), config.access.oidc.pseudonym_salt())
    assert read == tuple(name.encode() * 3 for name in SECRETS)
    assert not list(tmp_path.iterdir())


def test_those_who_make_a_secret_at_once_get_the_same(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            made = set(pool.map(partial(read_secret, variable=VARIABLE), [tmp_path / f"secret{number}"] * 8))
        assert len(made) == 1
    assert {each.name for each in tmp_path.iterdir()} == {f"secret{number}" for number in range(20)}


def test_the_store_s_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    store = parse_config(LEAST).store
    monkeypatch.delenv("CSR_STORE_URL", raising=False)
    assert store.address == "sqlite:///.state/serving/store.db"
    monkeypatch.setenv("CSR_STORE_URL", "postgresql+psycopg://a:b@c/d")
    assert store.address == os.environ["CSR_STORE_URL"]
    named = parse_config(LEAST | {"store": {"url": "sqlite:///x.db"}}).store
    assert named.address == "sqlite:///x.db"
