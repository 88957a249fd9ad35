"""What happened when on which rank, why ranks idled, and predicted against measured."""

from evenflow.timeline.blame import Blame, blames, root_blames
from evenflow.timeline.compare import ActionDifference, Comparison, Figure, compare
from evenflow.timeline.critical import PATH_CAUSES, PathCause, PathPart, critical_path, path_seconds
from evenflow.timeline.findings import Findings
from evenflow.timeline.idle import Cause, Wait, idle_by_cause, reasons, waits
from evenflow.timeline.stragglers import Faster, Straggler, stragglers, usual_pace
from evenflow.timeline.timeline import BUSY, Event, RankTimeline, Timeline, TimelineOrigin

__all__ = [
    "BUSY",
    "PATH_CAUSES",
    "ActionDifference",
    "Blame",
    "Cause",
    "Comparison",
    "Event",
    "Faster",
    "Figure",
    "Findings",
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
    "root_blames",
    "stragglers",
    "usual_pace",
    "waits",
]
