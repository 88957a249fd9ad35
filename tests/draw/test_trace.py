"""Why: a trace is read by programs of others, that drop without a word what does not keep their rules."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from evenflow.cost import LinkCost
from evenflow.draw import timeline_trace
from evenflow.errors import InputError
from evenflow.program import action_text, parse_action
from evenflow.search import plan_timeline
from evenflow.timeline import idle_by_cause
from tests.files.samples import sample_plan, sample_timelines

SCHEDULES = ["1f1b", "interleaved", "zb-h1", "zb-v"]


@pytest.fixture(scope="module", params=SCHEDULES)
def traced(request):
    """Predicted and measured timelines of a schedule, and the events that were made of them."""
    plan = sample_plan(2, 4)
    timelines = sample_timelines(plan)
    if request.param != "1f1b":
        predicted = plan_timeline(plan, request.param)
        measured = replace(
            predicted,
            origin="measured",
            ranks=tuple(
                replace(own, begin_s=own.begin_s + 1e3, end_s=own.end_s + 1e3, memory=(),
                        starts=tuple(at + 1e3 for at in own.starts), ends=tuple(at + 1e3 for at in own.ends))
                for own in predicted.ranks
            ),
        )  # fmt: skip
        timelines = predicted, measured
    trace = json.loads(timeline_trace(timelines, plan.model))
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    return timelines, trace["traceEvents"]


def _threads(events):
    """The slices of each process and thread, in the order of the file."""
    found = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[event["pid"], event["tid"]].append(event)
    return found


def test_slices_are_the_timelines_spans(traced):
    timelines, events = traced
    threads = _threads(events)
    assert len(threads) == sum(len(timeline.ranks) for timeline in timelines)
    for process, timeline in enumerate(timelines, 1):
        zero = min(rank.begin_s for rank in timeline.ranks)
        for number, rank in enumerate(timeline.ranks):
            slices = threads[process, number + 1]
            assert [own["name"] for own in slices] == [action_text(action) for action in rank.actions]
            for own, event in zip(slices, rank.events, strict=True):
                assert own["ts"] == pytest.approx((event.start_s - zero) * 1e6, abs=2e-3)
                assert own["dur"] == pytest.approx(event.seconds * 1e6, abs=2e-3)


def test_slices_of_a_rank_never_overlap(traced):
    for slices in _threads(traced[1]).values():
        clock = 0
        for own in slices:
            start, length = round(own["ts"] * 1000), round(own["dur"] * 1000)
            assert own["ts"] * 1000 == pytest.approx(start, abs=1e-3)  # whole nanoseconds
            assert start >= clock
            clock = start + length


def test_arrows_go_from_a_send_to_the_compute_that_uses_it(traced):
    timelines, events = traced
    arrows = defaultdict(list)
    for event in events:
        if "bind_id" in event:
            assert event["ph"] == "X"
            assert re.fullmatch("0x[0-9a-f]+", event["bind_id"])  # viewers read it as a number
            assert ("flow_out" in event) != ("flow_in" in event)
            arrows[event["bind_id"]].append(event)
    sends = sum(
        action_text(action).count("SEND_") for timeline in timelines for own in timeline.program.ranks for action in own
    )
    assert len(arrows) == sends > 0
    for ends in arrows.values():
        source, target = ends  # the one that goes out stands first in the file, as it must
        assert source["flow_out"] is target["flow_in"] is True
        assert source["pid"] == target["pid"]
        assert source["tid"] != target["tid"]
        assert source["ts"] <= target["ts"]
        sent, used = parse_action(source["name"]), parse_action(target["name"])
        forward = source["cat"] == "SEND_F"
        assert target["cat"] in (("F",) if forward else ("B", "I"))
        assert (used.stage, used.microbatch) == (sent.stage + (1 if forward else -1), sent.microbatch)


def test_memory_is_counted_where_it_is_known(traced):
    timelines, events = traced
    counters = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            counters[event["pid"], event["name"]].append(event["args"]["bytes"])
    assert {process for process, _ in counters} == {1}  # what was measured is a peak alone
    for number, rank in enumerate(timelines[0].ranks):
        held = counters[1, f"rank {number} memory"]
        assert held[0] == held[-1] == rank.memory[-1]
        assert max(held) == max(rank.memory)
        assert all(before != after for before, after in pairwise(held))


def test_what_was_waited_for_is_said(traced):
    timelines, events = traced
    threads = _threads(events)
    for process, timeline in enumerate(timelines, 1):
        for number, causes in enumerate(idle_by_cause(timeline)):
            told = sum(sum(own["args"].values()) for own in threads[process, number + 1])
            assert told / 1e3 == pytest.approx(sum(causes.values()), abs=1e-6)
    names = {name for slices in threads.values() for own in slices for name in own["args"]}
    assert "waited for rank 1, ms" in names


def test_processes_and_ranks_have_names(traced):
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in traced[1]
        if event["ph"] == "M" and event["name"].endswith("_name")
    }
    assert names[1, 0].startswith("predicted: tiny-llama, step ")
    assert names[2, 0].startswith("measured: tiny-llama, step ")
    assert names[1, 1] == names[2, 1] == "rank 0"


def test_an_arrow_of_a_free_link_still_begins_before_it_ends():
    plan = replace(sample_plan(), link=LinkCost(0.0, float("inf")))
    events = json.loads(timeline_trace([plan_timeline(plan)], plan.model))["traceEvents"]
    begun = set()
    for event in events:
        if "flow_in" in event:
            assert event["bind_id"] in begun
        begun.add(event.get("bind_id"))


def test_a_plan_alone_and_a_hostile_name():
    plan = sample_plan(name='bad\n\x1b[2J "</script>')
    text = timeline_trace([plan_timeline(plan)], plan.model)
    assert {event["pid"] for event in json.loads(text)["traceEvents"]} == {1}
    assert "\\u001b" not in text
    with pytest.raises(InputError, match="no timeline to draw"):
        timeline_trace([], "nothing")
