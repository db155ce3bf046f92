from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from registry.database import Database
from registry.domain.digests import content_hash
from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import VersionId
from registry.domain.records import AllowedSigner
from registry.repositories import versions
from registry.repositories.versions import PENDING, PUBLISHED, NewVersion, VersionRepository, VersionRow
from registry.services.publishers import PublisherService
from registry.services.revocations import RevocationService
from tests.fakes.registry_rows import SIGNER, UNKNOWN_ID, ensure_publisher, new_version, publish


async def _claim(admin: Database, new: NewVersion) -> VersionRow:
    async with admin.session() as session:
        return await VersionRepository(session).claim(new)


async def _mark(admin: Database, version_id: VersionId) -> VersionRow:
    async with admin.session() as session:
        return await VersionRepository(session).mark_published(version_id)


async def _delete(admin: Database, version_id: VersionId) -> bool:
    async with admin.session() as session:
        return await VersionRepository(session).delete_pending(version_id)


async def _refused(attempt: Awaitable[object], reason: Reason) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        await attempt
    assert caught.value.reason is reason
    return caught.value


async def test_claim__then_publish__is_visible_only_then(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    claimed = await _claim(admin_database, new_version())
    assert claimed.state == PENDING
    async with admin_database.session() as session:
        assert await VersionRepository(session).find_latest("com.acme.notes") is None
    published = await _mark(admin_database, claimed.version_id)
    assert (published.state, published.signer, published.version_id) == (PUBLISHED, SIGNER, claimed.version_id)
    async with admin_database.session() as session:
        assert await VersionRepository(session).get_published("com.acme.notes", "1.0.0") == published
        assert await VersionRepository(session).get_published(published.extension_id, "1.0.0") == published


async def test_claim__published_with_the_same_bytes__answers_that_one(admin_database: Database) -> None:
    published = await publish(admin_database)
    again = await _claim(admin_database, new_version())
    assert again == published
    assert await _mark(admin_database, again.version_id) == published


async def test_claim__published_with_other_bytes__is_refused(admin_database: Database) -> None:
    published = await publish(admin_database)
    refusal = await _refused(_claim(admin_database, new_version(bundle_hash=content_hash(b"other"))), Reason.VERSION_EXISTS)
    assert refusal.metadata == {"content_hash": published.content_hash}


async def test_claim__pending_of_a_crashed_publish__is_taken_over(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    crashed = await _claim(admin_database, new_version())
    later = await _claim(admin_database, new_version(bundle_hash=content_hash(b"other")))
    assert later.version_id != crashed.version_id
    await _refused(_mark(admin_database, crashed.version_id), Reason.VERSION_EXISTS)
    assert not await _delete(admin_database, crashed.version_id)
    assert (await _mark(admin_database, later.version_id)).content_hash == content_hash(b"other")


async def test_claim__same_bytes_pending_under_another_number__are_taken_over(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    await _claim(admin_database, new_version())
    moved = await _claim(admin_database, new_version(version="1.0.1", bundle_hash=new_version().content_hash))
    assert moved.version == "1.0.1"


async def test_claim__bytes_published_under_another_number__is_refused(admin_database: Database) -> None:
    await publish(admin_database)
    await _refused(_claim(admin_database, new_version(version="1.0.1", bundle_hash=new_version().content_hash)), Reason.VERSION_EXISTS)
    await ensure_publisher(admin_database, "other")
    foreign = new_version(publisher="other", name="org.other.notes", bundle_hash=new_version().content_hash)
    await _refused(_claim(admin_database, foreign), Reason.VERSION_EXISTS)


async def test_claim__two_at_once__exactly_one_is_published(admin_database: Database) -> None:
    await ensure_publisher(admin_database)

    async def attempt(number: int) -> str | None:
        claimed = await _claim(admin_database, new_version(bundle_hash=content_hash(bytes([number]))))
        try:
            return (await _mark(admin_database, claimed.version_id)).content_hash
        except RefusalError as refusal:
            assert refusal.reason is Reason.VERSION_EXISTS  # noqa: PT017 - one of many attempts
            return None

    answers = await asyncio.gather(*(attempt(number) for number in range(5)), return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, str)]
    assert len(won) == 1
    assert all(answer is None or isinstance(answer, str | RefusalError) for answer in answers)


async def test_claim__name_of_another_publisher__is_refused(admin_database: Database) -> None:
    await publish(admin_database)
    await ensure_publisher(admin_database, "evil")
    await _refused(_claim(admin_database, new_version(publisher="evil", version="2.0.0")), Reason.PUBLISHER_MISMATCH)


async def test_claim__failed_publish__burns_not_even_the_name(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    await ensure_publisher(admin_database, "other")
    claimed = await _claim(admin_database, new_version())
    assert await _delete(admin_database, claimed.version_id)
    assert not await _delete(admin_database, claimed.version_id)
    assert (await _claim(admin_database, new_version(publisher="other"))).publisher == "other"


async def test_claim__name_held_by_a_crashed_first_publish__is_free_after_a_while(
    admin_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_publisher(admin_database)
    await ensure_publisher(admin_database, "other")
    await _claim(admin_database, new_version())
    await _refused(_claim(admin_database, new_version(publisher="other")), Reason.PUBLISHER_MISMATCH)
    monkeypatch.setattr(versions, "STALE_PENDING", timedelta(0))
    assert (await _claim(admin_database, new_version(publisher="other"))).publisher == "other"


async def test_claim__name_with_a_published_version__is_never_free(admin_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await publish(admin_database)
    await ensure_publisher(admin_database, "other")
    monkeypatch.setattr(versions, "STALE_PENDING", timedelta(0))
    await _refused(_claim(admin_database, new_version(publisher="other", version="2.0.0")), Reason.PUBLISHER_MISMATCH)


async def test_claim_and_mark__denied_hash__is_refused(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    claimed = await _claim(admin_database, new_version())
    await RevocationService(admin_database).deny(claimed.content_hash, "bad", "test")
    await _refused(_mark(admin_database, claimed.version_id), Reason.HASH_DENIED)
    await _refused(_claim(admin_database, new_version()), Reason.HASH_DENIED)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "notes"}, Reason.INVALID_REQUEST),
        ({"name": "Com.Acme"}, Reason.INVALID_REQUEST),
        ({"name": "a." + "b" * 127}, Reason.INVALID_REQUEST),
        ({"name": "com.acme/../x"}, Reason.INVALID_REQUEST),
        ({"version": "1.0"}, Reason.INVALID_REQUEST),
        ({"bundle_hash": "sha256:" + "A" * 64}, Reason.INVALID_REQUEST),
        ({"publisher": "nobody"}, Reason.NOT_FOUND),
        ({"publisher": "acme\0"}, Reason.NOT_FOUND),
        ({"publisher": "acme\ud800"}, Reason.NOT_FOUND),
    ],
)
async def test_claim__malformed__is_refused(admin_database: Database, change: dict[str, str], reason: Reason) -> None:
    await ensure_publisher(admin_database)
    await _refused(_claim(admin_database, new_version(**change)), reason)  # type: ignore[arg-type]


async def test_latest__is_the_highest_release_that_is_not_yanked(admin_database: Database) -> None:
    rows = {version: await publish(admin_database, new_version(version=version)) for version in ("1.9.0", "1.10.0", "1.11.0-rc.1", "0.1.0")}

    async def latest() -> str | None:
        async with admin_database.session() as session:
            row = await VersionRepository(session).find_latest("com.acme.notes")
            return None if row is None else row.version

    async def yank(version: str) -> bool:
        async with admin_database.session() as session:
            return await VersionRepository(session).set_yanked(rows[version].version_id, reason="bad")

    seen = [await latest()]
    for version in ("1.10.0", "1.9.0", "0.1.0", "1.11.0-rc.1"):
        assert await yank(version)
        assert not await yank(version)
        seen.append(await latest())
    assert seen == ["1.10.0", "1.9.0", "0.1.0", "1.11.0-rc.1", None]
    async with admin_database.session() as session:
        listed = await VersionRepository(session).list_published("com.acme.notes")
        assert [row.version for row in listed] == ["1.11.0-rc.1", "1.10.0", "1.9.0", "0.1.0"]
        rest = await VersionRepository(session).list_published("com.acme.notes", limit=1, before="1.10.0")
        assert [row.version for row in rest] == ["1.9.0"]
        assert await VersionRepository(session).set_deprecated(rows["1.9.0"].version_id)


@pytest.mark.parametrize("reference", ["", "com.acme.other", "\0", "\ud800", "0" * 5_000, UNKNOWN_ID, "%", "com.acme.note_"])
async def test_lookup__odd_reference__finds_nothing(admin_database: Database, reference: str) -> None:
    await publish(admin_database)
    async with admin_database.session() as session:
        repository = VersionRepository(session)
        assert await repository.find_latest(reference) is None
        assert await repository.list_published(reference) == ()
        assert await repository.find_loadable(reference) is None
        assert not await repository.is_denied(reference)
    await _refused(_get(admin_database, reference), Reason.VERSION_NOT_FOUND)


async def _get(admin: Database, reference: str) -> VersionRow:
    async with admin.session() as session:
        return await VersionRepository(session).get_published(reference, "1.0.0")


async def test_loadable__holds_the_publishers_signers_as_of_now(admin_database: Database, runner_database: Database) -> None:
    await ensure_publisher(admin_database)
    claimed = await _claim(admin_database, new_version())
    other = AllowedSigner(trust_domain="development", issuer="https://oidc.dev.invalid", identity="https://dev.invalid/people/bob")
    await PublisherService(admin_database).add_signer("acme", other, "test")
    async with runner_database.session() as session:
        found = await VersionRepository(session).find_loadable(claimed.content_hash)
    assert found is not None
    bundle, denied = found
    assert set(bundle.signers) == {SIGNER, other}
    assert (bundle.version_id, bundle.publisher, denied) == (claimed.version_id, "acme", False)


async def test_claim__document_that_postgresql_cannot_hold__is_refused_and_leaves_nothing(admin_database: Database) -> None:
    await ensure_publisher(admin_database)
    new = new_version()
    await _refused(_claim(admin_database, replace(new, manifest={"name": "a\0b"})), Reason.INTERNAL)
    async with admin_database.session() as session:
        assert (await session.execute(text("select count(*) from extension_registry"))).scalar_one() == 0


@pytest.mark.parametrize("version_id", ["", "not-a-uuid", "\0", UNKNOWN_ID])
async def test_mark_and_delete__unknown_id__change_nothing(admin_database: Database, version_id: str) -> None:
    await _refused(_mark(admin_database, VersionId(version_id)), Reason.VERSION_EXISTS)
    assert not await _delete(admin_database, VersionId(version_id))
