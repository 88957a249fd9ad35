"""What our own code never does: no pickle, no code made from text, no objects through collectives, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import evenflow

SOURCE = Path(evenflow.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
CALLS = {
    "eval", "exec", "compile", "__import__",  # code from text
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load", "np.save",  # pickles
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",  # a shell
}  # fmt: skip
ENDINGS = (
    "_object", "_object_list", "_objects",  # broadcast_object_list, all_gather_object, scatter_object_list, ...
    "set_default_rpc_backend", "rpc_sync", "rpc_async",
)  # fmt: skip
TRUE = {"trust_remote_code", "shell", "allow_pickle"}


def wrongs(text: str) -> Iterator[str]:
    """What of these a module does, by line."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found = [own.name for own in names if own.name.partition(".")[0] in MODULES]
            case ast.ImportFrom(module=module) if module and module.partition(".")[0] in MODULES:
                found = [module]
            case ast.Call(func=function, keywords=keywords):
                called = ast.unparse(function)
                found = [called] if called in CALLS or called.endswith(ENDINGS) else []
                for own in keywords:
                    is_false = isinstance(own.value, ast.Constant) and own.value.value is False
                    found += [f"{own.arg}={ast.unparse(own.value)}"] if own.arg in TRUE and not is_false else []
            case _:
                continue
        yield from (f"line {node.lineno}: {own}" for own in found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from marshal import loads", "eval(text)", "torch.load(path)", "np.load(path)",
        "dist.broadcast_object_list(found)", "dist.all_gather_object(a, b)", "dist.gather_object(a)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)", "f(trust_remote_code=wish)",
        "subprocess.run(text, shell=True)", "np.fromfile(x, allow_pickle=1)",
    ],
)  # fmt: skip
def test_the_scan_sees_what_it_is_for(text: str) -> None:
    assert list(wrongs(text))


def test_no_module_of_ours_does_any_of_it() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 100
    found = {str(file.relative_to(SOURCE)): list(wrongs(file.read_text())) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
