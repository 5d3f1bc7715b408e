"""The IP addresses that are public: those that a stranger's URL may lead to.

Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries and IPv6 Global Unicast Address Assignments. The lists
stand here because ``ipaddress.is_global`` differs between versions of Python and lags behind the registries.
"""

import ipaddress
from functools import lru_cache

_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared by the customers of a provider
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, metadata of clouds
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112: answers of the network itself
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA gives to the Internet; every other block is reserved, local or multicast."""
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, drones, AMT, AS112
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_CARRIERS = tuple(
    (ipaddress.IPv6Network(net), shift)
    for net, shift in (
        ("::/96", 0),  # IPv4-compatible, and ::1
        ("::ffff:0:0/96", 0),  # IPv4-mapped
        ("::ffff:0:0:0/96", 0),  # IPv4-translated (SIIT)
        ("64:ff9b::/96", 0),  # NAT64
        ("2002::/16", 80),  # 6to4
    )
)
"""The networks whose addresses hold an IPv4 address, and the number of bits behind it."""


@lru_cache(maxsize=4096)
def is_public(address: str) -> bool:
    """Return True if an address, as a resolver gives it, is public; an IPv4 address inside an IPv6 one is judged."""
    ip = ipaddress.ip_address(address.partition("%")[0])  # without the zone
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in net for net in _NOT_PUBLIC_4)
    for net, shift in _CARRIERS:
        if ip in net:
            return is_public(str(ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF)))
    return ip in _UNICAST and not any(ip in net for net in _NOT_PUBLIC_6)
