"""Ranks that other workers fork: started, heard, blamed and ended as one's own, and nobody else gets in."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from evenflow.errors import EvenflowError, FaultError, InputError, RankLostError
from evenflow.launch import Agent, Channel, ForkServer, SeveralHosts, Torchrun, dial, listen
from evenflow.launch import agent as agent_module
from evenflow.launch import hosts as hosts_module

SECRET = "a secret"
PROOF = hosts_module.proof(SECRET, "worker").encode()
HERE = "127.0.0.1"


def worker(rank: int, ranks: int = 2) -> Torchrun:
    """What torchrun tells a worker, each on a host of its own."""
    return Torchrun(rank, ranks, 0, 1, HERE, 1, serves_store=False, run="test")


@pytest.fixture(scope="module")
def other_server() -> Iterator[ForkServer]:
    """The other host's fork server."""
    server = ForkServer(preload=("tests.launch.ranks",))
    yield server
    server.close()


@pytest.fixture
def both(server: ForkServer, other_server: ForkServer) -> Iterator[tuple[SeveralHosts, list[object]]]:
    """Two workers, the second one served by a thread; and what that one leaves with."""
    left: list[object] = []
    with listen(HERE) as listener:
        line = dial(HERE, listener.getsockname()[1], HERE, 10)

        def follow() -> None:
            try:
                left.append(Agent(worker(1), line, SECRET, other_server).serve(lambda: None))
            except EvenflowError as error:
                left.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        with SeveralHosts(worker(0), listener, SECRET) as gathered:
            yield gathered, left
        thread.join(10)
        assert not thread.is_alive()


def run(hosts: SeveralHosts, target: str, **payload: object) -> list:
    """All messages of a job on both hosts."""
    with hosts.running("test", f"tests.launch.ranks:{target}", 2, payload, 1) as group:
        return [item for item in group.messages() if item is not None]


def test_ranks_on_both_hosts_are_one_job(both: tuple[SeveralHosts, list[object]]) -> None:
    hosts, left = both
    for _ in range(2):  # one job after the other, over the same lines
        found = dict(run(hosts, "echo", a=1))
        assert sorted(found) == [0, 1]
        assert all(found[rank]["rank"] == rank and found[rank]["payload"]["a"] == 1 for rank in found)
    assert {found[rank]["payload"]["rendezvous"] for rank in found} == {"tcp://127.0.0.1:1/evenflow/test/2"}
    assert found[0]["payload"]["places"] == [[HERE, 0], [HERE, 0]]
    assert not left
    hosts.__exit__(None, InputError("x"), None)
    deadline = time.monotonic() + 10
    while not left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == [InputError.exit_code]


def test_much_is_relayed_whole_and_in_order(both: tuple[SeveralHosts, list[object]]) -> None:
    found = run(both[0], "much", messages=30, size=200_000)
    for rank in (0, 1):
        assert [message["number"] for number, message in found if number == rank] == list(range(30))


def test_ranks_on_both_hosts_hear_what_they_are_told(both: tuple[SeveralHosts, list[object]]) -> None:
    with both[0].running("test", "tests.launch.ranks:wait_for_stop", 2, {}, 1) as group:
        group.tell({"kind": "stop"})
        assert [item[1]["kind"] for item in group.messages() if item is not None] == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            ["lost", "bug"],
            r"rank 1 \(process \d+ on \S+ \(127\.0\.0\.1\)\) failed while testing bug: ZeroDivisionError",
        ),
        (["lost", "killed"], r"rank 1 \(process \d+ on \S+ \(127\.0\.0\.1\)\) was killed by SIGKILL while testing"),
        (["bug", "lost later"], r"rank 0 \(process \d+\) failed while testing bug"),
    ],
)
def test_the_rank_to_blame_is_named_with_its_host(
    both: tuple[SeveralHosts, list[object]], how: list[str], says: str
) -> None:
    with (
        pytest.raises(FaultError, match=says),
        both[0].running("test", "tests.launch.ranks:fail", 2, {"how": how}, 1) as group,
    ):
        list(group.messages())
    assert not any(Path(f"/proc/{pid}").exists() for pid in group.pids)


def test_a_worker_that_hangs_up_is_lost(both: tuple[SeveralHosts, list[object]]) -> None:
    hosts, left = both
    with hosts.running("test", "tests.launch.ranks:fail", 2, {"how": ["silent", "silent"]}, 1) as group:
        hosts.workers[1]._line.connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(
            FaultError, match=r"rank 1 \(process \d+ on .*\) is lost: .* the other ranks were ended"
        ) as lost:
            list(group.messages())
    assert not isinstance(lost.value, RankLostError)  # which would be started again, where nobody is to start it
    with pytest.raises(FaultError, match=r"the worker of rank 1 on .* is lost"):
        hosts.hear()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in group.pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in group.pids)
    assert "lost rank 0, the process that leads the run" in str(left[0])


