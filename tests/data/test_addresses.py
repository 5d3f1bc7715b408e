"""Public addresses: every special block of IANA's registries, and IPv4 addresses inside IPv6 ones."""

import ipaddress

import pytest

from unicl_cli.data.addresses import is_public
from unicl_cli.data.fetch import FetchError, check_public

SPECIAL = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.0.0/29", "192.0.0.8/32", "192.0.0.170/31", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
    *("::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:2::/48"),
    *("2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7"),
    *("fe80::/10", "fec0::/10", "ff00::/8", "200::/7", "400::/6", "800::/5", "1000::/4", "4000::/3", "6000::/3"),
    *("8000::/3", "a000::/3", "c000::/3", "e000::/4", "f000::/5", "f800::/6", "fe00::/9"),
)
"""The blocks that the registries call not globally reachable, reserved or multicast (read in November 2026)."""
INNER = ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "240.0.0.1")


@pytest.mark.parametrize("block", SPECIAL)
def test_both_ends_of_every_special_block_are_refused(block: str):
    net = ipaddress.ip_network(block)
    for address in (net[0], net[-1]):
        assert not is_public(str(address)), address


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("net", ["::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::"])
def test_an_address_inside_another_is_judged(net: str, inner: str):
    value = int(ipaddress.IPv4Address(inner))
    assert not is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(net)) + value)))
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) + (value << 80) + 1)))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.32.0.0", "198.20.0.0", "223.255.255.255"),
        *("2606:2800:220:1::1", "2001:4860:4860::8888", "2001:200::1", "2003::1", "3ffe::1", "3fff:1000::1"),
        *("64:ff9b::5db8:d822", "::ffff:93.184.216.34", "2002:5db8:d822::1"),
    ],
)
def test_public_addresses_pass(address: str):
    assert is_public(address)
    check_public(address, "name")


def test_a_refused_address_is_named_with_its_host_and_a_zone_does_not_hide_it():
    with pytest.raises(FetchError, match=r"^private_address: name is fe80::1%eth0$"):
        check_public("fe80::1%eth0", "name")
