"""The command ``gotr1 import``: from the format of Janus-Pro's release to transformers' and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.engine.console import print


def command(
    checkpoint: Annotated[Path, typer.Argument(help="The folder of a released checkpoint (model_type multi_modality).")],
    out: Annotated[Path, typer.Argument(help="The folder to write. It must not exist yet, or be empty.")],
    export: Annotated[bool, typer.Option("--export", help="Convert back: an imported checkpoint to the format of the release.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the tokenizer's files, if the checkpoint has none.")
    ] = None,
) -> None:
    """Converts a released Janus-Pro or GoT-R1 to transformers' format, with tokenizer and processor. With --export it converts back."""
    import json
    import sys

    from gotr1_core.errors import UsageError
    from gotr1_janus.convert import export_checkpoint, import_checkpoint

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if export and tokenizer is not None:
        raise UsageError(
            "--tokenizer cannot be used with --export",
            hint="an export uses the tokenizer's files that the import kept: leave out --tokenizer",
        )
    if export:
        export_checkpoint(checkpoint, out, say)
        print(json.dumps({"folder": str(out)}, ensure_ascii=False))
        return
    conversion = import_checkpoint(checkpoint, out, say, tokenizer=tokenizer)
    config = conversion.config
    sizes = {"tokens": len(conversion.processor.tokenizer), "embeddings": config.text_config.vocab_size}
    print(json.dumps({"folder": str(out), **sizes, "dtype": str(config.dtype).removeprefix("torch.")}, ensure_ascii=False))
