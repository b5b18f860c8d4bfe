"""Weights on disk, one tensor or one shard in memory at a time: safetensors, or PyTorch files read without unpickling objects."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gotr1_core.errors import UsageError, first_line

LIMIT = 1 << 30
"""Bytes of a shard that is written; a larger tensor has one of its own."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))
_AGAIN = "download it again; its size should be the one that its page shows"


@dataclass(frozen=True)
class Header:
    """What is known of a tensor before it is read."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


class Shards:
    """The weights of a folder, sharded or not, not looked at before they are asked for. Close it, or use it in a ``with`` block.

    Raises:
        UsageError: there are none, the index names files that are not there, or a file is cut off or of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._open: tuple[str, Any] | None = None

    @cached_property
    def headers(self) -> dict[str, Header]:
        """Every tensor, by name, in the order of the files."""
        found: dict[str, Header] = {}
        for file in _files(self.folder):
            for name, header in self._headers(file):
                if name in found:
                    raise UsageError(f"{self.folder}: {name} is in {found[name].file} and in {file}", hint="keep the files of one download")
                found[name] = header
        return found

    def _headers(self, file: str) -> Iterator[tuple[str, Header]]:
        opened = self._file(file)
        if isinstance(opened, Mapping):
            for name, tensor in opened.items():
                yield name, Header(file, tuple(tensor.shape), tensor.dtype)
            return
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            part = opened.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise self._not_float(file, name, part.get_dtype())
            yield name, Header(file, tuple(part.get_shape()), _DTYPES[part.get_dtype()])

    def _not_float(self, file: str, name: str, dtype: object) -> UsageError:
        return UsageError(f"{self.folder / file}: {name} is {dtype}", hint="give a checkpoint in float16, bfloat16 or float32")

    def load(self, name: str) -> Tensor:
        """One tensor. What was read before it may leave memory."""
        opened = self._file(self.headers[name].file)
        tensor: Tensor = opened[name] if isinstance(opened, Mapping) else opened.get_tensor(name)
        return tensor

    def _file(self, file: str) -> Any:
        """A file's tensors; the one before is closed."""
        if self._open is None or self._open[0] != file:
            self.close()
            self._open = file, self._read(file)
        return self._open[1]

    def _read(self, file: str) -> Any:
        path = self.folder / file
        try:
            if path.suffix == ".safetensors":
                return self._stack.enter_context(safe_open(path, framework="pt"))
            return self._pickled(path)
        except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
            first = first_line(error)
            raise UsageError(f"{path} is cut off or damaged: {first}", hint=_AGAIN) from None

    def _pickled(self, path: Path) -> dict[str, Tensor]:
        try:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                found = torch.load(path, map_location="cpu", weights_only=True)  # PyTorch's format before 1.6
        except pickle.UnpicklingError:
            raise UsageError(
                f"{path} is damaged, or holds more than tensors, which could run code and is not loaded", hint=_AGAIN
            ) from None
        if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            raise UsageError(
                f"{path} is no dictionary of tensors", hint="give the model's weights, not an optimizer's or a trainer's state"
            )
        for name, tensor in found.items():
            if tensor.dtype not in _DTYPES.values():
                raise self._not_float(path.name, name, tensor.dtype)
        return found

    def close(self) -> None:
        """Lets go of the open file."""
        self._stack.close()
        self._open = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _files(folder: Path) -> list[str]:
    """A checkpoint's weight files in their order: safetensors if there are any, else PyTorch's."""
    for stem, suffix in _KINDS:
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if (folder / f"{stem}.{suffix}").is_file():
            return [f"{stem}.{suffix}"]
    raise UsageError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor the index of either",
        hint="give the folder of a whole download",
    )


def _indexed(folder: Path, index: Path) -> list[str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted(set(listed))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{index} is no index of shards", hint=_AGAIN) from None
    # The names come from a file that others wrote, and must not lead out of the folder.
    missing = [file for file in files if not isinstance(file, str) or Path(file).name != file or not (folder / file).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(map(str, missing))}, which {index.name} names", hint="download the missing files too")
    return files


@dataclass(frozen=True)
class Entry:
    """A tensor to write, made when its turn comes."""

    name: str
    bytes: int
    make: Callable[[], Tensor]


def write_shards(folder: Path, entries: Sequence[Entry], say: Callable[[str], None], limit: int = LIMIT) -> None:
    """Writes ``model.safetensors``, or shards of at most ``limit`` bytes and their index, as transformers names them."""
    groups = _groups(entries, limit)
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    names = names if len(names) > 1 else ["model.safetensors"]
    total, done = sum(entry.bytes for entry in entries), 0
    for name, group in zip(names, groups, strict=True):
        tensors = {entry.name: entry.make().clone(memory_format=torch.contiguous_format) for entry in group}  # none shares memory
        save_file(tensors, folder / name, metadata={"format": "pt"})
        del tensors
        done += sum(entry.bytes for entry in group)
        say(f"{name}: {done / 1e9:.2f} of {total / 1e9:.2f} GB")
    if len(names) > 1:
        where = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _groups(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    groups: list[list[Entry]] = []
    size = limit
    for entry in entries:
        if size + entry.bytes > limit and (not groups or groups[-1]):
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.bytes
    return groups
