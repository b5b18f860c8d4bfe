"""Runs of the tiny Janus, for the tests of the loop and of what it leaves on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gotr1_core.config import RunConfig
    from gotr1_core.plugins import Registry

PLUGIN = Path(__file__).with_name("tiny_plugin.py")


@pytest.fixture
def registry() -> Registry:
    """The installed plugins, and a judge that a random policy gets rewards from."""
    from gotr1_core.plugins import Registry

    found = Registry()
    found.add_file(PLUGIN)
    return found


@pytest.fixture
def make(tiny_janus: Path) -> Callable[..., RunConfig]:
    """A config of three short steps, with changes."""
    from gotr1_core.config import RunConfig, validate

    def configured(**changed: Any) -> RunConfig:
        data: dict[str, Any] = {
            "plugins": [str(PLUGIN)],
            "planner": {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "eager"},
            "renderer": "janus",
            "judge": ["values"],
            "reward": "value",
            "prompts": {"source": "scenes", "held_out": 6},
            "steps": 3,
            "groups": 3,
            "plans": 4,
            "micro_batch": 8,
            "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 8},
            "evaluation": {"every": 2, "prompts": 4},
            "optimizer": {"rate": 0.01, "schedule": "constant"},
            "lora": None,
        }
        return validate(RunConfig, data | changed)

    return configured
