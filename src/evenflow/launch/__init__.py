"""Starts, pins, watches and ends the processes of a job."""

from evenflow.launch.channel import Channel, Message
from evenflow.launch.client import ForkServer, shared_server
from evenflow.launch.group import Group
from evenflow.launch.pinning import cores_of_ranks

__all__ = ["Channel", "ForkServer", "Group", "Message", "cores_of_ranks", "shared_server"]
