"""Writes samples to files and reads them back: pictures, pictures with their plans drawn over them, and a row of JSON for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_core.chain import Chain, parse
from gotr1_core.data.chains import row_chain
from gotr1_core.data.pictures import HINT, SUFFIXES, check_picture
from gotr1_core.data.prompts import row_prompt
from gotr1_core.data.rows import JSON_SUFFIXES, TABLE_SUFFIXES, read_rows
from gotr1_core.engine.files import DISK_FULL
from gotr1_core.errors import UsageError
from gotr1_core.pictures.draw_chain import draw_with_legend
from gotr1_core.samples import Prompt, Sample

SAMPLES, OVERLAY = "samples.jsonl", "-plan.png"
OVERLAY_SIDE = 256  # smallest length of an overlay's shorter side, pixels, so that small pictures can be read


@dataclass(frozen=True)
class Picture:
    """A picture file with its prompt and plan. ``path`` is None for a plan that was not drawn, ``chain`` is None if no plan is known."""

    path: Path | None
    prompt: Prompt
    chain: Chain | None


def find_pictures(paths: Sequence[Path], prompt: str | None = None, chain: str | None = None) -> list[Picture]:
    """Returns the pictures of files, folders and ``samples.jsonl`` files, in the order of ``paths``.

    Args:
        paths: picture files, folders of them, or ``samples.jsonl`` files. A folder is read through its ``samples.jsonl``, if it has one.
        prompt: the prompt of pictures that no ``samples.jsonl`` describes.
        chain: the text of their plan.

    Raises:
        UsageError: a path is missing or has no picture, a picture has no prompt, or no picture uses the given prompt or chain.
    """
    pictures: list[Picture] = []
    undescribed = 0
    for path in paths:
        folder = _is_folder(path)
        if path.suffix.lower() in JSON_SUFFIXES | TABLE_SUFFIXES or (folder and (path / SAMPLES).is_file()):
            pictures += _read_rows(path / SAMPLES if folder else path)
            continue
        for file in _picture_files(path) if folder else [path]:
            if prompt is None:
                folder_hint = f"give --prompt TEXT, or the folder {file.parent}, whose {SAMPLES} has the prompt"
                hint = folder_hint if (file.parent / SAMPLES).is_file() else "give --prompt TEXT"
                raise UsageError(f"the prompt of {file} is not known", hint=hint)
            pictures.append(Picture(file, Prompt(prompt, file.stem), None if chain is None else parse(chain)))
            undescribed += 1
    unused = [name for name, value in (("--prompt", prompt), ("--chain", chain)) if value is not None and not undescribed]
    if unused:
        raise UsageError(
            f"{unused[0]} cannot be used for pictures that {SAMPLES} describes", hint="leave it out, or name the picture files themselves"
        )
    for file in [picture.path for picture in pictures if picture.path is not None]:
        check_picture(file)  # here, before judges are made, which may take minutes
    return pictures


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long; opening the file reports that
        return False


def _picture_files(folder: Path) -> list[Path]:
    """Returns a folder's pictures. Files that macOS adds to folders are passed over."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    pictures = [p for p in files if not p.name.startswith("._")]
    if len(pictures) < len(files):
        print(f"note: {folder}: {len(files) - len(pictures)} files ._* of macOS are passed over: they are no pictures", file=sys.stderr)
    if pictures:
        return pictures
    subfolders = sorted(rows.parent for rows in folder.glob(f"*/{SAMPLES}"))
    raise UsageError(f"{folder} has no pictures", hint=f"give a folder in it, such as {subfolders[0]}" if subfolders else HINT)


def _read_rows(path: Path) -> list[Picture]:
    """Reads the samples that ``gotr1 generate`` or a run wrote, or a tool in the same form."""
    hint = f"give a {SAMPLES} that gotr1 wrote, or picture files and --prompt"
    pictures = []
    for row in read_rows(path, "samples", hint=hint):
        prompt, image = row_prompt(row, f"{path.stem}-{row.number}", hint=hint), row.values.get("image")
        if not isinstance(image, str | None):
            raise UsageError(f"{row.where}: image is not the name of a file", hint=hint)
        chain = None if row.values.get("chain") is None else row_chain(row, hint=hint)
        pictures.append(Picture(path.parent / image if image else None, prompt, chain))
    return pictures


def write_samples(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Writes pictures as PNG, overlays with the plan's boxes, and ``samples.jsonl``. Returns the paths of the pictures.

    The row of an overlay whose labels do not show all phrases whole has them by number as its ``legend``.

    Raises:
        UsageError: the folder cannot be made, or a prompt's metadata are not JSON.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", hint="choose another folder") from None
    paths = []
    with (folder / SAMPLES).open("w", encoding="utf-8") as file:
        for number, sample in enumerate(samples):
            row = sample_row(sample)
            if sample.image is not None:
                path = folder / f"{number:03d}.png"
                sample.image.save(path)
                overlay, legend = _overlay(sample)
                overlay.save(folder / f"{number:03d}{OVERLAY}")
                row |= {"image": path.name, **({"legend": legend} if legend else {})}
                paths.append(path)
            print(json.dumps(row, ensure_ascii=False, default=_refuse), file=file)
    return paths


def _refuse(value: object) -> None:
    raise UsageError(f"the metadata of a prompt are not JSON: {type(value).__name__}", hint="correct the source of prompts that gave it")


def draw_overlay(sample: Sample) -> Any:
    """Returns the picture with the plan's boxes drawn over it. A small picture is enlarged by a whole number."""
    return _overlay(sample)[0]


def _overlay(sample: Sample) -> tuple[Any, dict[int, str]]:
    """Returns the overlay and its legend, see `draw_with_legend`."""
    assert sample.image is not None
    factor = max(1, -(-OVERLAY_SIDE // min(sample.image.size)))
    size = (sample.image.width * factor, sample.image.height * factor)
    return draw_with_legend(sample.chain, size, sample.image)


def sample_row(sample: Sample) -> dict[str, Any]:
    """Returns a sample as a row for JSON: all of the prompt, chain (text and regions), scores, reward. NaN becomes null."""
    return {
        "prompt": sample.prompt.text,
        "id": sample.prompt.id,
        "category": sample.prompt.category,
        "metadata": dict(sample.prompt.metadata),
        "chain": sample.chain.raw,
        "well_formed": sample.chain.well_formed,
        "problems": list(sample.chain.problems),
        "regions": [{"phrase": r.phrase, "box": list(r.box)} for r in sample.chain.regions],
        "lineage": list(sample.lineage),
        "scores": {name: null_for_nan(value) for name, value in sample.scores.items()},
        "reward": null_for_nan(sample.reward),
    }


def null_for_nan(value: Any) -> Any:
    """Returns the value, or None for NaN."""
    return None if value != value else value


def nan_for_null(value: Any) -> Any:
    """Returns the value, or NaN for None; the inverse of :func:`null_for_nan`."""
    return float("nan") if value is None else value
