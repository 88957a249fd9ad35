"""Why: predictions must not read what was measured, and every row is predicted or says why not."""

import csv

from benchmarks.published import DATA, predict, report
from evenflow.cost.roofline import Roofline

MEASURED = ("step_time_s", "tflops_per_gpu", "mfu", "peak_mem_gib")


def test_predictions_come_from_the_configuration_alone():
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    empty = [{**row, **dict.fromkeys(MEASURED, "")} for row in rows]
    predictions = predict(rows, Roofline())
    assert predict(empty, Roofline()) == predictions
    assert all((one.step_time_s is None) == (one.skipped is not None) for one in predictions)
    assert {"predictions", "sources", "step_time", "memory", "sweeps"} <= set(report(empty, predictions))
