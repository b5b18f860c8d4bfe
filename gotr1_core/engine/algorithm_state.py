"""An algorithm's own state, such as a running baseline: what checkpoints keep of it, and state that no checkpoint can keep."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from gotr1_core.border.contract import Call
from gotr1_core.engine.files import read_json
from gotr1_core.engine.tensors import read_tensors, save_tensors
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.protocols import Stateful

State = tuple[dict[str, Tensor], dict[str, Any]]
"""What a checkpoint keeps: tensors of any shape on the CPU, and JSON values; both by name."""


def algorithm_state(algorithm: object) -> State | None:
    """Copies the state that ``state_dict`` returns, as tensors and JSON values. None if the algorithm is not :class:`Stateful`.

    Raises:
        Gotr1Error: a checkpoint cannot hold what ``state_dict`` returned.
    """
    if not isinstance(algorithm, Stateful):
        return None
    with (call := Call("algorithm", algorithm, "state_dict")).told():
        returned = algorithm.state_dict()
    call.need(isinstance(returned, Mapping), returned, "a mapping of tensors and JSON values by name")
    state = dict(returned)
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    wrong = [name for name in state if type(name) is not str] + [name for name, value in values.items() if not _is_json(value)]
    if wrong:
        raise Gotr1Error(
            f"the state_dict of {type(algorithm).__name__} has something that a checkpoint cannot hold: {wrong[0]!r}",
            hint="keys are texts; values are tensors, numbers, texts, booleans, None, or lists and dicts of these without tensors",
        )
    return tensors, deepcopy(values)


def _is_json(value: object) -> bool:
    """True if JSON gives the same value back. It turns a tuple into a list, and a number that is a key into a text."""
    if type(value) is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    return all(map(_is_json, value)) if type(value) is list else value is None or type(value) in (bool, int, float, str)


def save_algorithm_state(states: Sequence[State], folder: Path) -> None:
    """Writes the states of all processes, in their order, into a new folder: ``process-N.safetensors`` and ``process-N.json``.

    Raises:
        Gotr1Error: a tensor is not finite.
    """
    folder.mkdir()
    for number, (tensors, values) in enumerate(states, 1):
        save_tensors(tensors, folder / f"process-{number}.safetensors")
        (folder / f"process-{number}.json").write_text(json.dumps(values), encoding="utf-8")


def load_algorithm_state(algorithm: object, folder: Path, process: int, processes: int) -> None:
    """Loads what :func:`save_algorithm_state` wrote for this ``process``, counted from 0, of ``processes``.

    If another number of processes wrote it, their states must be equal.

    Raises:
        UsageError: the algorithm keeps state and the folder has none, or the reverse; it is that of another number of processes, or the
            algorithm cannot take it.
    """
    count = len([*folder.glob("process-*.json")])
    if isinstance(algorithm, Stateful) != bool(count):
        there, lacking = (
            ("the checkpoint", "the algorithm has no load_state_dict") if count else ("the algorithm", "the checkpoint has none")
        )
        raise UsageError(
            f"{there} has state of its own, but {lacking}", hint="use the algorithm that the run started with, or start a new run"
        )
    if not isinstance(algorithm, Stateful):
        return
    contents = {tuple((folder / f"process-{n}.{end}").read_bytes() for end in ("json", "safetensors")) for n in range(1, count + 1)}
    if count != processes and len(contents) > 1:
        message = f"the algorithm's state is that of {count} processes, and differs from one to the other"
        raise UsageError(message, hint=f"resume the run with {count} processes")
    number = process + 1 if count == processes else 1
    state = {**read_tensors(folder / f"process-{number}.safetensors"), **read_json(folder / f"process-{number}.json")}
    try:
        algorithm.load_state_dict(state)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "use the algorithm options that the run started with"
        raise UsageError(f"the algorithm cannot take its state from {folder}: {reason}", hint=hint) from error


class StateWatch:
    """Notices state that is lost when a run is resumed: attributes that change although the algorithm is not :class:`Stateful`.

    ``lost`` are the names of the attributes that have changed so far, of the object or of its class.
    """

    def __init__(self, algorithm: object) -> None:
        self.algorithm = algorithm
        self.lost: set[str] = set()
        self._start = {} if isinstance(algorithm, Stateful) else _digests(algorithm)

    def look(self) -> list[str]:
        """Compares the attributes with those at the start. Returns the names of those that have changed since the last look."""
        if isinstance(self.algorithm, Stateful):
            return []
        now = _digests(self.algorithm)
        changed = {name for name in now.keys() | self._start.keys() if now.get(name) != self._start.get(name)} - self.lost
        self.lost |= changed
        return sorted(changed)


def _digests(thing: object) -> dict[str, bytes]:
    """A digest of every attribute, of the object and of its classes. Functions count as what they are, not by what they hold."""
    classes = [cls for cls in type(thing).__mro__ if cls.__module__ not in ("builtins", "typing", "abc")]
    slots = {name: getattr(thing, name, None) for cls in classes for name in vars(cls).get("__slots__", ())}
    attributes: dict[str, Any] = {}
    for holder in (*(vars(cls) for cls in reversed(classes)), slots, getattr(thing, "__dict__", {})):
        attributes |= holder
    return {name: _digest(value) for name, value in attributes.items() if not (name.startswith("__") or isinstance(value, FunctionType))}


def _digest(value: object) -> bytes:
    content = io.BytesIO()
    try:
        _Describer(content, protocol=5).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
        return str(id(value)).encode()
    return hashlib.sha256(content.getbuffer()).digest()


class _Describer(pickle.Pickler):
    """Writes a value as bytes that are only compared, never read back. What has no such form counts by its identity."""

    def reducer_override(self, value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | Any:
        if isinstance(value, type | FunctionType | ModuleType):
            return id, (id(value),)
        if isinstance(value, torch.Generator):
            return id, (value.get_state(),)
        if isinstance(value, Tensor):  # torch's own form has addresses in memory
            return id, (str(value.dtype), value.shape, value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        try:
            return value.__reduce_ex__(5)
        except Exception:
            return id, (id(value),)
