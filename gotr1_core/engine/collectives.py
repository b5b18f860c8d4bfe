"""Communication between the processes of a run, through accelerate.

Gradients are summed here and not by DistributedDataParallel (DDP). DDP sums during a backward pass, in which every process must take part
with every parameter. A process whose samples are all pruned, constant or without a reward has no such pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from torch import nn

from gotr1_core.engine.accelerate_settings import explicit_settings, refuse_settings, sharding_error
from gotr1_core.engine.dtensor import is_dtensor
from gotr1_core.engine.interrupts import Paused
from gotr1_core.engine.reminders import remind
from gotr1_core.errors import Gotr1Error, UsageError

T = TypeVar("T")


@contextmanager
def _explain_lost_process() -> Iterator[None]:
    """Turns the RuntimeErrors of gloo and NCCL, which speak of sockets, into an error that says that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise Gotr1Error("another process of this run has ended, or does not answer", hint="look at what it printed") from error


@_explain_lost_process()
def make_accelerator(mixed_precision: str, *, cpu: bool) -> Accelerator:
    """Connects this process to the others; on the CPU if ``cpu`` or without a GPU. ``mixed_precision``: ``no``, ``fp16`` or ``bf16``.

    Raises:
        UsageError: the environment asks for something that would change what is computed, or accelerate cannot read it.
    """
    cpu = cpu or not torch.cuda.is_available()
    refuse_settings(cpu=cpu)
    AcceleratorState._reset_state()  # accelerate keeps a process's first precision for good, and a process may train again
    try:
        accelerator = Accelerator(cpu=cpu, **explicit_settings(mixed_precision))
    except ValueError as error:
        raise UsageError(f"accelerate cannot start: {error}", hint="look at the ACCELERATE_… variables of your environment") from error
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise sharding_error(accelerator.distributed_type.value)
    return accelerator


def gather_objects(accelerator: Accelerator, item: Any) -> list[Any]:
    """Returns the objects of all processes, in the order of the processes. Every process must call it."""
    if accelerator.num_processes == 1:
        return [item]
    return list(gather_object([item]))


def any_process(accelerator: Accelerator, value: bool) -> bool:
    """True on every process if ``value`` is true on any."""
    return any(gather_objects(accelerator, value))


def sum_over_processes(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Sums numbers over processes, each at its place in the sequence; in float64."""
    return [sum(column) for column in zip(*gather_objects(accelerator, list(numbers)), strict=True)]


@_explain_lost_process()
def wait_for_all(accelerator: Accelerator) -> None:
    """Waits until every process has called it."""
    accelerator.wait_for_everyone()


class Meeting:
    """Lets processes wait for each other for as long as it takes, such as after a rollout in which one judge was slow.

    The backend ends a run whose processes wait longer than its limit (10 minutes with NCCL). Here nobody waits inside a collective: a
    process says that it is here, and looks from time to time if the others are. So Ctrl-C works, and a process that has ended is noticed.
    Every process must make a meeting, and ``hold`` it, equally often. Without ``needed`` it does nothing.
    """

    pause = 0.02
    """Seconds between two looks."""

    def __init__(self, accelerator: Accelerator, *, needed: bool, reminder: float) -> None:
        self.reminder, self.group = reminder, None
        if needed and accelerator.num_processes > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))

    @_explain_lost_process()
    def hold(self) -> None:
        """Waits until every process is here. Says so on stderr while it takes long."""
        if self.group is not None:
            here = torch.distributed.barrier(group=self.group, async_op=True)
            with remind(lambda: "waiting for the other processes", every=self.reminder):
                while not here.is_completed():
                    time.sleep(self.pause)
            here.wait()  # raises if another process has ended


def pause_together(accelerator: Accelerator, meeting: Meeting, work: Callable[[], T]) -> T:
    """Returns the result of some work, after a meeting. Every process must call it. A pause of one of them is a pause of all.

    Raises:
        Paused: the work of a process raised it; the first process's counts.
    """
    result, paused = list[T](), None
    try:
        result.append(work())
    except Paused as error:
        paused = error
    meeting.hold()
    for first in filter(None, gather_objects(accelerator, paused)):
        raise first
    return result[0]


def check_same_weights(accelerator: Accelerator, fingerprints: Mapping[str, str]) -> None:
    """Checks that all processes start with the same weights. ``fingerprints`` are hashes of this process's models by role.

    Copies of a model that start with different weights would stay different.

    Raises:
        UsageError: weights differ, for example because machines have different files under one name.
    """
    expected, *others = gather_objects(accelerator, dict(fingerprints))
    for number, hashes in enumerate(others, 2):
        for name, value in hashes.items():
            if value != expected[name]:
                raise UsageError(
                    f"process {number} starts with different weights of the {name} than process 1",
                    hint="every machine needs the same files and versions",
                )


@_explain_lost_process()
def sum_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its sum over processes.

    A parameter that no process used keeps no gradient, so the optimizer does not move it. Gradients of sharded parameters are sums already.
    """
    if accelerator.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad and not is_dtensor(p)]
    users = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=accelerator.device)
    torch.distributed.all_reduce(users)
    for parameter, count in zip(trained, users.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)


@_explain_lost_process()
def leave_process_group() -> None:
    """Waits for all processes, then closes the connections between them. Not for use after an error: others may never come.

    The first process keeps the addresses of all, so it must not leave before the others.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
