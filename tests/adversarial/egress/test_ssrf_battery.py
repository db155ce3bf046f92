"""The SSRF battery: one table, run through broker, policy and egress process, with the list of hosts enforced and with it counted (T10).

Every row names its host in the manifest, in the tenant's list and in the operator's ceiling, so that nothing but the row's own trick stands
in the way; only the last rows are about the lists. Addresses are judged by the default policy: nothing special is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from registry.domain.egress import EgressRule, InstallEgress, is_host_pattern
from runnerd.capabilities.broker import CapabilityBroker
from runnerd.capabilities.catalog import BY_NAME
from runnerd.capabilities.egress_policy import EgressCeiling
from runnerd.capabilities.http import FetchLimits, http_handlers
from tests.fakes.capabilities import grant_of, make_broker
from tests.fakes.egress_kit import EgressKit, egress, says

FETCH = BY_NAME["alga:extension/http", "fetch"]
INVALID, REFUSED, TRANSPORT = "invalid-url", "not-allowed", "transport"


@dataclass(frozen=True)
class Row:
    """A URL, what its name resolves to, and what the guest gets."""

    url: str
    case: str
    result: str
    """Of the metric."""
    host: str = ""
    """What the lists name; the URL's where it is empty."""
    answers: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("https", "http")
    ports: tuple[int, ...] = (443, 80, 8080)


def literal(host: str, *, port: str = "") -> Row:
    """An address, spelt as it is connected to: judged as an address."""
    return Row(f"http://{host}{port}/", REFUSED, "address", host=str(ip_address(host.strip("[]"))))


def odd(url: str) -> Row:
    """A URL with more than one reading."""
    return Row(url, INVALID, "invalid", host="allowed.example")


def leads(number: int, *answers: str) -> Row:
    """A name on every list that resolves to what it should not."""
    return Row(f"https://n{number}.example/", REFUSED, "address", answers=answers)


SPECIAL_IPV4 = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1", "127.255.255.254",
    "168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192",
    "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.2.3",
    "240.0.0.1", "255.255.255.255",
)  # fmt: skip
SPECIAL_IPV6 = (
    "::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "64:ff9b::7f00:1",
    "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1",
    "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1",
)  # fmt: skip

ODD = (
    # Addresses in spellings that some programs read as one.
    "http://0x7f.1/", "http://0x7f000001/", "http://0177.0.0.1/", "http://017700000001/", "http://2130706433/", "http://127.1/",
    "http://127.0.1/", "http://127.0.0.1./", "http://0/", "http://0x/", "http://1.2.3.4.5/", "http://256.1.1.1/",
    "http://169.254.169.0xfe/", "http://allowed.example.0x7f/", "http://\uff11\uff12\uff17.0.0.1/", "http://127\u30020.0.1/",
    "http://127.0.0.1%2f.allowed.example/",
    # Userinfo, zones, ports, brackets.
    "http://allowed.example@127.0.0.1/", "http://user:password@allowed.example/", "http://allowed.example:80@127.0.0.1/",
    "http://@allowed.example/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1/", "http://::1/", "http://[::1]x/",
    "http://[v1.x]/", "http://[127.0.0.1]/", "http://allowed.example:0/", "http://allowed.example:65536/", "http://allowed.example:/",
    "http://allowed.example:080/", "http://allowed.example:-1/", "http://allowed.example:80:80/", "http://allowed.example:\uff18\uff10/",
    # Names in other spellings.
    "http://allowed.example./", "http://allowed..example/", "http://.allowed.example/", "http://*.example/", "http://allow%65d.example/",
    "http://allowed\uff0eexample/", "http://all\u200bowed.example/", "http://\u212aey.example/",
    "http://-allowed.example/", "http://a_b.example/", "http:///path",
    "http://" + "a" * 64 + ".example/", "http://" + "a." * 130 + "example/",
    # Other readings of the whole.
    "http:\\\\allowed.example\\", "http://allowed.example\\@127.0.0.1/", "http://allowed.example\t/", "http://allowed.example\r\nhost: x/",
    "http://allowed.example/\0", "http://allowed.example/a b", " http://allowed.example/", "http://allowed.example/ ", "//allowed.example/",
    "/path", "", "allowed.example", "http:allowed.example", "http:/allowed.example/", "https//allowed.example",
    # Other schemes.
    "ftp://allowed.example/", "file:///etc/passwd", "gopher://allowed.example/", "data:text/plain,x", "unix:///var/run/docker.sock",
    "ws://allowed.example/", "http+unix://x/", "javascript:alert(1)", "dict://allowed.example:11211/", "HTTPS+X://allowed.example/",
    "http://allowed.example/" + "a" * 9_000,
)  # fmt: skip

