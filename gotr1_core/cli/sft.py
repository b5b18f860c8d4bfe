"""``gotr1 sft``"""

from __future__ import annotations

from typing import Annotated

import typer

from gotr1_core.cli.common import ConfigOrWord, config_or_words, device, registry


def command(
    config: ConfigOrWord = None,
    override: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as steps=20 or policy=janus.")
    ] = None,
) -> None:
    """Stage one: trains a policy on prompts, chains and pictures. Run again, it goes on where it stopped."""
    import json

    from rich.console import Console
    from rich.progress import track

    from gotr1_core.build import component
    from gotr1_core.checkpoint import write_atomically, writing
    from gotr1_core.config import ComponentConfig, SftConfig, merge, overrides, read_yaml, validate
    from gotr1_core.sft import from_examples, from_source, read_examples, train_supervised

    path, words = config_or_words(config, override or [])
    settings = validate(SftConfig, merge(read_yaml(path) if path else {}, overrides(words)))
    import torch

    torch.manual_seed(settings.seed)  # what LoRA draws
    policy = component(registry(), settings.kind, settings.policy, device=device())
    if isinstance(settings.data, ComponentConfig):
        batches = from_source(component(registry(), "source", settings.data), settings.batch, settings.seed, settings.sort_window)
    else:
        batches = from_examples(read_examples(settings.data), settings.batch, settings.seed, settings.sort_window)
    settings.output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    log = settings.output / "log.jsonl"
    rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    with writing(settings.output, again="run it again: it goes on from its last save"):
        for row in track(train_supervised(settings, policy, batches), "training", total=settings.steps, console=console):
            if row["step"] % 20 == 0 or row["step"] + 1 == settings.steps:
                rows = [kept for kept in rows if json.loads(kept)["step"] < row["step"]]  # what a broken run logged past its last save
                rows.append(json.dumps(row))
                write_atomically(log, "\n".join(rows) + "\n")
    console.print(f"the model is in {settings.output / 'model' / 'weights'}")
