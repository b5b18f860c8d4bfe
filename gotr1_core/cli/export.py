"""``gotr1 export``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import registry


def command(
    run: Annotated[Path, typer.Argument(help="A run's folder, for its best checkpoint; or the folder of one checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Where to: a folder that is not there yet, or is empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="The whole model, adapters merged, instead of the adapters alone.")] = False,
) -> None:
    """Writes what a run trained where peft or transformers can load it, with a model card."""
    import json

    from gotr1_core.workflows.export import export

    checkpoint, step = export(registry(), run, out, merged=merge)
    print(json.dumps({"folder": str(out), "checkpoint": str(checkpoint), "step": step}, ensure_ascii=False))
