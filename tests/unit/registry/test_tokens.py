"""What a bearer token must be, and every way of not being it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from registry import tokens
from registry.domain.errors import Reason, RefusalError
from registry.tokens import (
    MAX_TOKEN_CHARACTERS,
    ClaimNames,
    KeySetError,
    TokenMinter,
    TokenVerifier,
    generate_key_set,
    parse_service,
    parse_user,
)

ISSUER = "https://users.dev.invalid"
AUDIENCE = "extrunner-gateway"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Keys:
    """One generated key pair with a verifier and a minter."""

    def __init__(self, folder: Path) -> None:
        self.files = generate_key_set(folder, "users")
        self.clock = Clock()
        self.verifier = TokenVerifier(self.files.jwks_file, audience=AUDIENCE, issuer=ISSUER, clock=self.clock)
        self.minter = TokenMinter(self.files.private_jwk_file, issuer=ISSUER, audience=AUDIENCE)
        self.private_jwk: dict[str, Any] = json.loads(self.files.private_jwk_file.read_text())
        self.private: Any = OKPAlgorithm.from_jwk(self.private_jwk)

    def sign(self, *, headers: dict[str, Any] | None = None, key: Any = None, algorithm: str = "EdDSA", **changes: Any) -> str:
        now = int(time.time())
        payload: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "tenant": "t1", "iat": now, "exp": now + 60, **changes}
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key or self.private, algorithm=algorithm, headers={"kid": self.files.kid, **(headers or {})})

    def refuse(self, token: str) -> str:
        with pytest.raises(RefusalError) as refusal:
            self.verifier.verify(token)
        assert refusal.value.reason is Reason.UNAUTHENTICATED
        return refusal.value.public_detail


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def part(data: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


def test_verify__minted_token__gives_claims(keys: Keys) -> None:
    claims = keys.verifier.verify(keys.minter.mint("u1", ttl_seconds=60, tenant="t1", roles=["ext:invoke"]))
    assert claims["sub"] == "u1"
    assert claims["tenant"] == "t1"
    assert claims["roles"] == ["ext:invoke"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"exp": int(time.time()) - 3600, "iat": int(time.time()) - 7200}, "expired"),
        ({"nbf": int(time.time()) + 3600}, "not valid yet"),
        ({"iat": int(time.time()) + 3600, "exp": int(time.time()) + 7200}, "not valid yet"),
        ({"aud": "extrunner-runner"}, "another audience"),
        ({"aud": ["a", "b"]}, "another audience"),
        ({"iss": "https://elsewhere.invalid"}, "another issuer"),
        ({"exp": None}, "lacks one of"),
        ({"iat": None}, "lacks one of"),
        ({"aud": None}, "lacks one of"),
        ({"iss": None}, "lacks one of"),
        ({"exp": "tomorrow"}, "does not verify"),
        ({"exp": float("inf")}, "does not verify"),
        ({"sub": 7}, "does not verify"),
    ],
)
def test_verify__bad_claims__refused(keys: Keys, changes: dict[str, Any], says: str) -> None:
    assert says in keys.refuse(keys.sign(**changes))


@pytest.mark.parametrize(("late_by", "accepted"), [(28, True), (33, False)])
def test_verify__clock_leeway__is_thirty_seconds(keys: Keys, late_by: int, accepted: bool) -> None:
    now = int(time.time())
    token = keys.sign(iat=now - 100, exp=now - late_by)
    if accepted:
        assert keys.verifier.verify(token)["sub"] == "u1"
    else:
        assert "expired" in keys.refuse(token)


def test_verify__missing_token__refused(keys: Keys) -> None:
    assert "Send a bearer token" in keys.refuse("")


@pytest.mark.parametrize(
    "token",
    [
        "garbage",
        "a.b.c",
        "..",
        "é.é.é",
        "\x00",
        "[" * 8000,
        part([1]) + ".e30.e30",
        base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.e30",
        base64.urlsafe_b64encode(b'{"kid":' * 800).decode().rstrip("=") + ".e30.e30",
    ],
)
def test_verify__garbage__refused(keys: Keys, token: str) -> None:
    assert keys.refuse(token)


@pytest.mark.parametrize(("excess", "says"), [(0, "not a JWT."), (1, "at most")])
def test_verify__size__is_bounded(keys: Keys, excess: int, says: str) -> None:
    assert says in keys.refuse("a" * (MAX_TOKEN_CHARACTERS + excess))


def test_verify__largest_token__accepted(keys: Keys) -> None:
    empty = len(keys.sign(email=""))
    token = keys.sign(email="x" * ((MAX_TOKEN_CHARACTERS - empty) * 3 // 4 - 4))
    assert MAX_TOKEN_CHARACTERS - 16 <= len(token) <= MAX_TOKEN_CHARACTERS
    assert keys.verifier.verify(token)["sub"] == "u1"


def test_verify__no_signature__refused(keys: Keys) -> None:
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 60}
    for algorithm in ("none", "None", "NONE", "nOnE", ""):
        token = f"{part({'alg': algorithm, 'kid': keys.files.kid})}.{part(payload)}."
        assert "algorithm" in keys.refuse(token)
    signed = keys.sign()
    assert "does not verify" in keys.refuse(signed.rsplit(".", 1)[0] + ".")


def test_verify__public_key_as_hmac_secret__refused(keys: Keys) -> None:
    public = keys.private.public_key()
    x = keys.private_jwk["x"]
    secrets = [
        public.public_bytes(Encoding.Raw, PublicFormat.Raw),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        x.encode(),
        keys.files.jwks_file.read_bytes(),
    ]
    now = int(time.time())
    payload = part({"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 60})
    for secret in secrets:
        for algorithm in ("HS256", "EdDSA"):
            signing_input = f"{part({'alg': algorithm, 'kid': keys.files.kid})}.{payload}"
            mac = base64.urlsafe_b64encode(hmac.new(secret, signing_input.encode(), hashlib.sha256).digest()).decode().rstrip("=")
            assert keys.refuse(f"{signing_input}.{mac}")


def test_verify__other_key_under_known_kid__refused(keys: Keys) -> None:
    assert "does not verify" in keys.refuse(keys.sign(key=ed25519.Ed25519PrivateKey.generate()))


def test_verify__key_shipped_in_the_token__ignored(keys: Keys) -> None:
    mine = ed25519.Ed25519PrivateKey.generate()
    jwk = OKPAlgorithm.to_jwk(mine.public_key(), as_dict=True)
    assert "does not verify" in keys.refuse(keys.sign(key=mine, headers={"jwk": jwk, "jku": "https://evil.invalid/jwks.json"}))


@pytest.mark.parametrize("kid", ["other", "", 7, ["x"], {"a": 1}])
def test_verify__unknown_kid__refused(keys: Keys, kid: object) -> None:
    now = int(time.time())
    payload = part({"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 60})
    assert keys.refuse(f"{part({'alg': 'EdDSA', 'kid': kid})}.{payload}.AAAA")


@pytest.mark.parametrize("header", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": True}, {"b64": "false"}])
def test_verify__critical_headers__refused(keys: Keys, header: dict[str, Any]) -> None:
    token = keys.sign()
    _, payload, signature = token.split(".")
    assert keys.refuse(f"{part({'alg': 'EdDSA', 'kid': keys.files.kid, **header})}.{payload}.{signature}")


def test_verify__single_key__needs_no_kid(keys: Keys) -> None:
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 60}
    assert keys.verifier.verify(jwt.encode(payload, keys.private, algorithm="EdDSA"))["sub"] == "u1"


def several(folder: Path) -> tuple[Path, dict[str, Any]]:
    private: dict[str, Any] = {
        "ed": ed25519.Ed25519PrivateKey.generate(),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
    }
    documents = [
        {**OKPAlgorithm.to_jwk(private["ed"].public_key(), as_dict=True), "kid": "ed"},
        {**ECAlgorithm.to_jwk(private["ec"].public_key(), as_dict=True), "kid": "ec"},
        {**RSAAlgorithm.to_jwk(private["rsa"].public_key(), as_dict=True), "kid": "rsa"},
        {"kty": "RSA", "kid": "encryption", "use": "enc", "n": "AQAB", "e": "AQAB"},
        {"kty": "future", "kid": "unknown kind"},
    ]
    file = folder / "several.jwks.json"
    file.write_text(json.dumps({"keys": documents}))
    return file, private


def test_verify__several_keys__each_with_its_own_algorithm(tmp_path: Path) -> None:
    file, private = several(tmp_path)
    verifier = TokenVerifier(file, audience=AUDIENCE, issuer=ISSUER)
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 60}
    for kid, algorithm in (("ed", "EdDSA"), ("ec", "ES256"), ("rsa", "RS256")):
        assert verifier.verify(jwt.encode(payload, private[kid], algorithm=algorithm, headers={"kid": kid}))["sub"] == "u1"
    for token in (
        jwt.encode(payload, private["ed"], algorithm="EdDSA"),
        jwt.encode(payload, private["rsa"], algorithm="RS512", headers={"kid": "rsa"}),
        jwt.encode(payload, private["rsa"], algorithm="PS256", headers={"kid": "rsa"}),
        jwt.encode(payload, private["rsa"], algorithm="RS256", headers={"kid": "ec"}),
        jwt.encode(payload, private["ed"], algorithm="EdDSA", headers={"kid": "encryption"}),
    ):
        with pytest.raises(RefusalError) as refusal:
            verifier.verify(token)
        assert refusal.value.reason is Reason.UNAUTHENTICATED


def test_verify__narrower_algorithms__leave_other_keys_out(tmp_path: Path) -> None:
    file, private = several(tmp_path)
    verifier = TokenVerifier(file, audience=AUDIENCE, issuer=ISSUER, algorithms=("EdDSA",))
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 60}
    with pytest.raises(RefusalError):
        verifier.verify(jwt.encode(payload, private["rsa"], algorithm="RS256", headers={"kid": "rsa"}))


class TestRemembering:
    def test_second_time__not_decoded_again(self, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        token = keys.sign()
        first = keys.verifier.verify(token)
        monkeypatch.setattr(jwt, "decode", lambda *_, **__: pytest.fail("decoded again"))
        assert keys.verifier.verify(token) is first

    def test_refusals__never_remembered(self, keys: Keys) -> None:
        token = keys.sign(aud="other")
        for _ in range(3):
            keys.refuse(token)
        assert not keys.verifier._remembered

    def test_after_sixty_seconds__decoded_again(self, keys: Keys) -> None:
        token = keys.sign(exp=int(time.time()) + 3600)
        first = keys.verifier.verify(token)
        keys.clock.now += 59
        assert keys.verifier.verify(token) is first
        keys.clock.now += 2
        assert keys.verifier.verify(token) is not first

    def test_expiry__ends_remembering(self, keys: Keys) -> None:
        expires = int(time.time()) + 10
        token = keys.sign(exp=expires)
        first = keys.verifier.verify(token)
        keys.clock.now = expires + 1
        # Within the leeway it verifies again, and is not remembered any more.
        assert keys.verifier.verify(token) is not first

    def test_number__is_bounded(self, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tokens, "_REMEMBERED_TOKENS", 3)
        for number in range(5):
            keys.verifier.verify(keys.sign(sub=f"u{number}"))
        assert len(keys.verifier._remembered) == 3

    def test_claims__cannot_be_changed_by_a_caller(self, keys: Keys) -> None:
        claims = keys.verifier.verify(keys.sign())
        with pytest.raises(TypeError):
            claims["tenant"] = "t2"  # type: ignore[index]


class TestKeyFile:
    def replace(self, keys: Keys, text: str) -> None:
        other = keys.files.jwks_file.with_suffix(".new")
        other.write_text(text)
        os.replace(other, keys.files.jwks_file)  # noqa: PTH105

    def test_changed_file__takes_effect_and_forgets(self, keys: Keys, tmp_path: Path) -> None:
        token = keys.sign()
        keys.verifier.verify(token)
        new = generate_key_set(tmp_path, "next")
        self.replace(keys, new.jwks_file.read_text())
        assert keys.verifier.verify(token)["sub"] == "u1"  # looked at at most once a second
        keys.clock.now += 1.5
        assert "unknown key" in keys.refuse(token)
        minted = TokenMinter(new.private_jwk_file, issuer=ISSUER, audience=AUDIENCE).mint("u2", ttl_seconds=60)
        assert keys.verifier.verify(minted)["sub"] == "u2"

    @pytest.mark.parametrize("text", ["{", '{"keys": []}', "[]"])
    def test_broken_new_version__last_good_one_stays(self, keys: Keys, text: str) -> None:
        good = keys.files.jwks_file.read_text()
        self.replace(keys, text)
        keys.clock.now += 2
        assert keys.verifier.verify(keys.sign())["sub"] == "u1"
        self.replace(keys, good)
        keys.clock.now += 2
        assert keys.verifier.verify(keys.sign())["sub"] == "u1"

    @pytest.mark.parametrize(
        ("document", "says"),
        [
            ("nonsense", "JSON"),
            ("[" * 100_000, "JSON"),
            ("[]", "JSON object"),
            (json.dumps({"keys": []}), "1 to 64"),
            (json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}), "private or symmetric"),
            (json.dumps({"keys": ["x"]}), "not an object"),
            (json.dumps({"keys": [{"kty": "OKP", "kid": 1}]}), "kid is not text"),
            (json.dumps({"keys": [{"kty": "OKP", "crv": "Ed448", "kid": "a"}]}), "no usable"),
            (json.dumps({"pad": "x" * 300_000}), "at most"),
        ],
    )
    def test_unusable__refused_at_start(self, tmp_path: Path, document: str, says: str) -> None:
        file = tmp_path / "k.jwks.json"
        file.write_text(document)
        with pytest.raises(KeySetError, match=says):
            TokenVerifier(file, audience=AUDIENCE, issuer=ISSUER)

    def test_private_key_in_a_public_set__refused(self, keys: Keys, tmp_path: Path) -> None:
        file = tmp_path / "leak.jwks.json"
        file.write_text(json.dumps({"keys": [keys.private_jwk]}))
        with pytest.raises(KeySetError, match="private or symmetric") as error:
            TokenVerifier(file, audience=AUDIENCE, issuer=ISSUER)
        assert keys.private_jwk["d"] not in str(error.value)

    def test_two_keys_of_one_kid__refused(self, keys: Keys, tmp_path: Path) -> None:
        entry = json.loads(keys.files.jwks_file.read_text())["keys"][0]
        file = tmp_path / "double.jwks.json"
        file.write_text(json.dumps({"keys": [entry, entry]}))
        with pytest.raises(KeySetError, match="same kid"):
            TokenVerifier(file, audience=AUDIENCE, issuer=ISSUER)

    def test_short_rsa_key__refused(self, tmp_path: Path) -> None:
        file = tmp_path / "weak.jwks.json"
        weak = rsa.generate_private_key(65537, 1024).public_key()
        file.write_text(json.dumps({"keys": [{**RSAAlgorithm.to_jwk(weak, as_dict=True), "kid": "weak"}]}))
        with pytest.raises(KeySetError, match="no usable"):
            TokenVerifier(file, audience=AUDIENCE, issuer=ISSUER)

    def test_development_keys__refused_where_asked(self, keys: Keys) -> None:
        with pytest.raises(KeySetError, match="development key"):
            TokenVerifier(keys.files.jwks_file, audience=AUDIENCE, issuer=ISSUER, refuse_development_keys=True)
        with pytest.raises(KeySetError, match="development key"):
            TokenMinter(keys.files.private_jwk_file, issuer=ISSUER, audience=AUDIENCE, refuse_development_keys=True)

    def test_missing_file__refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeySetError, match="cannot be read"):
            TokenVerifier(tmp_path / "none", audience=AUDIENCE, issuer=ISSUER)


class TestGenerating:
    def test_private_key__is_owner_only(self, keys: Keys) -> None:
        assert keys.files.private_jwk_file.stat().st_mode & 0o777 == 0o600
        assert "d" not in json.loads(keys.files.jwks_file.read_text())["keys"][0]
        assert keys.files.kid.startswith("dev-")

    def test_existing__never_overwritten(self, keys: Keys, tmp_path: Path) -> None:
        before = keys.files.private_jwk_file.read_bytes()
        with pytest.raises(KeySetError, match="exists"):
            generate_key_set(tmp_path, "users")
        assert keys.files.private_jwk_file.read_bytes() == before


class TestMinting:
    def test_world_readable_key__refused(self, keys: Keys) -> None:
        keys.files.private_jwk_file.chmod(0o604)
        with pytest.raises(KeySetError, match="chmod"):
            TokenMinter(keys.files.private_jwk_file, issuer=ISSUER, audience=AUDIENCE)

    @pytest.mark.parametrize(
        "change",
        [
            lambda jwk: jwk.pop("kid"),
            lambda jwk: jwk.pop("d"),
            lambda jwk: jwk.update(crv="Ed448"),
            lambda jwk: jwk.update(kty="oct"),
            lambda jwk: jwk.update(d="!!"),
        ],
    )
    def test_wrong_key__refused(self, keys: Keys, change: Callable[[dict[str, Any]], object]) -> None:
        change(keys.private_jwk)
        keys.files.private_jwk_file.write_text(json.dumps(keys.private_jwk))
        with pytest.raises(KeySetError):
            TokenMinter(keys.files.private_jwk_file, issuer=ISSUER, audience=AUDIENCE)

    @pytest.mark.parametrize("claims", [{"iss": "x"}, {"aud": "x"}, {"exp": 1}, {"iat": 1}])
    def test_reserved_claims__cannot_be_overridden(self, keys: Keys, claims: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="set by the minter"):
            keys.minter.mint("u1", ttl_seconds=60, **claims)

    @pytest.mark.parametrize("ttl", [0, -1])
    def test_lifetime__is_positive(self, keys: Keys, ttl: int) -> None:
        with pytest.raises(ValueError, match="positive"):
            keys.minter.mint("u1", ttl_seconds=ttl)


class TestParseUser:
    def test_all_claims(self) -> None:
        user = parse_user(
            {
                "tenant": "t1",
                "sub": "u1",
                "roles": ["ext:invoke", "admin"],
                "email": "a@dev.invalid",
                "name": "Ann Ö",
                "type": "internal",
                "client_name": "ACME",
                "client_id": "c1",
            }
        )
        assert user.roles == frozenset({"ext:invoke", "admin"})
        assert (user.tenant, user.subject, user.email, user.name) == ("t1", "u1", "a@dev.invalid", "Ann Ö")
        assert (user.type, user.client_name, user.client_id) == ("internal", "ACME", "c1")

    def test_no_roles__none(self) -> None:
        assert parse_user({"tenant": "t1", "sub": "u1"}).roles == frozenset()

    @pytest.mark.parametrize("roles", [["ext:publish"], ["ext:operate", "ext:publish"], []])
    def test_platform_roles__may_have_any_tenant(self, roles: list[str]) -> None:
        assert parse_user({"tenant": "*", "sub": "u1", "roles": roles}).tenant == "*"

    def test_renamed_claims(self) -> None:
        names = ClaimNames(tenant="org", subject="uid", roles="groups")
        user = parse_user({"org": "t1", "uid": "u1", "groups": ["ext:read"], "tenant": "t2", "sub": "x"}, names=names)
        assert (user.tenant, user.subject, user.roles) == ("t1", "u1", frozenset({"ext:read"}))

    @pytest.mark.parametrize(
        "claims",
        [
            {"sub": "u1"},
            {"tenant": "", "sub": "u1"},
            {"tenant": ["t1"], "sub": "u1"},
            {"tenant": "t 1", "sub": "u1"},
            {"tenant": "../t2", "sub": "u1"},
            {"tenant": "t1\n", "sub": "u1"},
            {"tenant": "t" * 129, "sub": "u1"},
            {"tenant": "*", "sub": "u1", "roles": ["ext:invoke"]},
            {"tenant": "*", "sub": "u1", "roles": ["ext:operate", "ext:manage"]},
            {"tenant": "t1"},
            {"tenant": "t1", "sub": ""},
            {"tenant": "t1", "sub": "u\x00"},
            {"tenant": "t1", "sub": "u" * 257},
            {"tenant": "t1", "sub": "u1", "roles": "ext:invoke"},
            {"tenant": "t1", "sub": "u1", "roles": [1]},
            {"tenant": "t1", "sub": "u1", "roles": ["Ext:Invoke"]},
            {"tenant": "t1", "sub": "u1", "roles": ["r"] * 65},
            {"tenant": "t1", "sub": "u1", "roles": ["r" * 65]},
            {"tenant": "t1", "sub": "u1", "email": 1},
            {"tenant": "t1", "sub": "u1", "name": "evil \u202e name"},
        ],
    )
    def test_bad_claims__refused(self, claims: dict[str, Any]) -> None:
        with pytest.raises(RefusalError) as refusal:
            parse_user(claims)
        assert refusal.value.reason is Reason.UNAUTHENTICATED


class TestParseService:
    def claims(self, **changes: Any) -> dict[str, Any]:
        return {"sub": "gateway", "tenants": ["t1"], "scope": "execute warm", "iat": 1000, "exp": 1600, **changes}

    def test_all_claims(self) -> None:
        service = parse_service(self.claims())
        assert service.subject == "gateway"
        assert service.scopes == frozenset({"execute", "warm"})
        assert service.covers("t1")
        assert not service.covers("t2")
        assert not service.covers("*")

    def test_any_tenant__covers_all(self) -> None:
        assert parse_service(self.claims(tenants=["*"])).covers("t2")

    def test_no_scope__none(self) -> None:
        assert parse_service(self.claims(scope="")).scopes == frozenset()

    @pytest.mark.parametrize(
        "changes",
        [
            {"exp": 1601},
            {"exp": "1600"},
            {"iat": None},
            {"tenants": None},
            {"tenants": []},
            {"tenants": "t1"},
            {"tenants": ["t1", ""]},
            {"tenants": ["t1", 2]},
            {"tenants": ["t"] * 65},
            {"scope": None},
            {"scope": ["execute"]},
            {"scope": "execute  warm"},
            {"scope": "Execute"},
            {"scope": " ".join(["s"] * 65)},
            {"sub": None},
            {"sub": "a\nb"},
        ],
    )
    def test_bad_claims__refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RefusalError) as refusal:
            parse_service(self.claims(**changes))
        assert refusal.value.reason is Reason.UNAUTHENTICATED


def test_verify_as__reads_once_for_each_reader_while_the_token_is_remembered(keys: Keys) -> None:
    asked: list[str] = []

    def subject(claims: Any) -> str:
        asked.append("subject")
        return str(claims["sub"])

    def tenant(claims: Any) -> str:
        asked.append("tenant")
        return str(claims["tenant"])

    token, other = (keys.minter.mint(name, ttl_seconds=60, tenant=f"t-{name}") for name in ("u1", "u2"))
    assert [keys.verifier.verify_as(token, subject), keys.verifier.verify_as(token, subject)] == ["u1", "u1"]
    assert keys.verifier.verify_as(other, subject) == "u2"
    assert keys.verifier.verify_as(token, tenant) == "t-u1"
    assert asked == ["subject", "subject", "tenant"]
    keys.clock.now += 30
    assert keys.verifier.verify_as(other, subject) == "u2"
    assert len(asked) == 3
    # Remembered for the token's life at most: what was read goes with the verification.
    keys.clock.now += 31
    keys.verifier.verify_as(other, subject)
    assert len(asked) == 4


def test_verify_as__refused_claims_are_refused_again_and_removed_keys_end_what_was_read(keys: Keys) -> None:
    token = keys.minter.mint("u1", ttl_seconds=60, tenant="*", roles=["ext:invoke"])
    for _ in range(2):
        with pytest.raises(RefusalError):
            keys.verifier.verify_as(token, parse_user)
    good = keys.minter.mint("u1", ttl_seconds=60, tenant="t1", roles=[])
    assert keys.verifier.verify_as(good, parse_user).tenant == "t1"
    keys.files.jwks_file.write_text(
        json.dumps({"keys": [OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True) | {"kid": "new"}]})
    )
    keys.clock.now += 2
    with pytest.raises(RefusalError):
        keys.verifier.verify_as(good, parse_user)
