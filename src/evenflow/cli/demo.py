"""Everything on this machine in about two minutes: a Llama of 14 M parameters learns the Python standard library."""

from __future__ import annotations

import argparse
import json
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from evenflow.cli.options import add_json, add_processes, path

if TYPE_CHECKING:
    from evenflow.plan import Plan
    from evenflow.spec import Model
    from evenflow.train import Progress

# Wide vocabulary, narrow blocks: the head is worth several blocks, as in real models of this size.
DEMO_CONFIG = {
    "model_type": "llama",
    "vocab_size": 14336,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_STEPS = 80
_GLOBAL_BATCH = 16
_MICRO_BATCH = 2
_SEQ_LENGTH = 128
_LEARNING_RATE = 2e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("--out", type=path, metavar="RUN", help="the run's folder (default: a new ./evenflow-demo)")
    add_processes(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Describe, profile, plan, train, compare."""
    from evenflow.cli.console import TerminalProgress, show, show_json
    from evenflow.cli.figures import run_json
    from evenflow.draw import comparison_table, idle_table
    from evenflow.train import Job, saved_model_losses, train

    out = arguments.out or _new_folder()
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        model = Path(folder) / "demo-llama"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(DEMO_CONFIG))
        job = Job(
            model=str(model),
            data=_standard_library(Path(folder) / "python-standard-library"),
            out=out,
            steps=_STEPS,
            global_batch_size=_GLOBAL_BATCH,
            micro_batch_size=_MICRO_BATCH,
            seq_length=_SEQ_LENGTH,
            processes=arguments.processes,
            threads=arguments.threads,
            learning_rate=_LEARNING_RATE,
            measure_again=True,
        )
        result = train(job, TerminalProgress() if arguments.json else _demo_progress(out))
    if arguments.json:
        show_json(run_json(result))
        return 0
    show(comparison_table(result.comparison), idle_table(result.measured))
    first, last = result.metrics[0].loss, result.metrics[-1].loss
    show(f"loss fell from {first:.2f} to {last:.2f} in {len(result.metrics)} steps ({last / first - 1:+.0%})")
    ours, theirs = saved_model_losses(out, _SEQ_LENGTH)
    show(
        f"transformers opens {out / 'model'}: loss {theirs:.6f} on the text's last sequence, "
        f"evenflow's stages {ours:.6f}"
    )
    show(f"report: {out / 'report.html'}")
    return 0


def _standard_library(folder: Path) -> Path:
    """Copy the sources of Python's standard library (without its tests and what was installed into it)."""
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "tests", "__pycache__", "*.so", "*.a")
    shutil.copytree(sysconfig.get_paths()["stdlib"], folder, ignore=left_out, symlinks=True)
    return folder


def _new_folder() -> Path:
    """The first of ./evenflow-demo, ./evenflow-demo-2, ... that is not there yet."""
    number = 1
    while (folder := Path("evenflow-demo" if number == 1 else f"evenflow-demo-{number}")).exists():
        number += 1
    return folder


def _demo_progress(out: Path) -> Progress:
    """The usual progress, with the model described and equal layer counts beside the plan."""
    from evenflow.cli.console import TerminalProgress, show
    from evenflow.draw import model_table, profile_table
    from evenflow.errors import EvenflowError
    from evenflow.files import load_profile
    from evenflow.search import equal_split, make_plan
    from evenflow.spec import Batch
    from evenflow.spec.cluster import local_cluster
    from evenflow.units import format_seconds

    class DemoProgress(TerminalProgress):
        """Says more about the plan than a plain run does."""

        def planned(self, plan: Plan, model: Model) -> None:
            profile = load_profile(out / "profile.json")
            show(model_table(model), profile_table(profile, model))
            super().planned(plan, model)
            batch = Batch(plan.global_batch_size, plan.micro_batch_size, plan.seq_length)
            cluster = local_cluster(plan.axes.processes, plan.threads)
            try:
                split = equal_split(len(model.layers), len(plan.stages))
                equal = make_plan(model, cluster, batch, profile.costs(), plan.schedule, split=split)
            except EvenflowError as error:
                self.said(f"equal layer counts are not possible here: {error}")
                return
            self.said(
                f"equal layer counts would take {format_seconds(equal.predicted.step_s)} a step, "
                f"{equal.predicted.step_s / plan.predicted.step_s:.2f} times this plan's "
                f"(imbalance {equal.predicted.imbalance:.2f})"
            )

    return DemoProgress()
