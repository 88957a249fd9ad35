"""Gives hostile folders to the command line under an audit hook, in a process of its own; prints it all as JSON."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 384, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
HUGE = 10 * 2**30
COMMANDS = ("describe", "plan", "check", "train")
WRONG_CONFIGS = (
    "unknown-with-code", "config-link", "config-pipe", "huge-config", "deep-config", "generation-link",
)  # fmt: skip
REMOTE = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}


class Cases:
    """Hostile folders below one folder; whatever code they bring writes to `marker`, and `secret` is not theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / "code-ran"
        self.secret = folder / "secret"
        self.secret.write_text("the secret")
        self.text = folder / "text.txt"
        self.text.write_text("some text to train on\n" * 100)
        self.code = f"open({str(self.marker)!r}, 'w').write('ran')\n"
        self.pickle = b"cbuiltins\nexec\n(V" + self.code.encode().replace(b"\n", b"\\u000a") + b"tR."

    def model(self, name: str, config: dict[str, Any] | None = LLAMA) -> Path:
        folder = self.folder / "models" / name
        folder.mkdir(parents=True)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_evil.py").write_text(self.code)
        (folder / "tokenization_evil.py").write_text(self.code)
        (folder / "__init__.py").write_text(self.code)
        return folder

    def accepted(self) -> Path:
        """A known model that brings code for all of it: nothing is wrong with it, and none of that runs."""
        folder = self.folder / "accepted"
        self.model(str(folder), {**LLAMA, "auto_map": REMOTE, "trust_remote_code": True})
        for name in ("setup", "sitecustomize", "configuration_llama", "modeling_llama"):
            (folder / f"{name}.py").write_text(self.code)
        return folder

    def models(self) -> None:
        self.model("unknown-with-code", {**LLAMA, "model_type": "evil", "auto_map": REMOTE})
        (self.model("pickle") / "pytorch_model.bin").write_bytes(self.pickle)
        (self.model("pickle-by-another-name") / "model.safetensors").write_bytes(self.pickle)
        with (self.model("huge-header") / "model.safetensors").open("wb") as file:
            file.write(HUGE.to_bytes(8, "little") + b'{"a":')
            file.truncate(HUGE + 8)
        with (self.model("lying-header") / "model.safetensors").open("wb") as file:
            file.write((2**63).to_bytes(8, "little") + b"{}")
        (self.model("link") / "model.safetensors").symlink_to(self.secret)
        (self.model("relative-link") / "model.safetensors").symlink_to("../../secret")
        (self.model("device") / "model.safetensors").symlink_to("/dev/zero")
        os.mkfifo(self.model("pipe") / "model.safetensors")
        for name, path in (("absolute-index", str(self.secret)), ("relative-index", "../../secret")):
            index = self.model(name) / "model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": {"model.norm.weight": path}}))
        (self.model("config-link", None) / "config.json").symlink_to(self.secret)
        os.mkfifo(self.model("config-pipe", None) / "config.json")
        with (self.model("huge-config", None) / "config.json").open("wb") as file:
            file.truncate(HUGE)
        (self.model("deep-config", None) / "config.json").write_text("[" * 100_000)
        (self.model("tokenizer-link") / "tokenizer.json").symlink_to(self.secret)
        (self.model("generation-link") / "generation_config.json").symlink_to(self.secret)
        (self.model("merges-link") / "merges.txt").symlink_to(self.secret)
        (self.model("template-link") / "chat_template.jinja").symlink_to(self.secret)
        tokenizer = self.model("tokenizer-with-code") / "tokenizer_config.json"
        tokenizer.write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [
            "tokenization_evil.Evil", None]}}))  # fmt: skip

    def checkpoint(self, name: str, files: dict[str, dict[str, Any]] | None = None) -> Path:
        folder = self.folder / "runs" / name / "checkpoints" / "step-00000003"
        folder.mkdir(parents=True)
        manifest = {"format_version": VERSION, "model": "m", "step": 3, "tokens": 3, "settings": {}, "files": files}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "hash": manifest_hash(manifest)}))
        return folder

    def checkpoints(self) -> None:
        facts = {"bytes": self.secret.stat().st_size, "xxh3": hash_file(self.secret)}
        self.checkpoint("absolute", {str(self.secret): facts})
        self.checkpoint("relative", {"../../../../secret": facts})
        (self.checkpoint("link", {"rank-0.safetensors": facts}) / "rank-0.safetensors").symlink_to(self.secret)
        size = {"bytes": HUGE + 8, "xxh3": "0" * 32}
        with (self.checkpoint("huge-header", {"rank-0.safetensors": size}) / "rank-0.safetensors").open("wb") as file:
            file.write(HUGE.to_bytes(8, "little"))
            file.truncate(HUGE + 8)
        own = {"bytes": len(self.pickle), "xxh3": "0" * 32}
        pickled = self.checkpoint("pickle", {"rank-0.safetensors": own})
        (pickled / "rank-0.safetensors").write_bytes(self.pickle)
        (pickled / ".metadata").write_bytes(self.pickle)
        linked = self.checkpoint("manifest-link")
        (linked / "manifest.json").unlink()
        (linked / "manifest.json").symlink_to(self.secret)


