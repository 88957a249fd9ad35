"""Every file we read or write: a versioned schema at the edge, plain values inside, atomic writing."""

from evenflow.files.device import device_json, load_device, save_device
from evenflow.files.document import (
    FORMAT_VERSION,
    append_text,
    json_text,
    refuse_place,
    sync_folder,
    write_bytes,
    write_json,
    write_text,
)
from evenflow.files.inside import check_index, check_inside, check_names, check_shard_header
from evenflow.files.job import (
    JobPart,
    check_job,
    check_settings,
    job_schema,
    job_settings,
    job_text,
    load_job,
    merge_jobs,
)
from evenflow.files.metrics import (
    StepMetrics,
    load_metrics,
    metrics_line,
    truncate_metrics,
)
from evenflow.files.model import model_json
from evenflow.files.plan import load_plan, plan_json, save_plan
from evenflow.files.profile import load_profile, profile_json, save_profile
from evenflow.files.ranks import RankProcess, load_ranks, save_ranks
from evenflow.files.samples import load_samples, samples_line, truncate_samples
from evenflow.files.timeline import StepTimelines, load_timelines, save_timelines

__all__ = [
    "FORMAT_VERSION",
    "JobPart",
    "RankProcess",
    "StepMetrics",
    "StepTimelines",
    "append_text",
    "check_index",
    "check_inside",
    "check_job",
    "check_names",
    "check_settings",
    "check_shard_header",
    "device_json",
    "job_schema",
    "job_settings",
    "job_text",
    "json_text",
    "load_device",
    "load_job",
    "load_metrics",
    "load_plan",
    "load_profile",
    "load_ranks",
    "load_samples",
    "load_timelines",
    "merge_jobs",
    "metrics_line",
    "model_json",
    "plan_json",
    "profile_json",
    "refuse_place",
    "samples_line",
    "save_device",
    "save_plan",
    "save_profile",
    "save_ranks",
    "save_timelines",
    "sync_folder",
    "truncate_metrics",
    "truncate_samples",
    "write_bytes",
    "write_json",
    "write_text",
]
