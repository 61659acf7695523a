from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from csr.errors import ConfigError
from serving.access.jwks import FRESH_S, USABLE_S
from serving.access.oidc import TokenVerifier
from serving.access.roles import Role
from serving.errors import ForbiddenError, IdentityProviderError, TokenError
from tests.serving.access.conftest import Clock
from tests.serving.access.provider import ISSUER, Provider, config, private_key, public_jwk


def code(tokens: TokenVerifier, token: str) -> str:
    with pytest.raises(TokenError) as refused:
        tokens.verify(token)
    assert refused.value.status == 401
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return refused.value.code


def part(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> TokenVerifier:
    """Has the provider's keys from a file."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "jwks.json").write_text(json.dumps({"keys": [public_jwk("RS256", "rsa-1")]}))
    return TokenVerifier(config(folder, jwks_file=folder / "jwks.json"))


def test_a_token_becomes_a_pseudonym_and_a_role(tokens: TokenVerifier, provider: Provider, tmp_path: Path) -> None:
    actor = tokens.verify(provider.token())
    salt = (tmp_path / "salt").read_bytes()
    expected = hmac.new(salt, f"{ISSUER}|jane.doe".encode(), hashlib.sha256).hexdigest()[:16]
    assert (actor.name, actor.id, actor.role) == (f"oidc:{expected}", f"oidc:{expected}", Role.READER)
    assert tokens.verify(provider.token(sub="john")).name != actor.name


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_each_algorithm(provider: Provider, tmp_path: Path, algorithm: str) -> None:
    provider.keys.append(public_jwk(algorithm, "other"))
    token = provider.token(algorithm, "other")
    assert TokenVerifier(provider.config(tmp_path, algorithms=[algorithm])).verify(token).role is Role.READER
    rest = [one for one in ("RS256", "ES256", "EdDSA") if one != algorithm]
    assert code(TokenVerifier(provider.config(tmp_path, algorithms=rest)), token) == "token_wrong_algorithm"


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": time.time() - 3600}, "token_expired"),
        ({"exp": None}, "token_incomplete"),
        ({"exp": "soon"}, "token_malformed"),
        ({"exp": float("inf")}, "token_malformed"),
        ({"nbf": time.time() + 3600}, "token_not_yet_valid"),
        ({"iat": time.time() + 3600}, "token_not_yet_valid"),
        ({"aud": "another"}, "token_wrong_audience"),
        ({"aud": ["another", "third"]}, "token_wrong_audience"),
        ({"aud": None}, "token_incomplete"),
        ({"iss": ISSUER + "/"}, "token_wrong_issuer"),
        ({"iss": None}, "token_incomplete"),
        ({"sub": None}, "token_incomplete"),
    ],
)
def test_claims_that_are_refused(
    tokens: TokenVerifier, provider: Provider, claims: dict[str, Any], expected: str
) -> None:
    assert code(tokens, provider.token(**claims)) == expected


def test_clocks_may_differ_a_little(tokens: TokenVerifier, provider: Provider) -> None:
    assert tokens.verify(provider.token(exp=time.time() - 20, nbf=time.time() + 20))


def test_no_signature_is_refused(tokens: TokenVerifier, provider: Provider) -> None:
    _, payload, _ = provider.token().split(".")
    for name in ("none", "None", "NONE", ""):
        assert code(tokens, f"{part({'alg': name, 'kid': 'rsa-1'})}.{payload}.") == "token_wrong_algorithm"
    assert code(tokens, f"{part({'kid': 'rsa-1'})}.{payload}.") == "token_wrong_algorithm"
    assert code(tokens, f"{part({'alg': 'RS256', 'kid': 'rsa-1'})}.{payload}.") == "token_wrong_signature"


def test_a_public_key_is_no_hmac_secret(tokens: TokenVerifier, provider: Provider) -> None:
    public = private_key("RS256").public_key()
    _, payload, _ = provider.token().split(".")
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        secret = public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for claimed in ("HS256", "RS256"):
            signed = f"{part({'alg': claimed, 'typ': 'JWT', 'kid': 'rsa-1'})}.{payload}"
            forged = f"{signed}.{part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"
            expected = {"HS256": "token_wrong_algorithm", "RS256": "token_wrong_signature"}[claimed]
            assert code(tokens, forged) == expected


def test_a_shared_secret_in_the_jwks_is_no_key(provider: Provider, tmp_path: Path) -> None:
    provider.keys.append({"kty": "oct", "k": part(b"s" * 32), "kid": "shared", "alg": "HS256"})
    provider.keys.append(public_jwk("ES256", "encrypts", use="enc"))
    tokens = TokenVerifier(provider.config(tmp_path, algorithms=["RS256", "ES256"]))
    assert code(tokens, provider.token("HS256", "shared", b"s" * 32)) == "token_wrong_algorithm"
    assert code(tokens, provider.token("ES256", "encrypts")) == "token_unknown_key"


def test_a_key_verifies_by_its_own_algorithm_only(provider: Provider, tmp_path: Path) -> None:
    provider.keys.append(public_jwk("RS256", "strong", alg="RS512"))
    assert code(TokenVerifier(provider.config(tmp_path)), provider.token(key_id="strong")) == "token_wrong_algorithm"


def test_a_short_rsa_key_is_refused(provider: Provider, tmp_path: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True)
    provider.keys.append({**jwk, "kid": "weak"})
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = provider.token(key_id="weak", key=weak)
    assert code(TokenVerifier(provider.config(tmp_path)), token) == "token_malformed"


def test_another_signer_is_refused(tokens: TokenVerifier, provider: Provider) -> None:
    other = private_key("RS256", "somebody else")
    assert code(tokens, provider.token(key=other)) == "token_wrong_signature"
    assert code(tokens, provider.token(key=other, key_id="theirs")) == "token_unknown_key"
    assert code(tokens, provider.token(key=other, key_id=None)) == "token_unknown_key"


def test_another_payload_is_refused(tokens: TokenVerifier, provider: Provider) -> None:
    header, payload, signature = provider.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert code(tokens, f"{header}.{part({**claims, 'sub': 'john'})}.{signature}") == "token_wrong_signature"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b.c",
        "..",
        f"{part([])}.{part({})}.",
        f"{part({'alg': 'RS256', 'kid': 7})}.{part({})}.",
        f"{part({'alg': ['RS256'], 'kid': 'rsa-1'})}.{part({})}.",
        f"{part({'alg': 'RS256', 'kid': 'rsa-1', 'crit': ['exp']})}.{part({})}.",
        f"{part(b'[' * 6000)}.{part({})}.",
        "ä.ö.ü",
    ],
)
def test_garbage_is_refused(tokens: TokenVerifier, token: str) -> None:
    assert code(tokens, token) in ("token_malformed", "token_wrong_algorithm")


_VALUES = st.recursive(st.none() | st.booleans() | st.sampled_from(["RS256", "rsa-1", "none"]), st.lists, max_leaves=3)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "crit", "b64", "typ", "jku", "jwk"]), _VALUES), st.text())
def test_no_header_breaks_the_verifier(offline: TokenVerifier, header: dict[str, Any], rest: str) -> None:
    assert code(offline, f"{part(header)}.{rest}").startswith("token_")


@pytest.mark.parametrize(
    ("path", "claims", "expected"),
    [
        ("roles", {"roles": ["x", "csr-readers", "csr-admins"]}, Role.ADMIN),
        ("roles", {"roles": "csr-readers"}, Role.READER),
        ("roles", {"roles": "csr-readers csr-admins"}, None),
        ("roles", {"roles": {"csr-readers": True}}, None),
        ("roles", {"roles": [["csr-readers"], None, 7]}, None),
        ("roles", {"roles": []}, None),
        ("roles", {}, None),
        ("scope", {"scope": "openid csr-readers"}, Role.READER),
        ("realm_access.roles", {"realm_access": {"roles": ["csr-readers"]}}, Role.READER),
        ("realm_access.roles", {"realm_access": ["roles"]}, None),
        ("https://csr.test/roles", {"https://csr.test/roles": ["csr-readers"]}, Role.READER),
    ],
)
def test_roles_of_a_claim(
    provider: Provider, tmp_path: Path, path: str, claims: dict[str, Any], expected: Role | None
) -> None:
    tokens = TokenVerifier(provider.config(tmp_path, role_claim=path))
    token = provider.token(**{"roles": None, **claims})
    if expected:
        assert tokens.verify(token).role is expected
        return
    with pytest.raises(ForbiddenError):
        tokens.verify(token)
    assert tokens.recall(token) is None


def test_what_was_verified_is_remembered(provider: Provider, tmp_path: Path) -> None:
    tokens = TokenVerifier(provider.config(tmp_path, leeway_s=0))
    token = provider.token(exp=time.time() + 3)
    assert tokens.recall(token) is None
    assert tokens.verify(token) == tokens.recall(token)
    assert tokens.recall(provider.token(sub="john")) is None
    time.sleep(3.1)
    assert tokens.recall(token) is None, "not longer than the token is valid"
    assert code(tokens, token) == "token_expired"


def test_keys_are_read_once(tokens: TokenVerifier, provider: Provider, clock: Clock) -> None:
    assert provider.asked == 0
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(tokens.verify, [provider.token() for _ in range(16)]))
    assert provider.asked == 1
    clock.now += FRESH_S + 1
    assert tokens.verify(provider.token())
    assert provider.asked == 2


def test_unknown_keys_are_asked_for_now_and_then(tokens: TokenVerifier, provider: Provider, clock: Clock) -> None:
    for number in range(20):
        assert code(tokens, provider.token(key_id=f"made-up-{number}")) == "token_unknown_key"
    assert provider.asked == 1
    provider.keys.append(public_jwk("RS256", "rsa-2"))
    clock.now += 15.1
    assert tokens.verify(provider.token(key_id="rsa-2"))
    assert tokens.verify(provider.token())
    assert provider.asked == 2


def test_tokens_of_a_wrong_algorithm_do_not_trouble_the_provider(tokens: TokenVerifier, provider: Provider) -> None:
    code(tokens, provider.token("HS256", "made-up", b"s" * 32))
    assert provider.asked == 0


def test_a_key_that_was_withdrawn_ends(tokens: TokenVerifier, provider: Provider, clock: Clock) -> None:
    assert tokens.verify(provider.token())
    provider.keys[0] = public_jwk("RS256", "rsa-2")
    clock.now += FRESH_S + 1
    assert code(tokens, provider.token()) == "token_unknown_key"


def test_a_provider_that_is_gone(
    tokens: TokenVerifier, provider: Provider, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert tokens.verify(provider.token())
    provider.status = 500
    clock.now += FRESH_S + 1
    assert tokens.verify(provider.token()), "what is in hand is used for a while"
    assert "identity provider" in caplog.text
    with pytest.raises(IdentityProviderError) as unknown:
        tokens.verify(provider.token(key_id="rsa-2"))
    assert unknown.value.status == 503
    assert provider.asked == 2
    clock.now += USABLE_S - FRESH_S
    with pytest.raises(IdentityProviderError):
        tokens.verify(provider.token())
    provider.status = 200
    clock.now += 15.1
    assert tokens.verify(provider.token())


@pytest.mark.parametrize("keys", [[], "no list", [{"kty": "RSA"}], [{"kty": ["RSA"], "n": 7}], [7]])
def test_a_provider_that_answers_nonsense(provider: Provider, tmp_path: Path, keys: Any) -> None:
    provider.keys = keys
    with pytest.raises(IdentityProviderError):
        TokenVerifier(provider.config(tmp_path)).verify(provider.token())


def test_a_provider_that_redirects_is_not_followed(provider: Provider, tmp_path: Path) -> None:
    provider.status = 302
    with pytest.raises(IdentityProviderError):
        TokenVerifier(provider.config(tmp_path)).verify(provider.token())
    assert provider.asked == 1


@pytest.mark.timed
def test_a_provider_that_hangs_stops_nobody_who_has_a_key(provider: Provider, tmp_path: Path, clock: Clock) -> None:
    tokens = TokenVerifier(provider.config(tmp_path, timeout_s=1.5))
    assert tokens.verify(provider.token())
    provider.delay_s = 3.0
    clock.now += FRESH_S + 1
    with ThreadPoolExecutor(2) as threads:
        started = time.perf_counter()
        first = threads.submit(tokens.verify, provider.token())
        while provider.asked < 2:
            time.sleep(0.01)
        second_started = time.perf_counter()
        assert tokens.verify(provider.token())
        assert time.perf_counter() - second_started < 1
        assert first.result()
        assert time.perf_counter() - started < 2.9, "the time limit counts"


def test_keys_from_a_file(provider: Provider, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": provider.keys}))
    tokens = TokenVerifier(config(tmp_path, jwks_file=file))
    assert tokens.verify(provider.token())
    assert provider.asked == 0
    for content in ("", "{}", "[]", '{"keys": []}'):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"jwks\.json"):
            TokenVerifier(config(tmp_path, jwks_file=file))


@pytest.mark.parametrize("content", [b"", b"short", b"  \n" * 20])
def test_a_salt_must_be_one(provider: Provider, tmp_path: Path, content: bytes) -> None:
    settings = provider.config(tmp_path)
    settings.pseudonym_salt_file.write_bytes(content)
    with pytest.raises(ConfigError, match="salt"):
        TokenVerifier(settings)


def test_a_salt_is_made_once(provider: Provider, tmp_path: Path) -> None:
    settings = provider.config(tmp_path)
    settings.pseudonym_salt_file.unlink()
    names = {TokenVerifier(settings).verify(provider.token()).name for _ in range(2)}
    assert len(names) == 1 and settings.pseudonym_salt_file.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"jwks_url": None},
        {"jwks_file": "keys.json"},
        {"jwks_url": "http://login.hospital.test/keys"},
        {"jwks_url": "file:///keys.json"},
        {"jwks_url": "https://"},
        {"jwks_url": "http://[broken"},
        {"roles": {}},
        {"roles": {"x": "boss"}},
        {"issuer": ""},
        {"audience": ""},
        {"leeway_s": 3600},
        {"leeway_s": float("nan")},
        {"verify": False},
    ],
)
def test_a_config_that_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    good = {"jwks_url": "https://login.hospital.test/keys"}
    assert config(tmp_path, **good)
    with pytest.raises(ValidationError):
        config(tmp_path, **{**good, **changed})


def test_a_config_is_frozen(provider: Provider, tmp_path: Path) -> None:
    frozen: Any = provider.config(tmp_path)
    with pytest.raises(ValidationError):
        frozen.audience = "another"
