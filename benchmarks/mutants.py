"""What a mutant costs to score, for the sagas of tests/prove/reference_sagas.py.

    python benchmarks/mutants.py

For each saga: its mutants, how many of them were caught, in how many runs (the median, and the most), and the
processor milliseconds a mutant that is caught, from its making to the first run that is not sound; those that do
nothing wrong are told by running every plan, and are not in it. `packed` tries the packed plans alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from sagaz_core.mutation.facts import survey
from sagaz_core.mutation.operators import mutants
from sagaz_core.mutation.runners import Tried, one_fault_and_packed, planned
from sagaz_core.mutation.score import score
from sagaz_core.prove.packed import few_plans
from sagaz_core.virtual_time import run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "prove"))

from reference_sagas import CORRECT

PLANS = {"one fault": one_fault_and_packed(), "packed": few_plans}


def seconds(make: Any, context: Any, world: Any, plans: Any) -> float:
    """Return what the mutants that are caught take together, the saga and its survey left out."""
    tried = planned(plans)
    found = mutants(make(), run(survey(make, context, world)))

    async def each() -> float:
        total = 0.0
        for mutant in found:
            began = time.process_time()
            result: Tried = await tried(lambda m=mutant: m.apply(make()), context, world)
            if result.found:
                total += time.process_time() - began
        return total

    return run(each())


def main() -> None:
    """Print the table."""
    print(f"{'saga':12} {'plans':10} {'mutants':>7} {'caught':>7} {'median':>7} {'most':>5} {'ms each':>8}")
    for name, reference in CORRECT.items():
        for title, plans in PLANS.items():
            make, context, world = reference()
            found = score(make, context, world=world, runner=planned(plans))
            caught = [verdict.tried.runs for verdict in found.verdicts if verdict.caught]
            each = seconds(make, context, world, plans) / len(caught) * 1000
            counts = f"{len(found.counted):7} {len(caught):7} {found.median_runs:7g} {max(caught):5}"
            print(f"{name:12} {title:10} {counts} {each:8.2f}", flush=True)


if __name__ == "__main__":
    main()
