"""Why: a trace that looks right as JSON may be read otherwise by the program that it is for, or not at all."""

from __future__ import annotations

import pytest

from evenflow.draw import timeline_trace
from evenflow.program import action_text
from tests.browser.perfetto import TraceProcessor, missing_perfetto, served
from tests.files.samples import sample_plan, sample_timelines

_SLICES = """
select s.name, s.ts, s.dur, t.name as rank, p.name as origin from slice s join thread_track k on s.track_id = k.id
join thread t using (utid) join process p using (upid) order by p.pid, t.tid, s.ts, s.id
"""


@pytest.fixture(scope="module")
def opened(browser):
    """The timelines, and their trace in Perfetto's trace processor."""
    if lacks := missing_perfetto():
        pytest.skip(lacks)
    plan = sample_plan()
    timelines = sample_timelines(plan)
    with served() as url:
        yield timelines, TraceProcessor(browser, url, timeline_trace(timelines, plan.model).encode())


def test_every_action_is_there_where_and_when_it_was(opened):
    timelines, processor = opened
    found = {}
    for row in processor.query(_SLICES):
        found.setdefault((row["origin"].partition(":")[0], row["rank"]), []).append(row)
    assert len(found) == sum(len(timeline.ranks) for timeline in timelines)
    for timeline in timelines:
        zero = min(own.begin_s for own in timeline.ranks)
        for number, rank in enumerate(timeline.ranks):
            slices = found[timeline.origin, f"rank {number}"]
            assert sorted(own["name"] for own in slices) == sorted(map(action_text, rank.actions))
            places = {own["name"]: own for own in slices}
            for event in rank.events:
                own = places[action_text(event.action)]
                assert own["ts"] == pytest.approx((event.start_s - zero) * 1e9, abs=2)
                assert own["dur"] == pytest.approx(event.seconds * 1e9, abs=2)


def test_every_send_has_its_arrow(opened):
    timelines, processor = opened
    rows = processor.query(
        "select o.name as sent, i.name as used from flow "
        "join slice o on slice_out = o.id join slice i on slice_in = i.id"
    )
    sends = [
        action_text(action)
        for timeline in timelines
        for own in timeline.program.ranks
        for action in own
        if "SEND_" in action_text(action)
    ]
    assert sorted(row["sent"] for row in rows) == sorted(sends)
    assert {"0SEND_F0 1F0", "1SEND_B0 0B0"} <= {f"{row['sent']} {row['used']}" for row in rows}


def test_memory_is_a_counter_and_nothing_was_dropped(opened):
    timelines, processor = opened
    peaks = processor.query(
        "select t.name as name, max(c.value) as most from counter c join counter_track t on c.track_id = t.id "
        "where t.name like '%memory%' group by t.name"
    )
    assert sorted(row["most"] for row in peaks) == sorted(max(own.memory) for own in timelines[0].ranks)
    bad = processor.query("select name, value from stats where severity in ('error', 'data_loss') and value > 0")
    assert bad == []
