"""Chooses how long threads of OpenMP wait busily, before torch is imported. Imports nothing heavy.

Threads spin at the end of every parallel loop until the last one has come. Where that one has no core, all others burn theirs: steps were
3 to 20 times slower beside one busy process. A short spin costs next to nothing on a quiet machine. :mod:`gotr1_core.engine.threads` does
the rest.
"""

from __future__ import annotations

import os

SPIN = "GOMP_SPINCOUNT"
ROUNDS = "10000"
"""Rounds of GNU OpenMP's waiting loop. Its own default is 300,000, or 100 with more threads than cores (libgomp's manual)."""
CHOSEN = "GOTR1_OPENMP"
"""Tells processes that gotr1 launches that what they find in the environment is gotr1's choice."""
SETTINGS = ("OMP_", "GOMP_", "KMP_")


def choose_spin() -> None:
    """Sets a short spin, for this process and those that it starts, unless the user has set something of an OpenMP library."""
    if not is_set_by_user():
        os.environ[CHOSEN] = "1"
        os.environ[SPIN] = ROUNDS


def is_set_by_user() -> bool:
    """True if the environment has a setting of an OpenMP library that is not gotr1's: then gotr1 leaves its threads alone."""
    return CHOSEN not in os.environ and any(name.startswith(SETTINGS) for name in os.environ)
