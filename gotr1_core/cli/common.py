"""What several commands share: a run's config from files and options, and components rebuilt from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.build import Parts
    from gotr1_core.config import RunConfig
    from gotr1_core.plugins import Registry
    from gotr1_core.samples import Sampling

DEFAULT_PRESET = "scenes"


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


def checkpoint_of(path: Path) -> tuple[Path, Path]:
    """The run and the checkpoint that a path means: a run's best (else last) checkpoint, or the checkpoint itself."""
    for folder in (path / "checkpoints" / "best", path / "checkpoints" / "last", path):
        run = folder.parent.parent
        if (folder / "state.json").is_file() and (run / "config.yaml").is_file():
            return run, folder
    raise UsageError(f"{path} is no run with a checkpoint, and no checkpoint of one", hint="give the folder that `gotr1 train` named")


def restore(registry: Registry, path: Path) -> tuple[RunConfig, Parts, Sampling]:
    """The components of a run with its trained weights, and the settings to generate with."""
    from gotr1_core.build import build
    from gotr1_core.checkpoint import TRAINABLE, load_trainable, read_state
    from gotr1_core.config import RunConfig, read_yaml, validate
    from gotr1_core.samples import Sampling

    run, folder = checkpoint_of(path)
    config = validate(RunConfig, read_yaml(run / "config.yaml"))
    parts = build(registry, config, device=device())
    for role, (policy, _) in parts.trained(config.train).items():
        load_trainable(policy.module, folder / role / TRAINABLE)
    return config, parts, Sampling(**read_state(folder)["sampling"])


def device() -> str:
    """Where a model goes that accelerate does not place."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
