"""The commands ``gotr1 cache list`` and ``gotr1 cache clear``: what judges said before, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.engine.console import print

app = typer.Typer(no_args_is_help=True, help="Lists or removes the scores of judges that are kept on disk.")
Folder = Annotated[Path | None, typer.Option("--cache", metavar="DIR", help="The folder; the user's own cache if not given.")]


@app.command("list")
def list_scores(cache: Folder = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Lists how many scores of which judges are kept."""
    import json
    from datetime import datetime

    from gotr1_core.cli.tables import format_table
    from gotr1_judges.cache import FILE, ScoreCache, user_folder

    folder = cache or user_folder()
    rows = ScoreCache(folder).judges() if (folder / FILE).is_file() else []
    if as_json:
        print(json.dumps({"folder": str(folder), "judges": rows}, ensure_ascii=False))
        return
    times = [datetime.fromtimestamp(row["used"]).isoformat(" ", "minutes") for row in rows]
    cells = [(row["judge"], str(row["scores"]), f"{row['bytes'] / 2**20:.1f}", used) for row, used in zip(rows, times, strict=True)]
    print(format_table(("judge", "scores", "MB", "last used"), cells) if cells else "nothing is kept\n", end="")
    print(folder)


@app.command("clear")
def clear_scores(cache: Folder = None, judge: Annotated[str | None, typer.Option(help="Only this judge's scores.")] = None) -> None:
    """Removes the scores that are kept, of one judge or of all."""
    from gotr1_judges.cache import FILE, ScoreCache, user_folder

    folder = cache or user_folder()
    removed = ScoreCache(folder).clear(judge) if (folder / FILE).is_file() else 0
    print(f"{removed} scores removed from {folder}")
