"""What several commands share: a run's config from files and options, and components rebuilt from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry

if TYPE_CHECKING:
    from gotr1_core.protocols import Planner, Renderer
    from gotr1_core.samples import Sampling

DEFAULT_PRESET = "scenes"

# Options that several commands have.
ConfigOrWord = Annotated[str | None, typer.Argument(help="A YAML config, or the first KEY=VALUE.", show_default=False)]
PlannerName = Annotated[str | None, typer.Option(help="What writes the chain.")]
RendererName = Annotated[str | None, typer.Option(help="What draws it.")]
PresetName = Annotated[str | None, typer.Option(help="A named config to start from; scenes if nothing else is named.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts drawn at the same time.")]


@cache
def registry() -> Registry:
    """The plugins of this command line, loaded when they are first asked for. `call` forgets them for the next one."""
    return Registry()


def load_config(
    registry: Registry, config: Path | None, preset: str | None, named: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """Preset, then file, then options, then KEY=VALUE words, each over what comes before.

    Where neither a preset, a file nor a component is named, the preset ``scenes`` is taken.
    """
    from gotr1_core.config import merge, overrides, read_yaml

    given = {key: value for key, value in named.items() if value is not None}
    if preset is None and config is None and not given.keys() & {"planner", "renderer", "judge"}:
        preset = DEFAULT_PRESET
    data: dict[str, Any] = read_yaml(registry.preset(preset)) if preset else {}
    if config is not None:
        data = merge(data, read_yaml(config))
    return merge(merge(data, given), overrides(words))


def config_or_words(first: str | None, words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Tells ``CONFIG.yaml`` from the first KEY=VALUE."""
    if first is None:
        return None, list(words)
    if "=" in first:
        return None, [first, *words]
    path = Path(first)
    if not path.is_file():
        raise UsageError(f"there is no config {first}", hint="give a YAML file, or KEY=VALUE")
    return path, list(words)


def drawing(
    registry: Registry, checkpoint: Path | None, preset: str | None, named: Mapping[str, Any], words: Sequence[str]
) -> tuple[Planner, Renderer, Sampling]:
    """What draws and how: a run's trained policies, or the untrained ones of a config. Neither judge nor prompts are needed."""
    from gotr1_core.build import make_sampling, policies
    from gotr1_core.config import RunConfig, validate
    from gotr1_core.restore import restore

    if checkpoint is not None:
        given = [f"--{key}" for key, value in {**named, "preset": preset}.items() if value is not None]
        if given:
            raise UsageError(f"{given[0]} has no meaning with --checkpoint", hint="the run's own components draw; leave out one of both")
        _, parts, sampling = restore(registry, checkpoint, words, device=device())
        return parts.planner, parts.renderer, sampling
    config = validate(RunConfig, {"judge": [], **load_config(registry, None, preset, named, words)})
    planner, renderer = policies(registry, config, device=device())
    return planner, renderer, make_sampling(config.evaluation.sampling or config.sampling)


def device() -> str:
    """Where a model goes that accelerate does not place."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
