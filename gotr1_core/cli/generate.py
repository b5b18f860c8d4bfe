"""``gotr1 generate``: plans and draws a prompt, or draws a given chain, and writes the pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import (
    AcceptChanges,
    PlannerName,
    PresetName,
    PromptsFile,
    RendererName,
    check_finite,
    policies_to_draw,
    registry,
)
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.chain import Chain
    from gotr1_core.samples import Prompt, Sample


def command(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)] = None,
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as sampling.guidance_scale=3.")] = None,
    prompts: PromptsFile = None,
    number: Annotated[int, typer.Option("-n", "--number", help="How many pictures of each prompt; each has its own plan.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder to write the pictures to.")] = Path("pictures"),
    chain: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the chain in this text file; plan nothing.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pictures in the folder.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="A run, or one of its checkpoints.")] = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    preset: PresetName = None,
    accept_changes: AcceptChanges = False,
) -> None:
    """Plans and draws prompts, or draws your own chain. Writes PNG files, chains as JSON, and pictures with the boxes drawn over them."""
    from gotr1_core.cli.progress import progress
    from gotr1_core.components.preflight import check_prompts
    from gotr1_core.config.models import MOST
    from gotr1_core.engine.files import check_writable
    from gotr1_core.pictures.sample_files import SAMPLES, write_each
    from gotr1_core.runs.checkpoint import explain_full_disk
    from gotr1_core.workflows.generation import draw_prompts

    if number < 1:
        raise UsageError(f"-n {number}: there is nothing to draw", hint="give 1 or more")
    chosen, words = _prompts(prompt, override or [], prompts, chain)
    count = number * len(chosen)
    if count > MOST:
        raise UsageError(f"-n {number}: these are {count:,} pictures", hint=f"draw at most {MOST:,} at once; other --seed draw others")
    if not overwrite:
        _check_free(out)
    check_writable(out, hint="choose another folder with --out")
    own_chain = _read_chain(chain) if chain else None
    named = {"planner": planner, "renderer": renderer}
    policy, drawer, sampling = policies_to_draw(
        registry(), checkpoint, preset, named, words, planned=own_chain is None, accept_changes=accept_changes
    )
    if policy is not None:
        check_prompts(policy, chosen, sampling)
    plan = own_chain or policy
    assert plan is not None  # policies_to_draw returns a planner if there is no chain
    drawn: list[Sample] = []
    lines = []  # a bar is shown meanwhile
    try:
        with progress("drawing", count) as report, explain_full_disk(out, again="draw again"):
            samples = draw_prompts(plan, drawer, chosen, number=number, seed=seed, sampling=sampling)
            for path, sample in write_each(out, samples, replaces=True):
                drawn.append(replace(sample, image=None))  # thousands of pictures would take all memory
                report(len(drawn))
                if path is not None:
                    whose = {"prompt": sample.prompt.text} if prompts else {}
                    lines.append(json.dumps({"image": str(path), **whose, "chain": sample.chain.raw}, ensure_ascii=False))
    finally:
        print("".join(f"{line}\n" for line in lines), end="")
    if all(sample.not_finite for sample in drawn):
        (out / SAMPLES).unlink()  # so that the next try finds a free folder
    check_finite(drawn)


def _prompts(prompt: str | None, words: Sequence[str], file: Path | None, chain: Path | None) -> tuple[Sequence[Prompt], list[str]]:
    """The prompts to draw, of the line or of a file, and the KEY=VALUE words: with a file, the line's first word is one of them."""
    from gotr1_core.data.prompts import read_prompts
    from gotr1_core.samples import Prompt

    if file is None:
        if prompt is None:
            raise UsageError("there is no prompt", hint='say what to draw: gotr1 generate "a red circle"; or give --prompts FILE')
        if not prompt.strip():
            raise UsageError("the prompt is empty", hint="say what to draw")
        return [Prompt(prompt, "generate")], list(words)
    if chain is not None:
        raise UsageError("--chain cannot be combined with --prompts: one chain is the plan of one prompt", hint="leave one of them out")
    if prompt is not None and "=" not in prompt:
        raise UsageError(f"there is a prompt, {prompt!r}, and a file of prompts", hint="leave one of them out")
    return read_prompts(file), [*([prompt] if prompt is not None else []), *words]


def _read_chain(path: Path) -> Chain:
    """Reads a chain from a text file. Refuses one without a box or with a malformed box, because its picture would be wrong."""
    from gotr1_core.data.chains import REGIONS, read_chain

    chain = read_chain(path, key="--chain", hint="--chain takes a text file; samples.jsonl has chains to copy")
    if not chain.regions:
        raise UsageError(f"--chain: {path}: there is no region in it", hint=REGIONS)
    return chain


def _check_free(out: Path) -> None:
    """Refuses a folder where new pictures would replace older ones or mix with them. Runs before any model is loaded."""
    with suppress(OSError):  # there is no such folder, or it cannot be read: writing says so
        for name in sorted((path.name for path in out.iterdir()), key=lambda name: (name != "samples.jsonl", name)):
            if name == "samples.jsonl" or re.fullmatch(r"\d{3,}\.png", name):
                raise UsageError(f"{out} already has pictures: {name}", hint="choose another --out, or give --overwrite to replace them")


def _older_pictures(out: Path) -> list[Path]:
    """The pictures in the folder that an earlier call wrote. Other files are none of them."""
    from gotr1_core.engine.files import split_lines

    rows = out / "samples.jsonl"
    older = []
    for _, line in split_lines(rows.read_text(encoding="utf-8-sig", errors="replace")) if rows.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):  # the row has no picture, or gotr1 did not write it
            picture = Path(json.loads(line)["image"])
            older += [out / picture.name, out / f"{picture.stem}-plan.png"]
    return older
