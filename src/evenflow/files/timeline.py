"""timeline.json: one step, predicted and measured, so that a run can be drawn long after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from evenflow.errors import InputError, ProgramError
from evenflow.files.document import Document, Part, read_document, refused_as, write_json
from evenflow.files.kinds import TIMELINES, Kind
from evenflow.files.parts import (
    LEAST_STEP_S,
    MOST_LAYERS,
    Bytes,
    Count,
    Index,
    Microbatches,
    Moment,
    Seconds,
    SignedBytes,
)
from evenflow.program import Action, Program, action_text, check_size, parse_action, verify
from evenflow.timeline import RankTimeline, Timeline, TimelineOrigin


@dataclass(frozen=True, slots=True)
class StepTimelines:
    """What timeline.json holds: a predicted step, the measured one beside it, and which step that was."""

    predicted: Timeline
    measured: Timeline | None
    step: int | None


class EventsPart(Part):
    """A rank's events in three columns: tokens of the actions, when each started, when each ended."""

    actions: list[str]
    start_s: list[Moment]
    end_s: list[Moment]


class RankPart(Part):
    """One rank's step."""

    begin_s: Moment
    end_s: Moment
    peak_bytes: Bytes
    events: EventsPart
    memory: list[SignedBytes]

    @classmethod
    def of(cls, rank: RankTimeline) -> RankPart:
        """The part that says what `rank` is."""
        return cls(
            begin_s=rank.begin_s,
            end_s=rank.end_s,
            peak_bytes=rank.peak_bytes,
            events=EventsPart(
                actions=[action_text(action) for action in rank.actions],
                start_s=list(rank.starts),
                end_s=list(rank.ends),
            ),
            memory=list(rank.memory),
        )

    def value(self, actions: tuple[Action, ...]) -> RankTimeline:
        """The rank's step that this part says."""
        return RankTimeline(
            begin_s=self.begin_s,
            end_s=self.end_s,
            actions=actions,
            starts=tuple(self.events.start_s),
            ends=tuple(self.events.end_s),
            peak_bytes=self.peak_bytes,
            memory=tuple(self.memory),
        )

    def mistake(self) -> str | None:
        """What is wrong with this rank's columns."""
        count = len(self.events.actions)
        for name, column in (("start_s", self.events.start_s), ("end_s", self.events.end_s)):
            if len(column) != count:
                return f"events.{name}: has {len(column)} entries for {count} actions; as many would be right"
        if len(self.memory) not in (0, count):
            return f"memory: has {len(self.memory)} entries for {count} actions; as many, or none, would do"
        if self.end_s - self.begin_s < LEAST_STEP_S:
            return f"end_s: {self.end_s} is not after begin_s, {self.begin_s}"
        for at, (start, end) in enumerate(zip(self.events.start_s, self.events.end_s, strict=True)):
            if end < start - LEAST_STEP_S:
                return f"events.end_s.{at}: {end} is before its start_s, {start}"
        return None


class TimelinePart(Part):
    """One step of all ranks, the most by which their clocks may disagree, and what taking an action cost if known."""

    ranks: Annotated[list[RankPart], Field(min_length=1)]
    clock_error_s: Seconds = 0.0
    overhead_s: Seconds = 0.0


class TimelineDocument(Document):
    """The whole file."""

    kind: ClassVar[Kind] = TIMELINES

    step: Count | None
    stage_rank: Annotated[list[Index], Field(min_length=1, max_length=MOST_LAYERS)]
    microbatches: Microbatches
    reduces: bool
    forward_only: bool = False
    tied: list[list[Index]]
    predicted: TimelinePart
    measured: TimelinePart | None


