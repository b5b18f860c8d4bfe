"""Registers the components and the preset of gotr1-scenes."""

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    """Yields a prompt source, a judge, a benchmark and a preset, all named ``scenes``."""
    yield Component(
        "source",
        "scenes",
        "gotr1_scenes.source:ScenesSource",
        "gotr1_scenes.source:ScenesSourceOptions",
        "prompts and supervised examples of the embedded world",
    )
    yield Component("judge", "scenes", "gotr1_scenes.judge:ScenesJudge", None, "reads plan and picture exactly: sem, spa, ri, pi, correct")
    yield Component("benchmark", "scenes", "gotr1_scenes.benchmark:ScenesBenchmark", None, "held-out prompts of the embedded world")
    yield Component(
        "preset", "scenes", "gotr1_scenes:presets/scenes.yaml", None, "the embedded world on a laptop: the default of gotr1 train"
    )
