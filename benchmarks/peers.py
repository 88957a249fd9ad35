"""evenflow against PyTorch's own pipelining on the same work, in interleaved rounds of one run.

Llama with d 384, ffn 1024, 6 heads, 8 blocks and a vocabulary of 32,000; 8 microbatches of 2 x 256 tokens;
2 processes of one thread. The contestants share processes, cores, allocator, optimizer and data:

    evenflow            its own split and executor
    torch_equal_layers  torch.distributed.pipelining 1F1B, equal layer counts
    torch_same_split    the same with evenflow's split

`speed` is the median within-round ratio of their step to ours, with a 95% interval; `over_bound` is our step
over `schedule_bound`. DeepSpeed and memory are not compared yet: their keys are null.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.statistics import LEAST_ROUNDS, ratio_of
from evenflow.launch import cores_of_ranks, shared_server
from evenflow.measure import measure_profile
from evenflow.models import describe_model, find_model
from evenflow.search import equal_split, make_plan, plan_timeline
from evenflow.spec import Batch, this_machine
from evenflow.spec.cluster import local_cluster

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "num_hidden_layers": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
BATCH = Batch(global_batch_size=16, micro_batch_size=2, seq_length=256)


def main() -> None:
    """Run, then print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS + 6, help=f"at least {LEAST_ROUNDS}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < LEAST_ROUNDS:
        parser.error(f"{arguments.rounds} rounds say nothing on a noisy machine; {LEAST_ROUNDS} would be the least")
    if not 2 <= arguments.processes <= CONFIG["num_hidden_layers"]:
        parser.error(f"--processes {arguments.processes} is no pipeline of this model; 2 to 8 would do")
    result = compare(arguments.rounds, arguments.processes)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def compare(rounds: int, processes: int) -> dict[str, Any]:
    """Profile, plan, and run all contestants in turn."""
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(CONFIG))
        source = find_model(str(config))
        cluster = local_cluster(processes)
        model = describe_model(source, BATCH.micro_batch_size, BATCH.seq_length)
        profile = measure_profile(source, model, cluster)
        plan = make_plan(model, cluster, BATCH, profile.costs())
        equal = equal_split(len(model.layers), processes)
        group = shared_server().start(
            "peers",
            "benchmarks.peer_ranks:run",
            processes,
            {
                "model": str(config),
                "threads": cluster.threads,
                "split": plan.stage_layers,
                "equal_split": equal,
                "shape": [BATCH.micro_batch_size, BATCH.seq_length],
                "microbatches": BATCH.microbatches,
                "rounds": rounds,
                "rendezvous": f"{folder}/rendezvous",
            },
            cores_of_ranks(processes, cluster.threads),
        )
        results = dict(item for item in group.messages() if item is not None)
    seconds = {
        name: [max(values) for values in zip(*(results[rank]["seconds"][name] for rank in results), strict=True)]
        for name in results[0]["seconds"]
    }
    losses = {name: results[processes - 1]["losses"][name] for name in seconds}
    bound = plan_timeline(plan, with_transfers=False).step_s
    return {
        "machine": asdict(this_machine()),
        "rounds": rounds,
        "processes": processes,
        "split": plan.stage_layers,
        "step_s": {name: median(values) for name, values in seconds.items()},
        "predicted_step_s": plan.predicted.step_s,
        "losses": losses,
        "speed": {
            **{
                name: asdict(ratio_of(values, seconds["evenflow"]))
                for name, values in seconds.items()
                if name != "evenflow"
            },
            "deepspeed": None,
        },
        "over_bound": median(seconds["evenflow"]) / bound,
        "memory_growth": None,
        "memory_vs_torch": None,
    }


def _print_table(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores; {result['rounds']} interleaved rounds, medians")
    print(f"split {[len(layers) for layers in result['split']]}, predicted step {result['predicted_step_s']:.3f} s")
    print(f"{'':20} {'step s':>8}  {'evenflow is faster by':>24}  {'last loss':>10}")
    for name, step_s in result["step_s"].items():
        ratio = result["speed"].get(name)
        text = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else ""
        print(f"{name:20} {step_s:8.3f}  {text:>24}  {result['losses'][name]:10.6f}")
    print(f"our step over schedule_bound: {result['over_bound']:.3f}")


if __name__ == "__main__":
    main()
