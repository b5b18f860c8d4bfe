"""Converts released checkpoints to transformers' format and back.

One shard is in memory at a time. The output folder appears complete or not at all.

::

    OUT/  config.json  generation_config.json  processor_config.json  tokenizer.json …  model*.safetensors
          released/    what transformers' format cannot hold, for the export: config, tokenizer files, unused tensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gotr1_core.config.paths import check_regular_files
from gotr1_core.engine.files import FILE_BYTES, read_text, replace_folder
from gotr1_core.errors import Gotr1Error, UsageError, first_line
from gotr1_core.policies.pretrained import load_pretrained
from gotr1_janus import processor
from gotr1_janus.released import EMBEDDINGS, HEAD, Shape, check_released, is_unused, list_names, origin, read_config, released_shape
from gotr1_janus.shards import LIMIT, Entry, Shards, write_shards

KEPT = "released"
"""Folder inside an imported checkpoint with what its format cannot hold. An export needs it."""
REST, NOTES = "rest.safetensors", "import.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Conversion:
    """How a released checkpoint becomes one of transformers. Made without reading weights.

    Attributes:
        config: the ``JanusConfig`` of the transformers model.
        processor: its ``JanusProcessor``.
        targets: for each tensor of the release, the names of the tensors that are made of it.
        unused: tensors of the release that transformers does not need and the reference implementation does not use.
        rows: rows of the release's embeddings. The transformers model has more if the tokenizer has more tokens.
    """

    config: Any
    processor: Any
    targets: Mapping[str, Sequence[str]]
    unused: Sequence[str]
    rows: int


def read_config_file(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON object in a file of a checkpoint's folder.

    Raises:
        UsageError: the folder or the file is missing, or the file cannot be read or holds something else.
    """
    if not os.path.lexists(folder / name):
        what = f"{folder} has no {name}" if folder.is_dir() else f"there is no folder {folder}"
        raise UsageError(what, hint="give the folder of a complete download")
    try:
        check_regular_files(folder, "*")
        content = json.loads(read_text(folder / name, hint="download it again", most=FILE_BYTES))
    except (UsageError, OSError, ValueError, RecursionError) as error:
        first = first_line(error)
        raise UsageError(f"{folder / name} cannot be read: {first}", hint="download it again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{folder / name} is not a JSON object", hint="download it again")
    return content


def examine_release(folder: Path, shards: Shards, tokenizer: Path | None = None) -> Conversion:
    """Checks that config, tokenizer and every tensor's name and shape in a released checkpoint fit together. Reads no weights.

    Args:
        folder: the released checkpoint.
        shards: its weights.
        tokenizer: a folder with the tokenizer's files, if ``folder`` has none.

    Raises:
        UsageError: the first thing that does not fit. Tensors that are missing, unknown or of the wrong shape are named.
    """
    config_json = read_config_file(folder)
    check_released(config_json, str(folder / "config.json"))
    shapes = {name: header.shape for name, header in shards.headers.items()}
    try:
        arguments = read_config(config_json, shapes)
        vision = arguments["vision_config"]
        janus_processor = processor.read_processor(tokenizer or folder, vision["image_size"], vision["num_image_tokens"])
        config = _janus_config(arguments, janus_processor.tokenizer, shards.headers[EMBEDDINGS].dtype)
        expected = expected_tensors(config)
    except UsageError:
        raise
    except Exception as error:  # transformers raises its own exceptions, and shapes may be anything
        raise UsageError(
            f"config.json and weights of {folder} do not describe a Janus: {first_line(error)}",
            hint="give the checkpoint its own config.json",
        ) from error
    targets, unused = _compare(folder, expected, shapes)
    rows = config.text_config.vocab_size
    config.text_config.vocab_size = max(rows, len(janus_processor.tokenizer))
    return Conversion(config, janus_processor, targets, unused, rows)


def _janus_config(arguments: Mapping[str, Any], tokenizer: Any, dtype: torch.dtype) -> Any:
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    name = str(dtype).removeprefix("torch.")
    return JanusConfig(
        text_config=LlamaConfig(**arguments["text_config"], **ids, dtype=name),
        vision_config=JanusVisionConfig(**arguments["vision_config"], dtype=name),
        vq_config=JanusVQVAEConfig(**arguments["vq_config"], dtype=name),
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        tie_word_embeddings=False,  # the release does not tie them; JanusConfig does by default
        dtype=name,
        architectures=["JanusForConditionalGeneration"],
    )


