"""Why: predictions must not read what was measured, and every row is predicted or says why not."""

import csv

import pytest

from benchmarks.published import DATA, predict, report
from benchmarks.published_rows import COLUMNS
from evenflow.cost.roofline import Roofline

MEASURED = ("step_time_s", "tflops_per_gpu", "mfu", "peak_mem_gib")


def published():
    with DATA.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_come_from_the_configuration_alone():
    rows = published()
    empty = [{**row, **dict.fromkeys(MEASURED, "")} for row in rows]
    predictions = predict(rows, Roofline())
    assert predict(empty, Roofline()) == predictions
    assert all((one.step_time_s is None) == (one.skipped is not None) for one in predictions)
    assert {"predictions", "sources", "step_time", "memory", "sweeps"} <= set(report(empty, predictions))


def test_what_was_aimed_at_is_reached_on_the_rows_that_we_carry():
    """Issue 6's targets, held here so that no change of the costs loses them unseen."""
    rows = published()
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
        ("heads", "9000", "its figures do not go together"),
    ],
)
def test_a_cell_that_cannot_be_read_skips_its_row_alone(column, text, said):
    rows = published()
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
    row = {**published()[0], **GOOD}
    written = {**row, "dp": "8.0", "global_batch": "5.12e2", "layers": " 80 ", "vpp": "2.0"}
    one, other = predict([row, written], Roofline())
    assert (one.step_time_s, one.peak_memory_bytes) == (other.step_time_s, other.peak_memory_bytes)
    assert predict([{**row, "seq": "1e3"}], Roofline())[0].skipped is None


@pytest.mark.parametrize("text", ["", "auto", "~8", "8.0", "1e3", "N/A", None])
def test_no_cell_ends_a_run(text):
    """None: the column is missing, as in files of fewer columns."""
    row = published()[0]
    for column in COLUMNS:
        odd = {name: own for name, own in {**row, column: text}.items() if own is not None}
        found = report([odd], predict([odd], Roofline()))
        assert len(found["predictions"]) == 1
    odd = {**row, "tflops_per_gpu": "~138"}
    (source,) = report([odd], predict([odd], Roofline()))["sources"]
    assert source["not_compared"] == {"tflops_per_gpu '~138' is not a number above 0": 1}
    assert source["step_time"]["rows"] == 0
