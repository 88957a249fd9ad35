"""How large a report's page is, and how long it takes to open in headless Chromium.

    python -m benchmarks.report_page              # 16 ranks x 64 microbatches and 64 x 256
    python -m benchmarks.report_page --rounds 15

Each page is that of a plan (what `evenflow report PLAN --html` writes) and that of a run of 1,000 steps of it, in which
every action took up to a fifth longer than planned and the memory of every rank was seen after every action. A page is
open when its lanes are drawn: from the order to go there, given through the browser's driver, to the second frame after
it has loaded. Pages are opened in turn, each from a file, after one round that does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import evenflow
from benchmarks.browser import missing_browser, start_browser
from evenflow.draw import report_html
from evenflow.files import StepMetrics
from evenflow.plan import Plan
from evenflow.search import find_out, plan_timeline
from evenflow.spec import this_machine
from evenflow.timeline import RankTimeline, Timeline

SIZES = ((16, 64), (64, 256))  # ranks, microbatches
STEPS = 1000
_DRAWN = (
    "const done = arguments[arguments.length - 1];"
    "requestAnimationFrame(() => requestAnimationFrame(() => done(document.getElementById('lanes').height)))"
)


def main() -> None:
    """Make the pages, open them, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("no round says nothing; --rounds 9 would do")
    if lacks := missing_browser():
        parser.error(lacks)
    with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
        folder = Path(name)
        pages = list(make_pages(folder))
        browser = start_browser(folder / "profile")
        try:
            opened = open_pages(browser, pages, arguments.rounds)
        finally:
            browser.quit()
    result = {"machine": asdict(this_machine()), "rounds": arguments.rounds, "pages": opened}
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def make_pages(folder: Path) -> Iterator[dict[str, Any]]:
    """A page for each size and each kind: its file, bytes, and the seconds that it took to make."""
    for ranks, microbatches in SIZES:
        plan = _plan(folder, ranks, microbatches)
        predicted = plan_timeline(plan)
        runs = (("plan", None, ()), ("run", _measured(predicted), tuple(_metrics(plan))))
        for kind, measured, metrics in runs:
            began = time.perf_counter()
            findings = find_out(plan, predicted, measured, with_schedules=True)
            page = report_html(plan, predicted, measured, metrics, findings)
            made_s = time.perf_counter() - began
            file = folder / f"{kind}-{ranks}-{microbatches}.html"
            file.write_text(page, encoding="utf-8")
            size = file.stat().st_size
            about = {"page": kind, "ranks": ranks, "microbatches": microbatches}
            yield {**about, "bytes": size, "made_s": made_s, "file": file}


def open_pages(browser: Any, pages: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Each page with the seconds of every time it was opened."""
    seconds: list[list[float]] = [[] for _ in pages]
    for _ in range(rounds + 1):
        for page, own in zip(pages, seconds, strict=True):
            browser.get("about:blank")
            began = time.perf_counter()
            browser.get(page["file"].as_uri())
            drawn = browser.execute_async_script(_DRAWN)
            own.append(time.perf_counter() - began)
            if not drawn or [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]:
                sys.exit(f"{page['file'].name} did not open as it should")
    found = []
    for page, own in zip(pages, seconds, strict=True):
        counted = own[1:]
        kept = {name: value for name, value in page.items() if name != "file"}
        found.append({**kept, "open_s": {"median": median(counted), "low": min(counted), "high": max(counted)}})
    return found


def _plan(folder: Path, ranks: int, microbatches: int) -> Plan:
    """A Llama with two blocks for each rank, over GPUs: costs from FLOPs, as no such machine is here."""
    config = {
        "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_hidden_layers": 2 * ranks, "vocab_size": 32000,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
    }  # fmt: skip
    model = folder / f"model-{ranks}"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    return evenflow.plan(
        model, f"{ranks // 8}x8xA100-80GB", microbatches, seq_length=1024, micro_batch_size=1, pp=ranks, tp=1, dp=1
    )


def _measured(predicted: Timeline) -> Timeline:
    """A step in which every action took up to a fifth longer: moments stay in order, as each grows by its own share."""
    random = Random(0)

    def rank(own: RankTimeline) -> RankTimeline:
        moments = [own.begin_s]
        before = own.begin_s
        for start, end in zip(own.starts, own.ends, strict=True):
            for moment in (start, end):
                moments.append(moments[-1] + (moment - before) * (1 + 0.2 * random.random()))
                before = moment
        memory = tuple(round(held * (1.2 + 0.01 * random.random())) for held in own.memory)
        return replace(
            own, starts=tuple(moments[1::2]), ends=tuple(moments[2::2]), end_s=moments[-1], memory=memory
        )  # fmt: skip

    return replace(predicted, origin="measured", ranks=tuple(map(rank, predicted.ranks)))


def _metrics(plan: Plan) -> Iterator[StepMetrics]:
    random, tokens = Random(0), plan.global_batch_size * plan.seq_length
    for step in range(1, STEPS + 1):
        step_s = plan.predicted.step_s * (1.1 + 0.2 * random.random())
        yield StepMetrics(
            step=step, loss=2.0 + 8 / step**0.5 + 0.1 * random.random(), grad_norm=1.0, lr=1e-4, tokens=tokens * step,
            tokens_per_s=tokens / step_s, step_s=step_s, idle_fraction=0.3, imbalance=1.1, mfu=0.3,
            peak_bytes=tuple(own.peak_bytes for own in plan.ranks),
        )  # fmt: skip


def _print_table(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores; {result['rounds']} rounds, medians [lowest, highest]")
    print(f"{'page of a':<11}{'ranks':>6}{'microbatches':>14}{'MB':>7}{'opens in s':>12}")
    for page in result["pages"]:
        own = page["open_s"]
        print(
            f"{page['page']:<11}{page['ranks']:>6}{page['microbatches']:>14}{page['bytes'] / 1e6:>7.2f}"
            f"{own['median']:>12.2f}  [{own['low']:.2f}, {own['high']:.2f}]; made in {page['made_s']:.1f} s"
        )


if __name__ == "__main__":
    main()
