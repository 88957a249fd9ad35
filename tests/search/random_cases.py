"""Random models, costs and schedules, each from its number."""

from __future__ import annotations

from random import Random

from evenflow.program import SCHEDULES
from tests.property.cases import random_costs, random_model

# Schedules of one stage a rank whose order does not depend on costs: the planner's split is all there is to them.
ONE_STAGE = [name for name, own in SCHEDULES.items() if own.stages_per_rank == 1 and not own.by_costs]


def random_case(seed):
    random = Random(seed)
    layers = random.randint(3, 9)
    stages = random.randint(2, min(layers, 4))
    microbatches = random.choice([2, 4, 8, 12])
    costs, model = random_costs(random, layers), random_model(random, layers)
    return random, layers, stages, microbatches, costs, model, random.choice(ONE_STAGE)
