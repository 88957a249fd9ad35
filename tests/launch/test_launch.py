"""Starting, hearing, blaming and ending ranks: what every run and every test of several processes stands on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evenflow.errors import EvenflowError, FaultError, ImpossibleError, InputError
from evenflow.launch import Channel, ForkServer, cores_of_ranks
from evenflow.launch.allocator import allocator_environment
from evenflow.launch.client import PRELOAD
from evenflow.launch.server import _become_rank
from evenflow.spec.machine import core_ids


def results(server: ForkServer, target: str, ranks: int, payload: dict[str, object], cores: object = None) -> list:
    """All messages of a job."""
    group = server.start("test", f"tests.launch.ranks:{target}", ranks, payload, cores)  # type: ignore[arg-type]
    return [item for item in group.messages() if item is not None]


def gone(pid: int) -> bool:
    """Whether a process has ended and was waited for."""
    return not Path(f"/proc/{pid}").exists()


def test_each_rank_gets_its_number_the_payload_and_its_cores(server: ForkServer) -> None:
    cores = [[core] for core in core_ids()[:2]] if len(core_ids()) > 1 else [[core_ids()[0]]] * 2
    found = dict(results(server, "echo", 2, {"a": [1, "two"]}, cores))
    assert sorted(found) == [0, 1]
    assert all(found[rank]["rank"] == rank and found[rank]["payload"] == {"a": [1, "two"]} for rank in found)
    assert [found[rank]["cores"] for rank in (0, 1)] == cores
    assert all(own["threads"] == ["MainThread", "heartbeat"] for own in found.values())
    assert all("glibc.malloc.hugetlb=1" in own["tunables"] for own in found.values())
    assert all(gone(own["pid"]) for own in found.values())


def test_a_rank_can_start_cuda_since_the_server_has_not(server: ForkServer) -> None:
    """On a machine with a GPU this shows that nothing before the fork started CUDA; elsewhere, that nothing would."""
    own = dict(results(server, "echo", 1, {}))[0]
    assert own["cuda_check"] == "1"
    assert not own["cuda_is_spoilt"]


def test_what_the_server_imports_does_not_start_cuda() -> None:
    """In a process whose torch notes whoever would start CUDA; what NVML answers is allowed, as in the server."""
    watch = """
import importlib, sys, torch
started = []
torch.cuda._lazy_init = lambda: started.append("_lazy_init")
if hasattr(torch._C, "_cuda_getDeviceCount"):
    torch._C._cuda_getDeviceCount = lambda: started.append("cudaGetDeviceCount") or 0
for module in sys.argv[1:]:
    importlib.import_module(module)
assert not started, started
try:
    torch.cuda.current_device()
except AttributeError:
    pass  # a torch without CUDA has nothing to ask
assert started == ["_lazy_init"], "the watch must see a start"
"""
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    run = [sys.executable, "-c", watch, *PRELOAD]
    ran = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_messages_larger_than_a_socket_holds_arrive_whole_and_in_order(server: ForkServer) -> None:
    found = results(server, "much", 2, {"messages": 30, "size": 200_000})
    for rank in (0, 1):
        own = [message for number, message in found if number == rank]
        assert [message["number"] for message in own] == list(range(30))
        assert all(len(message["text"]) == 200_000 for message in own)


def test_a_message_split_over_two_reads_is_one_message() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall(b'{"kind": "a"}\n{"kind"')
    assert channel.waiting() == [{"kind": "a"}]
    theirs.sendall(b': "b"}\n')
    assert channel.waiting() == [{"kind": "b"}]
    theirs.close()
    assert channel.waiting() == []
    assert channel.closed


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        (["input", "silent"], InputError, "the text is wrong"),
        (["silent", "impossible"], ImpossibleError, "it does not fit"),
        (["lost", "bug"], FaultError, r"rank 1 \(process \d+\) failed while testing bug: ZeroDivisionError: a mistake"),
        (["lost later", "killed"], FaultError, r"rank 1 \(process \d+\) was killed by SIGKILL while testing killed"),
        (["exit", "lost later"], FaultError, r"rank 0 \(process \d+\) left without a word \(status 7\)"),
        (["lost", "lost later", "silent"], FaultError, r"not heard of in time: rank 2 \(process \d+\) while testing"),
    ],
)
def test_the_rank_to_blame_is_named_and_all_are_ended(
    server: ForkServer, how: list[str], kind: type[EvenflowError], says: str
) -> None:
    group = server.start("test", "tests.launch.ranks:fail", len(how), {"how": how})
    with pytest.raises(kind, match=says):
        list(group.messages())
    assert all(gone(pid) for pid in group.pids)


def test_ranks_hear_what_they_are_told(server: ForkServer) -> None:
    group = server.start("test", "tests.launch.ranks:wait_for_stop", 2, {})
    group.tell({"kind": "stop"})
    assert [message["kind"] for item in group.messages() if item is not None for message in [item[1]]] == [
        "stopped"
    ] * 2


def test_ending_a_group_ends_its_ranks(server: ForkServer) -> None:
    group = server.start("test", "tests.launch.ranks:wait_for_stop", 2, {})
    group.end()
    assert all(gone(pid) for pid in group.pids)


def test_too_many_ranks_are_refused(server: ForkServer) -> None:
    with pytest.raises(InputError, match="64 would be the most"):
        server.start("test", "tests.launch.ranks:echo", 65, {})


def test_closing_a_server_that_still_imports_is_quick() -> None:
    server = ForkServer()
    assert server.alive
    server.close()
    assert not server.alive


def test_ranks_have_cores_of_their_own_or_are_not_pinned() -> None:
    available = len(core_ids())
    pinned = cores_of_ranks(available, 1)
    assert pinned is not None
    assert sorted(core for own in pinned for core in own) == list(core_ids())
    assert cores_of_ranks(available + 1, 1) is None
    assert cores_of_ranks(1, available + 1) is None


def test_the_users_own_allocator_settings_stay() -> None:
    own = "glibc.malloc.mmap_threshold=4096"
    tunables = allocator_environment({"GLIBC_TUNABLES": own})["GLIBC_TUNABLES"].split(":")
    assert tunables[0] == own
    assert sum("mmap_threshold" in tunable for tunable in tunables) == 1
    assert any("hugetlb" in tunable for tunable in tunables)


def test_a_rank_that_cannot_begin_says_so_and_never_returns_to_the_servers_loop() -> None:
    """Its heartbeat's page is gone: in that loop it would end the other ranks as the server does."""
    own, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            _become_rank(0, os.getppid(), {}, -1, theirs.detach(), ())
        finally:
            os._exit(77)
    theirs.close()
    own.settimeout(30)
    said = own.recv(65536)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert json.loads(said.splitlines()[0])["kind"] == "error"
    own.close()
