"""Errors for running out of memory: the phase, the sizes in it, and which setting would fit."""

from __future__ import annotations

import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gotr1_core.config.models import RunConfig
from gotr1_core.errors import Gotr1Error

GB = 1e9
_STATM = Path("/proc/self/statm")
_UNITS = {"bytes": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_REQUESTED = re.compile(r"[Tt]r(?:ied|ying) to allocate ([\d.]+) (bytes|[KMGT]iB)")
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


@dataclass(frozen=True)
class MemoryUsage:
    """Bytes in use, and bytes in all."""

    used: float
    total: float


def memory_usage() -> MemoryUsage:
    """Measures the memory of this process: on the GPU if there is one, else main memory."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return MemoryUsage(torch.cuda.memory_allocated(), min(total, free + torch.cuda.memory_reserved()))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and _STATM.is_file():  # RLIMIT_AS limits addresses, not the memory behind them
        return MemoryUsage(int(_STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"), limit)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return MemoryUsage(used, total)


def is_out_of_memory(error: BaseException) -> bool:
    """True if an exception means out of memory: CUDA's, Python's, the system's, or a RuntimeError of torch's allocator."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_memory_error = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_memory_error or (isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES))


def largest_fitting(size: int, before: MemoryUsage, now: MemoryUsage, requested: float) -> int:
    """Estimates the largest size below ``size`` that fits, if memory grows in proportion to it; half of ``size`` if that cannot be told.

    ``before`` and ``now`` are usage before the phase and at the failure, ``requested`` the bytes that could not be allocated.
    """
    needed, free = now.used + requested - before.used, before.total - before.used
    fraction = free / needed if 0 < free < needed else 0.5
    return max(1, min(size - 1, int(size * fraction)))


@contextmanager
def explain_out_of_memory(phase: str, config: RunConfig) -> Iterator[None]:
    """Turns running out of memory inside the block into an error that says what to change.

    Raises:
        Gotr1Error: the block ran out of memory; see :func:`out_of_memory_error`.
    """
    before = memory_usage()
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(phase, config, before, memory_usage(), str(error)) from error


def out_of_memory_error(phase: str, config: RunConfig, before: MemoryUsage, now: MemoryUsage, message: str) -> Gotr1Error:
    """Makes the error for a phase: ``loading``, ``rollout``, ``forward``, ``update`` or ``evaluation``."""
    match = _REQUESTED.search(message) or re.search(r"allocate (\d+) (bytes)", message)
    requested = float(match[1]) * _UNITS[match[2]] if match else 0.0
    groups, plans = min(config.rollout_groups, config.groups), min(config.micro_batch, config.groups * config.plans)
    held_out = config.prompts.held_out
    prompts = min(config.evaluation.batch, held_out) if isinstance(held_out, int) else config.evaluation.batch
    size, setting, what = {
        "rollout": (groups, "rollout_groups", f"{groups} groups of {config.plans} plans x {config.images} images"),
        "evaluation": (prompts, "evaluation.batch", f"{prompts} prompts"),
        "loading": (1, "", "the weights"),
    }.get(phase, (plans, "micro_batch", f"{plans} plans with {config.images} images each"))
    hints = [f"{setting}={largest_fitting(size, before, now, requested)} would fit by estimate"] if size > 1 else []
    if phase in ("forward", "update") and not config.gradient_checkpointing:
        hints.append("gradient_checkpointing=true")
    if phase in ("forward", "update", "loading") and config.lora is None:
        hints.append("lora={rank: 32} instead of full weights")
    if phase in ("forward", "update") and config.lora is None and not config.shard:
        hints.append("shard=true in several processes")
    hints += ["planner.dtype=bfloat16"] if phase == "loading" else []
    hints += [f"plans={config.plans // 2}"] if phase == "rollout" and size == 1 < config.plans else []
    hints += [f"sampling.max_chain_tokens={max(1, config.sampling.max_chain_tokens // 2)}"] if phase != "loading" else []
    more = f", {requested / GB:.2f} GB more were requested" if requested else ""
    sizes = f"chains of up to {config.sampling.max_chain_tokens} tokens; {now.used / GB:.2f} of {now.total / GB:.2f} GB in use{more}"
    return Gotr1Error(f"out of memory in phase {phase!r}: {what}, {sizes}", hint=" or ".join(hints))
