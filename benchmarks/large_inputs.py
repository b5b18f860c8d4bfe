"""Measures what large inputs cost: a run's prompts until its first step can start, and large pictures that are scored.

python benchmarks/large_inputs.py prompts --count 1000000
python benchmarks/large_inputs.py pictures --megapixels 12 81

Each row is a process of its own. Beside wall seconds stand the processor seconds of the user, which other programs on the machine change
less. MB are the largest resident memory of the process; "above" is what it takes more than the first row, the same command with a small
input.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

GOTR1 = [sys.executable, "-m", "gotr1_core.cli.main"]
STOP = """
import os, sys
from gotr1_core.hookspecs import hookimpl

@hookimpl
def gotr1_run_started():
    sys.stdout.flush()
    os._exit(0)
"""
"""A plugin that ends the process when a run has started: everything is loaded, and nothing is sampled yet."""


def measure(command: Sequence[str]) -> tuple[float, float, float]:
    """Runs a command. Returns its wall seconds, the user's processor seconds, and its largest resident memory in MB."""
    measuring = (
        "import json, resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode; "
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(json.dumps([code, u.ru_utime, u.ru_maxrss]))"
    )
    begun = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", measuring, *command], check=True, stdout=subprocess.PIPE, text=True).stdout
    code, user, peak = json.loads(output)
    if code:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begun, user, peak * 1024 / 1e6


def prompt_commands(folder: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """The start of the default run with a thousand prompts, and with ``count``: lines of text, and JSON Lines with metadata."""
    from gotr1_scenes.source import ScenesSource, ScenesSourceOptions

    made = ScenesSource(ScenesSourceOptions()).prompts("train", 4000, 0)
    texts = [f"{prompt.text}\n" for prompt in made]
    rows = [json.dumps({"prompt": p.text, "category": p.category, "metadata": p.metadata}) + "\n" for p in made]
    stop = folder / "gotr1_stop_at_start.py"
    stop.write_text(STOP, encoding="utf-8")
    for suffix, lines in (("txt", texts), ("jsonl", rows)):
        for number in (1000, count):
            file = folder / f"{number}.{suffix}"
            with file.open("w", encoding="utf-8") as out:
                out.writelines(lines[i % len(lines)] for i in range(number))
            words = ["--preset", "scenes", "--prompts", str(file), "--plugin", str(stop), "prompts.source=null", "prompts.held_out=300"]
            yield f"{number:,} prompts, {suffix}", [*GOTR1, "train", "--cpu", *words, f"output={folder}/runs", f"name={number}-{suffix}"]


def picture_commands(folder: Path, megapixels: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """Scoring a picture of the miniature's size with the exact judge, then larger ones: PNG files, and one JPEG."""
    from PIL import Image

    from gotr1_scenes.painter import paint
    from gotr1_scenes.source import ScenesSource, ScenesSourceOptions

    (example,) = ScenesSource(ScenesSourceOptions(clean=True)).examples("validation", 0, 1, 0)
    picture = example.image or paint(())
    sides = [picture.width, 1024, *(round((number * 1e6) ** 0.5) for number in megapixels)]
    for side, suffix in [*((side, "png") for side in sides), (sides[-1], "jpg")]:
        file = folder / f"{side}.{suffix}"
        picture.resize((side, side), Image.Resampling.NEAREST).save(file)
        name = f"{side} x {side} pixels, {suffix}"
        yield name, [*GOTR1, "score", str(file), "--prompt", example.prompt.text, "--judge", "scenes", "--json"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prompts", "pictures"))
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--megapixels", type=int, nargs="+", default=[12, 81])
    options = parser.parse_args()
    print(f"{'':<32} {'seconds':>9} {'user':>9} {'peak MB':>9} {'above':>9}")
    bare: float | None = None
    with TemporaryDirectory(prefix="gotr1-") as name:
        folder = Path(name)
        commands = prompt_commands(folder, options.count) if options.what == "prompts" else picture_commands(folder, options.megapixels)
        for label, command in commands:
            seconds, user, peak = measure(command)
            bare = peak if bare is None else bare
            print(f"{label:<32} {seconds:>7.1f} s {user:>7.1f} s {peak:>9.0f} {peak - bare:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
