"""Plans as other trainers' own configuration; each is read back before it is handed over."""

from evenflow.export.exported import Export, Split, Target
from evenflow.export.targets import TARGETS, export_plan

__all__ = ["TARGETS", "Export", "Split", "Target", "export_plan"]
