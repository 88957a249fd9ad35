"""A rank that fails says where: rank, action, cause, in this order; those that lose it say that they lost it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evenflow.errors import FaultError, InputError, PeerLostError, RankError
from evenflow.execute import Executor
from evenflow.launch import ForkServer
from evenflow.plan import Axes, Coordinates
from evenflow.program import build_program
from evenflow.runtime import InMemoryNetwork, MadeUpTransport, Mesh
from tests.conftest import TINY_LLAMA
from tests.execute.alone import SHAPE, make_executor
from tests.parity.ranks import tokens_of


def tokens(microbatch: int) -> torch.Tensor:
    return tokens_of(0, microbatch, *SHAPE, TINY_LLAMA["vocab_size"])


def run(executor: Executor) -> FaultError:
    """What a step raises; a rank that failed parts from the others, as the end of its process would."""
    with pytest.raises(FaultError) as raised:
        executor.run_step(tokens, 1e-3)
    executor.transport.close()
    return raised.value


def fail_at(executor: Executor, stage: int, microbatch: int, method: str = "forward") -> None:
    runner = executor.runners[stage]
    whole = getattr(runner, method)

    def failing(number: int, *rest: object) -> object:
        if number == microbatch:
            raise ZeroDivisionError("a mistake\nand more of it")
        return whole(number, *rest)

    setattr(runner, method, failing)


def test_rank_action_and_cause_come_first_and_peers_are_let_go() -> None:
    network = InMemoryNetwork(3, timeout_s=60)
    executors = [make_executor(build_program("1f1b", 3, 4), rank, network.transport(rank)) for rank in range(3)]
    fail_at(executors[1], stage=1, microbatch=2)
    with ThreadPoolExecutor(3) as pool:
        first, failed, last = pool.map(run, executors)
    assert type(failed) is RankError
    assert str(failed) == "rank 1 failed in 1F2: ZeroDivisionError: a mistake"
    assert isinstance(failed.__cause__, ZeroDivisionError)
    for rank, other in ((0, first), (2, last)):
        assert type(other) is PeerLostError
        assert str(other).startswith(f"rank {rank} in ")
        assert str(other).endswith("rank 1 is gone")  # at once, not after the timeout, which would be named


@pytest.mark.parametrize(
    ("schedule", "method", "token"),
    [("1f1b", "backward", "0B1"), ("zb-h1", "input_backward", "0I1"), ("zb-h1", "weight_backward", "0W1")],
)
def test_every_compute_action_is_named_by_its_token(schedule: str, method: str, token: str) -> None:
    executor = make_executor(build_program(schedule, 2, 4), 0, MadeUpTransport())
    fail_at(executor, 0, 1, method)
    assert str(run(executor)).startswith(f"rank 0 failed in {token}: ZeroDivisionError")


def test_a_replica_goes_by_its_process_and_its_place() -> None:
    mesh = Mesh(Axes(pp=2, dp=2), Coordinates(0, 1))
    executor = make_executor(build_program("1f1b", 2, 4), 0, MadeUpTransport(), mesh=mesh)
    fail_at(executor, 0, 0)
    with pytest.raises(RankError, match=r"^rank 1 \(pp 0, dp 1\) failed in 0F0: ZeroDivisionError"):
        executor.run_step(tokens, 1e-3, predicted=8)


@pytest.mark.parametrize("method", ["send", "receive"])
def test_a_failed_message_is_a_lost_peer_not_a_first_cause(method: str) -> None:
    def lose(*_: object) -> None:
        raise PeerLostError("lost the connection to rank 0: closed")

    transport = MadeUpTransport()
    setattr(transport, method, lose)
    error = run(make_executor(build_program("1f1b", 2, 4), 1, transport))
    assert type(error) is PeerLostError
    token = {"send": "1SEND_B0", "receive": "1RECV_F0"}[method]
    assert str(error) == f"rank 1 in {token}: lost the connection to rank 0: closed"


def test_what_a_person_did_wrong_keeps_its_own_words() -> None:
    executor = make_executor(build_program("1f1b", 1, 2), 0, MadeUpTransport())
    with pytest.raises(InputError, match=r"^microbatch 0 is \[2, 8\], and was to be \[2, 16\]"):
        executor.run_step(lambda k: tokens(k)[:, :8], 1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_report_the_rank_that_failed_not_those_that_lost_it(server: ForkServer, tmp_path, rank: int) -> None:
    group = server.start(
        "fault", "tests.execute.failing_ranks:run", 2, {"rank": rank, "rendezvous": str(tmp_path / "rendezvous")}
    )
    with pytest.raises(RankError) as raised:
        list(group.messages())
    assert str(raised.value) == (
        f"rank {rank} failed in {rank}F2: ZeroDivisionError: a mistake (process {group.pids[rank]}, in step 1)"
    )
