"""What happened when on which rank, why ranks idled, and predicted against measured."""

from evenflow.timeline.blame import Blame, blames
from evenflow.timeline.compare import ActionDifference, Comparison, Figure, compare
from evenflow.timeline.critical import PATH_CAUSES, PathCause, PathPart, critical_path, path_seconds
from evenflow.timeline.idle import Cause, Wait, idle_by_cause, reasons, waits
from evenflow.timeline.stragglers import Faster, Straggler, stragglers
from evenflow.timeline.timeline import Event, RankTimeline, Timeline, TimelineOrigin

__all__ = [
    "PATH_CAUSES",
    "ActionDifference",
    "Blame",
    "Cause",
    "Comparison",
    "Event",
    "Faster",
    "Figure",
    "PathCause",
    "PathPart",
    "RankTimeline",
    "Straggler",
    "Timeline",
    "TimelineOrigin",
    "Wait",
    "blames",
    "compare",
    "critical_path",
    "idle_by_cause",
    "path_seconds",
    "reasons",
    "stragglers",
    "waits",
]
