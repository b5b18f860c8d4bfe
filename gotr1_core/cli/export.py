"""``gotr1 export``: writes the trained weights of a run for peft, transformers or diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import AcceptChanges, registry
from gotr1_core.engine.console import print


def command(
    run: Annotated[Path, typer.Argument(help="The folder of a run (exports its best checkpoint), or of one checkpoint.")],
    out: Annotated[Path, typer.Argument(help="The folder to write: a new one, or an empty one.")],
    merge: Annotated[bool, typer.Option("--merge", help="Export the full model with merged adapters, not the adapters alone.")] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Writes the weights that a run trained, so that peft or transformers can load them, and a model card."""
    from gotr1_core.workflows.export import export

    checkpoint, step = export(registry(), run, out, merged=merge, accept_changes=accept_changes)
    print(json.dumps({"folder": str(out), "checkpoint": checkpoint and str(checkpoint), "step": step}, ensure_ascii=False))
