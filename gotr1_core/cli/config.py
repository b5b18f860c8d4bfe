"""``gotr1 config``: configs shown and checked, nothing trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import (
    AlgorithmName,
    ConfigOrWord,
    Json,
    JudgeNames,
    PlannerName,
    PresetName,
    PromptsFile,
    RendererName,
    Words,
    config_or_words,
    registry,
)
from gotr1_core.cli.options import ComponentCommand
from gotr1_core.components.resolve import resolve_config, with_plugins

if TYPE_CHECKING:
    from gotr1_core.config.models import SftConfig
    from gotr1_core.hookspecs import Kind

app = typer.Typer(help="Shows and checks configs. Nothing is trained.", no_args_is_help=True)


class Stage(StrEnum):
    """Which command a config is for."""

    train = "train"
    sft = "sft"


StageOption = Annotated[Stage, typer.Option(help="Of `gotr1 train`, or of `gotr1 sft`.")]


@app.command("show", cls=ComponentCommand)
def show(
    config: ConfigOrWord = None,
    override: Words = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    judge: JudgeNames = None,
    algorithm: AlgorithmName = None,
    preset: PresetName = None,
    prompts: PromptsFile = None,
    as_json: Json = False,
) -> None:
    """Prints the config that `gotr1 train` would run. Takes the same arguments."""
    import json

    path, words = config_or_words(config, override or [])
    named = {"planner": planner, "renderer": renderer, "judge": judge, "algorithm": algorithm}
    own = {"prompts": {"file": str(prompts)} if prompts else None}
    data = resolve_config(registry(), path, preset, {**named, **own}, words)
    from gotr1_core.config.models import RunConfig, dump, validate

    settings = validate(RunConfig, data)
    print(json.dumps(settings.model_dump(mode="json"), ensure_ascii=False) if as_json else dump(settings).rstrip("\n"))


@app.command("schema")
def print_schema(stage: StageOption = Stage.train) -> None:
    """Prints the JSON Schema of a config. Options of components are in `gotr1 show KIND NAME --json`."""
    import json

    from gotr1_core.config.models import RunConfig, SftConfig

    schema = SftConfig.model_json_schema() if stage is Stage.sft else RunConfig.model_json_schema()
    print(json.dumps(schema, indent=2, ensure_ascii=False))


@app.command("validate")
def validate(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG.yaml...", help="YAML configs, each complete.")],
    stage: StageOption = Stage.train,
) -> None:
    """Checks configs: keys, names, options and the reward. Loads no weights."""
    from gotr1_core.components.preflight import check
    from gotr1_core.config.merge import layered, read_yaml
    from gotr1_core.config.models import RunConfig, SftConfig
    from gotr1_core.config.models import validate as validated

    for number, path in enumerate(configs):
        if number:
            registry.cache_clear()  # the plugin files of one config are not the next one's
        data: dict[str, Any] = with_plugins(registry(), read_yaml(path))
        if stage is Stage.sft:
            _check_sft(validated(SftConfig, data))
        else:
            check(registry(), validated(RunConfig, layered(data)))
        print(f"{path}: valid")


def _check_sft(config: SftConfig) -> None:
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.errors import UsageError
    from gotr1_core.plugins import options_of

    named: list[tuple[Kind, ComponentConfig]] = [(config.kind, config.policy)]
    if isinstance(config.data, ComponentConfig):
        named.append(("source", config.data))
    elif not config.data.is_file():
        raise UsageError(f"there is no file {config.data}", hint="data is a JSONL file, or the name of a source")
    for kind, part in named:
        options_of(registry().find(kind, part.name).component, part.options)
