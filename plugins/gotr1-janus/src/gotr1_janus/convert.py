"""Released checkpoints to transformers' format and back, one shard in memory at a time, written whole or not at all.

::

    OUT/  config.json  generation_config.json  processor_config.json  tokenizer.json …  model*.safetensors
          released/    what has no place in transformers' format: config, tokenizer files, tensors that nothing uses (for the way back)
"""

from __future__ import annotations

import hashlib
import json
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

from gotr1_core.engine.files import replacing
from gotr1_core.errors import Gotr1Error, UsageError, first_line
from gotr1_janus import processor
from gotr1_janus.released import EMBEDDINGS, HEAD, Shape, listed, only_released, origin, read_config, unused, whole_shape
from gotr1_janus.shards import LIMIT, Entry, Shards, write_shards

KEPT = "released"
"""Folder inside an imported checkpoint: what its format cannot say, for the way back."""
REST, NOTES = "rest.safetensors", "import.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A released checkpoint that can be imported, its weights not read yet.

    Attributes:
        config: of the transformers model that it becomes, ``JanusConfig``.
        processor: its ``JanusProcessor``.
        targets: by tensor of the release the tensors that are made of it.
        left: tensors that nothing uses, the reference neither.
        rows: of its embeddings; the model has more where the tokenizer does.
    """

    config: Any
    processor: Any
    targets: Mapping[str, Sequence[str]]
    left: Sequence[str]
    rows: int


def read_json(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object of a checkpoint's folder, which must be there."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"{folder} has no {name}" if folder.is_dir() else f"there is no folder {folder}"
        raise UsageError(what, hint="give the folder of a whole download") from None
    except (OSError, ValueError, RecursionError) as error:
        first = first_line(error)
        raise UsageError(f"{folder / name} cannot be read: {first}", hint="download it again") from None
    if not isinstance(found, dict):
        raise UsageError(f"{folder / name} is no JSON object", hint="download it again")
    return found


def examine(folder: Path, shards: Shards, tokenizer: Path | None = None) -> Found:
    """Holds config, tokenizer and every tensor's name and shape of a released checkpoint against each other.

    Raises:
        UsageError: the first that does not fit; tensors that are missing, of another shape, or of no known use, by name.
    """
    config_json = read_json(folder)
    only_released(config_json, str(folder / "config.json"))
    shapes = {name: header.shape for name, header in shards.headers.items()}
    try:
        arguments = read_config(config_json, shapes)
        vision = arguments["vision_config"]
        made = processor.read_processor(tokenizer or folder, vision["image_size"], vision["num_image_tokens"])
        config = _janus_config(arguments, made.tokenizer, shards.headers[EMBEDDINGS].dtype)
        wanted = expected(config)
    except UsageError:
        raise
    except Exception as error:  # transformers checks types with its own exceptions, and shapes may be anything
        raise UsageError(
            f"config.json and weights of {folder} describe no Janus: {first_line(error)}", hint="give the checkpoint its own config.json"
        ) from error
    targets, left = _compare(folder, wanted, shapes)
    rows = config.text_config.vocab_size
    config.text_config.vocab_size = max(rows, len(made.tokenizer))
    return Found(config, made, targets, left, rows)


def _janus_config(arguments: Mapping[str, Any], tokenizer: Any, dtype: torch.dtype) -> Any:
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    name = str(dtype).removeprefix("torch.")
    return JanusConfig(
        text_config=LlamaConfig(**arguments["text_config"], **ids, dtype=name),
        vision_config=JanusVisionConfig(**arguments["vision_config"], dtype=name),
        vq_config=JanusVQVAEConfig(**arguments["vq_config"], dtype=name),
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        tie_word_embeddings=False,  # as the language model's: JanusConfig ties by itself what the release does not
        dtype=name,
        architectures=["JanusForConditionalGeneration"],
    )


def expected(config: Any) -> dict[str, Shape]:
    """Names and shapes of the tensors of ``JanusForConditionalGeneration``, without their memory."""
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(folder: Path, wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> tuple[dict[str, list[str]], list[str]]:
    """What is made of each tensor of the release, and those of which nothing is."""
    targets: dict[str, list[str]] = {}
    missing, wrong = [], []
    for name, shape in wanted.items():
        at = origin(name)
        whole = whole_shape(shape, at)
        if at.name not in shapes:
            missing.append(at.name)
        elif shapes[at.name] != whole:
            wrong.append(f"{at.name} is {list(shapes[at.name])} and not {list(whole)}")
        targets.setdefault(at.name, []).append(name)
    left = [name for name in shapes if name not in targets]
    unknown = [name for name in left if not unused(name)]
    problems = [(missing, "missing"), (wrong, "of another shape"), (unknown, "of no known use")]
    said = [listed(list(dict.fromkeys(names)), what) for names, what in problems if names]
    if said:
        raise UsageError(f"the weights of {folder} are no Janus; {'; '.join(said)}", hint="is it a whole Janus-Pro or GoT-R1?")
    return {name: targets[name] for name in shapes if name in targets}, left


# -- there ------------------------------------------------------------------------------------------------------------------


def import_checkpoint(folder: Path, out: Path, say: Say, *, tokenizer: Path | None = None, limit: int = LIMIT) -> Found:
    """Writes a released checkpoint as one of transformers, with its processor; weights keep their types.

    Args:
        folder: the released checkpoint.
        out: a folder that is not there yet, or is empty.
        say: is told how far it is.
        tokenizer: a folder that has the tokenizer's files, where ``folder`` has none.
        limit: bytes of a shard.

    Raises:
        UsageError: ``folder`` is no released checkpoint that is whole, or ``out`` is taken.
        Gotr1Error: ``out`` cannot be written.
    """
    _refuse_taken(out)
    with Shards(folder) as shards:
        found = examine(folder, shards, tokenizer)
        rows = found.config.text_config.vocab_size
        if rows > found.rows:
            say(f"the tokenizer has {rows} tokens: {rows - found.rows} embeddings are added to {found.rows}, each the mean of the others")
        if found.left:
            say(listed(found.left, "left over, and used by the reference neither"))
        entries = [_imported(shards, source, name, rows) for source, names in found.targets.items() for name in names]
        with _writing(out, sum(entry.bytes for entry in entries)) as part:
            write_shards(part, entries, say, limit)
            _keep(folder, tokenizer or folder, shards, found, part)
            found.processor.save_pretrained(part)
            _generation_config(found).save_pretrained(part)
            found.config.save_pretrained(part)  # last: a folder without it is taken for nothing
    return found


def _imported(shards: Shards, source: str, name: str, rows: int) -> Entry:
    """How a tensor of transformers is made of one of the release."""
    header, at = shards.headers[source], origin(name)
    resized = source in (EMBEDDINGS, HEAD)
    size = header.bytes // header.shape[0] * rows if resized else header.bytes if at.third is None else header.bytes // 3

    def make() -> Tensor:
        tensor = shards.load(source)
        if at.third is not None:
            return tensor.chunk(3)[at.third]
        if at.name.endswith(".pos_embed"):
            return tensor[0]
        return torch.cat([tensor, _appended(tensor, rows - len(tensor))]) if resized and rows > len(tensor) else tensor

    return Entry(name, size, make)


def _appended(tensor: Tensor, count: int) -> Tensor:
    """Rows for new tokens: the mean of the others, so that they begin as none of them in particular, and always alike."""
    return tensor.float().mean(0, keepdim=True).to(tensor.dtype).expand(count, -1)


def _keep(folder: Path, tokenizer: Path, shards: Shards, found: Found, part: Path) -> None:
    """What the way back needs."""
    kept = part / KEPT
    kept.mkdir()
    shutil.copyfile(folder / "config.json", kept / "config.json")
    for name in processor.FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, kept / name)
    if found.left:
        save_file({name: shards.load(name).clone() for name in found.left}, kept / REST)
    appended = {}
    if found.config.text_config.vocab_size > found.rows:
        count = found.config.text_config.vocab_size - found.rows
        appended = {name: _digest(_appended(shards.load(name), count)) for name in (EMBEDDINGS, HEAD)}
    (kept / NOTES).write_text(json.dumps({"rows": found.rows, "appended": appended}, indent=1), encoding="utf-8")


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _generation_config(found: Found) -> Any:
    """So that transformers' own ``generate`` finds begin-of-image."""
    from transformers import GenerationConfig

    text, tokenizer = found.config.text_config, found.processor.tokenizer
    boi = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
    ids = {key: getattr(text, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**ids, generation_kwargs={"boi_token_id": boi})


# -- and back ---------------------------------------------------------------------------------------------------------------


def export_checkpoint(folder: Path, out: Path, say: Say, *, limit: int = LIMIT) -> None:
    """Writes what :func:`import_checkpoint` made, trained on or not, in the format of the release, as safetensors.

    Raises:
        UsageError: ``folder`` was not imported or is not whole, or ``out`` is taken.
        Gotr1Error: ``out`` cannot be written.
    """
    from transformers import JanusConfig

    _refuse_taken(out)
    if read_json(folder).get("model_type") != "janus":
        raise UsageError(f"{folder} is not in transformers' format (model_type janus)", hint="give what `gotr1 import` wrote")
    kept = folder / KEPT
    if not (kept / NOTES).is_file():
        raise UsageError(
            f"{folder} has no {KEPT}/{NOTES}, in which an import keeps what its format cannot say",
            hint=f"copy the folder {KEPT} of the import that this model began with into it",
        )
    notes, config = read_json(kept, NOTES), read_json(kept)
    with Shards(folder) as shards:
        shapes = {name: header.shape for name, header in shards.headers.items()}
        parts = _parts(folder, expected(JanusConfig.from_pretrained(folder)), shapes)
        rows = _rows(shards, parts, notes, say)
        entries = [_exported(shards, source, names, rows) for source, names in parts.items()]
        rest = load_file(kept / REST) if (kept / REST).is_file() else {}
        entries += [Entry(name, tensor.nbytes, tensor.clone) for name, tensor in rest.items()]
        config["language_config"]["vocab_size"] = rows
        with _writing(out, sum(entry.bytes for entry in entries)) as part:
            write_shards(part, entries, say, limit)
            for name in processor.FILES:
                if (kept / name).is_file():
                    shutil.copyfile(kept / name, part / name)
            (part / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parts(folder: Path, wanted: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """The tensors that make up each of the release, in their order."""
    wrong = [name for name, shape in wanted.items() if shapes.get(name) != shape]
    if wrong:
        raise UsageError(
            f"{folder} is no whole Janus; {listed(wrong, 'missing, or of another shape')}", hint="give what transformers saved"
        )
    parts: dict[str, list[str]] = {}
    for name in shapes:
        if name in wanted:
            parts.setdefault(origin(name).name, []).append(name)
    return {source: sorted(names, key=lambda name: origin(name).third or 0) for source, names in parts.items()}


def _rows(shards: Shards, parts: Mapping[str, Sequence[str]], notes: Mapping[str, Any], say: Say) -> int:
    """Rows of the embeddings: those that the import added go again if they are still what it added."""
    rows, full = int(notes["rows"]), shards.headers[parts[EMBEDDINGS][0]].shape[0]
    added = {name: _digest(shards.load(parts[name][0])[rows:]) for name in notes["appended"]}
    if full == rows or added == notes["appended"]:
        return rows
    say(f"the {full - rows} embeddings that the import added were trained and stay: {full} in all")
    return full


def _exported(shards: Shards, source: str, names: Sequence[str], rows: int) -> Entry:
    """How a tensor of the release is made of those of transformers."""
    resized = source in (EMBEDDINGS, HEAD)
    headers = [shards.headers[name] for name in names]
    size = headers[0].bytes // headers[0].shape[0] * rows if resized else sum(header.bytes for header in headers)

    def make() -> Tensor:
        tensors = [shards.load(name) for name in names]
        if len(tensors) > 1:
            return torch.cat(tensors)
        return tensors[0].unsqueeze(0) if source.endswith(".pos_embed") else tensors[0][:rows] if resized else tensors[0]

    return Entry(source, size, make)


# -- both -------------------------------------------------------------------------------------------------------------------


def _refuse_taken(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is there already and is not an empty folder", hint="choose another folder")


def check_room(out: Path, size: int) -> None:
    """Refuses to begin what the disk of ``out`` has no room for.

    Raises:
        Gotr1Error: it has less than ``size`` bytes left.
    """
    free = shutil.disk_usage(next(parent for parent in (out, *out.parents) if parent.is_dir())).free
    if size > free:
        raise Gotr1Error(
            f"{out} needs {size / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left",
            hint="make room, or choose a folder on another disk",
        )


@contextmanager
def _writing(out: Path, size: int) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well; what keeps it from being written is told in two lines.

    Raises:
        Gotr1Error: there is no room for ``size`` bytes, or something else is wrong with the disk.
    """
    out = out.expanduser().resolve()
    check_room(out, size)
    try:
        with replacing(out) as part:
            yield part
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise Gotr1Error(f"{out} cannot be written: {reason}", hint="choose another folder, or make room") from error
