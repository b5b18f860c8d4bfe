"""Kills a run again and again (SIGKILL), at random moments and inside of chosen ones, and checks that it resumes exactly every time.

    python benchmarks/kill.py --kills 50 --out build/kill
    python benchmarks/kill.py --kills 10 --processes 2 --out build/kill-two

Trains the default preset, in a small size, once undisturbed and once with many kills. The moments are by turns: a random one, while a
checkpoint is written, while an old one is removed, in an evaluation. The last kill falls into the report. With ``--processes 2`` one of the
two processes is killed, at a random moment or while a checkpoint is written. Then it compares weights, optimizer state and metrics bit for
bit. It prints at which moment each kill was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from gotr1_core.engine.files import read_lines
from gotr1_core.runs.checkpoint import CHECKPOINTS, MANIFEST, REMOVED, complete_checkpoints, find_damage

SMALL = ["groups=2", "plans=2", "prompts.held_out=2", "evaluation.prompts=2", "evaluation.every=3", "evaluation.greedy=false"]
SMALL += ["evaluation.best_of=0", "save_samples=5", "checkpoint.every=1", "constant_tolerance=0", "constant_groups=keep"]
MOMENTS = Path(__file__).with_name("kill_moments.py")
RANDOM, CHECKPOINT, PRUNE, EVALUATION, REPORT = "at a random moment", "checkpoint", "prune", "evaluation", "report"
TURNS = (RANDOM, CHECKPOINT, PRUNE, EVALUATION)
LONGEST = 600  # seconds until a kill must have come


def command(out: Path, name: str, steps: int, processes: int) -> list[str]:
    """Returns the command that starts the run, or resumes it if its folder exists."""
    train = [sys.executable, "-m", "gotr1_core.cli.main", "train"]
    folder = out / name
    new = [*SMALL, f"steps={steps}", f"output={out}", f"name={name}", "--plugin", str(MOMENTS)]
    arguments = ["--resume", str(folder)] if (folder / "config.yaml").exists() else new
    return [*train, *arguments, "--cpu", *(["--", "--num-processes", str(processes)] if processes > 1 else [])]


def start(words: list[str], moment: str = "", after: int = 0) -> subprocess.Popen[str]:
    """Starts the command. It kills itself at the moment, after so many such moments."""
    environment = {**os.environ, "GOTR1_KILL": moment, "GOTR1_KILL_AFTER": str(after)}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process: subprocess.Popen[str], folder: Path, moment: str, rng: random.Random) -> None:
    """Waits for a moment to kill the process at: while it starts, a random one, or while a checkpoint is written."""
    assert process.stderr is not None
    if moment == RANDOM and rng.random() < 0.3:  # while it starts
        time.sleep(rng.uniform(0, 6))
        return
    for line in process.stderr:
        if line.startswith('{"run"'):
            break
    time.sleep(rng.uniform(0, 4))
    until = time.monotonic() + 30
    while moment == CHECKPOINT and time.monotonic() < until and process.poll() is None and not list((folder / CHECKPOINTS).glob("*.part")):
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.25 if moment == CHECKPOINT else 0))


def kill_once(words: list[str], folder: Path, moment: str, rng: random.Random) -> str:
    """Starts or resumes the run and kills it. Returns what it left, or ``finished`` if it ended before.

    A run of several processes loses one of them; its launcher must end the others by itself.
    """
    inside = moment in (PRUNE, EVALUATION, REPORT)
    process = start(words, moment if inside else "", rng.randrange(2) if moment in (PRUNE, EVALUATION) else 0)
    try:
        if not inside:
            wait_for(process, folder, moment, rng)
            victims = [child for child in psutil.Process(process.pid).children(recursive=True) if "--num-processes" in words]
            workers = [child for child in victims if "gotr1_core.cli.main" in " ".join(child.cmdline())]
            if workers:
                rng.choice(workers).send_signal(signal.SIGKILL)
            elif process.poll() is None:
                process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:  # it has just ended
        pass
    _, rest = process.communicate(timeout=LONGEST)
    if process.returncode == 0:
        return "finished"
    lost_one = "--num-processes" in words and "was killed (SIGKILL)" in rest
    if process.returncode != -signal.SIGKILL and not lost_one:
        sys.exit(f"a resumed run failed:\n{rest}")
    left = {path.suffix for path in (folder / CHECKPOINTS).glob("*")}
    return (
        f"{moment}{', half of a checkpoint is written' if '.part' in left else ''}{', half of one is removed' if REMOVED in left else ''}"
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics without those of time."""
    lines = [json.loads(line) for _, line in read_lines(folder / "metrics.jsonl", hint="start again")]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in lines]


def check_equal(one: Path, other: Path) -> bool:
    """True if two runs ended with the same checkpoints, metrics and held-out scores, and nothing is left of what was killed."""
    names = [path.name for path in complete_checkpoints(one).values()]
    same = names == sorted(path.name for path in (other / CHECKPOINTS).iterdir())
    for name in names:
        same &= find_damage(other / CHECKPOINTS / name) is None
        same &= (one / CHECKPOINTS / name / MANIFEST).read_bytes() == (other / CHECKPOINTS / name / MANIFEST).read_bytes()
    same_metrics = rows(one) == rows(other) and (one / "held-out.json").read_bytes() == (other / "held-out.json").read_bytes()
    whole = (other / "report.html").is_file() and not list(other.rglob("*.part"))
    print(f"checkpoints (weights, optimizer, state) equal bit for bit: {same}; metrics and held-out scores equal: {same_metrics}")
    print(f"the report is there, and nothing is half written: {whole}")
    return same and same_metrics and whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/kill"))
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    _, rest = start(command(args.out, "whole", args.steps, args.processes)).communicate()
    if not (args.out / "whole" / "report.html").is_file():
        sys.exit(f"the undisturbed run failed:\n{rest}")
    rng, fell, folder = random.Random(args.seed), Counter[str](), args.out / "killed"
    turns = itertools.cycle(TURNS if args.processes == 1 else (RANDOM, CHECKPOINT))
    for number, moment in enumerate([*itertools.islice(turns, args.kills), *([REPORT] if args.processes == 1 else [])]):
        left = kill_once(command(args.out, "killed", args.steps, args.processes), folder, moment, rng)
        if left == "finished":
            sys.exit(f"finished after {number} kills: give more --steps")
        fell[left] += 1
        print(f"kill {number + 1}: {left}; {max(complete_checkpoints(folder), default=0)} steps are safe", flush=True)
    end = start(command(args.out, "killed", args.steps, args.processes))
    _, rest = end.communicate()
    if end.returncode:
        sys.exit(f"a resumed run failed:\n{rest}")
    print("\n".join(f"{count} times {moment}" for moment, count in fell.items()))
    sys.exit(not check_equal(args.out / "whole", folder))


if __name__ == "__main__":
    main()