TABLE: tuple[Row, ...] = (
    *(literal(address) for address in SPECIAL_IPV4),
    *(literal(f"[{address}]") for address in SPECIAL_IPV6),
    literal("[0:0:0:0:0:ffff:7f00:1]"),
    literal("[::FFFF:7F00:1]"),
    literal("127.0.0.1", port=":8080"),
    *(odd(url) for url in ODD),
    *(leads(number, address) for number, address in enumerate((*SPECIAL_IPV4, *SPECIAL_IPV6))),
    # A public address beside a special one, of the same family and of the other.
    leads(900, "8.8.8.8", "127.0.0.1"),
    leads(901, "8.8.8.8", "::1"),
    leads(902, "2606:4700::1", "10.0.0.1"),
    leads(903, "cname:metadata.google.internal", "169.254.169.254"),
    Row("https://LOUD.Example/", REFUSED, "address", host="loud.example", answers=("127.0.0.1",)),
    Row("https://b\u00fccher.example/", REFUSED, "address", host="xn--bcher-kva.example", answers=("127.0.0.1",)),
    Row("https://localhost/", TRANSPORT, "dns"),
    Row("https://metadata.google.internal/", TRANSPORT, "dns"),
    # Scheme and port are enforced whatever is counted.
    Row("http://plain.example/", REFUSED, "not_on_list", schemes=("https",), answers=("127.0.0.1",)),
    Row("https://port.example:8443/", REFUSED, "not_on_list", answers=("127.0.0.1",)),
    Row("https://ceiling.example:9999/", REFUSED, "ceiling", ports=(443, 9999), answers=("127.0.0.1",)),
    Row("https://ceiling.test/", REFUSED, "ceiling", answers=("127.0.0.1",)),
    Row("https://beyond.test/", REFUSED, "ceiling", host="other.test", answers=("127.0.0.1",)),
    Row("http://off-list.example/", REFUSED, "not_on_list", host="other.example", answers=("127.0.0.1",)),
    Row("https://off-list.example:8443/", REFUSED, "not_on_list", host="other.example", ports=(443, 8443), answers=("127.0.0.1",)),
)

OFF_THE_LIST: tuple[Row, ...] = (
    Row("https://off-1.example/", REFUSED, "not_on_list", host="on-list.example"),
    Row("https://example/", REFUSED, "not_on_list", host="*.example"),
    Row("https://off-2.example/", REFUSED, "not_on_list", host="*.off-2.example"),
    Row("https://notoff-3.example/", REFUSED, "not_on_list", host="off-3.example"),
    Row("https://off-4.example.evil.example/", REFUSED, "not_on_list", host="off-4.example"),
)
"""The one thing that `count` relaxes: these are looked up there."""


def ceiling_of(row: Row) -> EgressCeiling:
    named = {row.host} if (row.host and ":" in row.host) or row.host.replace(".", "").isdigit() else set()
    return EgressCeiling(
        hosts=("*.example", "example", "localhost", "metadata.google.internal", *named),
        ports=(443, 80, 8080, 8443),
        schemes=("https", "http"),
    )


async def ask(kit: EgressKit, row: Row, *, counting: bool, number: int) -> tuple[str | None, str]:
    """Return the error case that a guest gets, and the word that was counted."""
    broker = _broker(kit, ceiling_of(row))
    host = row.host or row.url.partition("://")[2].partition("/")[0].partition(":")[0].lower()
    rules = (EgressRule(host=host, ports=row.ports, schemes=row.schemes),)
    until = datetime.now(UTC) + timedelta(days=1) if counting else None
    grant = grant_of("http.fetch", egress=InstallEgress(rules=rules, hosts=(host,), count_until=until), tenant_id=f"tenant-{number}")
    before = _counted(kit)
    result = await broker.call(grant, FETCH, ({"method": "GET", "url": row.url, "headers": [], "body": None},))
    after = _counted(kit)
    (word,) = [name for name in after if after[name] != before.get(name, 0)]
    return result.error, word


def _broker(kit: EgressKit, ceiling: EgressCeiling) -> CapabilityBroker:
    return make_broker(http_handlers(kit.client, ceiling=ceiling, limits=FetchLimits(), metrics=kit.metrics))


def _counted(kit: EgressKit) -> dict[str, float]:
    return {
        sample.labels["result"]: sample.value
        for metric in kit.metrics.registry.collect()
        if metric.name == "extrunner_egress_requests"
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


@pytest.mark.parametrize("mode", ["enforce", "count"])
async def test_battery(mode: str) -> None:
    counting = mode == "count"
    zone = {row.url.partition("://")[2].partition("/")[0].partition(":")[0].lower(): says(*row.answers) for row in TABLE if row.answers}
    zone["xn--bcher-kva.example"] = says("127.0.0.1")
    async with egress(zone) as kit:
        wrong: list[tuple[str, object, object]] = []
        for number, row in enumerate(TABLE):
            found = await ask(kit, row, counting=counting, number=number)
            if found != (row.case, row.result):
                wrong.append((row.url[:80], found, (row.case, row.result)))
        assert not wrong, "\n".join(map(str, wrong))
        # What a name alone decides was never asked of anybody.
        asked = set(kit.names.asked)
        assert not asked & {
            "plain.example",
            "port.example",
            "ceiling.example",
            "ceiling.test",
            "beyond.test",
            "off-list.example",
            "allowed.example",
        }
        for number, row in enumerate(OFF_THE_LIST):
            name = row.url.partition("://")[2].partition("/")[0]
            found = await ask(kit, row, counting=counting, number=10_000 + number)
            # Counted, it is looked up like any other name; nobody has this one.
            assert found == ((TRANSPORT, "dns") if counting else (row.case, row.result)), row
            assert (kit.names.asked[name] > 0) is counting, "a name off the list caused a packet"


def test_table__every_named_host_is_one_that_lists_can_name() -> None:
    named = [row.host for row in (*TABLE, *OFF_THE_LIST) if row.host and ":" not in row.host]
    assert named
    assert all(map(is_host_pattern, named))
