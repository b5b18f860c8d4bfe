"""``gotr1 generate``: plans and draws a prompt, or draws a given chain, and writes the pictures."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import AcceptChanges, PlannerName, PresetName, RendererName, policies_to_draw, registry
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.chain import Chain


def command(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as sampling.guidance_scale=3.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", help="How many pictures; each has its own plan.")] = 1,
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
    """Plans and draws a prompt, or draws your own chain. Writes PNG files, chains as JSON, and pictures with the boxes drawn over them."""
    from gotr1_core.cli.progress import progress
    from gotr1_core.engine.files import check_writable
    from gotr1_core.pictures.sample_files import write_samples
    from gotr1_core.runs.checkpoint import explain_full_disk
    from gotr1_core.workflows.generation import generate

    if number < 1:
        raise UsageError(f"-n {number}: there is nothing to draw", hint="give 1 or more")
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="say what to draw")
    if not overwrite:
        _check_free(out, number)
    check_writable(out, hint="choose another folder with --out")
    own_chain = _read_chain(chain) if chain else None
    named = {"planner": planner, "renderer": renderer}
    policy, drawer, sampling = policies_to_draw(
        registry(), checkpoint, preset, named, override or [], planned=own_chain is None, accept_changes=accept_changes
    )
    plan = own_chain or policy
    assert plan is not None  # policies_to_draw returns a planner if there is no chain
    with progress("drawing", number) as report:
        samples = generate(plan, drawer, prompt, number=number, seed=seed, sampling=sampling, report=report)
    _remove_older_pictures(out)
    with explain_full_disk(out, again="draw again"):
        paths = write_samples(out, samples)
    for path, sample in zip(paths, samples, strict=True):
        print(json.dumps({"image": str(path), "chain": sample.chain.raw}, ensure_ascii=False))


def _read_chain(path: Path) -> Chain:
    """Reads a chain from a text file. Refuses one without a box or with a malformed box, because its picture would be wrong."""
    from gotr1_core.data.chains import REGIONS, read_chain

    chain = read_chain(path, key="--chain", hint="--chain takes a text file; samples.jsonl has chains to copy")
    if not chain.regions:
        raise UsageError(f"--chain: {path}: there is no region in it", hint=REGIONS)
    return chain


def _check_free(out: Path, number: int) -> None:
    """Refuses a folder where new pictures would replace older ones or mix with them. Runs before any model is loaded."""
    for name in ("samples.jsonl", *(f"{i:03d}.png" for i in range(number))):
        if (out / name).exists():
            raise UsageError(f"{out} already has pictures: {name}", hint="choose another --out, or give --overwrite to replace them")


def _remove_older_pictures(out: Path) -> None:
    """Removes the pictures that an earlier call wrote. Other files in the folder stay."""
    from gotr1_core.engine.files import split_lines

    rows = out / "samples.jsonl"
    for _, line in split_lines(rows.read_text(encoding="utf-8-sig", errors="replace")) if rows.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):  # the row has no picture, or gotr1 did not write it
            picture = Path(json.loads(line)["image"])
            for name in (picture.name, f"{picture.stem}-plan.png"):
                (out / name).unlink(missing_ok=True)
