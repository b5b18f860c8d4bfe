"""What several processes have to agree on, through accelerate.

Gradients are summed here and not by DistributedDataParallel: DDP reduces during a backward pass in which every process takes part with
every parameter, and a process whose samples are all pruned, constant or without a reward has no such pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import nn

from gotr1_core.engine.dtensor import is_spread
from gotr1_core.errors import Gotr1Error, UsageError


@contextmanager
def _answered() -> Iterator[None]:
    """Says in our words that another process is gone; gloo and NCCL raise RuntimeErrors about sockets."""
    try:
        yield
    except RuntimeError as error:
        raise Gotr1Error("another process of this run has ended, or does not answer", hint="look at what it said") from error


@_answered()
def make_accelerator(mixed_precision: str, *, cpu: bool) -> Accelerator:
    """This process among the others. accelerate keeps the first precision of a process for good, and a process may train again."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu or not torch.cuda.is_available())


def gather_objects(accelerator: Accelerator, mine: Any) -> list[Any]:
    """Every process's object, in the order of the processes."""
    if accelerator.num_processes == 1:
        return [mine]
    return list(gather_object([mine]))


def any_process(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so on any process."""
    return any(gather_objects(accelerator, here))


def sum_over_processes(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Sums of numbers over processes, in float64."""
    return [sum(column) for column in zip(*gather_objects(accelerator, list(numbers)), strict=True)]


@_answered()
def wait(accelerator: Accelerator) -> None:
    """Until every process is here."""
    accelerator.wait_for_everyone()


def check_alike(accelerator: Accelerator, fingerprints: Mapping[str, str]) -> None:
    """Refuses to train copies of a model that begin with different weights: nothing would ever make them one.

    Raises:
        UsageError: for example that machines have different files under one name.
    """
    first, *others = gather_objects(accelerator, dict(fingerprints))
    for number, other in enumerate(others, 2):
        for name, found in other.items():
            if found != first[name]:
                raise UsageError(
                    f"process {number} starts with other weights of the {name} than process 1",
                    hint="every machine needs the same files and versions",
                )


@_answered()
def sum_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its sum over processes. A parameter that no process used keeps none, so that no optimizer moves it.

    Shares of gradients are sums already.
    """
    if accelerator.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad and not is_spread(p)]
    used = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=accelerator.device)
    torch.distributed.all_reduce(used)
    for parameter, count in zip(trained, used.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)


@_answered()
def leave() -> None:
    """Ends what connects this process to the others, once all are here; not after an error, when they may never be.

    The first process keeps the addresses of all, so it must not be the first to go.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
