"""What happened when on which rank, why ranks idled, and predicted against measured."""

from evenflow.timeline.compare import ActionDifference, Comparison, Figure, compare
from evenflow.timeline.idle import Cause, Wait, idle_by_cause, waits
from evenflow.timeline.timeline import Event, RankTimeline, Timeline, TimelineOrigin

__all__ = [
    "ActionDifference",
    "Cause",
    "Comparison",
    "Event",
    "Figure",
    "RankTimeline",
    "Timeline",
    "TimelineOrigin",
    "Wait",
    "compare",
    "idle_by_cause",
    "waits",
]
