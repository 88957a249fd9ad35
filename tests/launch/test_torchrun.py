"""torchrun is noticed by its environment, wholly or with an error that names what is missing; never half."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evenflow.errors import InputError
from evenflow.launch import Torchrun, address_of, interface_of, is_loopback, notice_torchrun, own_address

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def test_all_of_it_is_read() -> None:
    assert notice_torchrun(WHOLE) == Torchrun(3, 4, 1, 2, "10.0.0.1", 29500, serves_store=False, run="job")
    assert notice_torchrun({"PATH": "/bin", "LOCAL_WORLD_SIZE": ""}) is None


def test_who_serves_the_store_where_torchrun_does_not() -> None:
    own = {**WHOLE, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    served = [notice_torchrun({**own, "RANK": rank}) for rank in ("0", "1")]
    assert [found and found.serves_store for found in served] == [True, False]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_it_is_an_error_that_names_what_is_missing(name: str) -> None:
    half = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(InputError, match=f"RANK.* set, {name} missing"):
        notice_torchrun(half)
    with pytest.raises(InputError, match=f"{name} set, .* missing" if name != "RANK" else "RANK set"):
        notice_torchrun({name: WHOLE[name]})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"RANK": "x"}, "RANK is 'x' in the environment, not a whole number"),
        ({"RANK": "4"}, "RANK 4 of WORLD_SIZE 4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK 2 of LOCAL_WORLD_SIZE 2"),
        ({"LOCAL_WORLD_SIZE": "5"}, "of LOCAL_WORLD_SIZE 5"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 0 in the environment; ports are 1 to 65535"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999 in the environment; ports are 1 to 65535"),
        ({"WORLD_SIZE": "9" * 5000}, "not a whole number"),
    ],
)
def test_nonsense_is_refused(changed: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        notice_torchrun({**WHOLE, **changed})


def test_this_hosts_addresses_and_interfaces() -> None:
    assert own_address("127.0.0.1", 1) == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert address_of("lo") == "127.0.0.1"
    assert [is_loopback(address) for address in ("127.0.1.1", "::1", "10.0.0.1", "fe80::1%eth0")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(InputError, match=r"no network interface of .* has 203\.0\.113\.7"):
        interface_of("203.0.113.7")
    with pytest.raises(InputError, match="GLOO_SOCKET_IFNAME is nowhere0"):
        address_of("nowhere0")
    with pytest.raises(InputError, match=r"MASTER_ADDR no-such-host\.invalid cannot be reached"):
        own_address("no-such-host.invalid", 1)


def train(model: Path, text: Path, out: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `evenflow train` in an environment that has these variables as well."""
    command = [sys.executable, "-m", "evenflow", "train", str(model), "--data", str(text), "--out", str(out), *more]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_half_an_environment_never_trains_on_this_host(
    make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    done = train(make_model(), text, tmp_path / "run", RANK="0", WORLD_SIZE="2")
    assert done.returncode == 2
    assert done.stderr == (
        "evenflow train: the environment is half of torchrun's: RANK, WORLD_SIZE set, LOCAL_RANK, LOCAL_WORLD_SIZE, "
        "MASTER_ADDR, MASTER_PORT missing; torchrun sets all of them, and without RANK, WORLD_SIZE the run is on this "
        "host alone\n"
    )
    assert not (tmp_path / "run").exists()


def test_another_number_of_ranks_is_refused_and_both_are_named(
    make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = train(
        make_model(), text, tmp_path / "run", "--processes", "2", **alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    assert done.returncode == 2
    assert done.stderr.startswith("evenflow train: --processes is 2, but torchrun started 1 (WORLD_SIZE)")
    assert not (tmp_path / "run").exists()
