"""The loop round the executor: text, batches, learning rate, metrics, and the model that comes out."""

from evenflow.train.hosts import serve
from evenflow.train.job import Job
from evenflow.train.planning import choose_cluster, follow_plan, make_batch, plan_model
from evenflow.train.progress import Progress, Silent
from evenflow.train.reopen import saved_model_losses
from evenflow.train.run import RunResult, train

__all__ = [
    "Job",
    "Progress",
    "RunResult",
    "Silent",
    "choose_cluster",
    "follow_plan",
    "make_batch",
    "plan_model",
    "saved_model_losses",
    "serve",
    "train",
]
