"""``gotr1 import``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A released checkpoint's folder (model_type multi_modality).")],
    out: Annotated[Path, typer.Argument(help="Where to: a folder that is not there yet, or is empty.")],
    export: Annotated[bool, typer.Option("--export", help="The other way: what an import wrote, in the release's format.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take the tokenizer's files from here, if the checkpoint has none.")
    ] = None,
) -> None:
    """Makes a transformers Janus of a released Janus-Pro or GoT-R1, tokenizer and processor included, or the release's format of it."""
    import json
    import sys

    from gotr1_core.errors import UsageError
    from gotr1_janus.convert import export_checkpoint, import_checkpoint

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if export and tokenizer is not None:
        raise UsageError("--tokenizer has no meaning with --export", hint="the files that the import kept are used; leave out one of both")
    if export:
        export_checkpoint(checkpoint, out, say)
        print(json.dumps({"folder": str(out)}, ensure_ascii=False))
        return
    found = import_checkpoint(checkpoint, out, say, tokenizer=tokenizer)
    size = {"tokens": len(found.processor.tokenizer), "embeddings": found.config.text_config.vocab_size}
    print(json.dumps({"folder": str(out), **size, "dtype": str(found.config.dtype).removeprefix("torch.")}, ensure_ascii=False))
