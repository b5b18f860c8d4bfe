"""A policy in one of its roles, with what it is checked on: prompts, settings, numbers of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.border.calls import call_module, call_plan, call_render
from gotr1_core.chain import Chain, Region
from gotr1_core.config.models import LoraConfig
from gotr1_core.errors import UsageError
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Planner
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Prompt, Rollout, Sampling, SegmentName, join
from gotr1_core.sampling import seed_for
from gotr1_testing.check import NotRun

# Prompts of different lengths; two differ only in their last word. The smallest models know all the words.
PROMPTS = tuple(
    Prompt(text)
    for text in ("a circle", "a red circle above a blue square", "a red circle above a blue cross", "three green crosses", "a b")
)
CHAINS = (
    Chain.of(["a ", Region("red circle", (100, 100, 400, 400)), " and a ", Region("blue square", (500, 500, 900, 900))]),
    Chain.of([Region("circle", (0, 0, 499, 999))]),
    Chain.of(["a square"]),
)


@dataclass(frozen=True)
class Case:
    """What a policy is checked on. The defaults suit any policy.

    Give your own to check what is special for yours, such as a prompt with the text of your padding token in it.

    Attributes:
        prompts: the prompts.
        chains: for a renderer that writes none itself.
        samples_per_prompt: number of samples of every prompt.
        max_chain_tokens: limit of a chain; it is lowered until some chains are cut.
        denoising_steps: of a diffusion renderer.
        guidance: guidance scales.
        temperatures: of chain and picture.
        statistical_samples: number of samples of a statistical check.
        max_parameters: checks that need hundreds of passes are not run for policies with more parameters.
    """

    prompts: Sequence[Prompt] = PROMPTS
    chains: Sequence[Chain] = CHAINS
    samples_per_prompt: int = 2
    max_chain_tokens: int = 96
    denoising_steps: int = 5
    guidance: Sequence[float] = (1.0, 5.0)
    temperatures: Sequence[float] = (0.7, 1.0, 1.3)
    statistical_samples: int = 192
    max_parameters: int = 50_000_000

    @property
    def settings(self) -> list[Sampling]:
        """Every guidance scale with every temperature; chain and picture have the same temperature."""
        base = Sampling(max_chain_tokens=self.max_chain_tokens, denoising_steps=self.denoising_steps)
        pairs = [(t, w) for w in self.guidance for t in self.temperatures]
        return [replace(base, temperature=t, image_temperature=t, guidance_scale=w) for t, w in pairs]


@dataclass(frozen=True)
class Row:
    """One sample to draw."""

    prompt: Prompt
    chain: Chain
    seed: int

    @property
    def group(self) -> int:
        """The seed of the group, as a run gives it to the renderer. Samples of one prompt are a group."""
        return seed_for("conformance", self.prompt.text, "group")


@dataclass(frozen=True)
class Drawn:
    """What was drawn for some rows.

    Attributes:
        rollout: of the segment that is checked.
        plans: the plans that the pictures were drawn from, if the policy wrote them itself. Row k of the pictures belongs to row k here.
    """

    rollout: Rollout
    plans: Rollout | None = None

    @property
    def mask(self) -> Tensor:
        """Bool ``[B, T]``, the actions that were sampled."""
        return self.rollout.tensors["mask"]

    @property
    def log_prob(self) -> Tensor:
        """The sampler's log-probabilities ``[B, T]``."""
        return self.rollout.tensors["log_prob"]

    def take(self, rows: Sequence[int]) -> Drawn:
        """Some of the rows, in the given order."""
        index = torch.tensor(list(rows), dtype=torch.long)
        plans = None if self.plans is None else self.plans.rows(index)
        return Drawn(with_own_parents(self.rollout.rows(index)), plans)


def join_drawn(parts: Sequence[Drawn]) -> Drawn:
    """Joins what was drawn separately into one batch, padded to the longest row, as a run joins its chunks."""
    plans = [part.plans for part in parts if part.plans is not None]
    return Drawn(with_own_parents(join([part.rollout for part in parts])), join(plans) if plans else None)


def with_own_parents(rollout: Rollout) -> Rollout:
    """Sets the parent of picture k to plan k. A rollout of plans is returned unchanged."""
    if rollout.segment == PLAN:
        return rollout
    parent = torch.arange(len(rollout), device=rollout.tensors["mask"].device)
    return replace(rollout, tensors={**rollout.tensors, "parent": parent})


