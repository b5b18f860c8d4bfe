"""A training run from the command line: folder, live view, records, and the table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table

from gotr1_core.build import build, check, held_out_prompts, training_prompts
from gotr1_core.cli.view import View
from gotr1_core.config import RunConfig
from gotr1_core.evaluate import REWARD, estimate, paired, summary
from gotr1_core.plugins import Registry
from gotr1_core.tracking import Records, check_free, new_folder, write_samples
from gotr1_core.train import Trainer, train


def run_training(registry: Registry, config: RunConfig, *, device: str, live: bool) -> Path:
    """Trains as the config says; returns the run's folder."""
    check(registry, config)
    check_free(config)
    source, held_out = training_prompts(registry, config.prompts), held_out_prompts(registry, config.prompts)
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device == "cpu")
    parts = build(registry, config, device=accelerator.device)
    trainer = Trainer(config, parts, source, accelerator)
    folder = new_folder(config)
    console = Console(stderr=True)
    records = Records(folder, registry, config)
    registry.manager.hook.gotr1_run_started(run=folder, config=config.model_dump(mode="json"))

    with closing(records), View(console, config, folder, live=live) as view:

        def report(event: str, data: Mapping[str, Any]) -> None:
            if event == "step":
                step, metrics = data["step"] + 1, data["metrics"]
                records.metrics({"step": step, **metrics})
                if config.save_samples and (step == 1 or step % config.save_samples == 0):
                    records.samples(step, data["batch"].samples)
                registry.manager.hook.gotr1_step_finished(run=folder, step=step, metrics=metrics)
            if event == "evaluated":
                scores = {name: value.mean for name, value in summary(data["samples"]).items()}
                records.metrics({"step": data["step"], "evaluation": data["name"] or "held-out", "prompts": len(data["samples"]), **scores})
                if data["name"]:
                    write_samples(folder / "samples" / f"held-out-{data['name'].replace(' ', '-').replace(',', '')}", data["samples"][:16])
            view.show(event, data)

        result = train(trainer, held_out, folder, report)
    records.held_out(result["rows"])
    means = {"rows": {name: {k: estimate(v).mean for k, v in row.items()} for name, row in result["rows"].items()}}
    registry.manager.hook.gotr1_run_finished(run=folder, summary=means)
    show_result(console, folder, result)
    return folder


def show_result(console: Console, folder: Path, result: Mapping[str, Any]) -> None:
    """Held-out scores before and after, with intervals, and where everything lies."""
    rows = result["rows"]
    names = [REWARD, *(n for n in rows["before"] if n != REWARD)]
    table = Table("held-out", *names, title=f"{len(rows['before'][REWARD])} held-out prompts")
    for name, row in rows.items():
        table.add_row(name, *[f"{estimate(row[n]).mean:.3f}" for n in names])
    change = {n: paired(rows["before"][n], rows["after"][n]) for n in names}
    table.add_section()
    table.add_row("change", *[f"{change[n].mean:+.3f} ± {change[n].half_width:.3f}" for n in names])
    console.print(table)
    console.print(f"run         {folder}\ncheckpoint  {folder / 'checkpoints' / 'best'}\npictures    {folder / 'samples'}")
    console.print(f'draw        gotr1 generate "a red circle above a blue square" --checkpoint {folder}')
