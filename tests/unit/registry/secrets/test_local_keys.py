"""Envelopes of key pairs of our own: what opens where, and which key files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain.ids import InstallId, TenantId, is_secret_name
from registry.secrets.binding import Binding
from registry.secrets.envelope import Envelope, EnvelopeRejectedError, UnknownKeyError, WrappedKey
from registry.secrets.local_keys import LocalUnwrapper, LocalWrapper, SecretKeyError
from registry.secrets.opening import build_opener
from registry.secrets.sealing import build_sealer
from registry.secrets.settings import OpeningSettings, SealingSettings
from tests.fakes.sealing import PLACE, make_pair, opener_of, sealer_of

VALUE = b"the value"
ELSEWHERE = [
    replace(PLACE, tenant_id=TenantId("tenant-b")),
    replace(PLACE, install_id=InstallId("0197a000-0000-7000-8000-00000000000b")),
    replace(PLACE, name="api_kez"),
    replace(PLACE, version=2),
    # The same letters, cut elsewhere.
    replace(PLACE, tenant_id=TenantId("tenant-a0"), install_id=InstallId("197a000-0000-7000-8000-00000000000a")),
]


async def test_sealed__opens_in_its_place_and_nowhere_else(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    sealer, opener = sealer_of(pair), opener_of(pair)
    envelope = await sealer.seal(VALUE, PLACE)
    assert envelope.key.kek_id == pair.kek_id
    assert VALUE not in envelope.ciphertext
    assert await opener.open(envelope, PLACE) == VALUE
    for place in ELSEWHERE:
        with pytest.raises(EnvelopeRejectedError):
            await opener.open(envelope, place)


async def test_sealed_twice__nothing_is_the_same(tmp_path: Path) -> None:
    sealer = sealer_of(make_pair(tmp_path))
    one, two = await sealer.seal(VALUE, PLACE), await sealer.seal(VALUE, PLACE)
    assert one.key.wrapped != two.key.wrapped
    assert one.ciphertext[:12] != two.ciphertext[:12]


async def test_either_layer_alone__holds_the_place(tmp_path: Path) -> None:
    """A key service that ignores associated data must not be the end of the binding."""
    pair = make_pair(tmp_path)
    sealer, opener = sealer_of(pair), opener_of(pair)
    envelope = await sealer.seal(VALUE, PLACE)
    data_key = await opener.unwrap(envelope.key, PLACE)
    for place in ELSEWHERE:
        moved = Envelope(key=await sealer.wrap(data_key, place), ciphertext=envelope.ciphertext)
        with pytest.raises(EnvelopeRejectedError):
            await opener.open(moved, place)


@pytest.mark.parametrize("spoilt", [b"", b"x", bytes(80), bytes(8192)])
async def test_spoilt__rejected(tmp_path: Path, spoilt: bytes) -> None:
    pair = make_pair(tmp_path)
    envelope = await sealer_of(pair).seal(VALUE, PLACE)
    for changed in (replace(envelope, ciphertext=spoilt), replace(envelope, key=replace(envelope.key, wrapped=spoilt))):
        with pytest.raises(EnvelopeRejectedError):
            await opener_of(pair).open(changed, PLACE)


async def test_other_keys__unknown_or_of_no_use(tmp_path: Path) -> None:
    old, new = make_pair(tmp_path, "old"), make_pair(tmp_path, "new")
    envelope = await sealer_of(old).seal(VALUE, PLACE)
    assert await opener_of(new, old).open(envelope, PLACE) == VALUE
    with pytest.raises(UnknownKeyError, match="was not given"):
        await opener_of(new).open(envelope, PLACE)
    relabelled = replace(envelope, key=WrappedKey(kek_id=new.kek_id, wrapped=envelope.key.wrapped))
    with pytest.raises(EnvelopeRejectedError):
        await opener_of(new, old).open(relabelled, PLACE)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=8, max_size=8))
def test_associated_data__no_two_places_read_alike(parts: list[str]) -> None:
    def place(chosen: list[str]) -> Binding:
        return Binding(tenant_id=TenantId(chosen[0]), install_id=InstallId(chosen[1]), name=chosen[2], version=len(chosen[3]))

    one, two = place(parts[:4]), place(parts[4:])
    assert (one == two) == (one.associated_data() == two.associated_data())


@pytest.mark.parametrize(
    ("name", "is_one"), [("a", True), ("API_KEY.v-2", True), ("_x", True), (".x", False), ("-x", False), ("a\n", False)]
)
def test_names(name: str, is_one: bool) -> None:
    assert is_secret_name(name) is is_one


class TestKeyFiles:
    def _change(self, file: Path, **members: Any) -> Path:
        document = json.loads(file.read_text()) | members
        file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
        return file

    def test_modes__are_tight_and_nothing_is_overwritten(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path)
        assert pair.private_file.stat().st_mode & 0o777 == 0o600
        assert "d" not in json.loads(pair.public_file.read_text())
        from registry.secrets.local_keys import generate_key_pair  # noqa: PLC0415

        with pytest.raises(SecretKeyError, match="exists"):
            generate_key_pair(pair.private_file.parent)

    def test_private_key__is_refused_where_only_the_public_one_belongs(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path)
        with pytest.raises(SecretKeyError, match="public half only"):
            LocalWrapper(pair.private_file, refuse_development_keys=False)
        pair.public_file.chmod(0o600)
        with pytest.raises(SecretKeyError, match='"d"'):
            LocalUnwrapper([pair.public_file], refuse_development_keys=False)

    def test_readable_by_everybody__refused(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path)
        pair.private_file.chmod(0o604)
        with pytest.raises(SecretKeyError, match="chmod 600"):
            LocalUnwrapper([pair.private_file], refuse_development_keys=False)

    def test_development_key__refused_by_production(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path, development=True)
        sealing = SealingSettings.model_validate({"local": {"public_key_file": pair.public_file}})
        opening = OpeningSettings.model_validate({"local": {"private_key_files": [pair.private_file]}})
        build_sealer(sealing, refuse_development_keys=False)
        build_opener(opening, refuse_development_keys=False)
        with pytest.raises(SecretKeyError, match="development"):
            build_sealer(sealing, refuse_development_keys=True)
        with pytest.raises(SecretKeyError, match="development"):
            build_opener(opening, refuse_development_keys=True)

    @pytest.mark.parametrize(
        "members",
        [{"kty": "oct"}, {"crv": "Ed25519"}, {"x": "AAAA"}, {"x": 7}, {"x": "!" * 43}, {"kid": "other"}, {"kid": None}, {"d": "A" * 43}],
    )
    def test_malformed__refused_and_no_key_material_in_the_message(self, tmp_path: Path, members: dict[str, Any]) -> None:
        pair = make_pair(tmp_path)
        secret = json.loads(pair.private_file.read_text())["d"]
        with pytest.raises(SecretKeyError) as caught:
            LocalUnwrapper([self._change(pair.private_file, **members)], refuse_development_keys=False)
        assert secret not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 3000, b'{"kty":"OKP"}' + b" " * 5000])
    def test_no_key_at_all__refused(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "key"
        file.write_bytes(content)
        with pytest.raises(SecretKeyError):
            LocalWrapper(file, refuse_development_keys=False)
        with pytest.raises(SecretKeyError):
            LocalWrapper(tmp_path / "missing", refuse_development_keys=False)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"local": {"public_key_file": "x"}, "vault": {"address": "https://v", "token_file": "t", "key": "k"}},
        {"vault": {"address": "http://vault.example", "token_file": "t", "key": "k"}},
        {"vault": {"address": "https://v/path", "token_file": "t", "key": "k"}},
        {"vault": {"address": "https://u:p@v", "token_file": "t", "key": "k"}},
        {"vault": {"address": "https://v", "token_file": "t", "key": "../k"}},
        {"vault": {"address": "https://v", "token_file": "t", "key": "k", "mount": "a/../b"}},
        {"vault": {"address": "https://v", "token_file": "t", "key": "k", "timeout_seconds": 60}},
        {"kms": {"key": "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"}},
        {"kms": {"key": "projects/p/locations/l/keyRings/r/cryptoKeys/k", "endpoint": "http://kms.example"}},
        {"other": {}},
    ],
)
def test_settings__unsafe_or_ambiguous__refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        SealingSettings.model_validate(document)
