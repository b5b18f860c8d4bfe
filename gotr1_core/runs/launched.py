"""Tells whether gotr1's launcher started this process. It imports nothing heavy, because the command line reads it first."""

from __future__ import annotations

import os

LAUNCHED = "GOTR1_LAUNCHED"
"""The environment variable that the launcher sets in its processes. It has checked the config before it starts them."""


def is_launched() -> bool:
    """True in one of several processes that ``gotr1 train … -- --num-processes N`` started."""
    return LAUNCHED in os.environ