def expected_tensors(config: Any) -> dict[str, Shape]:
    """Names and shapes of the tensors of a ``JanusForConditionalGeneration`` with this config. Allocates none of them."""
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(folder: Path, expected: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> tuple[dict[str, list[str]], list[str]]:
    """For each tensor of the release the tensors that are made of it, and the release's unused tensors."""
    targets: dict[str, list[str]] = {}
    missing, wrong = [], []
    for name, shape in expected.items():
        source = origin(name)
        source_shape = released_shape(shape, source)
        if source.name not in shapes:
            missing.append(source.name)
        elif shapes[source.name] != source_shape:
            wrong.append(f"{source.name} is {list(shapes[source.name])} and not {list(source_shape)}")
        targets.setdefault(source.name, []).append(name)
    unused = [name for name in shapes if name not in targets]
    unknown = [name for name in unused if not is_unused(name)]
    problems = [(missing, "missing"), (wrong, "of another shape"), (unknown, "unknown")]
    reports = [list_names(list(dict.fromkeys(names)), what) for names, what in problems if names]
    if reports:
        raise UsageError(f"the weights of {folder} are not a Janus; {'; '.join(reports)}", hint="give a complete Janus-Pro or GoT-R1")
    return {name: targets[name] for name in shapes if name in targets}, unused


# -- import -----------------------------------------------------------------------------------------------------------------


def import_checkpoint(folder: Path, out: Path, say: Say, *, tokenizer: Path | None = None, limit: int = LIMIT) -> Conversion:
    """Writes a released checkpoint in transformers' format, with its processor. Weights keep their types.

    Args:
        folder: the released checkpoint.
        out: the folder to write, which does not exist yet or is empty.
        say: gets lines about the progress.
        tokenizer: a folder with the tokenizer's files, if ``folder`` has none.
        limit: largest size of a shard in bytes.

    Raises:
        UsageError: ``folder`` is not a complete released checkpoint, or ``out`` exists and is not an empty folder.
        Gotr1Error: ``out`` cannot be written.
    """
    _refuse_taken(out)
    with Shards(folder) as shards:
        conversion = examine_release(folder, shards, tokenizer)
        config, released_rows = conversion.config, conversion.rows
        rows = config.text_config.vocab_size
        if rows > released_rows:
            added = rows - released_rows
            say(f"the tokenizer has {rows} tokens: {added} embeddings are added to {released_rows}, each the mean of the others")
        if conversion.unused:
            say(list_names(conversion.unused, "kept for an export only, as the reference does not use them either"))
        entries = [_import_entry(shards, source, name, rows) for source, names in conversion.targets.items() for name in names]
        with _writing(out, sum(entry.nbytes for entry in entries)) as folder_to_fill:
            write_shards(folder_to_fill, entries, say, limit)
            _keep_for_export(folder, tokenizer or folder, shards, conversion, folder_to_fill)
            conversion.processor.save_pretrained(folder_to_fill)
            _generation_config(conversion).save_pretrained(folder_to_fill)
            config.save_pretrained(folder_to_fill)  # last: without it nothing loads the folder
    return conversion


def _import_entry(shards: Shards, source: str, name: str, rows: int) -> Entry:
    """The tensor ``name`` of transformers, to be made of the release's tensor ``source``. Embeddings and head get ``rows`` rows."""
    header, third = shards.headers[source], origin(name).third
    resized = source in (EMBEDDINGS, HEAD)
    size = header.nbytes // header.shape[0] * rows if resized else header.nbytes if third is None else header.nbytes // 3

    def make() -> Tensor:
        tensor = shards.load(source)
        if third is not None:
            return tensor.chunk(3)[third]
        if source.endswith(".pos_embed"):
            return tensor[0]
        return torch.cat([tensor, _new_rows(tensor, rows - len(tensor))]) if resized and rows > len(tensor) else tensor

    return Entry(name, size, make)


def _new_rows(tensor: Tensor, count: int) -> Tensor:
    """Rows ``[count, H]`` for new tokens: the mean of ``tensor [V, H]``, so they favour no token and every import makes the same."""
    return tensor.float().mean(0, keepdim=True).to(tensor.dtype).expand(count, -1)


def _keep_for_export(folder: Path, tokenizer: Path, shards: Shards, conversion: Conversion, out: Path) -> None:
    """Writes what an export needs into ``out``: config, small files, unused tensors, and how to find rows that were added."""
    kept = out / KEPT
    kept.mkdir()
    shutil.copyfile(folder / "config.json", kept / "config.json")
    for name in processor.FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, kept / name)
    if conversion.unused:
        save_file({name: shards.load(name).clone() for name in conversion.unused}, kept / REST)
    appended = {}
    count = conversion.config.text_config.vocab_size - conversion.rows
    if count > 0:
        appended = {name: _digest(_new_rows(shards.load(name), count)) for name in (EMBEDDINGS, HEAD)}
    (kept / NOTES).write_text(json.dumps({"rows": conversion.rows, "appended": appended}, indent=1), encoding="utf-8")


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _generation_config(conversion: Conversion) -> Any:
    """A ``GenerationConfig`` with begin-of-image, which transformers' own ``generate`` needs."""
    from transformers import GenerationConfig

    text, tokenizer = conversion.config.text_config, conversion.processor.tokenizer
    boi = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
    ids = {key: getattr(text, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**ids, generation_kwargs={"boi_token_id": boi})


# -- export -----------------------------------------------------------------------------------------------------------------


def export_checkpoint(folder: Path, out: Path, say: Say, *, limit: int = LIMIT) -> None:
    """Writes a checkpoint that :func:`import_checkpoint` made, trained since or not, in the release's format, as safetensors.

    Args:
        folder: the imported checkpoint.
        out: the folder to write, which does not exist yet or is empty.
        say: gets lines about the progress.
        limit: largest size of a shard in bytes.

    Raises:
        UsageError: ``folder`` was not imported or is incomplete, or ``out`` exists and is not an empty folder.
        Gotr1Error: ``out`` cannot be written.
    """
    from transformers import JanusConfig

    _refuse_taken(out)
    if read_config_file(folder).get("model_type") != "janus":
        raise UsageError(f"{folder} is not in transformers' format (model_type janus)", hint="give a folder that `gotr1 import` wrote")
    kept = folder / KEPT
    if not (kept / NOTES).is_file():
        raise UsageError(
            f"{folder} has no {KEPT}/{NOTES}, which an import writes and an export needs",
            hint=f"copy the folder {KEPT} from the import that this model was trained from",
        )
    notes, config = read_config_file(kept, NOTES), read_config_file(kept)
    with Shards(folder) as shards:
        shapes = {name: header.shape for name, header in shards.headers.items()}
        sources = _sources(folder, expected_tensors(load_pretrained(JanusConfig, folder)), shapes)
        rows = _exported_rows(shards, sources, notes, say)
        entries = [_export_entry(shards, name, names, rows) for name, names in sources.items()]
        rest = load_file(kept / REST) if (kept / REST).is_file() else {}
        entries += [Entry(name, tensor.nbytes, tensor.clone) for name, tensor in rest.items()]
        config["language_config"]["vocab_size"] = rows
        with _writing(out, sum(entry.nbytes for entry in entries)) as folder_to_fill:
            write_shards(folder_to_fill, entries, say, limit)
            for name in processor.FILES:
                if (kept / name).is_file():
                    shutil.copyfile(kept / name, folder_to_fill / name)
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (folder_to_fill / "config.json").write_text(text, encoding="utf-8")


def _sources(folder: Path, expected: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """For each tensor of the release the names of the tensors that it is made of, in their order."""
    wrong = [name for name, shape in expected.items() if shapes.get(name) != shape]
    if wrong:
        raise UsageError(
            f"{folder} is not a complete Janus; {list_names(wrong, 'missing, or of another shape')}",
            hint="give a folder that transformers saved",
        )
    sources: dict[str, list[str]] = {}
    for name in shapes:
        if name in expected:
            sources.setdefault(origin(name).name, []).append(name)
    return {released: sorted(names, key=lambda name: origin(name).third or 0) for released, names in sources.items()}


def _exported_rows(shards: Shards, sources: Mapping[str, Sequence[str]], notes: Mapping[str, Any], say: Say) -> int:
    """How many rows of embeddings and head are exported. Rows that the import added are left out unless they were trained."""
    rows, full = int(notes["rows"]), shards.headers[sources[EMBEDDINGS][0]].shape[0]
    added = {name: _digest(shards.load(sources[name][0])[rows:]) for name in notes["appended"]}
    if full == rows or added == notes["appended"]:
        return rows
    say(f"the {full - rows} embeddings that the import added were trained and stay: {full} in all")
    return full


def _export_entry(shards: Shards, released: str, names: Sequence[str], rows: int) -> Entry:
    """The tensor ``released`` of the release, to be made of tensors of transformers. Embeddings and head get ``rows`` rows."""
    resized = released in (EMBEDDINGS, HEAD)
    headers = [shards.headers[name] for name in names]
    size = headers[0].nbytes // headers[0].shape[0] * rows if resized else sum(header.nbytes for header in headers)

    def make() -> Tensor:
        tensors = [shards.load(name) for name in names]
        if len(tensors) > 1:
            return torch.cat(tensors)
        return tensors[0].unsqueeze(0) if released.endswith(".pos_embed") else tensors[0][:rows] if resized else tensors[0]

    return Entry(released, size, make)


# -- both -------------------------------------------------------------------------------------------------------------------


def _refuse_taken(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already and is not an empty folder", hint="choose another folder")


def check_room(out: Path, size: int) -> None:
    """Checks that the disk of ``out`` has ``size`` bytes left. ``out`` need not exist.

    Raises:
        Gotr1Error: it has less.
    """
    free = shutil.disk_usage(next(parent for parent in (out, *out.parents) if parent.is_dir())).free
    if size > free:
        raise Gotr1Error(
            f"{out} needs {size / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left",
            hint="make room, or choose a folder on another disk",
        )


@contextmanager
def _writing(out: Path, size: int) -> Iterator[Path]:
    """Gives a temporary folder that becomes ``out`` if the block ends without an error.

    Raises:
        Gotr1Error: there is no room for ``size`` bytes, or the disk fails otherwise.
    """
    out = out.expanduser().resolve()
    check_room(out, size)
    try:
        with replace_folder(out) as folder_to_fill:
            yield folder_to_fill
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise Gotr1Error(f"{out} cannot be written: {reason}", hint="choose another folder, or make room") from error
