"""``gotr1 sft``: supervised training, the stage before reinforcement learning."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import ConfigOrWord, config_or_words, device, registry
from gotr1_core.components.resolve import load_plugin_files
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.config.models import SftConfig
    from gotr1_core.workflows.sft import Batches


def command(
    config: ConfigOrWord = None,
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as steps=20 or policy=janus.")] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue a training although its data or its model's files are not the same.")
    ] = False,
) -> None:
    """Stage one: trains on prompts, chains and pictures. Run the command again to continue a stopped training."""
    from gotr1_core.cli.progress import progress
    from gotr1_core.components.build import make_component
    from gotr1_core.components.fingerprints import component_inputs
    from gotr1_core.components.inputs import absolute_sft_inputs, check_unchanged
    from gotr1_core.config.merge import merge, parse_overrides, read_yaml
    from gotr1_core.config.models import SftConfig, validate
    from gotr1_core.engine.files import check_writable
    from gotr1_core.runs.stage_one import recorded
    from gotr1_core.workflows.sft import record_sft_inputs, sft_inputs, train_supervised

    path, words = config_or_words(config, override or [])
    settings = validate(SftConfig, load_plugin_files(registry(), merge(read_yaml(path) if path else {}, parse_overrides(words))))
    settings = absolute_sft_inputs(registry(), settings)
    inputs = sft_inputs(registry(), settings)  # first: a file that is edited while it is read is then another one, not the one recorded
    batches = _batches(settings)
    check_writable(settings.output, hint="choose another folder with output=DIR")
    record = record_sft_inputs(settings, inputs, accept=accept_changes)
    import torch

    torch.manual_seed(settings.seed)  # for the random initial values of LoRA
    policy = make_component(registry(), settings.kind, settings.policy, key="policy", device=device())
    policy_inputs = component_inputs(registry(), settings.kind, settings.policy, "policy")  # again: a model may have been downloaded
    check_unchanged({key: inputs[key] for key in policy_inputs if key in inputs}, policy_inputs)
    record["inputs"] |= policy_inputs
    row: dict[str, Any] | None = None
    with progress("training", settings.steps) as report, recorded(settings) as log:
        for row in train_supervised(settings, policy, batches, record):
            report(row["step"] + 1)
            if (line := log.add(row)) and not sys.stderr.isatty():
                print(line, file=sys.stderr, flush=True)
    if row is None:
        print(f"{settings.output} has done its {settings.steps} steps; a larger steps=N goes on", file=sys.stderr)
    print(settings.output / "model" / "weights")


def _batches(settings: SftConfig) -> Batches:
    """Returns the training batches. They are read before any weights are loaded."""
    from gotr1_core.components.build import make_component
    from gotr1_core.config.models import MOST, ComponentConfig
    from gotr1_core.data.examples import read_examples
    from gotr1_core.workflows.sft import from_examples, from_source

    if (examples := settings.batch * settings.sort_window) > MOST:
        message = f"batch={settings.batch}, sort_window={settings.sort_window}: {examples:,} examples would be made together"
        raise UsageError(message, hint=f"at most {MOST:,}; sort_window=1 sorts nothing")
    registry().find(settings.kind, settings.policy.name)  # an unknown policy is an error before the source is made
    if isinstance(settings.data, ComponentConfig):
        return from_source(make_component(registry(), "source", settings.data), settings.batch, settings.seed, settings.sort_window)
    return from_examples(read_examples(settings.data, settings.pictures), settings.batch, settings.seed, settings.sort_window)
