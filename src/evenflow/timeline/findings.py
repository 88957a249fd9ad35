"""What is known of a step beside its timelines: what simulations of it say. Whoever draws a step is given it."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.plan import Plan
from evenflow.timeline.stragglers import Faster, Straggler


@dataclass(frozen=True, slots=True)
class Findings:
    """What it takes a simulator to find, so that rooms that know none can say it.

    Attributes:
        faster: the step, were one rank a tenth faster; the largest gain first.
        late: stragglers, each with the step were it as fast as expected.
        compared: for each schedule its plan, or None and why there is none.
    """

    faster: tuple[Faster, ...] = ()
    late: tuple[tuple[Straggler, Faster], ...] = ()
    compared: tuple[tuple[str, Plan | None, str], ...] = ()
