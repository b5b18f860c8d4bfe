"""``gotr1 sft``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import ConfigOrWord, config_or_words, device, registry
from gotr1_core.components.resolve import with_plugins
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.config.models import SftConfig
    from gotr1_core.workflows.sft import Batches

LOGGED = 20  # steps between rows of the log


def command(
    config: ConfigOrWord = None,
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as steps=20 or policy=janus.")] = None,
) -> None:
    """Stage one: trains on prompts, chains and pictures. Run again, it goes on where it stopped."""
    import json
    import sys

    from gotr1_core.cli.progress import progress
    from gotr1_core.components.build import make_component
    from gotr1_core.config.merge import merge, overrides, read_yaml
    from gotr1_core.config.models import SftConfig, validate
    from gotr1_core.engine.files import write_atomically
    from gotr1_core.runs.checkpoint import writing
    from gotr1_core.workflows.sft import train_supervised

    path, words = config_or_words(config, override or [])
    settings = validate(SftConfig, with_plugins(registry(), merge(read_yaml(path) if path else {}, overrides(words))))
    batches = _batches(settings)
    import torch

    torch.manual_seed(settings.seed)  # what LoRA draws
    policy = make_component(registry(), settings.kind, settings.policy, key="policy", device=device())
    log = _log(settings.output)
    rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    with progress("training", settings.steps) as report, writing(settings.output, again="run it again: it goes on from its last save"):
        for row in train_supervised(settings, policy, batches):
            report(row["step"] + 1)
            if row["step"] % LOGGED == 0 or row["step"] + 1 == settings.steps:
                rows = [kept for kept in rows if json.loads(kept)["step"] < row["step"]]  # what a broken run logged past its last save
                rows.append(json.dumps(row))
                write_atomically(log, "\n".join(rows) + "\n")
                if not sys.stderr.isatty():
                    print(rows[-1], file=sys.stderr, flush=True)
    print(settings.output / "model" / "weights")


def _batches(settings: SftConfig) -> Batches:
    """What is trained on; read before any weight is loaded."""
    from gotr1_core.components.build import make_component
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.workflows.sft import from_examples, from_source, read_examples

    registry().find(settings.kind, settings.policy.name)  # a wrong name before a source is made
    if isinstance(settings.data, ComponentConfig):
        return from_source(make_component(registry(), "source", settings.data), settings.batch, settings.seed, settings.sort_window)
    return from_examples(read_examples(settings.data), settings.batch, settings.seed, settings.sort_window)


def _log(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {output}: {error.strerror}", hint="choose another output=…") from None
    return output / "log.jsonl"
