"""Where the ranks of one job meet: a file on one host, or a place in the store that torchrun's workers share.

A rendezvous is text, so that it can be in a rank's payload: a file's path, or tcp://HOST:PORT/PREFIX.
"""

from __future__ import annotations

import os
from datetime import timedelta
from urllib.parse import urlsplit

# They are public, but not in torch's stubs.
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # stubs lack it

from evenflow.launch import interface_of, own_address

_TCP = "tcp://"


def meeting_store(rendezvous: str, ranks: int, timeout_s: float) -> Store:
    """The store that the ranks of one job exchange their addresses through.

    Raises:
        RuntimeError: torch's, when the store is not there.
    """
    if not rendezvous.startswith(_TCP):
        return FileStore(rendezvous, ranks)
    place = urlsplit(rendezvous)
    return PrefixStore(place.path, open_store(place.hostname or "", place.port or 0, False, timeout_s))


def open_store(host: str, port: int, serve: bool, timeout_s: float) -> Store:
    """The store at an address, as a client of it or, with `serve`, as its server for as long as the value lives.

    Raises:
        RuntimeError: torch's, when nobody serves it in time.
    """
    return TCPStore(host, port, None, serve, timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True)


def bind_gloo(rendezvous: str) -> None:
    """Have gloo bind its sockets to one interface: loopback on one host, else the one that routes to the store.

    Across hosts a GLOO_SOCKET_IFNAME of the user's stays. Left to itself gloo looks up the host's name and falls
    back to the loopback interface where that fails.

    Raises:
        InputError: there is no such interface.
    """
    if not rendezvous.startswith(_TCP):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    elif not os.environ.get("GLOO_SOCKET_IFNAME"):
        place = urlsplit(rendezvous)
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(own_address(place.hostname or "", place.port or 0))
