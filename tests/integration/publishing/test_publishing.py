"""Publishing against a real database: what becomes visible, what is refused for which reason, and what a failure leaves."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import pytest_asyncio
from sqlalchemy import text

from registry.bundles.layout import BundleLimits
from registry.bundles.local import LocalBundleStore
from registry.bundles.store import object_keys
from registry.bundles.unpacking import DiscardSink, read_bundle
from registry.database import Database, Session
from registry.domain.digests import ContentHash, content_hash
from registry.domain.errors import Reason, RefusalError
from registry.provenance.dev_trust import DevTrust
from registry.provenance.verifier import BundleVerifier, load_trust_domains
from registry.repositories.audit import AuditRepository
from registry.repositories.denylist import DenylistRepository
from registry.repositories.versions import VersionRepository
from registry.services.publishers import PublisherService
from registry.services.publishing import (
    DEFERRED,
    PublishedVersion,
    PublishingLimits,
    PublishingService,
    StoredSignatureCheck,
    Warm,
    WarmOutcome,
)
from tests.fakes.archives import archive as tar_archive
from tests.fakes.archives import compress, good_members, make_bundle
from tests.fakes.bundle_store import MemoryBundleStore

ALICE = "https://dev.invalid/people/alice"
BOB = "https://dev.invalid/people/bob"
MALLORY = "https://dev.invalid/people/mallory"
NAME = "com.example.notes"


async def pieces(data: bytes, size: int = 700) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@dataclass(kw_only=True)
class Registry:
    """A registry with the publishers "example" (alice, bob) and "other" (mallory)."""

    database: Database
    trust: DevTrust
    verifier: BundleVerifier
    work_dir: Path
    store: MemoryBundleStore = field(default_factory=MemoryBundleStore)
    warmed: list[ContentHash] = field(default_factory=list)
    warm_answer: Callable[[], Awaitable[WarmOutcome]] | None = None
    limits: PublishingLimits = field(default_factory=PublishingLimits)

    def service(self, *, warm: Warm | None = None, database: Database | None = None) -> PublishingService:
        return PublishingService(
            database=database or self.database,
            store=self.store,
            verifier=self.verifier,
            work_dir=self.work_dir,
            warm=warm or self.warm,
            limits=self.limits,
        )

    async def warm(self, content_hash: ContentHash) -> WarmOutcome:
        self.warmed.append(content_hash)
        return WarmOutcome(state="compiled", compile_seconds=1.5) if self.warm_answer is None else await self.warm_answer()

    async def publish(self, archive: bytes, *, signer: str = ALICE, signature: bytes | None = None, **service: Any) -> PublishedVersion:
        signed = self.trust.sign(content_hash(archive), signer) if signature is None else signature
        return await self.service(**service).publish(pieces(archive), signed, actor="tester")

    async def visible(self) -> list[tuple[str, str]]:
        """What anybody can find."""
        async with self.database.session() as session:
            rows = await VersionRepository(session).list_published(NAME)
        return [(row.version, row.content_hash) for row in rows]

    async def count(self, table: str) -> int:
        async with self.database.session() as session:
            return int((await session.execute(text(f"select count(*) from {table}"))).scalar_one())

    def nothing_is_left_of_the_upload(self) -> bool:
        return not self.work_dir.exists() or not list(self.work_dir.iterdir())


@pytest_asyncio.fixture
async def registry(admin_database: Database, tmp_path: Path) -> Registry:
    trust = DevTrust.init(tmp_path / "trust")
    verifier = BundleVerifier(load_trust_domains(trust.trust_domains_path, environment="development"))
    publishers = PublisherService(admin_database)
    for name, signers in (("example", (ALICE, BOB)), ("other", (MALLORY,))):
        await publishers.create(name, "operator")
        for identity in signers:
            await publishers.add_signer(name, trust.signer(identity), "operator")
    return Registry(database=admin_database, trust=trust, verifier=verifier, work_dir=tmp_path / "uploads")


async def refusal_of(publishing: Awaitable[object]) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        await publishing
    return caught.value


async def test_a_published_version_is_visible_with_everything_that_was_verified(registry: Registry) -> None:
    archive = make_bundle()
    manifest = read_bundle_manifest(archive)
    published = await registry.publish(archive)
    assert await registry.visible() == [("1.0.0", content_hash(archive))]
    assert published.created
    assert (published.compile, published.compile_seconds) == ("compiled", 1.5)
    assert published.signer == registry.trust.signer(ALICE)
    assert not published.production
    assert registry.warmed == [content_hash(archive)]
    assert registry.nothing_is_left_of_the_upload()
    async with registry.database.session() as session:
        row = await VersionRepository(session).get_published(NAME, "1.0.0")
    assert row.manifest == json.loads(manifest)
    assert row.manifest_digest == content_hash(manifest) == published.manifest_digest
    assert row.capabilities == ("storage.kv",)
    assert row.signer == registry.trust.signer(ALICE)
    assert row.size_bytes == len(archive)


async def test_the_three_objects_are_stored_whole(registry: Registry) -> None:
    archive = make_bundle()
    signature = registry.trust.sign(content_hash(archive), ALICE)
    await registry.publish(archive, signature=signature)
    keys = object_keys(content_hash(archive))
    assert registry.store.objects == {keys.archive: archive, keys.signature: signature, keys.manifest: read_bundle_manifest(archive)}


async def test_a_local_folder_takes_the_upload_by_its_descriptor(registry: Registry, tmp_path: Path) -> None:
    archive = make_bundle()
    store = LocalBundleStore(tmp_path / "bundles")
    service = PublishingService(database=registry.database, store=store, verifier=registry.verifier, work_dir=registry.work_dir, warm=None)
    published = await service.publish(pieces(archive), registry.trust.sign(content_hash(archive), ALICE), actor="tester")
    assert published.compile == DEFERRED
    assert await store.read(object_keys(content_hash(archive)).archive, len(archive)) == archive


async def test_an_interface_without_code_is_published(registry: Registry) -> None:
    archive = make_bundle({"dist/main.wasm": None}, runtime="ui-only@1", api=None)
    assert (await registry.publish(archive)).runtime == "ui-only@1"


async def test_publishing_the_same_bytes_again_changes_nothing(registry: Registry) -> None:
    archive = make_bundle()
    first = await registry.publish(archive)
    second = await registry.publish(archive, signer=BOB)
    assert not second.created
    assert second.version_id == first.version_id
    assert len(await registry.visible()) == 1


async def test_other_bytes_under_a_published_version_are_refused(registry: Registry) -> None:
    await registry.publish(make_bundle())
    refusal = await refusal_of(registry.publish(make_bundle({"ui/index.html": b"other"})))
    assert refusal.reason is Reason.VERSION_EXISTS


async def test_both_of_two_concurrent_publishes_of_the_same_bytes_end_well_or_say_why(registry: Registry) -> None:
    archive = make_bundle()
    results = await asyncio.gather(*(registry.publish(archive, signer=signer) for signer in (ALICE, BOB)), return_exceptions=True)
    assert any(isinstance(result, PublishedVersion) for result in results)
    for result in results:
        assert isinstance(result, PublishedVersion) or (isinstance(result, RefusalError) and result.reason is Reason.VERSION_EXISTS)
    assert await registry.visible() == [("1.0.0", content_hash(archive))]


# --- refusals, each with its own reason ---


async def test_an_altered_archive_is_refused(registry: Registry) -> None:
    archive = bytearray(make_bundle())
    signature = registry.trust.sign(content_hash(bytes(archive)), ALICE)
    archive[len(archive) // 2] ^= 1
    refusal = await refusal_of(registry.publish(bytes(archive), signature=signature))
    assert refusal.reason is Reason.INVALID_BUNDLE
    assert await registry.visible() == []
    assert registry.store.objects == {}


async def test_another_archive_under_a_good_signature_is_refused(registry: Registry) -> None:
    signature = registry.trust.sign(content_hash(make_bundle()), ALICE)
    refusal = await refusal_of(registry.publish(make_bundle({"ui/index.html": b"evil"}), signature=signature))
    assert (refusal.reason, refusal.metadata["stage"]) == (Reason.SIGNATURE_REJECTED, "signature_invalid")
    assert registry.store.objects == {}


async def test_an_altered_signature_is_refused(registry: Registry) -> None:
    archive = make_bundle()
    bundle = json.loads(registry.trust.sign(content_hash(archive), ALICE))
    signature = bundle["messageSignature"]["signature"]
    bundle["messageSignature"]["signature"] = signature[:20] + ("A" if signature[20] != "A" else "B") + signature[21:]
    refusal = await refusal_of(registry.publish(archive, signature=json.dumps(bundle).encode()))
    assert (refusal.reason, refusal.metadata["stage"]) == (Reason.SIGNATURE_REJECTED, "signature_invalid")


@pytest.mark.parametrize(("signature", "stage"), [(b"", "malformed"), (b"{}", "malformed"), (b" " * 65_537, "bundle_too_large")])
async def test_what_is_no_signature_is_refused(registry: Registry, signature: bytes, stage: str) -> None:
    refusal = await refusal_of(registry.publish(make_bundle(), signature=signature))
    assert (refusal.reason, refusal.metadata["stage"]) == (Reason.SIGNATURE_REJECTED, stage)


async def test_another_signer_is_refused(registry: Registry) -> None:
    refusal = await refusal_of(registry.publish(make_bundle(), signer=MALLORY))
    assert (refusal.reason, refusal.metadata["stage"]) == (Reason.SIGNATURE_REJECTED, "signer_not_allowed")
    assert await registry.visible() == []


async def test_an_unknown_publisher_is_refused(registry: Registry) -> None:
    refusal = await refusal_of(registry.publish(make_bundle(publisher="nobody")))
    assert (refusal.reason, refusal.metadata) == (Reason.NOT_FOUND, {"publisher": "nobody"})


async def test_a_publisher_without_signers_cannot_publish(registry: Registry) -> None:
    await PublisherService(registry.database).create("unsigned", "operator")
    refusal = await refusal_of(registry.publish(make_bundle(publisher="unsigned")))
    assert (refusal.reason, refusal.metadata["stage"]) == (Reason.SIGNATURE_REJECTED, "signer_not_allowed")


async def test_the_name_of_another_publisher_is_refused(registry: Registry) -> None:
    await registry.publish(make_bundle())
    refusal = await refusal_of(registry.publish(make_bundle(publisher="other", version="2.0.0"), signer=MALLORY))
    assert refusal.reason is Reason.PUBLISHER_MISMATCH
    assert [version for version, _ in await registry.visible()] == ["1.0.0"]


async def test_revoked_bytes_are_refused(registry: Registry) -> None:
    archive = make_bundle()
    async with registry.database.session() as session:
        await deny(session, content_hash(archive))
    assert (await refusal_of(registry.publish(archive))).reason is Reason.HASH_DENIED
    assert registry.store.objects == {}


async def test_a_bad_manifest_is_refused_with_its_place(registry: Registry) -> None:
    refusal = await refusal_of(registry.publish(compress(tar_archive(*good_members(version="1")))))
    assert (refusal.reason, refusal.metadata) == (Reason.INVALID_MANIFEST, {"place": "version"})


@pytest.mark.parametrize(("slack", "fits"), [(1, True), (0, True), (-1, False)])
async def test_an_upload_is_bounded_while_it_arrives(registry: Registry, slack: int, fits: bool) -> None:
    archive = make_bundle()
    registry.limits = PublishingLimits(bundle=BundleLimits(packed_bytes=len(archive) + slack))
    if fits:
        assert (await registry.publish(archive)).created
    else:
        assert (await refusal_of(registry.publish(archive))).reason is Reason.PAYLOAD_TOO_LARGE
    assert registry.nothing_is_left_of_the_upload()


async def test_an_upload_that_never_ends_is_cut(registry: Registry) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1024 * 1024)

    registry.limits = PublishingLimits(bundle=BundleLimits(packed_bytes=3 * 1024 * 1024))
    refusal = await refusal_of(registry.service().publish(endless(), b"{}", actor="tester"))
    assert refusal.reason is Reason.PAYLOAD_TOO_LARGE


async def test_an_upload_that_stalls_is_given_up(registry: Registry) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    registry.limits = PublishingLimits(receive_seconds=0.05)
    refusal = await refusal_of(registry.service().publish(stalled(), b"{}", actor="tester"))
    assert refusal.reason is Reason.DEADLINE_EXCEEDED
    assert registry.nothing_is_left_of_the_upload()


async def test_one_publish_too_many_is_refused_and_the_next_one_is_not(registry: Registry) -> None:
    release = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        await release.wait()
        yield b"x"

    registry.limits = PublishingLimits(concurrent=1)
    service = registry.service()
    first = asyncio.create_task(service.publish(waiting(), b"{}", actor="tester"))
    await asyncio.sleep(0)
    archive = make_bundle()
    signature = registry.trust.sign(content_hash(archive), ALICE)
    assert (await refusal_of(service.publish(pieces(archive), signature, actor="tester"))).reason is Reason.OVERLOADED
    release.set()
    assert (await refusal_of(first)).reason is Reason.INVALID_BUNDLE
    assert (await service.publish(pieces(archive), signature, actor="tester")).created


async def test_a_slow_sender_leaves_room_for_others(registry: Registry) -> None:
    release = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        await release.wait()
        yield b"x"

    registry.limits = PublishingLimits(concurrent=3, concurrent_per_actor=2)
    service = registry.service()
    slow = [asyncio.create_task(service.publish(waiting(), b"{}", actor="mallory")) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await refusal_of(service.publish(waiting(), b"{}", actor="mallory"))).reason is Reason.OVERLOADED
    archive = make_bundle()
    assert (await service.publish(pieces(archive), registry.trust.sign(content_hash(archive), ALICE), actor="alice")).created
    release.set()
    for publish in slow:
        assert (await refusal_of(publish)).reason is Reason.INVALID_BUNDLE
    assert not service._running


async def test_another_signer_of_the_publisher_cannot_replace_the_signature_of_what_is_published(registry: Registry) -> None:
    archive = make_bundle()
    await registry.publish(archive, signer=ALICE)
    key = object_keys(content_hash(archive)).signature
    by_alice = await registry.store.read(key, 65_536)
    again = await registry.publish(archive, signer=BOB)
    assert (again.created, await registry.store.read(key, 65_536)) == (False, by_alice)


# --- failures at each step: nothing is visible, nothing is burnt ---


class FaultyDatabase:
    """Answers REGISTRY_UNAVAILABLE to one call of a method of `VersionRepository`, before or after the database did what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, *, after: bool) -> None:
        genuine = getattr(VersionRepository, method)
        self.calls = 0

        async def faulty(repository: VersionRepository, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                return await genuine(repository, *arguments, **named)
            if after:
                await genuine(repository, *arguments, **named)
            raise RefusalError(Reason.REGISTRY_UNAVAILABLE, "The registry does not answer; try again.")

        monkeypatch.setattr(VersionRepository, method, faulty)


async def published_after_failure(registry: Registry, failing: RefusalError, archive: bytes) -> None:
    """After a failure nothing is visible, nothing is pending, and the same publish succeeds."""
    assert failing.reason in {Reason.REGISTRY_UNAVAILABLE, Reason.BUNDLE_UNAVAILABLE}
    assert await registry.visible() == []
    assert await registry.count("extension_version") == 0
    assert await registry.count("extension_registry") == 0
    assert registry.nothing_is_left_of_the_upload()
    registry.store.fail_on = None
    assert (await registry.publish(archive)).created
    assert await registry.visible() == [("1.0.0", content_hash(archive))]


@pytest.mark.parametrize("key", ["bundle.tar.zst", "bundle.sigstore.json", "manifest.json"])
async def test_a_store_that_fails_at_any_object_leaves_nothing_visible(registry: Registry, key: str) -> None:
    archive = make_bundle()
    registry.store.fail_on, registry.store.fail_key = "put_if_absent", key
    failing = await refusal_of(registry.publish(archive))
    assert registry.warmed == []
    await published_after_failure(registry, failing, archive)


@pytest.mark.parametrize("method", ["claim", "mark_published"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_database_that_fails_at_any_step_leaves_nothing_visible(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, method: str, after: bool
) -> None:
    archive = make_bundle()
    FaultyDatabase(monkeypatch, method, after=after)
    await published_after_failure(registry, await refusal_of(registry.publish(archive)), archive)


async def test_an_audit_row_that_cannot_be_written_keeps_the_version_invisible(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*arguments: object, **named: object) -> None:
        raise RefusalError(Reason.REGISTRY_UNAVAILABLE, "The registry does not answer; try again.")

    archive = make_bundle()
    with monkeypatch.context() as patched:
        patched.setattr(AuditRepository, "record", failing)
        refusal = await refusal_of(registry.publish(archive))
    await published_after_failure(registry, refusal, archive)


async def test_a_pending_row_that_cannot_be_taken_back_is_seen_by_nobody_and_blocks_nobody(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*arguments: object) -> bool:
        raise RefusalError(Reason.REGISTRY_UNAVAILABLE, "The registry does not answer; try again.")

    archive = make_bundle()
    with monkeypatch.context() as patched:
        patched.setattr(VersionRepository, "delete_pending", failing)
        registry.store.fail_on = "put_if_absent"
        refusal = await refusal_of(registry.publish(archive))
    assert refusal.reason is Reason.BUNDLE_UNAVAILABLE
    assert await registry.count("extension_version") == 1
    assert await registry.visible() == []
    registry.store.fail_on = None
    assert (await registry.publish(archive)).created


async def test_nothing_is_visible_while_the_runner_compiles(registry: Registry) -> None:
    seen: list[list[tuple[str, str]]] = []
    stored: list[int] = []

    async def look() -> WarmOutcome:
        seen.append(await registry.visible())
        stored.append(len(registry.store.objects))
        return WarmOutcome(state="compiled")

    registry.warm_answer = look
    await registry.publish(make_bundle())
    assert seen == [[]]
    assert stored == [3]


@pytest.mark.parametrize("reason", [Reason.COMPILE_REJECTED, Reason.SIGNATURE_REJECTED, Reason.HASH_DENIED, Reason.BUNDLE_CORRUPT])
async def test_what_the_runner_says_about_the_bundle_is_the_answer(registry: Registry, reason: Reason) -> None:
    async def reject() -> WarmOutcome:
        raise RefusalError(reason, "The component imports what does not exist.")

    registry.warm_answer = reject
    archive = make_bundle()
    refusal = await refusal_of(registry.publish(archive))
    assert (refusal.reason, refusal.public_detail) == (reason, "The component imports what does not exist.")
    assert await registry.count("extension_version") == 0
    registry.warm_answer = None
    assert (await registry.publish(archive)).created


@pytest.mark.parametrize(
    "error",
    [RefusalError(Reason.OVERLOADED, "No room."), RefusalError(Reason.REGISTRY_UNAVAILABLE, "x"), OSError("refused"), TimeoutError()],
)
async def test_a_runner_that_cannot_be_reached_is_not_waited_for(registry: Registry, error: Exception) -> None:
    async def fail() -> WarmOutcome:
        raise error

    registry.warm_answer = fail
    published = await registry.publish(make_bundle())
    assert published.compile == DEFERRED
    assert len(await registry.visible()) == 1


async def test_a_runner_that_never_answers_is_not_waited_for(registry: Registry) -> None:
    async def wait() -> WarmOutcome:
        await asyncio.Event().wait()
        raise AssertionError

    registry.warm_answer = wait
    registry.limits = PublishingLimits(warm_seconds=0.05)
    assert (await registry.publish(make_bundle())).compile == DEFERRED


async def test_a_publisher_who_goes_away_leaves_nothing(registry: Registry) -> None:
    compiling = asyncio.Event()

    async def wait() -> WarmOutcome:
        compiling.set()
        await asyncio.Event().wait()
        raise AssertionError

    registry.warm_answer = wait
    archive = make_bundle()
    task = asyncio.create_task(registry.publish(archive))
    await asyncio.wait_for(compiling.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await registry.count("extension_version") == 0
    assert registry.nothing_is_left_of_the_upload()
    registry.warm_answer = None
    assert (await registry.publish(archive)).created


async def test_a_stream_that_breaks_leaves_nothing(registry: Registry) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await registry.service().publish(broken(), b"{}", actor="tester")
    assert registry.nothing_is_left_of_the_upload()


async def test_a_full_disk_is_told_as_such(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(service: PublishingService) -> BinaryIO:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(PublishingService, "_open_upload", open_full)
    assert (await refusal_of(registry.publish(make_bundle()))).reason is Reason.OVERLOADED


# --- signatures that lie in the store already ---


async def test_a_stored_signature_that_would_be_refused_now_is_replaced(registry: Registry) -> None:
    archive = make_bundle()
    keys = object_keys(content_hash(archive))
    registry.store.objects[keys.signature] = registry.trust.sign(content_hash(archive), MALLORY)
    signature = registry.trust.sign(content_hash(archive), ALICE)
    await registry.publish(archive, signature=signature)
    assert registry.store.objects[keys.signature] == signature


async def test_a_stored_signature_that_is_good_stays(registry: Registry) -> None:
    archive = make_bundle()
    keys = object_keys(content_hash(archive))
    earlier = registry.trust.sign(content_hash(archive), ALICE)
    registry.store.objects[keys.signature] = earlier
    await registry.publish(archive)
    assert registry.store.objects[keys.signature] == earlier


async def test_other_bytes_under_this_hash_in_the_store_are_not_published(registry: Registry) -> None:
    archive = make_bundle()
    registry.store.objects[object_keys(content_hash(archive)).archive] = b"other"
    assert (await refusal_of(registry.publish(archive))).reason is Reason.BUNDLE_CORRUPT
    assert await registry.visible() == []


async def test_the_manifest_beside_the_archive_is_only_a_copy(registry: Registry) -> None:
    archive = make_bundle()
    first = await registry.publish(archive)
    keys = object_keys(content_hash(archive))
    registry.store.objects[keys.manifest] = b'{"capabilities":["secrets.get"]}'
    again = await registry.publish(archive)
    assert (again.manifest_digest, again.capabilities) == (first.manifest_digest, ("storage.kv",))
    async with registry.database.session() as session:
        row = await VersionRepository(session).get_published(NAME, "1.0.0")
    assert row.manifest == json.loads(read_bundle_manifest(archive))


async def test_an_install_verifies_the_stored_signature(registry: Registry) -> None:
    archive = make_bundle()
    await registry.publish(archive)
    async with registry.database.session() as session:
        found = await VersionRepository(session).find_loadable(content_hash(archive))
    assert found is not None
    bundle, _ = found
    check = StoredSignatureCheck(registry.store, registry.verifier)
    await check(bundle)
    assert (await refusal_of(check(replace(bundle, signers=())))).reason is Reason.SIGNATURE_REJECTED
    registry.store.objects[object_keys(bundle.content_hash).signature] = b"{}"
    assert (await refusal_of(check(bundle))).reason is Reason.SIGNATURE_REJECTED
    registry.store.objects.clear()
    assert (await refusal_of(check(bundle))).reason is Reason.BUNDLE_UNAVAILABLE


def read_bundle_manifest(archive: bytes) -> bytes:
    return read_bundle(io.BytesIO(archive), DiscardSink()).manifest.canonical_json


async def deny(session: Session, denied: ContentHash) -> None:
    await DenylistRepository(session).add(denied, reason="test", actor="tester")
