"""Samples as files: pictures, their plans drawn over them, and a row of JSON each. Writes them and reads them back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from gotr1_core.chain import Chain, parse
from gotr1_core.engine.files import NO_ROOM
from gotr1_core.errors import UsageError
from gotr1_core.pictures.draw_chain import draw_chain
from gotr1_core.samples import Prompt, Sample

SAMPLES, OVERLAY = "samples.jsonl", "-plan.png"
FORMATS, SUFFIXES = ("PNG", "JPEG"), (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Picture:
    """A picture file and what it was drawn for. ``path`` is None for a plan that was never drawn, ``chain`` where no plan is known."""

    path: Path | None
    prompt: Prompt
    chain: Chain | None


def find_pictures(paths: Sequence[Path], prompt: str | None = None, chain: str | None = None) -> list[Picture]:
    """The pictures of files, folders and ``samples.jsonl`` files, in this order.

    A folder's ``samples.jsonl`` says what its pictures were drawn for; of others ``prompt`` and ``chain`` do.

    Raises:
        UsageError: a path that is not there or holds no picture, a picture without a prompt, a prompt or chain that no picture takes.
    """
    found: list[Picture] = []
    loose = 0
    for path in paths:
        folder = _is_folder(path)
        if path.suffix == ".jsonl" or (folder and (path / SAMPLES).is_file()):
            found += _read_rows(path / SAMPLES if folder else path)
            continue
        for file in _files(path) if folder else [path]:
            if prompt is None:
                known = f"give --prompt TEXT, or {file.parent}, whose {SAMPLES} says it"
                hint = known if (file.parent / SAMPLES).is_file() else "give --prompt TEXT"
                raise UsageError(f"nothing says what {file} was drawn for", hint=hint)
            found.append(Picture(file, Prompt(prompt, file.stem), None if chain is None else parse(chain)))
            loose += 1
    unused = [name for name, value in (("--prompt", prompt), ("--chain", chain)) if value is not None and not loose]
    if unused:
        raise UsageError(f"{unused[0]} has no meaning where {SAMPLES} says it", hint="leave it out, or name the picture files themselves")
    for file in [picture.path for picture in found if picture.path is not None]:
        with _opened(file):  # before any judge is made, which may take minutes
            pass
    return found


def read_picture(path: Path) -> Image.Image:
    """A PNG or JPEG file as RGB, upright.

    Raises:
        UsageError: it is missing, something else, or damaged.
    """
    with _opened(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    hint = "give PNG or JPEG files, or a folder of them"
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise UsageError(f"{path} is no PNG or JPEG picture", hint=hint) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UsageError(f"cannot read {path}: {error.strerror}", hint=hint) from None
        raise UsageError(f"{path} is damaged: {' '.join(str(error).split())}", hint=hint) from None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long; opening it says so
        return False


def _files(folder: Path) -> list[Path]:
    """A folder's pictures, without those that show a plan's boxes."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.endswith(OVERLAY) and p.is_file())
    if files:
        return files
    below = sorted(rows.parent for rows in folder.glob(f"*/{SAMPLES}"))
    raise UsageError(f"{folder} has no pictures", hint=f"give a folder in it, such as {below[0]}" if below else "give PNG or JPEG files")


def _read_rows(path: Path) -> list[Picture]:
    """The samples that ``gotr1 generate`` or a run wrote."""
    hint = f"give a {SAMPLES} that gotr1 wrote, or picture files and --prompt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint=hint) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            prompt, chain, image = row["prompt"], row.get("chain"), row.get("image")
            metadata = row.get("metadata", {})
            right = isinstance(prompt, str) and isinstance(chain, str | None) and isinstance(image, str | None)
            if not right or not isinstance(metadata, dict):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(f"{path}, line {number}, is no sample", hint=hint) from None
        asked = Prompt(prompt, f"{path.stem}-{number}", str(row.get("category", "")), metadata)
        found.append(Picture(path.parent / image if image else None, asked, None if chain is None else parse(chain)))
    if not found:
        raise UsageError(f"{path} has no samples", hint=hint)
    return found


SHOWN = 256  # pixels of an overlay's shorter side at least, so that small pictures can be read


def write_samples(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Pictures as PNG, the boxes drawn over them, and a row of JSON each; returns the pictures' paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", hint="choose another folder") from None
    paths = []
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for number, sample in enumerate(samples):
            row = as_row(sample)
            if sample.image is not None:
                path = folder / f"{number:03d}.png"
                sample.image.save(path)
                overlay(sample).save(folder / f"{number:03d}-plan.png")
                row["image"] = path.name
                paths.append(path)
            print(json.dumps(row, ensure_ascii=False), file=file)
    return paths


def overlay(sample: Sample) -> Any:
    """The picture, enlarged where it is small, with the plan's boxes over it."""
    assert sample.image is not None
    factor = max(1, -(-SHOWN // min(sample.image.size)))
    size = (sample.image.width * factor, sample.image.height * factor)
    return draw_chain(sample.chain, size, sample.image)


def as_row(sample: Sample) -> dict[str, Any]:
    """A sample as JSON: prompt, chain (text and regions), scores; NaN becomes null."""
    scores = {name: null_for_nan(value) for name, value in sample.scores.items()}
    return {
        "prompt": sample.prompt.text,
        "chain": sample.chain.raw,
        "well_formed": sample.chain.well_formed,
        "problems": list(sample.chain.problems),
        "regions": [{"phrase": r.phrase, "box": list(r.box)} for r in sample.chain.regions],
        "lineage": list(sample.lineage),
        "scores": scores,
        "reward": null_for_nan(sample.reward),
    }


def null_for_nan(value: Any) -> Any:
    """The value, or None for NaN."""
    return None if value != value else value


def nan_for_null(value: Any) -> Any:
    """The inverse of :func:`null_for_nan`."""
    return float("nan") if value is None else value
