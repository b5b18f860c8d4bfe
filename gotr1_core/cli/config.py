"""``gotr1 config``: shows configs, checks them, and prints their JSON Schema. Trains nothing."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli import common
from gotr1_core.cli.options import ComponentCommand
from gotr1_core.components.resolve import load_plugin_files, resolve_config
from gotr1_core.engine.console import print

if TYPE_CHECKING:
    from gotr1_core.config.models import SftConfig
    from gotr1_core.hookspecs import Kind

app = typer.Typer(help="Shows and checks configs. Nothing is trained.", no_args_is_help=True)


class Stage(StrEnum):
    """The command that a config is for."""

    train = "train"
    sft = "sft"


StageOption = Annotated[Stage, typer.Option(help="A config of `gotr1 train` or of `gotr1 sft`.")]


@app.command("show", cls=ComponentCommand)
def show(
    config: common.ConfigOrWord = None,
    override: common.Words = None,
    planner: common.PlannerName = None,
    renderer: common.RendererName = None,
    judge: common.JudgeNames = None,
    algorithm: common.AlgorithmName = None,
    preset: common.PresetName = None,
    prompts: common.PromptsFile = None,
    as_json: common.Json = False,
) -> None:
    """Prints the config that `gotr1 train` would run. Takes the same arguments."""
    path, words = common.config_or_words(config, override or [])
    named = {"planner": planner, "renderer": renderer, "judge": judge, "algorithm": algorithm}
    prompts_key = {"prompts": {"file": str(prompts)} if prompts else None}
    data = resolve_config(common.registry(), path, preset, {**named, **prompts_key}, words)
    from gotr1_core.config.models import RunConfig, dump, validate

    settings = validate(RunConfig, data)
    print(json.dumps(settings.model_dump(mode="json"), ensure_ascii=False) if as_json else dump(settings).rstrip("\n"))


@app.command("schema")
def print_schema(stage: StageOption = Stage.train) -> None:
    """Prints the JSON Schema of a config. `gotr1 show KIND NAME --json` has that of a component's options."""
    from gotr1_core.config.models import RunConfig, SftConfig

    schema = SftConfig.model_json_schema() if stage is Stage.sft else RunConfig.model_json_schema()
    print(json.dumps(schema, indent=2, ensure_ascii=False))


@app.command("validate")
def validate_command(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG.yaml...", help="YAML configs; each must be complete.")],
    stage: StageOption = Stage.train,
) -> None:
    """Checks configs: their keys, names of components, options and reward. Loads no weights."""
    from gotr1_core.components.preflight import check
    from gotr1_core.config.merge import merge_layers, read_yaml
    from gotr1_core.config.models import RunConfig, SftConfig, validate

    for number, path in enumerate(configs):
        if number:
            common.registry.cache_clear()  # plugin files belong to the config that names them
        data: dict[str, Any] = load_plugin_files(common.registry(), read_yaml(path))
        if stage is Stage.sft:
            _check_sft(validate(SftConfig, data))
        else:
            check(common.registry(), validate(RunConfig, merge_layers(data)))
        print(f"{path}: valid")


def _check_sft(config: SftConfig) -> None:
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.errors import UsageError
    from gotr1_core.plugins import options_of

    components: list[tuple[Kind, ComponentConfig]] = [(config.kind, config.policy)]
    if isinstance(config.data, ComponentConfig):
        components.append(("source", config.data))
    elif not config.data.is_file():
        raise UsageError(f"there is no file {config.data}", hint="data must be a JSONL file or the name of a source")
    for kind, component in components:
        options_of(common.registry().find(kind, component.name).component, component.options)
