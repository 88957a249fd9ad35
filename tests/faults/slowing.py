"""Slows one rank's forwards by a known amount, from outside the package: a `sitecustomize` of the fork server.

All ranks' forwards and backwards are made longer by sleeping, far beyond what a tiny model computes: what a step takes
is then known on any machine, however busy. In slow steps one rank sleeps more, and notes how long it really was.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

_SITECUSTOMIZE = """
import json, os, sys, time
if "evenflow.launch.server" in sys.orig_argv and "SLOW" in os.environ:
    import torch.distributed
    from evenflow.execute.runner import StageRunner
    slow = json.loads(os.environ["SLOW"])
    begin_step, forward, backward = StageRunner.begin_step, StageRunner.forward, StageRunner.backward
    step, more = [0], [0.0]

    def own_begin_step(self, *rest):
        if more[0]:
            with open(slow["note"], "a") as file:
                file.write(json.dumps({"step": step[0], "seconds": more[0]}) + "\\n")
        step[0], more[0] = step[0] + 1, 0.0
        begin_step(self, *rest)

    def own_forward(self, *rest):
        time.sleep(slow["forward_s"])
        if torch.distributed.get_rank() == slow["rank"] and step[0] not in slow["quick_steps"]:
            before = time.perf_counter()
            time.sleep(slow["more_s"])
            more[0] += time.perf_counter() - before
        return forward(self, *rest)

    def own_backward(self, *rest):
        time.sleep(slow["backward_s"])
        return backward(self, *rest)

    StageRunner.begin_step, StageRunner.forward, StageRunner.backward = own_begin_step, own_forward, own_backward
"""


@dataclass(frozen=True, slots=True)
class Slowed:
    """What is slept: by all ranks in each forward and backward, and by one rank more, but in its quick steps."""

    rank: int
    forward_s: float
    backward_s: float
    more_s: float
    quick_steps: tuple[int, ...]

    def environment(self, folder: Path) -> dict[str, str]:
        """An environment in which runs are slowed."""
        (folder / "injected").mkdir()
        (folder / "injected" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        path = os.pathsep.join(filter(None, [str(folder / "injected"), os.environ.get("PYTHONPATH", "")]))
        told = {name: getattr(self, name) for name in ("rank", "forward_s", "backward_s", "more_s", "quick_steps")}
        return {"PYTHONPATH": path, "SLOW": json.dumps({**told, "note": str(folder / "slept")})}

    @staticmethod
    def slept(folder: Path) -> dict[int, float]:
        """By step, the seconds that the slow rank slept more than the others."""
        lines = (json.loads(line) for line in (folder / "slept").read_text().splitlines())
        return {own["step"]: own["seconds"] for own in lines}
