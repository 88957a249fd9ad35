"""Plans the peers' job on this machine and starts its ranks: once for the speed, once for each memory figure."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_job import PeersJob
from evenflow.cost import Costs
from evenflow.files import save_plan
from evenflow.launch import cores_of_ranks, shared_server
from evenflow.measure import measure_profile
from evenflow.models import ModelSource, describe_model, find_model
from evenflow.plan import Plan
from evenflow.search import equal_split, make_plan
from evenflow.spec import Batch, Cluster, Model
from evenflow.spec.cluster import local_cluster


@dataclass(frozen=True, slots=True)
class StartedJob:
    """The job with its plan, ready to be run any number of times.

    Attributes:
        folder: where its config and its plans are.
        model: traced at the batch's microbatch shape.
        cluster: this machine.
        costs: measured here.
        plan: evenflow's.
    """

    folder: Path
    model: Model
    cluster: Cluster
    costs: Costs
    plan: Plan

    def replan(self, batch: Batch) -> StartedJob:
        """The same split and schedule for another number of microbatches."""
        plan = make_plan(self.model, self.cluster, batch, self.costs, self.plan.schedule, split=self.plan.stage_layers)
        return StartedJob(self.folder, self.model, self.cluster, self.costs, plan)

    def measured_again(self) -> StartedJob:
        """The same split and schedule with costs as they are measured now."""
        costs = measure_profile(find_model(str(self.folder / "config.json")), self.model, self.cluster).costs()
        batch = Batch(self.plan.global_batch_size, self.plan.micro_batch_size, self.plan.seq_length)
        plan = make_plan(self.model, self.cluster, batch, costs, self.plan.schedule, split=self.plan.stage_layers)
        return StartedJob(self.folder, self.model, self.cluster, costs, plan)

    def run(self, name: str, target: str, own: dict[str, Any]) -> list[dict[str, Any]]:
        """Start a process for each rank, and return what each sent, by rank.

        Args:
            name: what runs, for messages.
            target: `module:function` that each rank calls.
            own: what the ranks are told beside the job.

        Raises:
            EvenflowError: a rank failed.
        """
        ranks = len(self.plan.ranks)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            plan = Path(folder) / "plan.json"
            save_plan(self.plan, plan)
            payload = {
                "model": str(self.folder / "config.json"),
                "plan": str(plan),
                "equal_split": equal_split(len(self.plan.layers), ranks),
                "rendezvous": f"{folder}/rendezvous",
                **own,
            }
            group = shared_server().start(name, target, ranks, payload, cores_of_ranks(ranks, self.plan.threads))
            results = dict(item for item in group.messages() if item is not None)
        return [results[rank] for rank in range(ranks)]


def start_job(job: PeersJob, processes: int, folder: Path, schedule: str = "1f1b") -> StartedJob:
    """Measure the job's model on this machine and plan it; files go to `folder`."""
    config = folder / "config.json"
    config.write_text(json.dumps(job.config))
    source: ModelSource = find_model(str(config))
    cluster = local_cluster(processes)
    model = describe_model(source, job.batch.micro_batch_size, job.batch.seq_length)
    costs = measure_profile(source, model, cluster).costs()
    return StartedJob(folder, model, cluster, costs, make_plan(model, cluster, job.batch, costs, schedule))
