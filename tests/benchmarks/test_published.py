"""Why: predictions must not read what was measured, and every row is predicted or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import fit
from benchmarks.published import DATA, main, predict, report
from benchmarks.published_rows import read_rows
from evenflow.cost.roofline import Roofline

MEASURED = ("step_time_s", "tflops_per_gpu", "mfu", "peak_mem_gib")
HEADER = "model,layers,hidden,gpu,gpus,seq,global_batch,tp,pp,micro_batch,schedule,step_time_s,peak_mem_gib,vocab"
ROW = "GPT,24,2048,A100-80GB,16,2048,64,2,4,1,1f1b,2.0,30,51200"


def test_predictions_come_from_the_configuration_alone():
    rows = read_rows(DATA)
    empty = [{**row, **dict.fromkeys(MEASURED, "")} for row in rows]
    predictions = predict(rows, Roofline())
    assert predict(empty, Roofline()) == predictions
    assert all((one.step_time_s is None) == (one.skipped is not None) for one in predictions)
    assert {"predictions", "sources", "step_time", "memory", "sweeps"} <= set(report(empty, predictions))


@pytest.fixture
def table(tmp_path: Path):
    def write(*lines: str | bytes) -> str:
        file = tmp_path / "rows.csv"
        file.write_bytes(b"\n".join(own if isinstance(own, bytes) else own.encode() for own in lines))
        return str(file)

    return write


def refused(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([path]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


def test_files_that_are_no_table_are_refused_in_one_line(table, tmp_path, capsys):
    assert "cannot be read: No such file" in refused(str(tmp_path / "none.csv"), capsys)
    assert "cannot be read: Is a directory" in refused(str(tmp_path), capsys)
    assert "has no column model, gpu, seq, global_batch;" in refused(table(), capsys)
    assert "has no rows" in refused(table(HEADER), capsys)
    assert "has no column gpu;" in refused(table(HEADER.replace("gpu,", "card,", 1), ROW), capsys)
    assert "is no CSV" in refused(table(HEADER, b"\xff\xfe\x00"), capsys)
    assert "is no CSV" in refused(table(HEADER, '"' + 200_000 * "x"), capsys)


def skipped(path: str, capsys: pytest.CaptureFixture[str]) -> list[str | None]:
    assert main([path, "--json"]) == 0
    return [one["skipped"] for one in json.loads(capsys.readouterr().out)["predictions"]]


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ("GPT,24,2048", "GPT,many,2048", "layers is 'many'; a whole number from 1 to 4096 would do"),
        ("GPT,24,2048", "GPT,24,nan", "hidden is 'nan'"),
        ("GPT,24,2048", "GPT,24.5,2048", "layers is '24.5'"),
        ("GPT,24,2048", "GPT,1e9,2048", "layers is '1e9'"),
        ("GPT,24,2048", "GPT,,", "dimensions of 'GPT' are not given, nor in a preset"),
        ("A100-80GB", "Z9000", "there is no device 'Z9000' in the catalogue"),
        ("A100-80GB", "A100-80GB 0xHDR200", "carries nothing"),
        (",2048,64,", ",,64,", "seq is not given"),
        (",2048,64,", ",2048,-64,", "global_batch is '-64'"),
        (",2048,64,", ",2048,1e999,", "global_batch is '1e999'"),
        (",2,4,1,", ",0,4,1,", "tp is '0'"),
        (",2,4,1,", ",64,4,1,", "tp 64 is more than the 16 heads"),
        (",51200", ",1", "tp 2 is more than the 1 words of the vocabulary"),
        (",2,4,1,", ",2,48,1,", "pp 48 is more than the 24 layers"),
    ],
)
def test_a_row_that_cannot_be_is_skipped_and_says_why(table, capsys, ours, theirs, reason):
    found = skipped(table(HEADER, ROW, ROW.replace(ours, theirs), ROW), capsys)
    assert found[0] is found[2] is None
    assert reason in str(found[1])


def test_a_step_of_more_microbatches_than_a_program_holds_is_not_planned(table, capsys):
    assert main([table(HEADER, ROW.replace(",64,", ",1e12,", 1)), "--planner", "--json"]) == 0
    (reason,) = json.loads(capsys.readouterr().out)["planner"]["skipped"]
    assert "are more than a program of ours holds" in reason


def test_columns_and_cells_that_are_not_there_are_empty_ones(table, capsys):
    short = ",".join(ROW.split(",")[:7])
    assert skipped(table("\ufeff" + HEADER, short, ROW + ",more,cells"), capsys) == [None, None]
    assert skipped(table("model,gpu,gpus,seq,global_batch", "llama-2-7b,A100-80GB,8,4096,64"), capsys) == [None]


@pytest.mark.parametrize("odd", ["fast", "0", "-1", "nan", "inf"])
def test_a_measured_cell_that_is_no_figure_is_not_compared(table, capsys, odd):
    path = table(HEADER, ROW.replace("2.0,30", f"{odd},{odd}"))
    assert main([path]) == 0
    assert "step_time, all: 0 rows" in capsys.readouterr().out


def test_rows_are_predicted_by_the_planner_too(table, capsys):
    rows = [ROW, ROW.replace(",1f1b", ",FSDP"), ROW.replace("A100-80GB", "H100-80GB").replace("2,4,1,", "2,2,2,")]
    assert main([table(HEADER, *rows), "--planner", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["planner"]
    assert (found["rows"], found["configurations"]) == (2, 2)
    assert found["skipped"] == {"plans share out no parameters or gradients (ZeRO 3)": 1}
    assert 0 < found["difference"]["all"]["step_time"]["worst"] < 0.03
    assert 0 < found["difference"]["all"]["memory"]["worst"] < 0.05
    assert found["measured"]["planner"]["step_time"]["rows"] == 2
    assert main([table(HEADER, *rows), "--planner"]) == 0
    assert "planner against measured, memory: 2 rows" in capsys.readouterr().out


def test_the_figures_in_use_are_near_those_that_the_fit_finds():
    """One more turn of the fit from them makes the fitted half's error less by no more than a fortieth."""
    rows, used = fit.halves()["fitted"], Roofline()
    for factor in (1.06, 1.02):
        assert fit.loss(rows, fit.sweep(rows, used, factor)) > 0.975 * fit.loss(rows, used)
    worse = Roofline(matmul=0.7, throttle=0.6)
    assert fit.loss(rows, fit.sweep(rows, worse, 1.06)) < 0.975 * fit.loss(rows, worse)
