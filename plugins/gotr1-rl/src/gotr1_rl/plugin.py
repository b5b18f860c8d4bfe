"""Registers what gotr1-rl provides: the algorithms grpo, ppo and rloo."""

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component(
        "algorithm", "grpo", "gotr1_rl.grpo:Grpo", "gotr1_rl.grpo:GrpoOptions", "group relative policy optimization and its relatives"
    )
    yield Component(
        "algorithm", "ppo", "gotr1_rl.ppo:Ppo", "gotr1_rl.ppo:PpoOptions", "proximal policy optimization, with a value head on the policy"
    )
    yield Component("algorithm", "rloo", "gotr1_rl.rloo:Rloo", "gotr1_rl.rloo:RlooOptions", "REINFORCE with a leave-one-out baseline")
