"""Which addresses are connected to: public ones, and what the operator allows beyond.

The attack it stops (SSRF): a name of the attacker's that resolves to loopback, to the cloud's metadata service, to the database's network,
or to one of these in the clothes of another protocol (IPv4-mapped, NAT64, 6to4, Teredo). Everything that is not plain public unicast is
refused; an operator can open private networks, and nobody can open the metadata services.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA: Final[frozenset[Address]] = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Google Cloud, Azure, OpenStack, DigitalOcean
        "169.254.170.2",  # AWS ECS
        "169.254.169.253",  # AWS: its name server
        "168.63.129.16",  # Azure: WireServer, on a public address
        "100.100.100.200",  # Alibaba Cloud
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
)
"""Refused whatever is allowed: who reads them has the machine's identity."""

SPECIAL: Final[tuple[tuple[str, Network], ...]] = tuple(
    (name, ip_network(text))
    for name, text in (
        # IANA IPv4 Special-Purpose Address Registry, multicast and the former class E.
        ("unspecified", "0.0.0.0/8"),
        ("private", "10.0.0.0/8"),
        ("shared", "100.64.0.0/10"),
        ("loopback", "127.0.0.0/8"),
        ("link_local", "169.254.0.0/16"),
        ("private", "172.16.0.0/12"),
        ("reserved", "192.0.0.0/24"),
        ("documentation", "192.0.2.0/24"),
        ("reserved", "192.31.196.0/24"),
        ("reserved", "192.52.193.0/24"),
        ("6to4", "192.88.99.0/24"),
        ("private", "192.168.0.0/16"),
        ("reserved", "192.175.48.0/24"),
        ("benchmark", "198.18.0.0/15"),
        ("documentation", "198.51.100.0/24"),
        ("documentation", "203.0.113.0/24"),
        ("multicast", "224.0.0.0/4"),
        ("reserved", "240.0.0.0/4"),
        # IPv6: what lies outside of 2000::/3 is refused anyway; the names are for the log.
        ("unspecified", "::/128"),
        ("loopback", "::1/128"),
        ("ipv4_mapped", "::ffff:0:0/96"),
        ("ipv4_compatible", "::/96"),
        ("nat64", "64:ff9b::/96"),
        ("nat64", "64:ff9b:1::/48"),
        ("unique_local", "fc00::/7"),
        ("link_local", "fe80::/10"),
        ("site_local", "fec0::/10"),
        ("multicast", "ff00::/8"),
        # Inside of it.
        ("teredo", "2001::/32"),
        ("reserved", "2001::/23"),
        ("documentation", "2001:db8::/32"),
        ("6to4", "2002::/16"),
        ("reserved", "2620:4f:8000::/48"),
        ("documentation", "3fff::/20"),
    )
)
PUBLIC_IPV6: Final = IPv6Network("2000::/3")
"""Global unicast: all that was ever given out."""


class AddressRefusedError(Exception):
    """This address is not connected to; the text says of which kind it is."""


class AddressPolicy:
    """Judges addresses.

    Args:
        denied: further networks that are refused.
        allowed: networks that are connected to although they are special; what is denied or a metadata service stays refused.
    """

    def __init__(self, *, denied: Iterable[str] = (), allowed: Iterable[str] = ()) -> None:
        self._denied = tuple(ip_network(text) for text in denied)
        self._allowed = tuple(ip_network(text) for text in allowed)

    def refusal_of(self, text: str) -> str | None:
        """Return why an address is refused, as a word, or None where it is connected to."""
        try:
            address = ip_address(text)
        except ValueError:
            return "malformed"
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return "zone"
        if address in METADATA:
            return "metadata"
        if _within(address, self._denied):
            return "denied_by_operator"
        if _within(address, self._allowed):
            return None
        for name, network in SPECIAL:
            if address.version == network.version and address in network:
                return name
        if isinstance(address, IPv6Address) and address not in PUBLIC_IPV6:
            return "reserved"
        return None

    def check(self, addresses: Iterable[str]) -> None:
        """Go on if every one of the addresses is connected to.

        Raises:
            AddressRefusedError: one is not. One bad address among good ones spoils them all: whoever mixes them aims at the bad one.
        """
        for text in addresses:
            refusal = self.refusal_of(text)
            if refusal is not None:
                message = f"{text[:60]} is refused ({refusal})"
                raise AddressRefusedError(message)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
