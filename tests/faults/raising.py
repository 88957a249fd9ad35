"""Makes one rank's forward raise, from outside the package: a `sitecustomize` that the fork server imports."""

from __future__ import annotations

import os
from pathlib import Path

_SITECUSTOMIZE = """
import os, sys, time
if "evenflow.launch.server" in sys.orig_argv and "RAISE_IN" in os.environ:
    import torch.distributed
    from evenflow.execute.runner import StageRunner
    whole, calls, where = StageRunner.forward, [0], os.environ["RAISE_IN"]
    rank, call, note = where.split(":", 2)

    def forward(self, microbatch, hidden, *rest):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == int(rank):
            calls[0] += 1
            if calls[0] == int(call):
                time.sleep(0.5)  # by now every other rank is blocked in a receive
                with open(note, "w") as file:
                    file.write(str(time.time()))
                raise ValueError("the weights caught fire\\nand a second line")
        return whole(self, microbatch, hidden, *rest)

    StageRunner.forward = forward
"""


def raising_environment(folder: Path, rank: int, call: int) -> tuple[dict[str, str], Path]:
    """An environment in which a rank's `call`-th forward raises, and the file that then holds when it did."""
    (folder / "injected").mkdir()
    (folder / "injected" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    note = folder / "raised-at"
    path = os.pathsep.join(filter(None, [str(folder / "injected"), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "RAISE_IN": f"{rank}:{call}:{note}"}, note
