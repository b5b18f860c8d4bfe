"""Reads and writes weight files with one tensor or one shard in memory at a time.

Reads safetensors, and PyTorch files without running pickled code. Writes safetensors.
"""

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

from gotr1_core.engine.files import read_json
from gotr1_core.errors import UsageError, first_line

LIMIT = 1 << 30
"""Largest size of a written shard in bytes. A larger tensor gets a shard of its own."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))
_AGAIN = "download it again; its size should be the one that its page shows"


@dataclass(frozen=True)
class Header:
    """A tensor's file, shape and dtype, known before it is read."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return self.numel * self.dtype.itemsize


class Shards:
    """The weights of a folder, sharded or not. Nothing is read before the first use. Close it, or use it in a ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._open: tuple[str, Any] | None = None

    @cached_property
    def headers(self) -> dict[str, Header]:
        """The header of every tensor by name, in the order of the files.

        Raises:
            UsageError: the folder has no weights or lacks a shard, a file is damaged, a tensor is not floating point, or two files have
                tensors of one name.
        """
        headers: dict[str, Header] = {}
        for file in _files(self.folder):
            for name, header in self._headers(file):
                if name in headers:
                    raise UsageError(
                        f"{self.folder}: {name} is in {headers[name].file} and in {file}", hint="keep the files of one download only"
                    )
                headers[name] = header
        return headers

    def _headers(self, file: str) -> Iterator[tuple[str, Header]]:
        opened = self._file(file)
        if isinstance(opened, Mapping):
            for name, tensor in opened.items():
                yield name, Header(file, tuple(tensor.shape), tensor.dtype)
            return
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            info = opened.get_slice(name)  # reads no data
            if info.get_dtype() not in _DTYPES:
                raise self._not_float(file, name, info.get_dtype())
            yield name, Header(file, tuple(info.get_shape()), _DTYPES[info.get_dtype()])

    def _not_float(self, file: str, name: str, dtype: object) -> UsageError:
        return UsageError(f"{self.folder / file}: {name} is {dtype}", hint="give a checkpoint in float16, bfloat16 or float32")

    def load(self, name: str) -> Tensor:
        """Reads one tensor, of any shape. The file of the tensor that was read before may be closed."""
        opened = self._file(self.headers[name].file)
        tensor: Tensor = opened[name] if isinstance(opened, Mapping) else opened.get_tensor(name)
        return tensor

    def _file(self, file: str) -> Any:
        """The opened weight file. Closes the one that was open before."""
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
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                state = torch.load(path, map_location="cpu", weights_only=True)  # PyTorch's format before 1.6
        except pickle.UnpicklingError:
            raise UsageError(f"{path} is damaged or holds more than tensors; it could run code and is not loaded", hint=_AGAIN) from None
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise UsageError(
                f"{path} is not a dictionary of tensors", hint="give the model's weights, not the state of an optimizer or a trainer"
            )
        for name, tensor in state.items():
            if tensor.dtype not in _DTYPES.values():
                raise self._not_float(path.name, name, tensor.dtype)
        return state

    def close(self) -> None:
        """Closes the open file."""
        self._stack.close()
        self._open = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _files(folder: Path) -> list[str]:
    """Names of a checkpoint's weight files in their order: safetensors if there are any, else PyTorch's."""
    for stem, suffix in _KINDS:
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _files_of_index(folder, index)
        if (folder / f"{stem}.{suffix}").is_file():
            return [f"{stem}.{suffix}"]
    raise UsageError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of one of them",
        hint="give the folder of a complete download",
    )


def _files_of_index(folder: Path, index: Path) -> list[str]:
    try:
        weight_map = read_json(index)["weight_map"]
        files = sorted(set(weight_map.values()))
    except (UsageError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{index} is not an index of shards", hint=_AGAIN) from None
    # The names come from a downloaded file: they must not lead out of the folder.
    missing = [file for file in files if not isinstance(file, str) or Path(file).name != file or not (folder / file).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(map(str, missing))}, which {index.name} names", hint="download the missing files too")
    return files


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its name, its size in bytes, and the function that makes it when it is written."""

    name: str
    nbytes: int
    make: Callable[[], Tensor]


def write_shards(folder: Path, entries: Sequence[Entry], say: Callable[[str], None], limit: int = LIMIT) -> None:
    """Writes ``model.safetensors``, or shards of at most ``limit`` bytes and their index, with transformers' file names.

    ``say`` gets a line about the progress after each file.
    """
    shards = _split(entries, limit)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(names) > 1 else ["model.safetensors"]
    total, done = sum(entry.nbytes for entry in entries), 0
    for name, shard in zip(names, shards, strict=True):
        tensors = {entry.name: entry.make().clone(memory_format=torch.contiguous_format) for entry in shard}  # none shares memory
        save_file(tensors, folder / name, metadata={"format": "pt"})
        del tensors
        done += sum(entry.nbytes for entry in shard)
        say(f"{name}: {done / 1e9:.2f} of {total / 1e9:.2f} GB")
    if len(names) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _split(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Entries split, in their order, into shards of at most ``limit`` bytes."""
    shards: list[list[Entry]] = []
    size = limit
    for entry in entries:
        if size + entry.nbytes > limit and (not shards or shards[-1]):
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards
