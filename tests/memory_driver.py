"""Trains with 32 MB of memory left for the first rollout, and prints how that ended, as JSON. `test_out_of_memory.py` runs it.

A process of its own, since memory that earlier work has freed would serve the rollout: the limit would not bite.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from gotr1_core.config.models import RunConfig, validate
from gotr1_core.errors import Gotr1Error
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import start


class Cramped:
    """A listener that leaves 32 MB of memory after the evaluations of the untrained model."""

    outcome = ""

    @hookimpl
    def gotr1_evaluated(self, step: int) -> None:
        if step == 0:
            self.limits = resource.getrlimit(resource.RLIMIT_AS)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), self.limits[1]))

    @hookimpl
    def gotr1_run_finished(self, outcome: str) -> None:
        self.outcome = outcome
        resource.setrlimit(resource.RLIMIT_AS, self.limits)


def main() -> None:
    heard = Cramped()
    config = validate(RunConfig, json.loads(sys.argv[1]))
    try:
        start.train(config, listeners=[heard], cpu=True)
    except Gotr1Error as error:
        print(json.dumps({"outcome": heard.outcome, "message": error.message, "hint": error.hint}))


if __name__ == "__main__":
    main()
