"""Most tests that train want some profile, not a good one, and ranks that start soon: both take seconds otherwise.

Measuring is brief: how long to time layers stands in a file, since the fork server outlives what a test wishes. And
that server takes the models apart that most tests train before it forks its first ranks: done once, where each of many
hundred ranks did so, which was most of what these computed.

`tests/conftest.py` puts this folder before all others on the path, where each Python that a test starts imports it.
"""

import json
import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

NAME = "EVENFLOW_TESTS_MEASURE_S"  # the file with the seconds; an empty one wishes for those of a user

MODELS = "EVENFLOW_TESTS_MODELS"  # configs of the models that most ranks have


class Brief(MetaPathFinder):
    """Changes how long layers are timed as soon as their module is imported, and imports nothing by itself."""

    def find_spec(self, fullname, path, target=None):
        """Find the module as it would be, and have `Repeats` asked for without seconds read them from the file."""
        if fullname != "evenflow.measure.layers":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            whole = module.Repeats.__init__
            least, at_length = whole.__defaults__

            def brief(self, least=least, seconds=None):
                if seconds is None:
                    seconds = float(Path(os.environ[NAME]).read_text() or at_length)
                whole(self, least, seconds)

            module.Repeats.__init__ = brief

        spec.loader.exec_module = exec_module
        return spec


class Warm:
    """Has a fork server do once what every rank does first; it is left without threads, as it has to be."""

    done = False

    def __call__(self):
        """Import what trains, and take the models apart that most ranks have; what is found of one is kept."""
        if self.done:
            return
        self.done = True
        import torch

        from evenflow.models import count_layers, read_config

        import_module("evenflow.train.ranks")
        torch.set_num_threads(1)
        for model in json.loads(os.environ[MODELS]):
            count_layers(read_config(json.dumps(model)))


if NAME in os.environ:
    sys.meta_path.insert(0, Brief())
    if "evenflow.launch.server" in sys.orig_argv and MODELS in os.environ:
        os.register_at_fork(before=Warm())
