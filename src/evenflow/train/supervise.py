"""Sees a run through: a rank that is lost costs the steps since the newest complete checkpoint, not the run.

A rank is lost where it dies without a word, falls silent or gets stuck. What a rank names itself (a number that is
none, memory that its allocator does not have, an error in the code) would come again, so it ends the run. A disk that
fails when a rank is lost is waited for, as what the run's files say of steps that are taken again has to be cut off
first.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from evenflow.errors import FaultError, ImpossibleError, InputError, RankLostError, StoppedError
from evenflow.launch import Launcher
from evenflow.train.attempt import Attempt, Prepared, Watcher
from evenflow.train.checkpoint import Checkpoint, newest_checkpoint
from evenflow.train.job import Job
from evenflow.train.progress import Progress

_DISK_S = 600.0  # for a disk to work again: a file server is back in minutes
_DISK_TRIED_S = 0.5


def see_through(job: Job, ready: Prepared, launcher: Launcher, watcher: Watcher) -> Attempt:
    """Start the ranks, and start them again where one is lost, as often as the job allows from one checkpoint.

    Returns:
        The attempt that came to the end.

    Raises:
        RankLostError: once more than the job allows without a new checkpoint between.
        FaultError: a fault that would come again; or no checkpoint is whole any more.
        StoppedError: a second signal came.
    """
    restarts = 0
    attempt = Attempt(job, ready, watcher)
    while True:
        copies = attempt.copies
        try:
            attempt.run(launcher)
        except RankLostError as error:
            if attempt.has_saved:
                restarts = 0  # it gets on
            may = restarts < job.restarts or (job.restarts and attempt.unfinished)  # a new checkpoint counts anew
            if may and watcher.signals.received is None:
                watcher.progress.said(f"fault: {error}")
            if _finish_save(attempt):
                restarts = 0
            if restarts == job.restarts or watcher.signals.received is not None:
                attempt.keep_last()
                raise _last_word(error, job, restarts) from None
            restarts += 1
            checkpoint = go_on_from(job.out, watcher.progress, error)
            ready = replace(ready, checkpoint=checkpoint)
            where = f"from {checkpoint.folder}" if checkpoint else "from the beginning, since nothing was saved yet"
            watcher.progress.said(
                f"restart {restarts} of {job.restarts}: {where}, after step {ready.done_steps} of {job.steps}"
            )
            attempt = _once_the_disk_works(job, ready, watcher)
        except (FaultError, InputError, ImpossibleError):
            _finish_save(attempt)
            raise
        else:
            return attempt
        finally:
            copies.close()


def _finish_save(attempt: Attempt) -> bool:
    """Write what ranks that are gone had copied, and let go of it; a second signal ends that, and hides no fault."""
    try:
        return attempt.finish_save()
    except StoppedError:
        return False
    finally:
        attempt.copies.close()


def _once_the_disk_works(job: Job, ready: Prepared, watcher: Watcher) -> Attempt:
    """The next attempt.

    Raises:
        FaultError: the disk does not let the run's files be cut back; for long, or a signal came. Or another host's
            worker is gone meanwhile.
    """
    deadline, told = time.monotonic() + _DISK_S, False
    while True:
        watcher.signals.hear()
        try:
            return Attempt(job, ready, watcher)
        except (FaultError, InputError) as error:  # files that were good are none that a user has to put right
            if time.monotonic() > deadline or watcher.signals.received is not None:
                raise FaultError(f"{error}; once it can be, --resume goes on from the newest checkpoint") from None
            if not told:
                told = True
                watcher.progress.said(f"warning: {error}. Training goes on once it can be, within {_DISK_S:g} s")
            time.sleep(_DISK_TRIED_S)


def go_on_from(out: Path, progress: Progress, fault: FaultError | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a run; damaged ones that are passed over are named.

    Args:
        out: the run's folder.
        progress: is told of damaged ones.
        fault: why a run starts again, where one does.

    Raises:
        InputError: all are damaged, and the run was to be resumed.
        FaultError: all are damaged, and the run was to start again.
    """
    try:
        checkpoint = newest_checkpoint(out)
    except InputError as error:
        if fault is None:
            raise
        raise FaultError(f"{fault}; and there is nothing to start again from: {error}") from None
    for damaged in checkpoint.passed_over if checkpoint else ():
        assert checkpoint is not None
        progress.said(f"warning: {damaged}; going on from {checkpoint.folder}, after step {checkpoint.state.step}")
    return checkpoint


def _last_word(error: RankLostError, job: Job, restarts: int) -> RankLostError:
    done = f"{restarts} of {job.restarts} restarts were used since the newest checkpoint; " if job.restarts else ""
    return RankLostError(f"{error}. {done}--resume goes on from the newest checkpoint in {job.out}, if there is one")
