"""The presets differ in what they say they differ in."""

from __future__ import annotations

from gotr1_core.build import check
from gotr1_core.config import RunConfig, flat, read_yaml, validate
from gotr1_core.plugins import Registry


def test_ppos_preset_is_the_other_one_but_for_what_ppo_needs() -> None:
    registry = Registry()
    configs = [validate(RunConfig, read_yaml(registry.preset(name))) for name in ("scenes", "scenes-ppo")]
    for config in configs:
        check(registry, config)
    one, other = (flat(config.model_dump(mode="json")) for config in configs)
    changed = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    algorithm = {"algorithm.name", "algorithm.scale", "algorithm.value_width", "algorithm.value_rate"}
    assert changed == algorithm | {"steps", "groups", "plans", "rollout_groups", "constant_groups", "constant_tolerance"}
    assert configs[0].groups * configs[0].plans == configs[1].groups * configs[1].plans
