"""Why: a table is what people believe; its figures must be the plan's, and fit a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from evenflow.draw import comparison_table, idle_table, model_table, plan_table, profile_table
from evenflow.draw.scale import bytes_scale, count_scale, round_step, seconds_scale
from evenflow.draw.words import layers_text, ranges
from evenflow.timeline import compare
from tests.files.samples import sample_model, sample_plan, sample_profile, sample_timelines


def text_of(renderable, width=80):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(renderable)
    return out.getvalue()


def row_of(text, first):
    """The cells of the row that begins with `first`."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_layers_in_words():
    assert layers_text(range(8), 20) == "0-7: embedding + 7 blocks"
    assert layers_text((0,), 20) == "0: embedding"
    assert layers_text((5,), 20) == "5: 1 block"
    assert layers_text(range(14, 20), 20) == "14-19: 5 blocks + head"
    assert layers_text((19,), 20) == "19: head"
    assert layers_text(range(20), 20) == "0-19: embedding + 18 blocks + head"
    assert ranges((1, 3, 5, 6, 7)) == "1, 3, 5-7"


def test_one_unit_for_a_column():
    assert seconds_scale([0.0021, 0.5]).full(0.0021) == "2 ms"
    assert seconds_scale([0.0021]).full(0.0021) == "2.10 ms"
    assert seconds_scale([12.0, 0.5]).full(0.5) == "0.5 s"
    assert seconds_scale([2e-6]).full(2e-6) == "2.00 µs"
    assert seconds_scale([]).full(0.0) == "0.00 µs"
    assert bytes_scale([3 * 2**30]).full(2**30) == "1.00 GiB"
    assert count_scale([8_000_000]).full(1_500_000) == "1.50 M"
    assert count_scale([12]).full(12) == "12"
    assert [round_step(value) for value in (0.12, 2.0, 3.0, 70.0)] == [0.2, 2.0, 5.0, 100.0]


def test_the_plan_table_has_the_plans_figures():
    plan = sample_plan()
    text = text_of(plan_table(plan))
    # Two blocks and the embedding: 0.5 + 2 x 10 + 0.2 ms forward, 0.3 + 2 x 20 + 0.3 ms backward, 8 times.
    assert row_of(text, "0")[:8] == ["0", "0-2:", "embedding", "+", "2", "blocks", "20.7", "40.6"]
    assert row_of(text, "0")[8] == f"{8 * (20.7 + 40.6):.0f}"
    assert row_of(text, "3")[:6] == ["3", "7-9:", "2", "blocks", "+", "head"]
    total = sum(rank.busy_s for rank in plan.ranks)
    assert row_of(text, "3")[-2] == f"{plan.ranks[3].busy_s / total * 100:.1f}%"
    assert f"{plan.predicted.idle_fraction * 100:.1f}% of the ranks' time" in text
    assert f"{plan.bound.gap * 100:.1f}% above it" in text
    assert "layers, link measured; optimizer assumed; memory analytic" in text
    assert f" on rank {plan.worst_rank.rank}, the fullest" in text
    assert "reserved" not in text, "which processors do not"
    assert plan.worst_rank.peak_bytes == max(rank.peak_bytes for rank in plan.ranks)
    assert "reserved" in text_of(plan_table(replace(plan, device="A100-80GB")))
    for note in plan.notes:
        assert note.split()[2] in text


def test_the_comparison_has_both_sides_and_the_error():
    predicted, measured = sample_timelines(sample_plan())
    text = text_of(comparison_table(compare(predicted, measured)))
    step = row_of(text, "step")
    assert step[1] == f"{predicted.step_s * 1e3:.0f}"
    assert step[3] == f"{measured.step_s * 1e3:.0f}"
    assert step[-1] == "+10.0%"
    assert row_of(text, "idle")[-2:] == ["+0.0", "points"]
    rank = row_of(text, "2")
    assert rank[1] == f"{predicted.ranks[2].busy_s * 1e3:.0f}"
    assert rank[2] == f"{measured.ranks[2].busy_s * 1e3:.0f}"
    assert rank[3] == "+10.0%"
    assert int(rank[5]) - int(rank[4]) == 5


def test_the_idle_table_adds_up_and_names_the_peer():
    predicted, _ = sample_timelines(sample_plan())
    text = text_of(idle_table(predicted))
    for number, rank in enumerate(predicted.ranks):
        cells = row_of(text, str(number))
        spans = [float(cell) for cell in cells[1:13:2]]
        assert sum(spans) == pytest.approx(rank.wall_s * 1e3, abs=4)
        assert spans[0] == pytest.approx(rank.busy_s * 1e3, abs=0.6)
    assert row_of(text, "0")[-2:] == ["rank", "1"]


def test_equal_layers_share_a_row():
    model = sample_model()
    text = text_of(model_table(model))
    assert row_of(text, "1-8") == ["1-8", "8", "blocks", "1.50", "0.40", "0.80", "1.00", "256"]
    assert row_of(text, "total")[3:6] == ["28.00", "5.20", "10.40"]
    measured = text_of(profile_table(sample_profile(model), model))
    assert row_of(measured, "1-8")[3:7] == ["10.0", "20.0", "3.4", "79.8%"]
    assert row_of(measured, "9")[4] == "13.0"


def test_alternating_layers_do_not_make_a_row_each():
    model = sample_model(blocks=40)
    kinds = [replace(layer, signature=f"{layer.kind}{index % 2}") for index, layer in enumerate(model.layers)]
    text = text_of(model_table(replace(model, layers=tuple(kinds))))
    assert len(text.splitlines()) < 14
    assert "20 blocks" in text


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-405B-Instruct", "[bold]odd[/nothing]", "esc\x1b[2Jape"])
def test_everything_fits_80_columns_whatever_the_name(name):
    plan = sample_plan(16, 32, 40, name)
    predicted, measured = sample_timelines(plan)
    model = sample_model(40, name)
    tables = [
        plan_table(plan),
        comparison_table(compare(predicted, measured)),
        idle_table(measured),
        model_table(model),
        profile_table(sample_profile(model), model),
    ]
    for table in tables:
        text = text_of(table)
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
        assert "…" not in text
    assert name.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in text_of(tables[0])


def test_one_rank_alone_is_a_table_too():
    plan = sample_plan(1)
    predicted, _ = sample_timelines(plan)
    assert "100.0%" in text_of(plan_table(plan))
    assert row_of(text_of(idle_table(predicted)), "0")[0] == "0"
