"""Writes samples to files and reads them back: pictures, pictures with their plans drawn over them, and a row of JSON for each."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain as chain_iterables, islice
from pathlib import Path
from typing import Any

from gotr1_core.chain import Chain, parse
from gotr1_core.data.chains import row_chain
from gotr1_core.data.pictures import HINT, SUFFIXES, check_picture, named_picture
from gotr1_core.data.prompts import row_prompt
from gotr1_core.data.rows import JSON_SUFFIXES, TABLE_SUFFIXES, DataRow, iterate_rows
from gotr1_core.engine.console import print
from gotr1_core.engine.files import DISK_FULL, split_lines
from gotr1_core.errors import UsageError
from gotr1_core.pictures.draw_chain import draw_with_legend
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName

SAMPLES, OVERLAY = "samples.jsonl", "-plan.png"
_WRITTEN = re.compile(rf"[0-9]{{3,}}(\.png|{re.escape(OVERLAY)})")
OVERLAY_SIDE = 256  # smallest length of an overlay's shorter side, pixels, so that small pictures can be read


@dataclass(frozen=True)
class Picture:
    """A picture file with its prompt and plan. ``path`` is None for a plan that was not drawn, ``chain`` is None if no plan is known.

    ``not_finite`` is that of the sample, see :class:`gotr1_core.samples.Sample`.
    """

    path: Path | None
    prompt: Prompt
    chain: Chain | None
    not_finite: SegmentName | None = None


def find_pictures(paths: Sequence[Path], prompt: str | None = None, chain: str | None = None, root: Path | None = None) -> list[Picture]:
    """Returns the pictures of files, folders and ``samples.jsonl`` files, in the order of ``paths``.

    Args:
        paths: picture files, folders of them, or ``samples.jsonl`` files. A folder is read through its ``samples.jsonl``, if it has one.
        prompt: the prompt of pictures that no ``samples.jsonl`` describes.
        chain: the text of their plan.
        root: the folder that pictures named in a ``samples.jsonl`` must lie in; that file's own if not given.

    Raises:
        UsageError: a path is missing or has no picture, a picture has no prompt or lies elsewhere, or nothing uses the given prompt or
            chain.
    """
    pictures: list[Picture] = []
    undescribed = 0
    for path in paths:
        folder = _is_folder(path)
        if path.suffix.lower() in JSON_SUFFIXES | TABLE_SUFFIXES or (folder and (path / SAMPLES).is_file()):
            pictures += _read_rows(path / SAMPLES if folder else path, root)
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
    """Returns a folder's pictures. Says which files are passed over: those that macOS adds, and pictures in other formats."""
    from PIL import Image

    files = sorted(p for p in folder.iterdir() if p.is_file())
    found = [p for p in files if p.suffix.lower() in Image.registered_extensions().keys() - {".pdf"}]
    own = [p for p in found if not p.name.startswith("._")]
    pictures, others = ([p for p in own if (p.suffix.lower() in SUFFIXES) is known] for known in (True, False))
    if len(own) < len(found):
        print(f"note: {folder}: files ._* of macOS are passed over ({len(found) - len(own)}): they are no pictures", file=sys.stderr)
    if others:
        print(f"note: {folder}: pictures in other formats are passed over ({len(others)}), such as {others[0].name}", file=sys.stderr)
    if pictures:
        return pictures
    subfolders = sorted(rows.parent for rows in folder.glob(f"*/{SAMPLES}"))
    raise UsageError(f"{folder} has no pictures", hint=f"give a folder in it, such as {subfolders[0]}" if subfolders else HINT)


def _read_rows(path: Path, root: Path | None) -> list[Picture]:
    """Reads the samples that ``gotr1 generate`` or a run wrote, or a tool in the same form."""
    hint = f"give a {SAMPLES} that gotr1 wrote, or picture files and --prompt"
    pictures = []
    with closing(iterate_rows(path, "samples", hint=hint)) as rows:
        for row in rows:
            prompt, image = row_prompt(row, f"{path.stem}-{row.number}", hint=hint), row.values.get("image")
            if not isinstance(image, str | None):
                raise UsageError(f"{row.where}: image is not the name of a file", hint=hint)
            chain = None if row.values.get("chain") is None else row_chain(row, hint=hint)
            lost: SegmentName | None = next((name for name in (PLAN, IMAGE) if row.values.get("not_finite") == name), None)
            pictures.append(Picture(_row_picture(row, path.parent, image, root) if image else None, prompt, chain, lost))
    return pictures


