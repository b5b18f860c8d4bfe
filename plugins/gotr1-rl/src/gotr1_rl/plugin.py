"""Registers what gotr1-rl provides."""

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component(
        "algorithm", "grpo", "gotr1_rl.grpo:Grpo", "gotr1_rl.grpo:GrpoOptions", "group relative policy optimization and its relatives"
    )
