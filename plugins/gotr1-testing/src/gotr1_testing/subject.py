"""A policy in one of its roles, and what it is checked on: prompts, settings, how much of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain, Region
from gotr1_core.config.models import LoraConfig
from gotr1_core.errors import UsageError
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Planner
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Prompt, Rollout, Sampling, SegmentName, join
from gotr1_core.sampling import seed_for
from gotr1_testing.finding import NotRun

# Of different lengths, two alike but for their last word, in words that the smallest models know.
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
    """What a policy is checked on. The defaults suit any; give your own to see what is particular to yours, such as a prompt with the
    text of your padding token in it."""

    prompts: Sequence[Prompt] = PROMPTS
    chains: Sequence[Chain] = CHAINS  # for a renderer that writes none itself
    each: int = 2  # samples of every prompt
    max_chain_tokens: int = 96  # lowered until some chains are cut
    denoising_steps: int = 5
    guidance: Sequence[float] = (1.0, 5.0)
    temperatures: Sequence[float] = (0.7, 1.0, 1.3)
    many: int = 192  # samples of a statistical check
    largest: int = 50_000_000  # parameters beyond which checks that need hundreds of passes are not run

    @property
    def settings(self) -> list[Sampling]:
        """Every guidance scale with every temperature, of chain and picture alike."""
        drawn = Sampling(max_chain_tokens=self.max_chain_tokens, denoising_steps=self.denoising_steps)
        how = [(t, w) for w in self.guidance for t in self.temperatures]
        return [replace(drawn, temperature=t, image_temperature=t, guidance_scale=w) for t, w in how]


@dataclass(frozen=True)
class Row:
    """One sample to draw."""

    prompt: Prompt
    chain: Chain
    seed: int

    @property
    def group(self) -> int:
        """What a run would tell the renderer about its group: samples of a prompt are one."""
        return seed_for("conformance", self.prompt.text, "group")


@dataclass(frozen=True)
class Drawn:
    """What was drawn for some rows: the rollout that is checked, and the plans it was drawn from where the policy wrote them."""

    rollout: Rollout
    plans: Rollout | None = None

    @property
    def mask(self) -> Tensor:
        return self.rollout.tensors["mask"]

    @property
    def log_prob(self) -> Tensor:
        return self.rollout.tensors["log_prob"]

    def take(self, rows: Sequence[int]) -> Drawn:
        """Some of the rows; row k of the pictures belongs to row k of the plans."""
        index = torch.tensor(list(rows), dtype=torch.long)
        plans = None if self.plans is None else self.plans.rows(index)
        return Drawn(own_parents(self.rollout.rows(index)), plans)


def together(parts: Sequence[Drawn]) -> Drawn:
    """What was drawn apart as one batch, padded to the longest, as a run joins its chunks."""
    plans = [part.plans for part in parts if part.plans is not None]
    return Drawn(own_parents(join([part.rollout for part in parts])), join(plans) if plans else None)


def own_parents(rollout: Rollout) -> Rollout:
    """A rollout of pictures, each drawn from the plan of its own row."""
    if rollout.segment == PLAN:
        return rollout
    parent = torch.arange(len(rollout), device=rollout.tensors["mask"].device)
    return replace(rollout, tensors={**rollout.tensors, "parent": parent})


@dataclass
class Subject:
    """A policy in the role that is checked. A check may change it."""

    policy: Any
    segment: SegmentName
    case: Case = field(default_factory=Case)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.policy.module
        return module

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights: the coarsest one of what trains."""
        types = {p.dtype for p in self.trained.values()} or {torch.float32}
        return max(types, key=lambda t: torch.finfo(t).eps)

    @property
    def unified(self) -> bool:
        """Whether the policy in question draws pictures of chains that it wrote itself."""
        return self.segment == IMAGE and isinstance(self.policy, Planner)

    def needs_weights(self) -> None:
        if next(self.module.parameters(), None) is None:  # chains of a file, say
            raise NotRun("it has no parameters: nothing to train, and nothing to score")

    def needs_training(self) -> None:
        if not self.trained:
            raise NotRun("it has nothing to train")

    def needs_small(self) -> None:
        size = sum(p.numel() for p in self.module.parameters())
        if size > self.case.largest:
            most = self.case.largest / 1e6
            raise NotRun(f"{size / 1e6:.0f} million parameters are too many for hundreds of passes; the limit is {most:.0f} million")

    @cached_property
    def rows(self) -> list[Row]:
        """Every prompt ``each`` times."""
        return self.many_rows(self.case.each * len(self.case.prompts))

    def many_rows(self, count: int) -> list[Row]:
        """Rows with seeds as a run gives them; equal prompts stand together."""
        each = -(-count // len(self.case.prompts))
        prompts = [p for p in self.case.prompts for _ in range(each)]
        chains = self.case.chains
        return [Row(p, chains[i % len(chains)], seed_for("conformance", i)) for i, p in enumerate(prompts)]

    @cached_property
    def chain_tokens(self) -> int:
        """A limit that cuts some chains and not others, where the policy ends any by itself."""
        self.needs_weights()
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

    def sampling(self, guidance_scale: float = 1.0, temperature: float = 1.0) -> Sampling:
        """Settings of one draw."""
        steps = self.case.denoising_steps
        return Sampling(temperature, temperature, guidance_scale, max_chain_tokens=self.chain_tokens, denoising_steps=steps)

    def draw(self, sampling: Sampling, rows: Sequence[Row] | None = None) -> Drawn:
        """Samples rows; a policy in both roles draws pictures of its own chains."""
        self.needs_weights()
        rows = self.rows if rows is None else rows
        with torch.no_grad():
            if self.segment == PLAN:
                return Drawn(self._plan(rows, sampling))
            plans = self._plan(rows, sampling) if self.unified else None
            chains = [row.chain for row in rows] if plans is None else plans.chains
            # Seeds of their own, as in a run: the plan's would make the picture's noise depend on the plan.
            seeds = [seed_for(row.seed, "image") for row in rows] if self.unified else [row.seed for row in rows]
            groups = [row.group for row in rows]
            drawn = self.policy.render([r.prompt for r in rows], chains, seeds=seeds, sampling=sampling, plans=plans, groups=groups)
        return Drawn(own_parents(drawn), plans)

    def _plan(self, rows: Sequence[Row], sampling: Sampling) -> Rollout:
        with torch.no_grad():
            rollout: Rollout = self.policy.plan([row.prompt for row in rows], seeds=[row.seed for row in rows], sampling=sampling)
        return rollout

    def score(self, drawn: Drawn) -> ActionStats:
        """What the module says about the rollout that is checked."""
        scored: ActionStats = self.module({self.segment: drawn.rollout})[self.segment]
        return scored

    def log_prob(self, drawn: Drawn) -> Tensor:
        """Scored log-probabilities of the actions, ``[number of actions]``, without gradient."""
        with torch.no_grad():
            return self.score(drawn).log_prob[drawn.mask]

    def with_lora(self, share: float = 0.3) -> Subject:
        """Puts adapters in and perturbs them, so that each changes its layer by ``share`` of the layer's own size.

        A new adapter begins at zero, where nothing that is wrong with it shows and half of it has no gradient.
        """
        self.needs_training()
        try:
            add_lora(self.policy, LoraConfig(rank=2, alpha=4.0))
        except (ValueError, UsageError) as error:
            raise NotRun(f"no adapters fit below {self.policy.lora_prefix!r} ({error})") from None
        if not self.trained:
            raise NotRun(f"there is no linear layer below {self.policy.lora_prefix!r}")
        self.perturb_lora(share)
        return self

    def perturb_lora(self, share: float) -> None:
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
                    up.mul_(share / size.clamp_min(1e-12))


def largest(values: Iterable[float]) -> float:
    """The largest; NaN if any is."""
    found = list(values)
    return float("nan") if any(v != v for v in found) else max(found, default=0.0)
