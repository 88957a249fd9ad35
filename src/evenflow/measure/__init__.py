"""Times real layers and links into a cost profile."""

from evenflow.measure.device import measure_device
from evenflow.measure.profile import cached_profile, measure_profile

__all__ = ["cached_profile", "measure_device", "measure_profile"]