@dataclass
class Subject:
    """A policy in the role that is checked. A check may change it.

    ``load`` makes the policy anew from a folder that its ``save`` wrote, if that is possible.
    """

    policy: Any
    segment: SegmentName
    case: Case = field(default_factory=Case)
    load: Callable[[Path], Any] | None = None

    @property
    def module(self) -> nn.Module:
        """The policy's module."""
        module: nn.Module = self.policy.module
        return module

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest data type of the parameters that train; float32 if none trains."""
        types = {p.dtype for p in self.trained.values()} or {torch.float32}
        return max(types, key=lambda t: torch.finfo(t).eps)

    @property
    def unified(self) -> bool:
        """True if a renderer is checked that writes the chains of its pictures itself."""
        return self.segment == IMAGE and isinstance(self.policy, Planner)

    def require_parameters(self) -> None:
        """Raises NotRun if the policy has no parameters, such as one that reads chains from a file."""
        if next(self.module.parameters(), None) is None:
            raise NotRun("it has no parameters: nothing to train, and no log-probabilities")

    def require_trainable(self) -> None:
        """Raises NotRun if no parameter trains."""
        if not self.trained:
            raise NotRun("it has nothing to train")

    def require_small(self) -> None:
        """Raises NotRun if the policy has more parameters than the case allows."""
        size = sum(p.numel() for p in self.module.parameters())
        if size > self.case.max_parameters:
            limit = self.case.max_parameters / 1e6
            raise NotRun(f"{size / 1e6:.0f} million parameters are too many for hundreds of passes; the limit is {limit:.0f} million")

    @cached_property
    def rows(self) -> list[Row]:
        """Every prompt ``samples_per_prompt`` times."""
        return self.make_rows(self.case.samples_per_prompt * len(self.case.prompts))

    def make_rows(self, count: int) -> list[Row]:
        """At least ``count`` rows, equally many of each prompt, with seeds as a run gives them. Equal prompts stand together."""
        repeats = -(-count // len(self.case.prompts))
        prompts = [p for p in self.case.prompts for _ in range(repeats)]
        chains = self.case.chains
        return [Row(p, chains[i % len(chains)], seed_for("conformance", i)) for i, p in enumerate(prompts)]

    @cached_property
    def chain_tokens(self) -> int:
        """A limit that cuts some chains and not others, if any chain of the policy ends by itself."""
        self.require_parameters()
        limit = self.case.max_chain_tokens
        if not isinstance(self.policy, Planner):
            return limit
        plans = self._plan(self.rows, Sampling(max_chain_tokens=limit))
        cut = plans.tensors["truncated"].tolist()
        lengths = [n for n, c in zip(plans.tensors["mask"].sum(1).tolist(), cut, strict=True) if not c]
        if not lengths:
            return min(limit, 24)
        shorter = sorted(n for n in lengths if n < max(lengths))
        return limit if any(cut) else shorter[len(shorter) // 2] if shorter else max(1, lengths[0] - 1)

    def sampling(self, guidance_scale: float = 1.0, temperature: float = 1.0, *, chain_tokens: int | None = None) -> Sampling:
        """Sampling settings of one draw; chain and picture have the same temperature. ``chain_tokens`` replaces :attr:`chain_tokens`."""
        limit, steps = chain_tokens or self.chain_tokens, self.case.denoising_steps
        return Sampling(temperature, temperature, guidance_scale, max_chain_tokens=limit, denoising_steps=steps)

    def draw(self, sampling: Sampling, rows: Sequence[Row] | None = None) -> Drawn:
        """Draws a sample for each row, by default for :attr:`rows`. A unified policy draws pictures of its own chains."""
        self.require_parameters()
        rows = self.rows if rows is None else rows
        if self.segment == PLAN:
            return Drawn(self._plan(rows, sampling))
        return self.draw_pictures(sampling, rows, self._plan(rows, sampling) if self.unified else None)

    def draw_pictures(self, sampling: Sampling, rows: Sequence[Row], plans: Rollout | None) -> Drawn:
        """Draws a picture for each row: of ``plans``, which a unified policy wrote for these rows, or of the rows' chains."""
        chains = [row.chain for row in rows] if plans is None else plans.chains
        # Pictures have their own seeds, as in a run: with the plan's seed, the picture's noise would depend on the plan.
        seeds = [seed_for(row.seed, "image") for row in rows] if self.unified else [row.seed for row in rows]
        groups = [row.group for row in rows]
        with torch.no_grad():
            images = call_render(self.policy, [r.prompt for r in rows], chains, seeds=seeds, sampling=sampling, plans=plans, groups=groups)
        return Drawn(with_own_parents(images), plans)

    def _plan(self, rows: Sequence[Row], sampling: Sampling) -> Rollout:
        with torch.no_grad():
            return call_plan(self.policy, [row.prompt for row in rows], seeds=[row.seed for row in rows], sampling=sampling)

    def action_stats(self, drawn: Drawn) -> ActionStats:
        """The result of the training pass on the rollout that is checked."""
        return call_module(self.policy, self.module, {self.segment: drawn.rollout})[self.segment]

    def log_prob(self, drawn: Drawn) -> Tensor:
        """Log-probabilities of the actions by the training pass, ``[number of actions]``, without gradient."""
        with torch.no_grad():
            return self.action_stats(drawn).log_prob[drawn.mask]

    def with_lora(self, relative_size: float = 0.3) -> Subject:
        """Adds adapters and sets them so that each changes its layer by ``relative_size`` of the layer's own size.

        A new adapter starts at zero. Its errors would not show, and half of it would have no gradient.
        """
        self.require_trainable()
        try:
            with torch.random.fork_rng():  # peft draws A from the global generator: a check must not depend on its state
                torch.manual_seed(3)
                add_lora(self.policy, LoraConfig(rank=2, alpha=4.0))
        except (ValueError, UsageError) as error:
            raise NotRun(f"no adapters can be added below {self.policy.lora_prefix!r} ({error})") from None
        if not self.trained:
            raise NotRun(f"there is no linear layer below {self.policy.lora_prefix!r}")
        self.perturb_lora(relative_size)
        return self

    def perturb_lora(self, relative_size: float) -> None:
        """Sets the second matrix of every adapter at random, so that the adapter has ``relative_size`` of its layer's norm."""
        from peft.tuners.lora import LoraLayer

        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for layer in self.module.modules():
                if not isinstance(layer, LoraLayer):
                    continue
                for name in layer.active_adapters:
                    up = layer.lora_B[name].weight
                    up.copy_(torch.randn(up.shape, generator=generator))
                    size = layer.get_delta_weight(name).float().norm() / layer.get_base_layer().weight.float().norm().clamp_min(1e-12)
                    up.mul_(relative_size / size.clamp_min(1e-12))


def max_or_nan(values: Iterable[float]) -> float:
    """The largest value; NaN if any is NaN, 0 if there are none."""
    numbers = list(values)
    return float("nan") if any(v != v for v in numbers) else max(numbers, default=0.0)