def save_timelines(path: Path, predicted: Timeline, measured: Timeline | None, step: int | None) -> None:
    """Write timeline.json, atomically.

    Args:
        path: where.
        predicted: the step as the simulator has it.
        measured: the step as it ran, if it ran.
        step: the number of the measured step.

    Raises:
        ProgramError: the two are not timelines of one program, or events do not follow the program.
        InputError: a figure is beyond what the file holds, or the place cannot be written to.
        FaultError: the disk failed or is full.
    """
    for timeline in (predicted, measured):
        if timeline is not None:
            _check_follows(timeline, predicted.program)
    with refused_as(f"{path}: this step"):
        document = TimelineDocument(
            step=step,
            stage_rank=list(predicted.program.stage_rank),
            microbatches=predicted.program.microbatches,
            reduces=predicted.program.reduces,
            forward_only=predicted.program.forward_only,
            tied=[list(group) for group in predicted.program.tied],
            predicted=_part(predicted),
            measured=None if measured is None else _part(measured),
        )
    write_json(path, document.model_dump(), indented=False)  # thousands of numbers: nobody reads them by eye


def load_timelines(path: Path) -> StepTimelines:
    """Read timeline.json.

    Raises:
        InputError: the file is not one of timelines, or its actions do not make a legal program.
    """
    document = read_document(path, TimelineDocument)
    mistake = _shape_mistake(document)
    if mistake is not None:
        raise InputError(f"{path}: {mistake}")
    predicted = _timeline(document, document.predicted, "predicted", path)
    if document.measured is None:
        return StepTimelines(predicted, None, document.step)
    measured = _timeline(document, document.measured, "measured", path)
    if measured.program != predicted.program:
        raise InputError(f"{path}: measured: its actions are not those of predicted; one program has both")
    return StepTimelines(predicted, measured, document.step)


def _shape_mistake(document: TimelineDocument) -> str | None:
    """What `verify` takes for granted of a program's shape."""
    stages = len(document.stage_rank)
    try:
        check_size(stages, document.microbatches)
    except InputError as error:
        return f"microbatches: {error}"
    for number, group in enumerate(document.tied):
        for at, stage in enumerate(group):
            if stage >= stages:
                return f"tied.{number}.{at}: is {stage}; stages go from 0 to {stages - 1}"
    return None


def _part(timeline: Timeline) -> TimelinePart:
    return TimelinePart(
        ranks=[RankPart.of(rank) for rank in timeline.ranks],
        clock_error_s=timeline.clock_error_s,
        overhead_s=timeline.overhead_s,
    )


def _check_follows(timeline: Timeline, program: Program) -> None:
    if timeline.program != program:
        raise ProgramError("the two timelines are not of the same program")
    for number, (rank, actions) in enumerate(zip(timeline.ranks, program.ranks, strict=True)):
        if rank.actions != actions:
            raise ProgramError(f"rank {number}: the {timeline.origin} events do not follow the program")


def _timeline(document: TimelineDocument, part: TimelinePart, origin: TimelineOrigin, path: Path) -> Timeline:
    expected = max(document.stage_rank) + 1
    if len(part.ranks) != expected:
        raise InputError(f"{path}: {origin}.ranks: has {len(part.ranks)} ranks, but by stage_rank there are {expected}")
    actions: list[tuple[Action, ...]] = []
    for number, rank in enumerate(part.ranks):
        where = f"{path}: {origin}.ranks.{number}"
        mistake = rank.mistake()
        if mistake is not None:
            raise InputError(f"{where}.{mistake}")
        try:
            actions.append(tuple(map(parse_action, rank.events.actions)))
        except ProgramError as error:
            raise InputError(f"{where}.events.actions: {error}") from None
    program = Program(
        tuple(document.stage_rank),
        document.microbatches,
        tuple(actions),
        forward_only=document.forward_only,
        reduces=document.reduces,
        tied=tuple(map(tuple, document.tied)),
    )
    try:
        verify(program)
    except ProgramError as error:
        raise InputError(f"{path}: {origin}: {error}") from None
    ranks = (rank.value(own) for rank, own in zip(part.ranks, actions, strict=True))
    return Timeline(origin, program, tuple(ranks), part.clock_error_s, part.overhead_s)
