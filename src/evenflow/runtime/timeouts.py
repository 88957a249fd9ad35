"""Changes how long transfers may take while a job runs: gloo's groups are made with one timeout for all of it."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

from evenflow.runtime.transport import GlooTransport, Transport


def set_gloo_timeouts(host: Transport, seconds: float) -> None:
    """Have what this process starts over gloo from now on fail after so many seconds.

    Args:
        host: how the ranks have met; nothing is to be done for one that is alone.
        seconds: how long one transfer, or one reduction of any of this process's groups, may take.
    """
    if not isinstance(host, GlooTransport):
        return
    host.timeout = timedelta(seconds=seconds)
    for group in list(dist.distributed_c10d._world.pg_map):
        if dist.get_backend(group) == dist.Backend.GLOO:
            dist.distributed_c10d._set_pg_timeout(host.timeout, group)