def _row_picture(row: DataRow, folder: Path, name: str, root: Path | None) -> Path:
    try:
        return named_picture(folder, name, root, hint="put the picture beside the file, or allow its folder: --pictures DIR")
    except UsageError as error:
        raise UsageError(f"{row.where}: {error.message}", hint=error.hint) from None


def write_samples(folder: Path, samples: Iterable[Sample]) -> list[Path]:
    """Writes samples as :func:`write_each`. Returns the paths of the pictures."""
    return [path for path, _ in write_each(folder, samples) if path is not None]


def write_each(folder: Path, samples: Iterable[Sample], *, replaces: bool = False) -> Iterator[tuple[Path | None, Sample]]:
    """Writes pictures as PNG, overlays with the plan's boxes, and ``samples.jsonl``, one sample after another.

    Yields each sample once it is written, with the path of its picture, or None if it has none. What is written stays if drawing the next
    one fails. With ``replaces``, what an earlier call wrote there is removed once the first sample is there. A link in the place of a
    file is replaced, not followed. The row of an overlay whose labels do not show all phrases whole has them by number as its ``legend``.

    Raises:
        UsageError: the folder cannot be made, or a prompt's metadata are not JSON.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", hint="choose another folder") from None
    iterator = iter(samples)
    first = list(islice(iterator, 1))
    if replaces:
        remove_samples(folder)
    with _unlinked(folder / SAMPLES).open("w", encoding="utf-8") as file:
        for number, sample in enumerate(chain_iterables(first, iterator)):
            row, path = sample_row(sample), None
            if sample.image is not None:
                path, path_of_overlay = (_unlinked(folder / f"{number:03d}{end}") for end in (".png", OVERLAY))
                sample.image.save(path)
                overlay, legend = _overlay(sample)
                overlay.save(path_of_overlay)
                row |= {"image": path.name, "overlay": path_of_overlay.name, **({"legend": legend} if legend else {})}
            print(json.dumps(row, ensure_ascii=False, default=_refuse), file=file, flush=True)
            yield path, sample


def _unlinked(path: Path) -> Path:
    """Removes a link in a file's place, so that nothing is written where it leads."""
    if path.is_symlink():
        path.unlink()
    return path


def remove_samples(folder: Path) -> None:
    """Removes the pictures and overlays that `write_samples` listed in the folder's ``samples.jsonl``, and nothing else."""
    rows = folder / SAMPLES
    for _, line in split_lines(rows.read_text(encoding="utf-8-sig", errors="replace")) if rows.is_file() else ():
        with suppress(ValueError, RecursionError):  # gotr1 did not write it
            row = json.loads(line)
            for name in (row.get("image"), row.get("overlay")) if isinstance(row, dict) else ():
                if isinstance(name, str) and _WRITTEN.fullmatch(name) and not (folder / name).is_dir():
                    (folder / name).unlink(missing_ok=True)


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
    """Returns a sample as a row for JSON: all of the prompt, chain (text and regions), scores, reward, words. NaN becomes null."""
    return (
        {
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
        | ({"not_finite": sample.not_finite} if sample.not_finite else {})
        | words_row(sample)
    )


def words_row(sample: Sample) -> dict[str, Any]:
    """Returns what judges said about a sample as part of a row for JSON: ``words`` by the score's name; nothing if they said nothing."""
    return {"words": {name: words.as_json() for name, words in sample.words.items()}} if sample.words else {}


def null_for_nan(value: Any) -> Any:
    """Returns the value, or None for a number that is not finite: JSON has none of them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nan_for_null(value: Any) -> Any:
    """Returns the value, or NaN for None; the inverse of :func:`null_for_nan`."""
    return float("nan") if value is None else value
