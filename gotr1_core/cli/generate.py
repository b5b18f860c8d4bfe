"""``gotr1 generate``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gotr1_core.cli.common import PlannerName, PresetName, RendererName, drawing, registry
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.chain import Chain


def command(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as sampling.guidance_scale=3.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", help="How many pictures, each with a plan of its own.")] = 1,
    seed: Annotated[int, typer.Option(help="Pictures of the same seed are the same.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("pictures"),
    chain: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw this chain, a text, in place of a planned one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pictures that the folder has.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="A run, or one of its checkpoints.")] = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    preset: PresetName = None,
) -> None:
    """Plans and draws a prompt, or draws your own chain for it. Writes PNG, the chain as JSON, and the boxes drawn over the picture."""
    import json

    from gotr1_core.cli.progress import progress
    from gotr1_core.pictures.sample_files import write_samples
    from gotr1_core.runs.checkpoint import writing
    from gotr1_core.workflows.generation import generate

    if number < 1:
        raise UsageError(f"-n {number}: there is nothing to draw", hint="give 1 or more")
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="say what to draw")
    if not overwrite:
        _check_free(out, number)
    given = _read(chain) if chain else None
    named = {"planner": planner, "renderer": renderer}
    writer, drawer, sampling = drawing(registry(), checkpoint, preset, named, override or [], planned=given is None)
    with progress("drawing", number) as report:
        samples = generate(writer, drawer, prompt, number=number, seed=seed, sampling=sampling, chain=given, report=report)
    _remove_older(out)
    with writing(out, again="draw again"):
        paths = write_samples(out, samples)
    for path, sample in zip(paths, samples, strict=True):
        print(json.dumps({"image": str(path), "chain": sample.chain.raw}, ensure_ascii=False))


def _read(path: Path) -> Chain:
    """The chain of a text file; one without a single box, or with a broken one, is refused: it would be drawn, but not as it was meant."""
    from gotr1_core.chain import parse

    try:
        chain = parse(path.read_text(encoding="utf-8-sig").strip())
    except OSError as error:
        raise UsageError(
            f"--chain: cannot read {path}: {error.strerror}", hint="give a text file; samples.jsonl has chains to copy"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"--chain: {path} is not UTF-8 text", hint="give a text file; samples.jsonl has chains to copy") from None
    if not chain.regions or chain.problems:
        raise UsageError(
            f"--chain: {path}: {chain.problems[0] if chain.problems else 'there is no region in it'}",
            hint="write each as <|obj_start|>PHRASE<|obj_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, coordinates 0 to 999",
        )
    return chain


def _check_free(out: Path, number: int) -> None:
    """Refuses, before anything is loaded, a folder in which older pictures would be mixed with new ones or lost."""
    for name in ("samples.jsonl", *(f"{i:03d}.png" for i in range(number))):
        if (out / name).exists():
            raise UsageError(f"{out} has pictures already: {name}", hint="give another --out, or --overwrite to replace them")


def _remove_older(out: Path) -> None:
    """Removes the pictures that a former call wrote; what else is in the folder stays."""
    import json
    from contextlib import suppress

    rows = out / "samples.jsonl"
    for line in rows.read_text(encoding="utf-8", errors="replace").splitlines() if rows.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):  # a row without a picture, or one that gotr1 did not write
            picture = Path(json.loads(line)["image"])
            for name in (picture.name, f"{picture.stem}-plan.png"):
                (out / name).unlink(missing_ok=True)
