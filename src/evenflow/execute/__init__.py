"""Reads a program and runs one rank of it; proves that a split model equals the whole one."""

from evenflow.execute.check import CheckResult, check_split, refuse_layerdrop
from evenflow.execute.check_documents import check_documents
from evenflow.execute.check_tensor_parallel import SharesResult, check_shares
from evenflow.execute.executor import Executor
from evenflow.execute.step import StepResult

__all__ = [
    "CheckResult",
    "Executor",
    "SharesResult",
    "StepResult",
    "check_documents",
    "check_shares",
    "check_split",
    "refuse_layerdrop",
]
