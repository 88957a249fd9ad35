"""This host's own address on the way to another one, so that sockets are bound to a network and not to a guess.

Without it gloo looks up the host's name and falls back to the loopback interface where that fails, and a run
over several hosts would wait for peers that can never come.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

from evenflow.errors import InputError

_SIOCGIFADDR = 0x8915  # of netdevice(7): an interface's IPv4 address


def own_address(other: str, port: int) -> str:
    """The address that this host has towards `other`, by its routes; nothing is sent.

    Raises:
        InputError: the name is not known, or there is no route.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(other, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(
            f"MASTER_ADDR {other} cannot be reached from {socket.gethostname()}: {error.strerror or error}; an "
            "address of the host with rank 0 that all hosts have a route to would do"
        ) from None


def interface_of(address: str) -> str:
    """The network interface that has `address`.

    Raises:
        InputError: none has it.
    """
    wanted = ipaddress.ip_address(address.partition("%")[0])
    for _, name in socket.if_nameindex():
        if wanted in _addresses(name):
            return name
    raise InputError(f"no network interface of {socket.gethostname()} has {address}; GLOO_SOCKET_IFNAME can name one")


def address_of(interface: str) -> str:
    """The address of a network interface, IPv4 where it has one.

    Raises:
        InputError: there is no such interface, or it has no address.
    """
    if interface not in (name for _, name in socket.if_nameindex()):
        raise InputError(f"GLOO_SOCKET_IFNAME is {interface}, which {socket.gethostname()} does not have")
    found = _addresses(interface)
    if not found:
        raise InputError(f"GLOO_SOCKET_IFNAME is {interface}, which has no address on {socket.gethostname()}")
    return str(found[0])


def is_loopback(address: str) -> bool:
    """Whether an address means this host alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _addresses(interface: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
            found.append(ipaddress.IPv4Address(answer[20:24]))
        except OSError:
            pass  # it has none
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        lines = []  # a kernel without IPv6
    for line in lines:
        digits, *_, name = line.split()
        if name == interface:
            found.append(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return found
