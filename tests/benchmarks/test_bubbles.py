"""Why: these rates are the one figure of ours that others have published for the same times, so they are held to it."""

from __future__ import annotations

import json

import pytest

from benchmarks.bubbles import CSV, main, rate_of, read_rows

HEAD = "model,p,m,T_F_ms,T_B_ms,T_W_ms,T_comm_ms"
TINY = "tiny,2,4,1,1,1,0"

PUBLISHED = read_rows(CSV)


def _named(row):
    return f"{row.model}-{row.m}"


@pytest.fixture
def table(tmp_path):
    """Write a CSV and give its path."""

    def write(*lines):
        path = tmp_path / "rates.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "zb-h2"])
@pytest.mark.parametrize("row", PUBLISHED, ids=_named)
def test_hand_drawn_schedules_are_as_published(row, schedule):
    rate = rate_of(row, schedule)
    assert round(rate.ours, 4) == rate.published


@pytest.mark.parametrize("row", PUBLISHED, ids=_named)
def test_interleaved_is_as_published_but_for_one_round_of_transfers(row):
    rate = rate_of(row, "interleaved")
    assert rate.stages_per_rank == {"1.5B": 3, "6.2B": 4}[row.model]
    work_s = row.m * row.microbatch_s
    compute_s = work_s + (row.p - 1) * row.microbatch_s / rate.stages_per_rank
    assert (rate.cost_s - compute_s) / row.transfer_s == pytest.approx(2 * (row.p * rate.stages_per_rank - 1))
    assert round(1 - work_s / (rate.cost_s - row.p * row.transfer_s), 4) == rate.published


@pytest.mark.parametrize("row", PUBLISHED[2::3], ids=_named)
def test_zb_v_idles_less_than_zb_1p_in_the_same_memory(row):
    """Room is kept only where a rank holds no older microbatch in a later stage: with less of it, it idles more."""
    assert rate_of(row, "zb-v").ours < rate_of(row, "zb-1p").ours


def test_rates_need_no_published_columns(table, capsys):
    """Two ranks, four microbatches, F = I = W = 1 s and free transfers: a few rates by hand."""
    assert main([str(table(HEAD, TINY)), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ours = {row["schedule"]: row["ours"] for row in told["rows"]}
    assert set(ours) == {"1f1b", "interleaved", "zb-h1", "zb-h2", "zb-1p", "zb-2p", "zb-v"}
    assert ours["1f1b"] == pytest.approx(1 / 5)
    assert ours["interleaved"] == pytest.approx(1 / 9)
    assert ours["zb-h1"] == pytest.approx(1 / 13)
    assert ours["zb-h2"] == pytest.approx(0)
    assert ours["zb-v"] == pytest.approx(0)
    for row in told["rows"]:
        assert (row["model"], row["p"], row["m"]) == ("tiny", 2, 4)
        assert "published" not in row
    assert told["notes"] == ["interleaved has 2 stages a rank for tiny, p = 2: the paper does not say how many"]


def test_the_table_has_published_rates_where_they_are_there(table, capsys):
    path = table(f"{HEAD},bubble_1F1B,bubble_ZB_H1", f"{TINY},0.1900,")
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split()[-3:] for line in lines if " 1f1b " in line) == ["0.2000", "0.1900", "+0.0100"]
    assert next(line.split()[-1] for line in lines if " zb-h1 " in line) == "0.0769"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((), "no column model, p, m"),
        ((HEAD,), "has no rows"),
        (("model,p,m,T_F_ms,T_B_ms,T_W_ms", "tiny,2,4,1,1,1"), "no column T_comm_ms"),
        ((HEAD, "tiny,2,4,one,1,1,0"), "line 2: T_F_ms is 'one'"),
        ((HEAD, TINY, "tiny,2,4,1,1,-1,0"), "line 3: T_W_ms is '-1'"),
        ((HEAD, "tiny,2,4,1,1,1"), "T_comm_ms is ''"),
        ((HEAD, "tiny,2,4,1,nan,1,0"), "T_B_ms is 'nan'"),
        ((HEAD, "tiny,0,4,1,1,1,0"), "p is '0'; a whole number from 1 on would do"),
        ((HEAD, "tiny,2,-4,1,1,1,0"), "m is '-4'"),
        ((HEAD, "tiny,2,4.5,1,1,1,0"), "m is '4.5'"),
        ((HEAD, "tiny,2,4,0,0,0,1"), "a rate needs work"),
        ((f"{HEAD},bubble_1F1B", f"{TINY},?"), "bubble_1F1B is '?'"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(lines, said, table, capsys):
    assert main([str(table(*lines))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, capsys):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        assert main([str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"benchmarks.bubbles: {path} cannot be read: ")
        assert captured.err.count("\n") == 1
