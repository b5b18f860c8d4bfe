"""Running out of memory, said in the run's own terms: which phase, how large, and the nearest setting that would fit."""

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
_ASKED = re.compile(r"[Tt]r(?:ied|ying) to allocate ([\d.]+) (bytes|[KMGT]iB)")
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


@dataclass(frozen=True)
class Usage:
    """Bytes in use, and how many there are."""

    used: float
    total: float


def usage() -> Usage:
    """Of the GPU where there is one (this process's share of it), else of this process in main memory."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        mine = torch.cuda.memory_allocated()
        return Usage(mine, min(total, free + torch.cuda.memory_reserved()))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and _STATM.is_file():  # what is limited is addresses, and not what lies behind them
        return Usage(int(_STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"), limit)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(used, total)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory: CUDA's, Python's, the system's, or a RuntimeError of torch's allocator."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    kinds = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return kinds or (isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES))


def fitting(size: int, before: Usage, now: Usage, asked: float) -> int:
    """The largest size below ``size`` that would fit if memory grew in proportion to it; half of it where that says nothing."""
    needed, room = now.used + asked - before.used, before.total - before.used
    share = room / needed if 0 < room < needed else 0.5
    return max(1, min(size - 1, int(size * share)))


@contextmanager
def explained(phase: str, config: RunConfig) -> Iterator[None]:
    """Turns running out of memory inside into an error that says what to change."""
    before = usage()
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(phase, config, before, usage(), str(error)) from error


def out_of_memory(phase: str, config: RunConfig, before: Usage, now: Usage, message: str) -> Gotr1Error:
    """The error for a phase: ``loading``, ``rollout``, ``scoring``, ``update`` or ``evaluation``."""
    found = _ASKED.search(message) or re.search(r"allocate (\d+) (bytes)", message)
    asked = float(found[1]) * _UNITS[found[2]] if found else 0.0
    groups, plans = min(config.rollout_groups, config.groups), min(config.micro_batch, config.groups * config.plans)
    held_out = config.prompts.held_out
    prompts = min(config.evaluation.batch, held_out) if isinstance(held_out, int) else config.evaluation.batch
    size, setting, what = {
        "rollout": (groups, "rollout_groups", f"{groups} groups of {config.plans} plans x {config.images} images"),
        "evaluation": (prompts, "evaluation.batch", f"{prompts} prompts"),
        "loading": (1, "", "the weights"),
    }.get(phase, (plans, "micro_batch", f"{plans} plans with {config.images} images each"))
    hints = [f"{setting}={fitting(size, before, now, asked)} would fit by estimate"] if size > 1 else []
    if phase in ("scoring", "update") and not config.gradient_checkpointing:
        hints.append("gradient_checkpointing=true")
    if phase in ("scoring", "update", "loading") and config.lora is None:
        hints.append("lora={rank: 32} instead of full weights")
    if phase in ("scoring", "update") and config.lora is None and not config.shard:
        hints.append("shard=true in several processes")
    hints += ["planner.dtype=bfloat16"] if phase == "loading" else []
    hints += [f"plans={config.plans // 2}"] if phase == "rollout" and size == 1 < config.plans else []
    hints += [f"sampling.max_chain_tokens={max(1, config.sampling.max_chain_tokens // 2)}"] if phase != "loading" else []
    tried = f", {asked / GB:.2f} GB more were asked for" if asked else ""
    sizes = f"chains of up to {config.sampling.max_chain_tokens} tokens; {now.used / GB:.2f} of {now.total / GB:.2f} GB in use{tried}"
    return Gotr1Error(f"out of memory in phase {phase!r}: {what}, {sizes}", hint=" or ".join(hints))
