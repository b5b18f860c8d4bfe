"""Errors about a component's function: what it returned against its contract, and what it raised.

The checks read types, shapes and dtypes, and the numbers of lists. They wait for no GPU.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from operator import attrgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from gotr1_core.border.discovery import raised_by_component
from gotr1_core.chain import Chain
from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.errors import Gotr1Error, nearest, one_line, place_of
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Prompt, Rollout, Sampling, SegmentName, Words

DTYPES: dict[str, Callable[[torch.dtype], bool]] = {
    "bool": lambda dtype: dtype == torch.bool,
    "bool or number": lambda dtype: not dtype.is_complex,
    "integer": lambda dtype: not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool),
    "float": lambda dtype: dtype.is_floating_point,
    "float32 or float64": lambda dtype: dtype in (torch.float32, torch.float64),
}
LONGEST_WORDS = 2000
"""Characters of a judge's verdict, reason or problem that are kept."""
MODES = ("RGB", "RGBA", "L", "LA", "P", "1")
"""The modes of pictures that every judge can convert, and that can be kept as PNG."""
TAKEN = ("sampler_gap", "worst_sampler_gap", "ratio_min", "ratio_max")
"""What the core measures of every segment. Statistics of an algorithm under these names would be added to its numbers."""
_names: dict[tuple[object, str], str] = {}
"""The registered name and the distribution, by class and kind."""


class ContractError(Gotr1Error):
    """A component returned what its protocol does not allow, or raised an exception."""


def introduce(make: object, kind: str, name: str, distribution: str) -> None:
    """Remembers the registered name and the distribution of a component's class, for errors about the component."""
    _names[make, kind] = f"{kind} {name!r} of {distribution}"


