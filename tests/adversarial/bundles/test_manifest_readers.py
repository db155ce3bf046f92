"""One document, three readers (T32): what our reader accepts, JavaScript and PostgreSQL's jsonb read the same; the rest it refuses."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest
import rfc8785

from registry.bundles.manifest import parse_manifest
from registry.bundles.strict_json import StrictJsonError, read_json
from registry.domain.errors import RefusalError
from registry.migrations.roles import RUNNER, libpq_conninfo
from tests.fakes.archives import manifest_bytes

ACCEPTED = [
    b"{}",
    b'{"b":1,"a":2}',
    b'{"a":[1,2,{"c":null}],"b":true}',
    b'{"n":0,"m":-0,"z":-0.0,"e":1e2,"f":1E-2,"g":1.10,"h":0.1}',
    b'{"n":9007199254740991,"m":-9007199254740991}',
    b'{"n":9007199254740991.0,"tiny":5e-324,"none":1e-400,"third":0.3333333333333333333}',
    b'{"n":4.35,"m":1e-7,"o":123456789012345.67,"p":2.5e15}',
    b'{"\\u0061":"\\u0041\\/\\b\\f\\n\\r\\t\\"\\\\"}',
    '{"ä":"ö","漢":"字","😀":"🎉","\\ud83d\\ude01":1}'.encode(),
    '{"\ufb33":1,"😀":2,"\u20ac":3,"1":4,"\\r":5,"\u0080":6,"ö":7}'.encode(),
    '{"a":"\u2028\u2029\ufeff\u202e\ufffe"}'.encode(),
    b'{"__proto__":1,"constructor":{"prototype":2},"toString":3}',
    b'{"":""}',
    b"[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]",
    b' \t\r\n{ "a" : [ 1 , 2 ] } \n',
    manifest_bytes(),
]

REFUSED = [
    b'{"a":1,"a":2}',
    b'{"capabilities":[],"capabilities":["secrets.get"]}',
    b'{"a":1,"\\u0061":2}',
    b'{"a":{"b":1,"b":1}}',
    b'{"n":NaN}',
    b'{"n":Infinity}',
    b'{"n":9007199254740992}',
    b'{"n":9007199254740993}',
    b'{"n":1e400}',
    b'{"n":123456789012345678901234567890}',
    b'{"s":"\\ud800"}',
    b'{"s":"\\udead\\ubeef"}',
    b'{"s":"\\u0000"}',
    b'{"s":"\xed\xa0\x80"}',
    b'{"s":"\xff"}',
    b'{"s":"a\nb"}',
    b'\xef\xbb\xbf{"a":1}',
    b'{"a":1}//',
    b'{"a":1,}',
    b"{a:1}",
    b"{'a':1}",
    b'{"n":01}',
    b'{"n":+1}',
    b'{"n":0x10}',
    b'{"n":1_000}',
    b'{"n":.5}',
    b'{"n":5.}',
    b'{"a":1}{"a":2}',
    b'{"a":1}\0',
    b"",
    b"[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]",
]


def ours(data: bytes) -> bytes | None:
    try:
        return rfc8785.dumps(read_json(data, max_bytes=256 * 1024, max_depth=16))
    except StrictJsonError:
        return None


@pytest.mark.parametrize("data", ACCEPTED)
def test_what_every_reader_agrees_about_is_accepted(data: bytes) -> None:
    assert ours(data) is not None


@pytest.mark.parametrize("data", REFUSED)
def test_what_some_reader_sees_otherwise_is_refused(data: bytes) -> None:
    assert ours(data) is None
    with pytest.raises(RefusalError):
        parse_manifest(data)


def test_javascript_reads_what_we_read() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on this machine")
    documents = ACCEPTED + REFUSED
    program = Path(__file__).with_name("canonical_form.mjs")
    lines = b"".join(base64.b64encode(data) + b"\n" for data in documents)
    run = subprocess.run([node, str(program)], input=lines, capture_output=True, check=True, timeout=60)
    answers = run.stdout.decode().splitlines()
    assert len(answers) == len(documents)
    for data, answer in zip(documents, answers, strict=True):
        read = ours(data)
        if read is not None:
            assert answer != "refused"
            assert base64.b64decode(answer) == read


def test_postgresql_reads_what_we_read(module_database_urls: Mapping[str, str]) -> None:
    with psycopg.connect(libpq_conninfo(module_database_urls[RUNNER]), autocommit=True) as connection:
        for data in ACCEPTED:
            row = connection.execute("select cast(cast(%s as jsonb) as text)", (data.decode(),)).fetchone()
            assert row is not None
            assert rfc8785.dumps(json.loads(row[0])) == ours(data)
