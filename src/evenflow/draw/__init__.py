"""Plans and timelines as people look at them: terminal tables, one picture, one page."""

from evenflow.draw.findings import blame_text, finding_lines
from evenflow.draw.html import report_html
from evenflow.draw.model_tables import device_table, model_table, profile_table
from evenflow.draw.png import timeline_png
from evenflow.draw.rehearsal_table import rehearsal_table
from evenflow.draw.report_table import report_table
from evenflow.draw.svg import timeline_svg
from evenflow.draw.tables import comparison_table, costs_line, idle_table, plan_table, schedules_table
from evenflow.draw.trace import timeline_trace
from evenflow.draw.words import held_out_text

__all__ = [
    "blame_text",
    "comparison_table",
    "costs_line",
    "device_table",
    "finding_lines",
    "held_out_text",
    "idle_table",
    "model_table",
    "plan_table",
    "profile_table",
    "rehearsal_table",
    "report_html",
    "report_table",
    "schedules_table",
    "timeline_png",
    "timeline_svg",
    "timeline_trace",
]
