"""Opens hostile files under an audit hook, in a process of its own, and prints what happened as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 384, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
HUGE = 10 * 2**30
REMOTE = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}


class Cases:
    """Hostile folders below one folder; whatever code they bring writes to `marker`, and `secret` is not theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / "code-ran"
        self.secret = folder / "secret"
        self.secret.write_text("the secret")
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
    """Open each, and tell: what was said, how long it took, and which forbidden things were done."""
    cases = Cases(Path(sys.argv[1]))
    cases.models()
    cases.checkpoints()
    done: list[str] = []
    below = (str(cases.folder / "models"), str(cases.folder / "runs"))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        match event:
            case "pickle.find_class" | "os.system" | "subprocess.Popen" | "os.exec" | "socket.connect":
                done.append(f"{event} {arguments}")
            case "compile" | "exec":
                name = getattr(arguments[0], "co_filename", None) or str(arguments[-1])
                if name.startswith(below):
                    done.append(f"{event} {name}")
            case "open" if os.fspath(arguments[0]) == str(cases.secret) if isinstance(arguments[0], str) else False:
                done.append(f"open {arguments[0]}")

    sys.addaudithook(audit)
    results = {}
    for folder in sorted((cases.folder / "models").iterdir()):
        arguments = [str(folder), "--data", str(cases.secret), "--out", str(cases.folder / "out"), "--no-check"]
        results[f"model {folder.name}"] = tried(lambda given=arguments: train(given), done)
    for folder in sorted((cases.folder / "runs").iterdir()):
        results[f"checkpoint {folder.name}"] = tried(lambda run=folder: newest_checkpoint(run), done)
    print(json.dumps({"results": results, "ran": cases.marker.exists()}))


def train(arguments: list[str]) -> None:
    job = Job(model=arguments[0], data=Path(arguments[2]), out=Path(arguments[4]), check=False)
    source = find_model(job.model)
    source.check_weights()
    find_tokenizer(Path(arguments[0]))
    raise AssertionError("not refused")


def tried(what: Callable[[], Any], done: list[str]) -> dict[str, Any]:
    done.clear()
    began = time.perf_counter()
    try:
        what()
        said = "not refused"
    except EvenflowError as error:
        said = f"{type(error).__name__}: {error}"
    except BaseException as error:
        said = f"traceback: {error!r}"
    return {"said": said, "seconds": time.perf_counter() - began, "done": [*done]}


if __name__ == "__main__":
    from evenflow.errors import EvenflowError
    from evenflow.models import find_model
    from evenflow.train import Job
    from evenflow.train.checkpoint import CHECKPOINT_VERSION as VERSION
    from evenflow.train.checkpoint import manifest_hash, newest_checkpoint
    from evenflow.train.shards import hash_file
    from evenflow.train.tokenizer import find_tokenizer

    main()
