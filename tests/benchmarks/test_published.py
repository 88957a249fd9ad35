"""Why: predictions must not read what was measured, and every row is predicted or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import fit
from benchmarks.published import DATA, main, predict, report, sweeps
from benchmarks.published_rows import COLUMNS, read_rows
from evenflow.cost.pinned import step_seconds
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


def test_what_was_aimed_at_is_reached_on_the_rows_that_we_carry():
    """Issue 6's targets, held here so that no change of the costs loses them unseen."""
    rows = read_rows(DATA)
    found = report(rows, predict(rows, Roofline()))
    assert found["coverage"] >= 0.8
    assert found["regret"] <= 0.03
    for what in ("step_time", "memory"):
        stated, other = found[what]["micro batch and recompute stated"], found[what]["either not stated"]
        assert stated["rows"] > 50
        assert other["rows"] > 50
        assert stated["median"] <= 0.10, what
        assert other["median"] <= 0.15, what


GOOD = {"dp": "8", "pp": "8", "layers": "80", "micro_batch": "1", "global_batch": "512", "vpp": "2"}


@pytest.mark.parametrize(
    ("column", "text", "said"),
    [
        ("dp", "auto", "dp 'auto' is not a number above 0"),
        ("dp", "~8", "dp '~8' is not a number above 0"),
        ("dp", "N/A", "dp 'N/A' is not a number above 0"),
        ("dp", "0", "dp '0' is not a number above 0"),
        ("dp", "nan", "dp 'nan' is not a number above 0"),
        ("micro_batch", "1.5", "micro_batch '1.5' is not a whole number of at most 10000000"),
        ("layers", "1e9", "layers '1e9' is not a whole number of at most 1000"),
        ("pp", "100", "pp 100 with 2 stages a rank is more than 80 blocks and two ends"),
        ("global_batch", "", "global_batch is not given"),
        ("global_batch", None, "global_batch is not given"),
        ("gpu", None, "there is no device '' in the catalogue"),
        ("vpp", "yes", "vpp 'yes' is not a number above 0"),
        ("ffn", "4h", "ffn '4h' is not a number above 0"),
        ("heads", "9000", "its figures do not go together: 9000 heads of a hidden size of 3072"),
        ("hidden", "", "dimensions of 'GPT 3.6B' are not given, nor in a preset"),
        ("gpu", "Z9000", "there is no device 'Z9000' in the catalogue"),
        ("gpu", "A100-80GB 0xHDR200", "the network of 'A100-80GB 0xHDR200' carries nothing"),
        ("seq", "", "seq is not given"),
        ("global_batch", "-64", "global_batch '-64' is not a number above 0"),
        ("global_batch", "1e999", "global_batch '1e999' is not a number above 0"),
        ("tp", "64", "tp 64 is more than the 32 heads"),
        ("vocab", "1", "tp 2 is more than the 1 words of the vocabulary"),
        ("cp", "4096", "cp 4096 is more than the 2048 tokens of a sequence"),
    ],
)
def test_a_cell_that_cannot_be_read_skips_its_row_alone(column, text, said):
    rows = read_rows(DATA)
    plain = next(row for row in rows if row["gpu"].startswith("A100") and row["layers"] and not row["not_modelled"])
    good = {**plain, **GOOD}
    odd = {**good, column: text}
    if text is None:
        del odd[column]
    one, other = predict([odd, good], Roofline())
    assert one.step_time_s is None
    assert one.skipped.startswith(said)
    assert other.skipped is None
    (source,) = report([odd, good], [one, other])["sources"]
    assert source["predicted"] == 1
    assert source["skipped"] == {one.skipped: 1}


def test_a_number_counts_however_it_is_written():
    row = {**read_rows(DATA)[0], **GOOD}
    written = {**row, "dp": "8.0", "global_batch": "5.12e2", "layers": " 80 ", "vpp": "2.0"}
    one, other = predict([row, written], Roofline())
    assert (one.step_time_s, one.peak_memory_bytes) == (other.step_time_s, other.peak_memory_bytes)
    assert predict([{**row, "seq": "1e3"}], Roofline())[0].skipped is None