def main() -> None:
    """Give each to the commands, and tell: what was said, how long it took, and which forbidden things were done."""
    cases = Cases(Path(sys.argv[1]))
    cases.models()
    cases.checkpoints()
    tried = Tried(cases)
    good = cases.folder / "good"
    good.mkdir()
    (good / "config.json").write_text(json.dumps(LLAMA))
    for command in COMMANDS:  # imports what it needs, and the fork server, before seconds are counted
        tried.command(command, good)
    sys.addaudithook(tried.audit)
    results = {}
    for folder in sorted((cases.folder / "models").iterdir()):
        results[f"train {folder.name}"] = tried(tried.command, "train", folder)
        if folder.name in WRONG_CONFIGS:
            for command in ("describe", "plan", "check"):
                results[f"{command} {folder.name}"] = tried(tried.command, command, folder)
    for folder in sorted((cases.folder / "runs").iterdir()):
        results[f"checkpoint {folder.name}"] = tried(tried.resume, folder)
    accepted = cases.accepted()
    for command in COMMANDS:
        results[f"accepted {command}"] = tried(tried.command, command, accepted)
    steps = (cases.folder / "out" / "metrics.jsonl").read_text().count("\n")
    print(json.dumps({"results": results, "ran": cases.marker.exists(), "steps": steps}))


class Tried:
    """Tries hostile folders, and takes down what they got done."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.done: list[str] = []
        self._below = tuple(str(cases.folder / name) for name in ("models", "runs", "accepted"))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        match event:
            case "pickle.find_class" | "os.system" | "subprocess.Popen" | "os.exec" | "socket.connect":
                self.done.append(f"{event} {arguments}")
            case "compile" | "exec":
                name = getattr(arguments[0], "co_filename", None) or str(arguments[-1])
                if name.startswith(self._below):
                    self.done.append(f"{event} {name}")
            case "open" if isinstance(arguments[0], str | bytes | os.PathLike):
                if os.fsdecode(arguments[0]) == str(self.cases.secret):
                    self.done.append(f"open {arguments[0]!r}")

    def command(self, command: str, folder: Path) -> tuple[int, str]:
        """The command line's exit code and what it said."""
        shape = ["--seq-length", "32", "--micro-batch-size", "2"]
        plan, text = str(self.cases.folder / "plan.json"), str(self.cases.text)
        given = {
            "describe": shape,
            "plan": [*shape, "--global-batch-size", "4", "--pp", "2", "--out", plan],
            "check": [],
            "train": [
                *("--plan", plan, "--data", text, "--out", str(self.cases.folder / "out")),
                *("--steps", "2", "--no-check"),
            ],
        }[command]
        if command == "train" and folder.name == "good":
            given[given.index(text)] = str(self.cases.folder / "no text")
        return self._said([command, str(folder), *given])

    def resume(self, run: Path) -> tuple[int, str]:
        """The same of a good model's run that is to go on from a hostile checkpoint."""
        given = ["--plan", self.cases.folder / "plan.json", "--data", self.cases.text, "--steps", 4, "--no-check"]
        model = self.cases.folder / "good"
        return self._said([str(own) for own in ("train", model, *given, "--out", run, "--resume")])

    def _said(self, given: list[str]) -> tuple[int, str]:
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            code = evenflow(given)
        return code, said.getvalue()

    def __call__(self, what: Callable[..., tuple[int, str]], *arguments: Any) -> dict[str, Any]:
        """Tries once, and where that took long once more, since the machine may have been busy."""
        self.done.clear()
        for _ in range(2):
            began = time.process_time()
            try:
                code, said = what(*arguments)
            except BaseException as error:
                code, said = -1, f"traceback: {error!r}"
            seconds = time.process_time() - began
            if seconds < 1 or not code:
                break
        return {"code": code, "said": said, "seconds": seconds, "done": [*self.done]}


if __name__ == "__main__":
    from evenflow.cli import main as evenflow
    from evenflow.launch import shared_server
    from evenflow.train.checkpoint import CHECKPOINT_VERSION as VERSION
    from evenflow.train.checkpoint import manifest_hash
    from evenflow.train.shards import hash_file

    shared_server()
    main()
