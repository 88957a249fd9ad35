"""Starts, pins, watches and ends the processes of a job, on this host or on those that torchrun started."""

from evenflow.launch.address import address_of, interface_of, is_loopback, own_address
from evenflow.launch.agent import Agent
from evenflow.launch.channel import Channel, Message, pack, unpack
from evenflow.launch.client import ForkServer, shared_server
from evenflow.launch.group import Group
from evenflow.launch.heartbeat import Heartbeat, action_note
from evenflow.launch.hosts import SeveralHosts
from evenflow.launch.launcher import Launcher, ThisHost
from evenflow.launch.nameless import nameless_file
from evenflow.launch.pinning import cores_of_ranks
from evenflow.launch.torchrun import Torchrun, notice_torchrun
from evenflow.launch.watch import Patience
from evenflow.launch.wire import dial, listen

__all__ = [
    "Agent",
    "Channel",
    "ForkServer",
    "Group",
    "Heartbeat",
    "Launcher",
    "Message",
    "Patience",
    "SeveralHosts",
    "ThisHost",
    "Torchrun",
    "action_note",
    "address_of",
    "cores_of_ranks",
    "dial",
    "interface_of",
    "is_loopback",
    "listen",
    "nameless_file",
    "notice_torchrun",
    "own_address",
    "pack",
    "shared_server",
    "unpack",
]
