"""Wrong input: one clear line on standard error, the right exit code, no traceback, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from evenflow.cli import main


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; returns its one line."""

    def run(code: int, *arguments: object) -> str:
        capfd.readouterr()
        try:
            got = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse leaves by itself
            got = int(left.code or 0)
        captured = capfd.readouterr()
        # What is said on the way (data, profile) goes to standard error too; the last line is the refusal.
        last = captured.err.strip().splitlines()[-1]
        assert got == code, captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert last.startswith("evenflow")
        return last

    return run


def test_no_such_model(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert "no such directory or config.json" in refuse(2, "describe", tmp_path / "nowhere")


def test_no_such_data(refuse: Callable[..., str], make_model: Callable[..., Path], tmp_path: Path) -> None:
    line = refuse(2, "train", make_model(), "--data", tmp_path / "nothing", "--out", tmp_path / "run")
    assert "nothing" in line
    assert not (tmp_path / "run").exists()


def test_unknown_architecture(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "perceptron-9000"}))
    assert "'perceptron-9000' is not known" in refuse(2, "describe", tmp_path)


def test_more_stages_than_layers(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    line = refuse(
        2, "train", make_model(), "--data", text, "--out", tmp_path / "run", "--processes", 7, "--seq-length", 32
    )
    assert "7 stages need at least 7 layers" in line
    assert "has 6" in line


def test_a_global_batch_that_the_microbatch_does_not_divide(
    refuse: Callable[..., str], make_model: Callable[..., Path]
) -> None:
    line = refuse(2, "plan", make_model(), "--global-batch-size", 10, "--micro-batch-size", 4, "--seq-length", 32)
    assert "10 does not divide into microbatches of 4; 1, 2, 5, 10 would do" in line


def test_text_too_short(refuse: Callable[..., str], make_model: Callable[..., Path], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("to be or not to be")
    line = refuse(2, "train", make_model(), "--data", short, "--out", tmp_path / "run", "--seq-length", 64)
    assert "one sequence needs 64" in line
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_model(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    folder = make_model()
    Tokenizer(models.WordLevel({f"w{number}": number for number in range(500)}, unk_token="w0")).save(
        str(folder / "tokenizer.json")
    )
    line = refuse(2, "train", folder, "--data", text, "--out", tmp_path / "run", "--seq-length", 32)
    assert "499" in line
    assert "384" in line


@pytest.mark.parametrize(("cluster", "whose"), [("2xA100-80GB", "a device of 2xA100-80GB"), ("local", "this machine")])
def test_a_memory_limit_above_what_there_is(
    refuse: Callable[..., str], make_model: Callable[..., Path], cluster: str, whose: str
) -> None:
    line = refuse(2, "plan", make_model(), "--memory-limit", "900GiB", "--cluster", cluster, "--seq-length", 32)
    assert "--memory-limit 900 GiB is more than the " in line
    assert f" that {whose} has; " in line


def test_a_memory_limit_above_what_there_is_is_not_trained_with(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    asked = ("--data", text, "--out", tmp_path / "run", "--memory-limit", "900GiB", "--seq-length", 32)
    assert "--memory-limit 900 GiB is more than the " in refuse(2, "train", make_model(), *asked)


def test_a_memory_limit_that_nothing_fits(refuse: Callable[..., str], make_model: Callable[..., Path]) -> None:
    line = refuse(4, "plan", make_model(), "--memory-limit", "100KiB", "--pp", 2, "--seq-length", 32)
    assert "no plan fits" in line
    assert "stage" in line
    assert "of 100 KiB" in line
    limit = line.partition("a memory limit of ")[2].partition(" would fit")[0]
    assert main(["plan", str(make_model()), "--memory-limit", limit, "--pp", "2", "--seq-length", "32", "--json"]) == 0


def test_a_run_that_is_not_empty(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").write_text("mine")
    assert "is not empty" in refuse(2, "train", make_model(), "--data", text, "--out", run)
    assert (run / "precious").read_text() == "mine"


def test_a_run_folder_that_cannot_be_made(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path
) -> None:
    line = refuse(2, "train", make_model(), "--data", text, "--out", text / "run", "--seq-length", 32)
    assert "cannot be made" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan"], "MODEL"),
        (["plan", "x", "--schedule"], "--schedule"),
        (["plan", "x", "--pp", "0"], "1 would be the least"),
        (["plan", "x", "--pp", "9" * 5000], "999 is too large; 1000000000 would be the most"),
        (["plan", "x", "--pp", "x" * 5000], "xxx' is not a whole number"),
        (["plan", "x", "--memory-limit", "many"], "'many' is not a memory size"),
        (["plan", "x", "--memory-limit", "9" * 5000], "999' is not a memory size"),
        (["train", "x", "--data", "y", "--out", "z", "--zero", "2"], "--zero: should be"),
        (
            ["train", "x", "--data", "y", "--out", "z", "--seed", "-1"],
            "--seed: should be greater than or equal to 0, not -1",
        ),
        (
            ["train", "x", "--data", "y", "--out", "z", "--seed", "9" * 30],
            "--seed: should be less than or equal to 92233",
        ),
        (["train", "x", "--data", "y", "--out", "z", "--lr", "nan"], "--lr: should be a finite number, not NaN"),
        (["train", "x", "--out", "y"], "--data is missing"),
        (["train", "x", "--stepps", "y"], "--stepps is not an option; --steps is the nearest"),
        (["dance"], "dance"),
        (["plan", "x", "--clutser", "local"], "--clutser"),
    ],
)
def test_misspelt_options(refuse: Callable[..., str], arguments: list[str], says: str) -> None:
    assert says in refuse(2, *arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--schedule", "2f2b"], "schedule '2f2b' is not known; 1f1b, gpipe, interleaved, "),
        (["--schedule", ""], "schedule '' is not known; 1f1b, gpipe, interleaved, "),
        (["--cluster", "8xB999"], "'B999' is not in the catalogue"),
        (["--cluster", "8x"], "is not understood"),
        (["--cluster", "9" * 5000 + "xA100-80GB"], "is not understood"),
        (["--cluster", "8xA100-80GB", "--pp", "9"], "--pp 9 needs 9 processes, and there are 8; 9 would do"),
        (["--global-batch-size", "1000000000", "--micro-batch-size", "1"], "1000000000 microbatches in a step are too"),
    ],
)
def test_unknown_names(
    refuse: Callable[..., str], make_model: Callable[..., Path], options: list[str], says: str
) -> None:
    assert says in refuse(2, "plan", make_model(), "--seq-length", "32", *options)


def test_an_empty_schedule_is_not_the_default(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    assert main(["plan", str(make_model()), "--seq-length", "32", "--out", str(plan), "--json"]) == 0
    says = "schedule '' is not known; 1f1b, gpipe, interleaved, "
    assert says in refuse(2, "simulate", plan, "--schedule", "")
    run = ["--data", text, "--out", tmp_path / "run", "--processes", 2, "--seq-length", 32, "--schedule", ""]
    assert says in refuse(2, "train", make_model(), *run)


def test_plans_and_profiles_of_something_else(
    refuse: Callable[..., str], make_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    assert main(["plan", str(make_model()), "--seq-length", "32", "--out", str(plan), "--json"]) == 0
    wider = make_model(hidden_size=128)
    line = refuse(2, "train", wider, "--data", text, "--out", tmp_path / "run", "--plan", plan, "--seq-length", 32)
    assert "is a plan for tiny-llama" in line
    line = refuse(
        2, "train", make_model(), "--data", text, "--out", tmp_path / "run", "--plan", plan, "--stages-per-rank", 2
    )
    assert f"--stages-per-rank is 2, but {plan} has 1; without --stages-per-rank the plan is followed" in line
    assert "not JSON" in refuse(2, "simulate", text)
    assert "no-run" in refuse(2, "report", tmp_path / "no-run")


def test_a_report_of_a_run_that_never_ended(
    refuse: Callable[..., str], make_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    plan = run / "plan.json"
    assert main(["plan", str(make_model()), "--pp", "2", "--seq-length", "32", "--out", str(plan), "--json"]) == 0
    line = refuse(2, "report", run)
    assert "there is no timeline.json" in line
    assert f"{plan} for what was predicted" in line
    document = json.loads(plan.read_text())
    plan.write_text(json.dumps({**document, "format_version": 999}))
    assert "999" in refuse(2, "report", plan)
