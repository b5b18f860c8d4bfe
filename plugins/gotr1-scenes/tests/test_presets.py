"""The variants of the preset differ in what their components need, and in nothing else."""

from __future__ import annotations

import pytest

from gotr1_core.components.preflight import check
from gotr1_core.config.merge import merge_layers, read_yaml
from gotr1_core.config.models import RunConfig, flatten_keys, validate
from gotr1_core.plugins import Registry


def test_ppo_is_the_preset_but_for_what_ppo_needs() -> None:
    registry = Registry()
    preset = read_yaml(registry.preset("scenes"))
    configs = [validate(RunConfig, merge_layers(preset, over)) for over in ({}, {"algorithm": "ppo"})]
    for config in configs:
        check(registry, config)
    one, other = (flatten_keys(config.model_dump(mode="json")) for config in configs)
    changed = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    algorithm = {"algorithm.name", "algorithm.scale", "algorithm.value_width", "algorithm.value_learning_rate"}
    assert changed == algorithm | {"steps", "groups", "plans", "rollout_groups", "constant_groups", "constant_tolerance"}
    assert configs[0].groups * configs[0].plans == configs[1].groups * configs[1].plans


@pytest.mark.parametrize("name", ["qwen", "file"])
def test_another_planner_leaves_the_renderer_its_weights(name: str) -> None:
    """The preset's renderer uses the planner's model. With another planner the renderer is named with its options."""
    preset = read_yaml(Registry().preset("scenes"))
    own, other = (validate(RunConfig, merge_layers(preset, over)) for over in ({}, {"planner": name}))
    assert own.renderer.options == {}
    assert other.renderer.name == "janus"
    assert other.renderer.options == own.planner.options
    # ... but for a renderer of another kind.
    assert validate(RunConfig, merge_layers(preset, {"planner": name, "renderer": "mine"})).renderer.options == {}