@dataclass(frozen=True)
class Call:
    """One call of a component's function. Its methods check what came back, and raise a :class:`ContractError` that tells of it.

    ``component`` may also be its class. ``function`` is an attribute of it, dotted if it is one of a part (``module.forward``). ``what``
    is the part of the result that is checked, all of it if empty.
    """

    kind: str
    component: object
    function: str

    def wrong(self, got: object, expected: str, what: str = "") -> ContractError:
        """The error for ``got``."""
        verb = f"{self.function}() returned" if callable(self._attribute()) else f"{self.function} is"
        message = f"{self.who()}: {verb} {_shown(got)}{f' as {what}' if what else ''}; expected {expected}"
        return ContractError(message, hint=self._hint("docs/plugins.md says what it must be"))

    def need(self, fits: bool, got: object, expected: str, what: str = "") -> None:
        """Raises the error for ``got`` unless it ``fits``."""
        if not fits:
            raise self.wrong(got, expected, what)

    def lacks(self, name: str, expected: str) -> ContractError:
        """The error for an attribute that is missing."""
        near = nearest(name, [n for n in dir(self.component) if not n.startswith("_")])
        return ContractError(f"{self.who()} has no {name}; expected {expected}", hint=near + self._hint("docs/plugins.md says what it has"))

    @contextmanager
    def told(self, *passed: type[Exception]) -> Iterator[None]:
        """Inside the block, tells of what the component raises. Our own errors, ``passed`` ones, full memory and Ctrl-C go through.

        The working folder is put back: a run's files would otherwise go elsewhere from there on.

        Raises:
            ContractError: the component raised another exception, SystemExit and its own KeyboardInterrupt included; or it left
                another working folder.
        """
        folder = _working_folder()
        try:
            yield
        except BaseException as error:
            if isinstance(error, (Gotr1Error, *passed)) or not raised_by_component(error) or is_out_of_memory(error):
                raise
            hint = self._hint("--debug shows the traceback", error)
            raise ContractError(f"{self.who()} failed in {self.function}(): {one_line(error)}", hint=hint) from error
        finally:
            left = _working_folder()
            if folder and left != folder:
                os.chdir(folder)
        if folder and left != folder:
            raise ContractError(
                f"{self.who()} changed the working folder in {self.function}(), to {left}",
                hint=self._hint("name files by their whole paths"),
            )

    def tensor(self, value: object, what: str, dtype: str, *shape: int | str, device: torch.device | None = None) -> Tensor:
        """``value``, if it is a tensor of any shape that fits ``shape`` (names fit any size), of :data:`DTYPES` and on the ``device``."""
        if isinstance(value, Tensor) and DTYPES[dtype](value.dtype) and value.dim() == len(shape):
            sizes_fit = all(isinstance(n, str) or n == size for n, size in zip(shape, value.shape, strict=True))
            if sizes_fit and device in (None, value.device):
                return value
        sizes = f" [{', '.join(map(str, shape))}]" if shape else ", a scalar"
        raise self.wrong(value, f"{dtype}{sizes}{f' on {device}' if device else ''}", what)

    def items(self, values: Any, kind: Any, expected: str, what: str = "", *, count: int | None = None) -> Sequence[Any]:
        """``values``, if they are a sequence of objects of one ``kind``, ``count`` of them if it is given."""
        is_sequence = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        self.need(is_sequence and count in (None, len(values)), values, f"{'some' if count is None else count}, each {expected}", what)
        for i, value in enumerate(values):
            self.need(isinstance(value, kind), value, expected, f"{what}[{i}]")
        return values  # type: ignore[no-any-return]

    def numbers(self, table: Any, names: Sequence[str] | None, count: int, *, unit: bool = False) -> dict[str, list[float]]:
        """A mapping of ``count`` numbers by name as lists, in its own order. ``unit``: in [0,1]. NaN is allowed, infinities are not."""
        expected = "a mapping of numbers by name" if names is None else f"a mapping with the names {', '.join(names)}"
        self.need(isinstance(table, Mapping) and (names is None or set(table) == set(names)), table, expected)
        self.texts(table)
        columns: dict[str, list[float]] = {}
        for name, values in table.items():
            listed = values.tolist() if getattr(values, "ndim", 0) == 1 else values  # a tensor: one transfer, not one for each number
            self.items(listed, object, "a number", f"[{name!r}]", count=count)
            columns[name] = [_number(value) for value in listed]
            for i, number in enumerate(columns[name]):
                fits = math.isnan(number) or (0 <= number <= 1 if unit else math.isfinite(number))
                self.need(fits, listed[i], f"a number{' in [0,1]' if unit else ''}, or NaN", f"[{name!r}][{i}]")
        return columns

    def texts(self, table: Mapping[Any, Any], what: str = "") -> None:
        """Checks that the names in a mapping are texts."""
        for name in table:
            self.need(isinstance(name, str), name, "a text", f"a name in {what}" if what else "a name")

    def statistics(self, pairs: Any, what: str) -> None:
        """Checks ``(value, weight)`` pairs of scalars by name."""
        self.need(isinstance(pairs, Mapping), pairs, "a mapping of (value, weight) pairs", what)
        self.texts(pairs, what)
        for name, pair in pairs.items():
            self.need(name not in TAKEN, name, f"another name: the core measures {', '.join(TAKEN)}", f"a name in {what}")
            fits = isinstance(pair, tuple | list) and len(pair) == 2 and all(map(is_scalar, pair))
            self.need(fits, pair, "a pair (value, weight) of scalars", f"{what}[{name!r}]")

    def loss(self, loss: Any, names: Sequence[str], *, learns: bool) -> None:
        """Checks a :class:`Loss` of the segments ``names``; with ``learns`` one of its sums, scalars, must have a gradient."""
        self.need(isinstance(loss, Loss), loss, "a Loss")
        for table, what in ((loss.sums, "sums"), (loss.counts, "counts")):
            self.need(isinstance(table, Mapping) and {*names} <= {*table}, table, f"scalars for {', '.join(names)}", what)
        for name in names:
            self.tensor(loss.sums[name], f"sums[{name!r}]", "float")
            self.need(is_scalar(loss.counts[name]), loss.counts[name], "a scalar", f"counts[{name!r}]")
        learnt = not learns or any(loss.sums[name].requires_grad for name in names)
        self.need(learnt, loss.sums[names[0]], "a scalar with a gradient", f"sums[{names[0]!r}]")
        self.statistics(loss.statistics, "statistics")

    def words(self, words: Words, what: str) -> Words:
        """Checked words of a judge: texts and boxes. Texts are cut after :data:`LONGEST_WORDS` characters, and can be written as UTF-8."""
        texts = {"verdict": words.verdict, "reason": words.reason, "problem": words.problem}
        for name, text in texts.items():
            self.need(isinstance(text, str), text, "a text", f"{what}.{name}")
        self.need(isinstance(words.boxes, Mapping), words.boxes, "a mapping of boxes by phrase", f"{what}.boxes")
        boxes = {}
        for phrase, found in words.boxes.items():
            sides = self.numbers({str(i): box for i, box in enumerate(found)}, None, 4).values()
            boxes[_writable(str(phrase))] = [(b[0], b[1], b[2], b[3]) for b in sides]
        return Words(**{name: _writable(text) for name, text in texts.items()}, boxes=boxes)

    def rollout(self, rollout: Any, segment: SegmentName, count: int, sampling: Sampling) -> None:
        """Checks a rollout of ``count`` samples, drawn under ``sampling``."""
        self.need(isinstance(rollout, Rollout), rollout, "a Rollout")
        self.need(rollout.segment == segment, rollout.segment, repr(segment), "segment")
        self.need(rollout.sampling == sampling, rollout.sampling, "the Sampling that it was given", "sampling")
        tensors = rollout.tensors
        self.need(isinstance(tensors, Mapping), tensors, "a mapping of tensors by name", "tensors")
        self.texts(tensors, "tensors")
        mask = self.tensor(tensors.get("mask"), "tensors['mask']", "bool", count, "T")
        shape, device = (count, mask.shape[1]), mask.device
        self.tensor(tensors.get("log_prob"), "tensors['log_prob']", "float32 or float64", *shape, device=device)
        if segment == PLAN:
            self.tensor(tensors.get("truncated"), "tensors['truncated']", "bool", count, device=device)
            for i, chain in enumerate(self.items(rollout.chains, Chain, "a Chain", "chains", count=count)):
                self.need(isinstance(chain.raw, str), chain.raw, "a text", f"chains[{i}].raw")
        else:
            for i, image in enumerate(self.items(rollout.images, Image | None, "a picture of PIL, or None", "images", count=count)):
                self.need(
                    image is None or image.mode in MODES, getattr(image, "mode", ""), f"one of {', '.join(MODES)}", f"images[{i}].mode"
                )
                self.need(image is None or 0 not in image.size, image, "at least one pixel", f"images[{i}]")
        if "step" in tensors:
            self.tensor(tensors["step"], "tensors['step']", "integer", *shape, device=device)
        for name, tensor in tensors.items():
            fits = isinstance(tensor, Tensor) and tensor.dim() > 0 and len(tensor) == count and tensor.layout == torch.strided
            self.need(fits, tensor, f"a dense tensor [{count}, …]", f"tensors[{name!r}]")
            free = "a tensor without a gradient: sample under torch.no_grad()"
            self.need(not tensor.requires_grad, tensor, free, f"tensors[{name!r}]")

    def joined(self, rollouts: Sequence[Rollout]) -> None:
        """Checks that several rollouts of one policy can become one: the same tensors, each of one dtype and, from dimension 2 on, size."""
        first = rollouts[0].tensors
        for rollout in rollouts[1:]:
            other = rollout.tensors
            self.need({*other} == {*first}, other, f"the names of an earlier call, {', '.join(first)}", "tensors")
            for name, tensor in other.items():
                had = first[name]
                fits = (tensor.dtype, tensor.dim(), tensor.shape[2:]) == (had.dtype, had.dim(), had.shape[2:])
                shape = ", ".join(["B", "…", *map(str, had.shape[2:])][: had.dim()])
                dtype = str(had.dtype).removeprefix("torch.")
                self.need(fits, tensor, f"{dtype} [{shape}], as in an earlier call", f"tensors[{name!r}]")

    def prompts(self, prompts: Any, count: int | None) -> None:
        """Checks prompts, ``count`` of them if it is given."""
        for i, prompt in enumerate(self.items(prompts, Prompt, "a Prompt", count=count)):
            texts = {"text": prompt.text, "id": prompt.id, "category": prompt.category}
            for name, text in texts.items():
                self.need(isinstance(text, str), text, "a text", f"[{i}].{name}")
            try:
                json.dumps(prompt.metadata, allow_nan=False)
                self.need(isinstance(prompt.metadata, Mapping), prompt.metadata, "a mapping that JSON can write", f"[{i}].metadata")
            except (TypeError, ValueError):
                raise self.wrong(prompt.metadata, "a mapping that JSON can write", f"[{i}].metadata") from None

    def who(self) -> str:
        """The component's kind, its registered name and distribution, or its class and module."""
        if isinstance(self.component, ModuleType):
            return f"the {self.kind} {self.component.__name__}"
        made = self.component if isinstance(self.component, type | FunctionType) else type(self.component)
        others = (name for (known, _), name in _names.items() if known is made)
        module, name = getattr(made, "__module__", ""), getattr(made, "__qualname__", "")
        return "the " + (_names.get((made, self.kind)) or next(others, f"{self.kind} {name} of {module}"))

    def _attribute(self) -> object:
        try:
            return attrgetter(self.function)(self.component)
        except Exception:  # it is missing, or a property that fails
            return None

    def _hint(self, more: str, error: BaseException | None = None) -> str:
        function = self._attribute()
        place = place_of(function if callable(function) else self.component, error)
        return f"see {place}; {more}" if place else more


def _writable(text: str) -> str:
    """A text that is not too long, without halves of surrogate pairs, which UTF-8 cannot write."""
    cut = text if len(text) <= LONGEST_WORDS else text[:LONGEST_WORDS] + "…"
    return cut.encode(errors="backslashreplace").decode()


def _working_folder() -> str:
    """The working folder; empty if it is gone, or outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return ""  # the folder is the whole process's: another thread may have changed it
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _shown(value: object) -> str:
    """A value as errors show it: dtype and shape, a short text, or type and length."""
    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}{where}"
    if value is None or isinstance(value, str | Real):
        text = repr(value)
        return text if len(text) <= 60 else text[:59] + "…"
    names = f" with the names {', '.join(map(str, value))}"[:99] if isinstance(value, Mapping) and value else ""
    return type(value).__name__ + (names or (f" of {len(value)}" if isinstance(value, Sized) else ""))


def _number(value: Any) -> float:
    """A number of any library; infinite for what is none, a text included."""
    try:
        return math.inf if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: torch, for a tensor of several numbers
        return math.inf


def is_scalar(value: object) -> bool:
    """True for a number, and for a tensor with one number in it."""
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