@pytest.mark.parametrize(
    "says",
    [
        b'{"kind": "hello", "rank": 1, "proof": "a guess"}\n',
        b'{"kind": "hello", "rank": 1}\n',
        b'{"proof": "\\ud800"}\n',
        b'{"proof": "%s"}\n' % PROOF,
        b'{"proof": "%s", "rank": 1}\n' % PROOF,
        b'{"proof": "%s", "rank": [1], "host": "h"}\n' % PROOF,
        b"[" * 60_000 + b"\n",
        b"[" * 200_000 + b"\n",
        b"x" * 65_536,
        b"\xff\n",
        b"[]\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ],
)
def test_a_caller_without_the_secret_is_hung_up_on(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "_GATHER_S", 0.5)
    with listen(HERE) as listener, socket.create_connection(listener.getsockname()) as caller:
        caller.sendall(says)
        if not says:
            caller.shutdown(socket.SHUT_WR)
        with pytest.raises(FaultError, match=r"workers with RANK 1 of 2; .* 127\.0\.0\.1"):
            SeveralHosts(worker(0), listener, SECRET)
        assert _hung_up(caller)


def _hung_up(caller: socket.socket) -> bool:
    caller.settimeout(5)
    try:
        return caller.recv(100) == b""
    except ConnectionResetError:  # before all it said was read
        return True


@pytest.mark.parametrize("answer", [b"", b'{"kind": "welcome"}\n', b'{"kind": "welcome", "proof": "%s"}\n' % PROOF])
def test_nobody_else_is_taken_for_the_leading_worker(
    answer: bytes, other_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is found at its old address may say nothing for ever, or what any caller would: what it was told itself."""
    monkeypatch.setattr(agent_module, "_WELCOME_S", 0.5)
    with listen(HERE) as listener:
        agent = Agent(worker(1), dial(HERE, listener.getsockname()[1], HERE, 10), SECRET, other_server)
        connection, _ = listener.accept()
        assert SECRET.encode() not in connection.recv(10_000)
        connection.sendall(answer)
        assert not agent.is_welcome(lambda: None)
        connection.close()


class Babbler:
    """A caller that has always sent more, and never ends a line."""

    def __init__(self) -> None:
        self.looks = self.taken = 0

    def recv(self, most: int, _: int) -> bytes:
        """More bytes, fewer than asked for."""
        self.looks += 1
        assert self.looks < 1000, "the reader never lets go of this caller"
        more = b"x" * min(most, 10_000)
        self.taken += len(more)
        return more


def test_a_caller_that_never_stops_is_read_once_a_turn_and_hung_up_on() -> None:
    babbler = Babbler()
    line = Channel(babbler)  # type: ignore[arg-type]
    turns = 0
    while not line.closed:
        assert hosts_module._hello(line, SECRET, {1}) is None
        turns += 1
        assert babbler.looks == turns
    assert babbler.taken == 64 * 1024


HELLO = {"proof": PROOF.decode(), "rank": 1, "host": "h", "device": "cpu", "gpus": 0, "memory_bytes": 1, "cores": 1}
HELLO |= {"kind": "hello", "local_rank": 0, "local_ranks": 1}


def test_what_follows_a_hello_is_heard() -> None:
    signals: list[int] = []
    said = json.dumps(HELLO) + '\n{"kind": "signal", "number": 15}\n'
    with listen(HERE) as listener, socket.create_connection(listener.getsockname()) as caller:
        caller.sendall(said.encode())
        with SeveralHosts(worker(0), listener, SECRET, heard=signals.append) as hosts:
            hosts.hear()
            assert signals == [15]


def test_silent_callers_keep_no_worker_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "_MOST_CALLERS", 2)
    with listen(HERE) as listener, ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(5)]
        caller = stack.enter_context(socket.create_connection(listener.getsockname()))
        caller.sendall(json.dumps(HELLO).encode() + b"\n")
        with SeveralHosts(worker(0), listener, SECRET) as hosts:
            assert sorted(hosts.workers) == [1]
            assert all(_hung_up(one) for one in silent)


def test_a_folder_goes_both_ways_or_is_refused(
    both: tuple[SeveralHosts, list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, _ = both
    weights = tmp_path / "weights"
    weights.write_text("12345")
    (tmp_path / "run").mkdir()
    hosts.check_shared(tmp_path / "run", [weights])
    monkeypatch.setattr(hosts_module, "_is_of_size", lambda path, size: path.stat().st_size == size + 1)
    with pytest.raises(InputError, match=r"weights is not on .* or not of the size"):
        hosts.check_shared(tmp_path / "run", [weights])
    monkeypatch.setattr(hosts_module, "_appears", lambda path: path.name.endswith("-1"))
    with pytest.raises(InputError, match=r"run is not shared: .* does not see there"):
        hosts.check_shared(tmp_path / "run", [])
    assert not list((tmp_path / "run").iterdir())


def test_the_cluster_is_that_of_all_hosts_and_refused_where_they_differ(
    both: tuple[SeveralHosts, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hosts, _ = both
    other = hosts.workers[1]
    other.facts |= {"cores": 1, "memory_bytes": 2**30, "device": "cpu", "gpus": 0}
    own = hosts.cluster(None, None)
    assert (own.devices, own.at_once, own.device.memory_bytes, own.name) == (2, 2, 2**30, "local")
    assert hosts.cluster(2, 10**6).at_once == 2  # one rank on each host has it for itself, however many threads it has
    other.facts |= {"local_ranks": 4}
    hosts.workers |= dict.fromkeys((2, 3, 4), other)  # four ranks on one core, one here
    assert hosts.cluster(None, 1).at_once == 2
    other.facts |= {"device": "NVIDIA H200", "gpus": 2}
    with pytest.raises(InputError, match=r"ranks compute on cpu here and on 2 NVIDIA H200 on .* \(127\.0\.0\.1\)"):
        hosts.cluster(None, None)


def test_lines_are_closed_for_whoever_is_not_there() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    line = Channel(ours)
    line.send({"kind": "anything"})  # no error: whoever reads the line notices
    assert line.waiting() == []
    assert line.closed
