"""The command line: finds the subcommand, imports that one alone, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from evenflow.errors import EvenflowError, FaultError, InputError

COMMANDS = {
    "demo": "everything on this machine, on text that is already here",
    "describe": "a model's layers: parameters, FLOPs, bytes",
    "profile": "measured costs of a model's layers on this machine",
    "plan": "which layers go where, and what a step will cost",
    "simulate": "the timeline that a plan would have",
    "train": "train a model split over processes",
    "check": "prove on this machine that the split model equals the whole one",
    "report": "why a run or a plan is as fast as it is",
    "export": "a plan as another trainer's own configuration",
    "launch": "the script that starts a job on several nodes",
    "rehearse": "one rank of a plan alone on this device: its real time and memory",
}


_LONGEST_WORD = 400  # of an error: paths are shorter, and a name that is not has been mistyped


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; an option that it does not know is told the nearest one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class does."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return found

    def _refuse(self, unknown: str) -> NoReturn:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        near = difflib.get_close_matches(unknown.partition("=")[0], known, n=1, cutoff=0.5)
        advice = f"{near[0]} is the nearest" if unknown.startswith("-") and near else "--help lists all"
        self.error(f"{unknown[:80]} is not an option; {advice}")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its hints are for those who call it themselves
    name = "evenflow"
    try:
        if arguments and arguments[0] in COMMANDS:
            name = f"evenflow {arguments[0]}"
            return _run(arguments[0], arguments[1:])
        _top_parser().parse_args(arguments)
        _top_parser().print_help()
        return 0
    except EvenflowError as error:
        print(f"{name}: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; silence the interpreter's own last flush.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115, PTH123 - it must stay open until the process ends
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"{name}: the system refused: {_one_line(f'{error.strerror or error}{where}')}", file=sys.stderr)
        return (InputError if error.errno == errno.ENAMETOOLONG else FaultError).exit_code


def _one_line(text: str) -> str:
    """What is wrong, without what a file or a name in it may hold: line ends, a terminal's orders, endless words."""
    words = (word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}..." for word in text.split())
    shown = " ".join(words)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def _run(command: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"evenflow.cli.{command}")
    parser = OneLineParser(prog=f"evenflow {command}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(arguments))
    return code


def _top_parser() -> OneLineParser:
    listed = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    parser = OneLineParser(
        prog="evenflow",
        usage="evenflow COMMAND ...",
        description="Splits a Hugging Face model's layers evenly over processors and trains it.",
        epilog=f"commands:\n{listed}\n\n`evenflow COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"evenflow {version('evenflow')}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    return parser