@pytest.mark.parametrize("text", ["", "auto", "~8", "8.0", "1e3", "N/A", None])
def test_no_cell_ends_a_run(text):
    """None: the column is missing, as in files of fewer columns."""
    row = read_rows(DATA)[0]
    for column in COLUMNS:
        odd = {name: own for name, own in {**row, column: text}.items() if own is not None}
        found = report([odd], predict([odd], Roofline()))
        assert len(found["predictions"]) == 1
    odd = {**row, "tflops_per_gpu": "~138"}
    (source,) = report([odd], predict([odd], Roofline()))["sources"]
    assert source["not_compared"] == {"tflops_per_gpu '~138' is not a number above 0": 1}
    assert source["step_time"]["rows"] == 0


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


def test_a_row_of_a_file_that_cannot_be_is_skipped_and_says_why(table, capsys):
    found = skipped(table(HEADER, ROW, ROW.replace("GPT,24,2048", "GPT,many,2048"), ROW), capsys)
    assert found == [None, "layers 'many' is not a number above 0", None]


def test_a_step_of_more_microbatches_than_a_program_holds_is_not_planned(table, capsys):
    assert main([table(HEADER, ROW.replace(",64,", ",1e7,", 1)), "--planner", "--json"]) == 0
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
    said = capsys.readouterr().out
    assert "step_time, all: 0 rows" in said
    for column in ("step_time_s", "peak_mem_gib"):
        assert f"not compared 1: {column} '{odd}' is not a number above 0" in said


def test_a_row_that_nobody_measured_is_in_no_sweep(table):
    rows = [ROW + ",s,yes", ROW.replace("2,4,1,", "4,4,1,") + ",s,yes", ROW.replace("2,4,1,", "4,2,1,") + ",s,no"]
    taken = [row.replace(",2.0,", f",{seconds},") for row, seconds in zip(rows, (2.0, 2.2, 0.5), strict=True)]
    held = read_rows(Path(table(HEADER + ",sweep,measured", *taken)))
    (found,) = sweeps(held, predict(held, Roofline()))
    assert found["rows"] == 2
    assert found["regret"] < 0.2, "0.5 s is nobody's"


@pytest.mark.parametrize("kind", ["reserved", "max reserved (torch)", "nvidia-smi", "Reserved, last rank"])
def test_a_reserved_peak_is_held_against_what_is_predicted_to_be_reserved(table, kind):
    held = read_rows(
        Path(table(HEADER + ",memory_kind", f"{ROW},allocated", f'{ROW},"{kind}"', f"{ROW},allocated of last"))
    )
    plain, one, last = predict(held, Roofline())
    allocated = last if "last" in kind else plain
    assert one.peak_memory_bytes == pytest.approx(allocated.peak_memory_bytes * 1.08 + 2e9)
    assert one.peak_memory_bytes == one.reserved_bytes or "last" in kind


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


def test_the_figures_in_use_are_those_that_the_fit_finds():
    """Begun at them it takes no step, and begun elsewhere it takes one that both parts of the fitted half gain by."""
    rows, used = fit.halves()["fitted"], Roofline()
    assert all(len(part) > 50 for part in fit.parts(rows))
    assert fit.fit(rows, used) == used
    worse = Roofline(matmul=0.7, throttle=0.6)
    better = fit.sweep(rows, worse, 1.06)
    assert all(fit.loss(part, better) < 0.99 * fit.loss(part, worse) for part in fit.parts(rows))
    assert fit.fit(rows, Roofline(matmul=0.85)).matmul < 0.8


@pytest.mark.parametrize(("second", "is_taken"), [(0.8, True), (0.7, False)])
def test_a_step_is_taken_where_both_parts_gain(second, is_taken):
    """Rows that take as long as if products reached 0.8 of the peak, or in one part 0.7, where 0.75 is in use."""
    rows = []
    for part, share in zip(fit.parts(fit.halves()["fitted"]), (0.8, second), strict=True):
        row, job, _ = part[0]
        rows.append((row, job, step_seconds(job, Roofline(matmul=share))))
    found = fit.sweep(rows, Roofline(), 1.06)
    assert (found != Roofline()) == is_taken
    assert (found.matmul > 0.75) == is_taken


def test_a_gain_that_is_less_than_its_standard_error_over_sources_is_noise():
    before = {"a": 0.10, "b": 0.10, "c": 0.10}
    assert fit.is_gain(before, {"a": 0.09, "b": 0.08, "c": 0.09})
    assert not fit.is_gain(before, {"a": 0.04, "b": 0.11, "c": 0.11}), "one source of three"
    assert not fit.is_gain(before, before)
