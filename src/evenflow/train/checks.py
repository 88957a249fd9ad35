"""What is proved before ranks start, on a small copy of the model; nothing under `--no-check`."""

from __future__ import annotations

from evenflow.execute import check_documents, check_shares, check_split
from evenflow.models import ModelSource
from evenflow.plan import Axes
from evenflow.train.job import Job
from evenflow.train.prepare import PreparedText
from evenflow.train.progress import Progress


def check_apart(job: Job, source: ModelSource, text: PreparedText, progress: Progress) -> None:
    """Prove that documents which share a sequence do not see each other, where they are not to.

    Raises:
        InputError: they do, and through what.
    """
    if job.check and text.sequences.separate:
        check_documents(source.config)
        progress.said("check: documents that share a sequence do not see each other")


def check_model(job: Job, source: ModelSource, axes: Axes, progress: Progress) -> None:
    """Prove that a model split and shared out over `axes` equals the whole one.

    Raises:
        InputError: it does not, and where.
    """
    if not job.check:
        return
    if axes.pp > 1:
        checked = check_split(source.config)
        progress.said(f"check: split equals whole (worst relative error {checked.worst_error:.1e})")
    if axes.tp > 1:
        shares = check_shares(source.config, axes.tp)
        progress.said(f"check: shared out equals whole (worst relative error {shares.worst_error:.1e})")
