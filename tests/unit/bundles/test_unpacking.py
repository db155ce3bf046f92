"""Every rejection of the strict reader, each with its own case; what is accepted; what reaches the sink, and when."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.bundles import ustar
from registry.bundles.layout import BundleLimits
from registry.bundles.packing import pack_files
from registry.bundles.unpacking import BundleFile, DiscardSink, read_bundle
from registry.domain.digests import content_hash
from registry.domain.errors import Reason, RefusalError
from tests.fakes.archives import COMPONENT, Header, archive, compress, file, files, good_members, make_bundle, manifest_bytes, member


class CollectingSink:
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.files: dict[str, bytes] = {}
        self.ended: list[BundleFile] = []

    def begin(self, path: str, size: int) -> Callable[[bytes], object]:
        self.begun.append(path)
        parts = self.files.setdefault(path, b"")
        assert parts == b""

        def write(chunk: bytes) -> None:
            self.files[path] += chunk

        return write

    def end(self, file: BundleFile) -> None:
        self.ended.append(file)


def refusal_of(data: bytes, *, limits: BundleLimits | None = None, begun: list[str] | None = None) -> RefusalError:
    sink = CollectingSink()
    with pytest.raises(RefusalError) as caught:
        read_bundle(io.BytesIO(data), sink, limits=limits or BundleLimits())
    if begun is not None:
        assert sink.begun == begun
    return caught.value


def refused(members: list[bytes], problem: str, *, begun: list[str] | None = None) -> None:
    refusal = refusal_of(compress(archive(*members)), begun=begun)
    assert refusal.reason is Reason.INVALID_BUNDLE
    assert problem in refusal.public_detail
    assert refusal.public_detail.isascii() or "…" in refusal.public_detail
    assert refusal.public_detail.isprintable()


_SEGMENTS = st.text("abcXYZ019-_ äß漢", min_size=1, max_size=12).map(lambda text: "f" + unicodedata.normalize("NFC", text).strip() + "g")
_PATHS = st.lists(_SEGMENTS, min_size=1, max_size=4).map(lambda segments: "ui/" + "/".join(segments))


def acceptable(names: list[str]) -> dict[str, str]:
    """Names that can stand beside each other: no two alike, no file that is also a folder."""
    taken: dict[str, str] = {"ui/index.html": "", "ui": ""}
    chosen: dict[str, str] = {}
    for name in names:
        steps = name.split("/")
        above = ["/".join(steps[:count]).casefold() for count in range(1, len(steps))]
        exact = ["/".join(steps[:count]) for count in range(1, len(steps))]
        if name.casefold() in taken or any(taken.get(key, path) != path for key, path in zip(above[1:], exact[1:], strict=True)):
            continue
        taken |= dict(zip(above[1:], exact[1:], strict=True)) | {name.casefold(): ""}
        chosen[name] = name
    return chosen


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(_PATHS, st.binary(max_size=1_500)), max_size=8))
def test_what_was_packed_is_unpacked(extra: list[tuple[str, bytes]]) -> None:
    chosen = acceptable([name for name, _ in extra])
    contents = files({name: content for name, content in extra if name in chosen})
    packed = pack_files(contents)
    sink = CollectingSink()
    read = read_bundle(io.BytesIO(packed), sink, expected=content_hash(packed))
    assert sink.files == contents
    assert read.files == tuple(sink.ended)
    assert {file.path: (file.size, file.sha256) for file in read.files} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    }
    assert [file.path.encode() for file in read.files] == sorted(name.encode() for name in contents)


def test_what_one_pass_tells() -> None:
    packed = make_bundle()
    read = read_bundle(io.BytesIO(packed), DiscardSink())
    assert read.content_hash == content_hash(packed)
    assert read.packed_bytes == len(packed)
    assert read.manifest.name == "com.example.notes"
    assert read.wasm == BundleFile(path="dist/main.wasm", size=8, sha256=hashlib.sha256(COMPONENT).hexdigest())
    assert [file.path for file in read.ui_files] == ["ui/index.html"]


def test_the_hand_written_archive_of_these_tests_is_the_canonical_one() -> None:
    contents = {"dist/main.wasm": COMPONENT, "manifest.json": manifest_bytes(), "ui/index.html": b"<p>"}
    assert compress(archive(*good_members())) == pack_files(contents)


def test_a_source_that_gives_a_byte_at_a_time_is_read() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(1 if size else 0)

    packed = make_bundle()
    assert read_bundle(Slow(packed), DiscardSink(), expected=content_hash(packed)).packed_bytes == len(packed)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 511), st.integers(1, 255), st.sampled_from(["dist/", "dist/main.wasm", "manifest.json", "ui/", "ui/index.html"]))
def test_every_one_byte_change_of_a_header_is_refused(at: int, change: int, name: str) -> None:
    tar = bytearray(archive(*good_members()))
    header = tar.index(name.encode() + b"\0")
    tar[header + at] ^= change
    refusal = refusal_of(compress(bytes(tar)))
    assert refusal.reason in {Reason.INVALID_BUNDLE, Reason.INVALID_MANIFEST}


def test_every_one_byte_change_of_one_header_and_of_its_checksum_is_refused() -> None:
    # With a checksum that fits, only the comparison with the canonical header is left to notice.
    good = Header(name="ui/x.js", size=3).block()
    for at in [*range(148), *range(156, 512)]:
        block = bytearray(good)
        block[at] ^= 0x01
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        try:
            entry = ustar.decode(bytes(block))
        except RefusalError as refusal:
            assert refusal.reason is Reason.INVALID_BUNDLE  # noqa: PT017 (some changes are other good headers)
        else:
            assert ustar.encode(entry) == bytes(block)
            assert entry != ustar.decode(good)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_altered_archive_passes_for_the_original(data: st.DataObject) -> None:
    packed = bytearray(make_bundle())
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RefusalError) as caught:
        read_bundle(io.BytesIO(bytes(packed)), DiscardSink(), expected=content_hash(make_bundle()))
    assert caught.value.reason is Reason.BUNDLE_CORRUPT


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=3_000))
def test_nothing_but_a_refusal_ever_leaves_the_reader(tar: bytes) -> None:
    with pytest.raises(RefusalError):
        read_bundle(io.BytesIO(compress(tar)), DiscardSink())
    with pytest.raises(RefusalError):
        read_bundle(io.BytesIO(tar), DiscardSink())


def test_the_original_under_its_hash_is_accepted_and_under_another_it_is_corrupt() -> None:
    packed = make_bundle()
    read_bundle(io.BytesIO(packed), DiscardSink(), expected=content_hash(packed))
    with pytest.raises(RefusalError) as caught:
        read_bundle(io.BytesIO(packed), DiscardSink(), expected=content_hash(b"other"))
    assert caught.value.reason is Reason.BUNDLE_CORRUPT


def test_a_stored_archive_that_is_bad_but_itself_is_told_as_bad() -> None:
    bad = compress(archive(*good_members(), file("zzz", b"")))
    with pytest.raises(RefusalError) as caught:
        read_bundle(io.BytesIO(bad), DiscardSink(), expected=content_hash(bad))
    assert caught.value.reason is Reason.INVALID_BUNDLE


# --- the frame ---


def test_bytes_after_the_frame_are_refused() -> None:
    assert "exactly one frame" in refusal_of(make_bundle() + b"\0").public_detail


def test_a_second_frame_is_refused() -> None:
    assert "exactly one frame" in refusal_of(make_bundle() + make_bundle()).public_detail


def test_an_empty_second_frame_is_refused() -> None:
    assert "exactly one frame" in refusal_of(make_bundle() + compress(b"")).public_detail


@pytest.mark.parametrize("magic", [0x184D2A50, 0x184D2A57, 0x184D2A5F])
def test_skippable_frames_are_refused(magic: int) -> None:
    skippable = magic.to_bytes(4, "little") + (4).to_bytes(4, "little") + b"skip"
    assert "skippable" in refusal_of(skippable + make_bundle(), begun=[]).public_detail
    assert "exactly one frame" in refusal_of(make_bundle() + skippable).public_detail


def test_a_dictionary_is_refused() -> None:
    packed = bytearray(make_bundle())
    packed[4] |= 0x01
    assert "dictionaries" in refusal_of(bytes(packed), begun=[]).public_detail


@pytest.mark.parametrize("bit", [0x08, 0x10])
def test_reserved_bits_are_refused(bit: int) -> None:
    packed = bytearray(make_bundle())
    packed[4] |= bit
    assert "reserved" in refusal_of(bytes(packed), begun=[]).public_detail


def test_a_frame_without_checksum_is_refused() -> None:
    assert "checksum" in refusal_of(compress(archive(*good_members()), checksum=False), begun=[]).public_detail


def test_a_wrong_checksum_is_refused() -> None:
    packed = bytearray(make_bundle())
    packed[-1] ^= 1
    assert "damaged" in refusal_of(bytes(packed)).public_detail


@pytest.mark.parametrize("pledge", [True, False])
def test_a_frame_that_hides_its_size_is_refused(pledge: bool) -> None:
    data = compress(archive(*good_members()), content_size=not pledge, pledge=pledge)
    assert "size of its content" in refusal_of(data, begun=[]).public_detail


def test_a_window_over_8_mib_is_refused_before_anything_is_unpacked() -> None:
    # Not a single segment, so that the window is written: descriptor 0b10_0_0_0_1_00, then log 23 with mantissa 1.
    header = (0xFD2FB528).to_bytes(4, "little") + bytes([0b1000_0100, (13 << 3) | 1]) + (5_120).to_bytes(4, "little")
    assert "window" in refusal_of(header + make_bundle()[10:], begun=[]).public_detail


def test_a_single_segment_is_its_own_window() -> None:
    header = (0xFD2FB528).to_bytes(4, "little") + bytes([0b1010_0100]) + (8 * 1024 * 1024 + 1).to_bytes(4, "little")
    assert "window" in refusal_of(header, begun=[]).public_detail


def test_8_mib_of_window_are_accepted() -> None:
    large = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(300_000))
    packed = compress(archive(*good_members(ui=large)), level=1)
    assert packed[5] == 13 << 3
    assert read_bundle(io.BytesIO(packed), DiscardSink()).ui_files[0].size == len(large)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 100])
def test_an_archive_that_is_cut_short_is_refused(size: int) -> None:
    assert refusal_of(make_bundle()[:size]).reason is Reason.INVALID_BUNDLE


def test_an_archive_without_its_last_byte_is_refused() -> None:
    assert "cut short" in refusal_of(make_bundle()[:-1]).public_detail


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"\x1f\x8b" + bytes(100), bytes(100), b"\x28\xb5\x2f\xfe" + bytes(100)])
def test_what_is_no_zstd_frame_is_refused(data: bytes) -> None:
    assert "no zstd frame" in refusal_of(data, begun=[]).public_detail


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    packed = bytearray(compress(archive(*good_members())))
    assert packed[4] >> 6 == 1  # The size is in bytes 5 and 6.
    for change in (1, -1, 512):
        size = int.from_bytes(packed[5:7], "little") + change
        assert refusal_of(bytes(packed[:5]) + size.to_bytes(2, "little") + bytes(packed[7:])).reason is Reason.INVALID_BUNDLE


# --- the tar stream ---


@pytest.mark.parametrize(
    "end", [b"", bytes(512), bytes(512) + b"x" + bytes(511), bytes(1024) + bytes(512), bytes(10_240), bytes(1024) + b"x" * 512]
)
def test_an_archive_ends_with_exactly_two_zero_blocks(end: bytes) -> None:
    assert refusal_of(compress(archive(*good_members(), end=end))).reason is Reason.INVALID_BUNDLE


def test_a_second_archive_is_refused() -> None:
    twice = archive(*good_members()) + archive(*good_members())
    assert "bytes follow the end" in refusal_of(compress(twice)).public_detail


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K", b"S", b"V", b"D", b"M", b"N"])
def test_extension_headers_are_refused_before_their_payload(kind: bytes) -> None:
    evil = member(Header(name="ui/pax", size=1024, kind=kind), b"9999 path=x\n" + bytes(1012))
    refused([*good_members()[:4], evil, *good_members()[4:]], "extension headers", begun=["dist/main.wasm", "manifest.json"])


@pytest.mark.parametrize(("kind", "problem"), [(b"1", "links"), (b"2", "links"), (b"3", "devices"), (b"4", "devices"), (b"6", "devices")])
def test_links_and_devices_are_refused(kind: bytes, problem: str) -> None:
    refused([*good_members(), member(Header(name="ui/zz", kind=kind, link=b"/etc/passwd"))], problem)


@pytest.mark.parametrize("kind", [b"7", b"\0", b"A", b"Z", b"8", b"9", b"\xff"])
def test_other_types_are_refused(kind: bytes) -> None:
    refused([*good_members(), member(Header(name="ui/zz", kind=kind))], "regular file")


def test_base_256_numbers_are_refused() -> None:
    refused([*good_members(), member(Header(name="ui/zz", raw_size=b"\x80" + bytes(10) + b"\x01"))], "base-256")
    refused([*good_members(), member(Header(name="ui/zz", raw_size=b"\xff" * 12))], "base-256")


@pytest.mark.parametrize(
    "raw_size", [b"          1\0", b"1\0" + bytes(10), b"00000000001 ", b"0000000001\0\0", b"-0000000001\0", b"0000000000x\0"]
)
def test_a_size_has_one_spelling(raw_size: bytes) -> None:
    refused([*good_members(), member(Header(name="ui/zz", raw_size=raw_size), b"x")], "canonical form")


@pytest.mark.parametrize(
    "header",
    [
        Header(name="ui/zz", mode=b"0000755\0"),
        Header(name="ui/zz", mode=b"0004644\0"),
        Header(name="ui/zz", mode=b"0000600\0"),
        Header(name="ui/zz", mtime=b"00000000001\0"),
        Header(name="ui/zz", owner=b"0000001\0"),
        Header(name="ui/zz", owner_name=b"root"),
        Header(name="ui/zz", magic=b"ustar  \0"),
        Header(name="ui/zz", magic=bytes(8)),
        Header(name="ui/zz", link=b"x"),
        Header(name="ui/zz", devices=b"0000001\x000000000\0"),
        Header(name="ui/zz", tail=b"x"),
        Header(name="zz", prefix=b"ui"),
        Header(name="ui/zz/", kind=b"0"),
        Header(name="ui/zz", kind=b"5"),
        Header(name="ui/zz/", mode=b"0000700\0"),
    ],
)
def test_a_header_has_one_spelling(header: Header) -> None:
    refused([*good_members(), member(header)], "canonical form")


def test_a_wrong_header_checksum_is_refused() -> None:
    evil = bytearray(file("ui/zz"))
    evil[150] = ord("7") if evil[150] != ord("7") else ord("6")
    refused([*good_members(), bytes(evil)], "canonical form")


def test_padding_is_zero() -> None:
    evil = bytearray(file("ui/zz", b"x"))
    evil[-1] = 1
    refused([*good_members(), bytes(evil)], "padding")


def test_a_content_that_runs_over_the_end_is_refused_before_it_is_read() -> None:
    for size in (1, 513, 10**9, 8**11 - 1):
        evil = Header(name="ui/zz", raw_size=b"%011o\0" % size).block()
        data = compress(archive(*good_members(), evil))
        refusal = refusal_of(data, begun=["dist/main.wasm", "manifest.json", "ui/index.html"])
        assert "ends within its content" in refusal.public_detail


def test_a_folder_has_no_content() -> None:
    refused([*good_members(), member(Header(name="ui/zz/", size=512), bytes(512))], "folder has no content")


# --- names ---


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("/ui/x", "absolute"),
        ("/", "absolute"),
        ("ui/../x", ". or .. segment"),
        ("../x", ". or .. segment"),
        ("ui/..", ". or .. segment"),
        ("ui/./x", ". or .. segment"),
        ("./ui/x", ". or .. segment"),
        ("ui//x", "empty segment"),
        ("ui/x//", "empty segment"),
        ("ui/.env", "hidden"),
        ("ui/.git/x", "hidden"),
        ("ui/...", "hidden"),
        ("ui/x.", "dot or space"),
        ("ui/x ", "dot or space"),
        ("ui/ x", "dot or space"),
        ("ui/a\\b", "one of"),
        ("ui/c:x", "one of"),
        ("ui/a?b", "one of"),
        ("ui/CON", "device"),
        ("ui/nul.txt", "device"),
        ("ui/Com1.tar.gz", "device"),
        ("ui/lpt¹", "device"),
        ("ui/a\x01b", "control"),
        ("ui/a\x7fb", "control"),
        ("ui/a\nb", "control"),
        ("ui/a\x1b[2J", "control"),
        ("ui/a\u0085b", "control"),
        ("ui/a\u202eb", "control"),
        ("ui/a\u2066b", "control"),
        ("ui/a\u200db", "control"),
        ("ui/a\ufeffb", "control"),
        ("ui/a\u2028b", "control"),
        ("ui/a\ue000b", "control"),
        ("ui/a\u0378b", "control"),
        ("ui/a\u00a0b", "space other than"),
        ("ui/a\u3000b", "space other than"),
        ("ui/e\u0301", "normal form C"),
        ("ui/\u212a", "normal form C"),
        ("ui/\ufb01", None),
        ("", "no name"),
    ],
)
def test_names_that_no_bundle_holds_are_refused(name: str, problem: str | None) -> None:
    members = [*good_members(), file(name)]
    if problem is None:
        assert read_bundle(io.BytesIO(compress(archive(*members))), DiscardSink()).files[-1].path == name
    else:
        refused(members, problem)


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    for name in (b"ui/\xff", b"ui/\xed\xa0\x80", b"ui/\xc0\xae\xc0\xae"):
        refused([*good_members(), file(name)], "not UTF-8")


@pytest.mark.parametrize(
    "name",
    [
        "bin/x",
        "dist/other.wasm",
        "dist/main.wasm.bak",
        "dist/sub/",
        "main.wasm",
        "SIGNATURE",
        "manifest.json.bak",
        "precompiled/x.cwasm",
        "Manifest.json",
        "run.sh",
    ],
)
def test_the_layout_is_closed(name: str) -> None:
    members = sorted([*good_members(), file(name)], key=lambda data: data[:100])
    refusal = refusal_of(compress(archive(*members)))
    assert refusal.reason is Reason.INVALID_BUNDLE
    assert "may be in a bundle" in refusal.public_detail or "differs only by case" in refusal.public_detail


def test_the_same_name_twice_is_refused() -> None:
    refused([*good_members(), file("ui/index.html")], "same name")
    refused([*good_members(), file("manifest.json", manifest_bytes(version="2.0.0"))], "same name")


@pytest.mark.parametrize(("one", "other"), [("ui/A.js", "ui/a.js"), ("ui/straße", "ui/strasse"), ("ui/Ä", "ui/ä"), ("ui/ﬁ", "ui/fi")])
def test_names_that_differ_only_by_case_are_refused(one: str, other: str) -> None:
    pair = sorted([one, other], key=str.encode)
    members = sorted([*good_members(), *(file(name) for name in pair)], key=lambda data: data[:100])
    refused(members, "differs only by case")


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    refused([*good_members(), file("ui/x"), file("ui/x/"), file("ui/x/y")], "same name")


def test_folders_that_differ_only_by_case_are_refused() -> None:
    refused(
        [*good_members()[:4], file("ui/A/"), file("ui/A/x"), file("ui/a/"), file("ui/a/y"), *good_members()[4:]], "differs only by case"
    )


@pytest.mark.parametrize(("length", "fits"), [(99, True), (100, True), (101, False)])
def test_the_last_segment_is_bounded_by_the_header(length: int, fits: bool) -> None:
    name = "ui/" + "z" * length
    prefix, last = (b"", name.encode()) if len(name) <= 100 else (b"ui", name.encode()[3:])
    if fits:
        packed = compress(archive(*good_members(), file(last, prefix=prefix)))
        assert read_bundle(io.BytesIO(packed), DiscardSink()).files[-1].path == name
    else:
        with pytest.raises(RefusalError, match="too long"):
            pack_files(files({name: b""}))


def test_the_longest_name_is_read_as_it_was_packed() -> None:
    name = "ui/" + "a" * 75 + "/" + "b" * 75 + "/" + "c" * 100
    assert len(name) == 255
    sink = CollectingSink()
    read_bundle(io.BytesIO(pack_files(files({name: b"x"}))), sink)
    assert sink.files[name] == b"x"
    with pytest.raises(RefusalError, match="longer than 255 bytes"):
        pack_files(files({"ui/" + "a" * 76 + "/" + "b" * 75 + "/" + "c" * 100: b"x"}))


def test_bytes_are_counted_and_not_characters() -> None:
    with pytest.raises(RefusalError, match="too long"):
        pack_files(files({"ui/" + "ä" * 51: b""}))


# --- order and folders ---


def test_entries_are_sorted() -> None:
    good = good_members()
    refused([good[0], good[1], good[3], good[4], good[2]], "not sorted")
    refused([*good, file("ui/b.js"), file("ui/a.js")], "not sorted")


def test_a_folder_has_an_entry_before_its_files() -> None:
    good = good_members()
    refused([*good[:3], good[4]], "no entry of its own")
    refused([*good, file("ui/x/y.js")], "no entry of its own")


def test_an_empty_folder_is_refused() -> None:
    refused([*good_members(), file("ui/x/")], "empty folder")
    refused([file("dist/"), *good_members()[2:]], "empty folder")


# --- contents ---


def test_a_bundle_has_a_manifest() -> None:
    good = good_members()
    refused([*good[:2], *good[3:]], "no manifest.json")
    refused([], "no manifest.json")


def test_a_runtime_with_code_needs_the_code() -> None:
    refused(good_members()[2:], "needs dist/main.wasm")


def test_a_runtime_without_code_must_not_bring_any() -> None:
    refused(good_members(runtime="ui-only@1", api=None), "has no dist/main.wasm")


def test_what_the_manifest_names_is_there() -> None:
    refused(good_members()[:3], "ui.entry of the manifest")
    missing_route = {"type": "iframe", "entry": "ui/index.html", "routes": [{"path": "/a", "iframePath": "ui/a.html"}]}
    refused(_with_ui(missing_route), "ui.routes[0].iframePath")
    refused(good_members(sbom="sbom.spdx.json"), "sbom of the manifest")


def _with_ui(ui: object) -> list[bytes]:
    members = good_members()
    members[2] = file("manifest.json", manifest_bytes(ui=ui))
    return members


@pytest.mark.parametrize("content", [b"", b"\0as", b"\0asn\x0d\0\x01\0", b"\x7fELF" + bytes(100), b"#!/bin/sh\n"])
def test_the_component_is_webassembly(content: bytes) -> None:
    members = good_members()
    members[1] = file("dist/main.wasm", content)
    refused(members, "no WebAssembly binary")


def test_a_bad_manifest_is_told_with_its_place() -> None:
    refusal = refusal_of(compress(archive(*good_members(version="1"))))
    assert refusal.reason is Reason.INVALID_MANIFEST
    assert refusal.metadata == {"place": "version"}


def test_a_manifest_that_is_too_large_is_refused_before_it_is_read() -> None:
    members = good_members()
    members[2] = file("manifest.json", b" " * (256 * 1024 + 1))
    refusal = refusal_of(compress(archive(*members)), begun=["dist/main.wasm"])
    assert "larger than 262144 bytes" in refusal.public_detail


# --- limits ---


def small(**changes: int) -> BundleLimits:
    return BundleLimits(**changes)


@pytest.mark.parametrize(("slack", "fits"), [(1, True), (0, True), (-1, False)])
def test_the_packed_size_is_bounded(slack: int, fits: bool) -> None:
    packed = make_bundle()
    limits = small(packed_bytes=len(packed) + slack)
    if fits:
        assert read_bundle(io.BytesIO(packed), DiscardSink(), limits=limits).packed_bytes == len(packed)
    else:
        assert "archive is longer" in refusal_of(packed, limits=limits).public_detail


@pytest.mark.parametrize(("slack", "fits"), [(1, True), (0, True), (-1, False)])
def test_the_unpacked_size_is_bounded_before_anything_is_unpacked(slack: int, fits: bool) -> None:
    tar = archive(*good_members())
    limits = small(unpacked_bytes=len(tar) + slack)
    if fits:
        assert read_bundle(io.BytesIO(compress(tar)), DiscardSink(), limits=limits).unpacked_bytes == len(tar)
    else:
        assert "unpacks to more" in refusal_of(compress(tar), limits=limits, begun=[]).public_detail


@pytest.mark.parametrize(("allowed", "fits"), [(6, True), (5, True), (4, False)])
def test_the_number_of_entries_is_bounded(allowed: int, fits: bool) -> None:
    packed = compress(archive(*good_members()))
    if fits:
        assert len(read_bundle(io.BytesIO(packed), DiscardSink(), limits=small(files=allowed)).files) == 3
    else:
        assert (
            "more than 4 files" in refusal_of(packed, limits=small(files=allowed), begun=["dist/main.wasm", "manifest.json"]).public_detail
        )


@pytest.mark.parametrize(("allowed", "fits"), [(9, True), (8, True), (7, False)])
def test_the_component_is_bounded_before_it_is_read(allowed: int, fits: bool) -> None:
    packed = make_bundle()
    if fits:
        assert read_bundle(io.BytesIO(packed), DiscardSink(), limits=small(wasm_bytes=allowed)).wasm is not None
    else:
        assert "larger than 7 bytes" in refusal_of(packed, limits=small(wasm_bytes=allowed), begun=[]).public_detail


def test_the_default_limits_are_those_of_the_design() -> None:
    limits = BundleLimits()
    assert (limits.packed_bytes, limits.unpacked_bytes, limits.files, limits.wasm_bytes) == (200 << 20, 512 << 20, 10_000, 64 << 20)


def test_a_sink_that_fails_stops_the_reading() -> None:
    class Full:
        def begin(self, path: str, size: int) -> Callable[[bytes], object]:
            def write(chunk: bytes) -> None:
                raise OSError(28, "no space")

            return write

        def end(self, file: BundleFile) -> None:
            message = "a file that was not written is not ended"
            raise AssertionError(message)

    with pytest.raises(OSError, match="no space"):
        read_bundle(io.BytesIO(make_bundle()), Full())


def test_damaged_archive__is_not_blamed_on_its_manifest() -> None:
    members = good_members()
    members[2] = file("manifest.json", b'{"name": "com.example.no')
    whole = compress(archive(*members))
    assert refusal_of(whole).reason is Reason.INVALID_MANIFEST
    # The frame's last bytes are its checksum: with another one, nothing in the archive is what somebody wrote.
    assert refusal_of(whole[:-1] + bytes([whole[-1] ^ 1])).reason is Reason.INVALID_BUNDLE
