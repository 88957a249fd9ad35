"""What torch.distributed raises where a peer is gone, as our own error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evenflow.errors import PeerLostError, first_line


@contextmanager
def naming_the_lost() -> Iterator[None]:
    """Within, what torch.distributed raises is a lost peer."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"lost the connection to another rank: {first_line(error)}") from error
