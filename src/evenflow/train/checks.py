"""What is proved of a model before ranks start: that what they will hold and do equals the whole model."""

from __future__ import annotations

from evenflow.execute import check_documents, check_shares, check_split
from evenflow.models import ModelSource
from evenflow.plan import Axes
from evenflow.train.job import Job
from evenflow.train.progress import Progress


def check_model(job: Job, source: ModelSource, axes: Axes, separate: bool, progress: Progress) -> None:
    """Prove what a job relies on, on a small copy of its model; nothing under `--no-check`.

    Args:
        job: the job.
        source: its model.
        axes: over how many processes it is split and shared out.
        separate: whether documents of a sequence are not to see each other.
        progress: hears what was proved.

    Raises:
        InputError: it does not hold, and why.
    """
    if not job.check:
        return
    if separate:
        check_documents(source.config)
        progress.said("check: documents that share a sequence do not see each other")
    if axes.pp > 1:
        checked = check_split(source.config)
        progress.said(f"check: split equals whole (worst relative error {checked.worst_error:.1e})")
    if axes.tp > 1:
        shares = check_shares(source.config)
        progress.said(f"check: shared out equals whole (worst relative error {shares.worst_error:.1e})")
