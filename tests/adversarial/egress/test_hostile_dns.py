"""Name servers of the attacker's: what they say decides where a connection would go, and how long everybody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.fakes.egress_kit import LOOPBACK, EgressKit, Reply, egress, ok, raw_server, refuses, says, silent, until


def forged(change: str) -> Reply:
    """An answer to the right port that is not the answer to the question."""

    def reply(query: dns.message.Message) -> dns.message.Message:
        if change == "question":
            other = dns.message.make_query("other.example", query.question[0].rdtype)
            other.id = query.id
            return says("127.0.0.1")(other)
        answer = says("127.0.0.1")(query)
        if change == "id":
            answer.id = query.id ^ 1
        if change == "opcode":
            answer.set_opcode(dns.opcode.UPDATE)
        if change == "no response":
            answer.flags &= ~dns.flags.QR
        return answer

    return reply


def truncated(query: dns.message.Message) -> dns.message.Message:
    answer = dns.message.make_response(query)
    answer.flags |= dns.flags.TC
    return answer


def many(query: dns.message.Message) -> dns.message.Message:
    return says(*(f"127.0.1.{number}" for number in range(1, 60)))(query)


def heavy(query: dns.message.Message) -> dns.message.Message:
    """As many records of one address as a message holds."""
    answer = dns.message.make_response(query)
    answer.answer.extend(dns.rrset.from_text(query.question[0].name, 0, "IN", "A", "127.0.0.1") for _ in range(2_000))
    return answer


def looping(query: dns.message.Message) -> dns.message.Message:
    return says(*["cname:a.example", "cname:b.example"] * 20)(query)


ATTACKS: dict[str, tuple[Reply, str]] = {
    "nothing": (refuses(dns.rcode.NXDOMAIN), "dns"),
    "no addresses": (says(), "dns"),
    "failure": (refuses(dns.rcode.SERVFAIL), "dns"),
    "no message": (lambda query: b"\0" * 40, "dns"),
    "another id": (forged("id"), "dns"),
    "another question": (forged("question"), "dns"),
    "a question": (forged("no response"), "dns"),
    "another operation": (forged("opcode"), "dns"),
    "too many": (many, "dns"),
    "a loop": (looping, "dns"),
    "thousands of records": (truncated, "dns"),
    "one bad among good ones": (says("127.0.0.1", "10.0.0.1"), "address"),
    "a bad one of the other kind": (says("127.0.0.1", "fd00:ec2::254"), "address"),
    "an alias of a bad one": (says("cname:inner.example", "169.254.169.254"), "address"),
    "an alias of a good one": (says("cname:inner.example", "127.0.0.1"), "answered 200"),
}


async def test_answers__each_leads_to_its_end_and_nowhere_else() -> None:
    async with raw_server(ok()) as server:
        zone = {f"n{index}.example": reply for index, (reply, _) in enumerate(ATTACKS.values())}
        over_tcp = {f"tcp:n{list(ATTACKS).index('thousands of records')}.example": heavy}
        async with egress(zone | over_tcp, allowed_ranges=LOOPBACK) as kit:
            ends = await asyncio.gather(
                # Tenants of their own: each has few look-ups at once.
                *(kit.failure(f"http://{name}:{server.port}/", tenant_id=name, install_id=name) for name in zone)
            )
        wanted = [end for _, end in ATTACKS.values()]
        assert dict(zip(ATTACKS, ends, strict=True)) == dict(zip(ATTACKS, wanted, strict=True))
        assert len(server.accepted) == wanted.count("answered 200")


async def test_truncated__is_asked_again_over_tcp() -> None:
    async with raw_server(ok()) as server:
        zone: dict[str, Reply] = {"long.example": truncated, "tcp:long.example": says("127.0.0.1")}
        async with egress(zone, allowed_ranges=LOOPBACK) as kit:
            assert (await kit.get(f"http://long.example:{server.port}/")).status == 200
            assert kit.names.over_tcp["long.example"] == 2


async def test_rebinding__the_second_answer_is_checked_like_the_first() -> None:
    answers = iter([says("127.0.0.1"), says("127.0.0.1"), says("10.0.0.1"), says("10.0.0.1")])

    def rebind(query: dns.message.Message) -> dns.message.Message | bytes | None:
        return next(answers)(query)

    async with raw_server(ok(b"", "connection: close")) as server:
        async with egress({"rebinds.example": rebind}, allowed_ranges=LOOPBACK) as kit:
            url = f"http://rebinds.example:{server.port}/"
            assert (await kit.get(url)).status == 200
            assert await kit.failure(url) == "address"
        assert len(server.accepted) == 1


async def test_ttl__is_honoured_within_a_tenant_and_not_beyond() -> None:
    zone = {"kept.example": says("127.0.0.1", ttl=3_600), "new.example": says("127.0.0.1")}
    async with raw_server(ok(b"", "connection: close")) as server, egress(zone, allowed_ranges=LOOPBACK) as kit:
        for _ in range(3):
            await kit.get(f"http://kept.example:{server.port}/")
            await kit.get(f"http://new.example:{server.port}/")
        await kit.get(f"http://kept.example:{server.port}/", tenant_id="tenant-b", install_id="install-b")
        assert (kit.names.asked["kept.example"], kit.names.asked["new.example"]) == (4, 6)


async def test_silent_server_of_one_tenant__others_proceed() -> None:
    zone = {"slow.example": silent, "quick.example": says("127.0.0.1")}
    async with raw_server(ok()) as server, egress(zone, allowed_ranges=LOOPBACK) as kit:
        slow = [asyncio.ensure_future(kit.failure("http://slow.example/", install_id=f"a{number}", seconds=30.0)) for number in range(32)]
        try:
            await until(lambda: kit.names.asked["slow.example"] > 0)
            url = f"http://quick.example:{server.port}/"
            assert (await kit.get(url, tenant_id="tenant-b", install_id="b")).status == 200
            assert not all(task.done() for task in slow), "B waited for A"
            # Four look-ups at a time, of two questions each, for two seconds: most of A's thirty-two have not had their turn.
            assert kit.names.asked["slow.example"] < len(slow)
            # One more than a tenant may have.
            more = [asyncio.ensure_future(kit.failure(url)) for _ in range(33)]
            assert "unavailable" in await asyncio.gather(*more)
        finally:
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)


async def test_search_list_and_hosts_file__do_not_exist(kit: EgressKit) -> None:
    assert await kit.failure("http://localhost/") == "dns"
    assert await kit.failure("http://ip6-localhost/") == "dns"
    assert dict(kit.names.asked) == {"localhost": 2, "ip6-localhost": 2}


@pytest.fixture
async def kit() -> AsyncIterator[EgressKit]:
    async with egress(allowed_ranges=LOOPBACK) as made:
        yield made
