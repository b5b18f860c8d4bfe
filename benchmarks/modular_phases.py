"""Counts the memory of a step's phases, with policies on meta; see modular.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from counting import Allocations, as_on_a_gpu
from modular_models import CHAIN
from torch import Tensor, nn

from gotr1_core.config.models import RunConfig
from gotr1_core.policies.cache import KeyValueCache
from gotr1_core.policies.decoder import states_that_predict
from gotr1_core.policies.decoder_step import DecoderStep, RowBlock
from gotr1_core.rollout import Parts
from gotr1_core.samples import Prompt
from gotr1_core.sampling import sample_token, token_stats
from gotr1_diffusers.regions import Keys, Regions
from gotr1_diffusers.vae import PIXELS

PROMPT = Prompt("a red cube left of a sleeping cat")


class Counter:
    """Counts the bytes that each phase of a step needs, besides what is always on the device. The policies are on meta.

    The phases are short versions of :mod:`gotr1_core.rollout` and :mod:`gotr1_core.update`, without code that reads numbers: meta tensors
    have none.
    """

    def __init__(self, parts: Parts, config: RunConfig) -> None:
        self.config = config
        self.planner: Any = parts.planner
        self.renderer: Any = parts.renderer
        self.known = [t for policy in parts.policies().values() for t in (*policy.module.parameters(), *policy.module.buffers())]
        self.together = min(config.rollout_groups, config.groups) * config.plans
        self.batch = config.evaluation.batch
        self.micro_batch = min(config.micro_batch, config.groups * config.plans)
        self.prompt, self.chain = len(self.planner.text.encode_prompt(PROMPT.text)), config.sampling.max_chain_tokens
        inputs = self.renderer.condition_inputs([PROMPT], [CHAIN])
        self.seen = {name: tensor.shape[1] for name, tensor in inputs.items() if tensor.dim() > 1}

    @contextmanager
    def counted(self) -> Iterator[Allocations]:
        with as_on_a_gpu(mixed=self.config.mixed_precision == "bf16"), torch.device("meta"), Allocations(self.known) as allocations:
            yield allocations

    def phases(self, found: dict[Any, Any]) -> dict[str, int]:
        """Returns the bytes of all phases. ``found`` caches results of phases with the same sizes."""
        learning = self.micro_batch, self.config.gradient_checkpointing
        works: dict[Any, Any] = {
            ("prompts", self.batch): self.prompts,
            ("plans", self.together): self.plans,
            ("pictures", self.together): self.pictures,
        }
        works |= {("planner", *learning): self.plan_update, ("renderer", *learning): self.image_update}
        for key, work in works.items():
            found[key] = found[key] if key in found else work()
        prompts, plans, pictures, planner, renderer = (found[key] for key in works)
        return {"prompts": prompts, "plans": plans, **pictures, "planner": planner, "renderer": renderer}

    @torch.no_grad()
    def prompts(self) -> int:
        """Returns the peak of reading an evaluation's prompts, which are all different. The prompt of a group is read only once."""
        with self.counted() as allocations:
            self._read(self.batch, self.prompt, KeyValueCache(self.prompt + self.chain))
            return allocations.peak

    @torch.no_grad()
    def plans(self) -> int:
        """Returns the peak of reading the prompts, or of the last token of the longest chains, when the cache is full."""
        language, head, rows = self.planner.module.language, self.planner.module.model.lm_head, self.together
        with self.counted() as allocations:
            self._read(rows // self.config.plans, self.prompt, KeyValueCache(self.prompt))
            reading = allocations.peak
        with self.counted() as allocations:
            length = self.prompt + self.chain
            cache = KeyValueCache(length - 1)
            self._read(1, length - 1, cache)
            cache = cache.move(torch.zeros(rows, dtype=torch.long), length)  # a group's prompt is read once
            step, config = DecoderStep(language, length), language.config
            block = RowBlock(cache, config.num_attention_heads, seen=torch.empty(rows, length, dtype=torch.bool))
            allocations.reset()
            embeds = torch.empty(rows, config.hidden_size, dtype=language.embed_tokens.weight.dtype)
            hidden = step(embeds, torch.empty(rows, dtype=torch.long), [block])
            sample_token(head(hidden), torch.empty(rows, dtype=torch.float64), self.config.sampling.temperature)
            return max(reading, allocations.peak)

    def plan_update(self) -> int:
        """Returns the peak of one micro-batch after others, when there are gradients already."""
        module, rows = self.planner.module, self.micro_batch
        with self.counted() as allocations, gradients(module):
            module.language.train(module.checkpointing)
            hidden = self._read(rows, self.prompt + self.chain - 1, None)
            module.language.eval()
            hidden = states_that_predict(hidden, torch.full((rows,), self.prompt), self.chain)
            tokens = torch.empty(rows * self.chain, dtype=torch.long)
            scored = token_stats(module.model.lm_head, hidden.flatten(0, 1).clone(), tokens, temperature=1.0, chunk=module.chunk)
            torch.autograd.backward(scored[0].sum())
            return allocations.peak

    def _read(self, rows: int, length: int, cache: Any) -> Tensor:
        """Returns the language model's states ``[rows, length, D]``, with a mask, as for prompts of different lengths."""
        language = self.planner.module.language
        past = 0 if cache is None else cache.get_seq_length()
        mask = torch.empty(rows, 1, length, past + length, dtype=torch.bool)
        embeds = torch.empty(rows, length, language.config.hidden_size, dtype=language.embed_tokens.weight.dtype)
        output = language(
            inputs_embeds=embeds,
            attention_mask={"full_attention": mask},
            position_ids=torch.empty(rows, length, dtype=torch.long),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    @torch.no_grad()
    def pictures(self) -> dict[str, int]:
        """Returns the peaks of a denoising step, and of decoding the last pictures, as many at a time as the VAE takes."""
        rows, module = self.together * self.config.images, self.renderer.module
        channels, height, width = self.renderer.latent_shape
        with self.counted() as allocations:
            kept = torch.empty(2, rows, self.renderer.options.trained_steps, channels, height, width)
            told = self._told(rows, guided := self.config.sampling.guidance_scale != 1)
            self._denoise(rows, told, guided, Keys())
            drawing = allocations.peak
            allocations.reset()
            size = self.renderer.size
            with as_on_a_gpu(mixed=False):
                at_once = min(rows, max(1, PIXELS // (size[0] * size[1])))
                others = torch.empty(rows - at_once, 3, *size)
                module.vae.decode(torch.empty(at_once, channels, height, width))
            del kept, others
            return {"drawing": drawing, "decoding": allocations.peak}

    def image_update(self) -> int:
        """Returns the peak of an update with all trained steps of a micro-batch's pictures at once."""
        module, sampling, steps = self.renderer.module, self.config.sampling, self.renderer.options.trained_steps
        guided = sampling.guidance_scale != 1 and sampling.log_prob == "guided"
        rows = self.micro_batch * self.config.images
        with self.counted() as allocations, gradients(module):
            with torch.no_grad():
                told = self._told(rows, guided, each=steps)
            torch.autograd.backward(self._denoise(rows * steps, told, guided).float().square().mean())
            return allocations.peak

    def _told(self, rows: int, guided: bool, each: int = 1) -> dict[str, Any]:
        """Runs the text encoders and returns the UNet's conditions for ``rows`` pictures, ``each`` times each."""
        module, length = self.renderer.module, self.renderer.module.texts.length
        pieces = rows * (self.seen["text"] + self.seen["phrases"])
        found = [encoder(torch.empty(pieces, length, dtype=torch.long), output_hidden_states=True) for encoder in module.text_encoders]
        width, dtype = sum(output.hidden_states[-2].shape[-1] for output in found), found[0].hidden_states[-2].dtype
        states = torch.empty(pieces, length, width, dtype=dtype)
        pooled = found[1][0][:1]
        del found
        drawn, regions = rows * each, self.seen["phrases"]
        weights = {height * width: torch.empty(drawn, regions, height * width) for height, width in module.resolutions}
        both = drawn * (2 if guided else 1)
        return {
            "states": states,
            "text": torch.empty(both, self.seen["text"] * length, width, dtype=dtype),
            "pooled": pooled.expand(both, -1).clone(),
            "regions": Regions(torch.empty(drawn, regions, length, width, dtype=dtype), weights),
        }

    def _denoise(self, rows: int, told: Mapping[str, Any], guided: bool, keys: Keys | None = None) -> Tensor:
        """Returns the UNet's output for ``rows`` latents, or twice as many with guidance. ``keys`` are kept for the next call."""
        module = self.renderer.module
        both = rows * (2 if guided else 1)
        output: Tensor = module.model(
            torch.empty(both, *self.renderer.latent_shape, dtype=module.dtype),
            torch.empty(both, dtype=torch.long),
            encoder_hidden_states=told["text"].to(module.dtype),
            added_cond_kwargs={"text_embeds": told["pooled"].to(module.dtype), "time_ids": torch.empty(both, 6, dtype=module.dtype)},
            cross_attention_kwargs={"regions": told["regions"], "keys": keys},
            return_dict=False,
        )[0]
        return output


@contextmanager
def gradients(module: nn.Module) -> Iterator[None]:
    """A context in which trained parameters have gradients."""
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    yield
    module.zero_grad()


# -- what stays -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Bytes that a policy needs throughout: weights, adapters, their moments, and the copy of the reference."""

    weights: int
    adapters: int
    moments: int
    reference: int

    @property
    def module(self) -> int:
        """Bytes that move with the module."""
        return self.weights + self.adapters


def held(parts: Parts, config: RunConfig) -> dict[str, Held]:
    """Returns the permanent bytes of planner and renderer."""
    found = {}
    for role, policy in parts.policies().items():
        every = [*policy.module.parameters(), *policy.module.buffers()]
        trained = sum(p.nbytes for p in policy.module.parameters() if p.requires_grad)
        compared = getattr(config.segments, "plan" if role == "planner" else "image").kl > 0
        found[role] = Held(sum(t.nbytes for t in every) - trained, trained, 2 * trained, trained if compared else 0)
    return found


def stays(parts: Parts, config: RunConfig, phase: str) -> int:
    """Returns the permanent bytes on the device during a phase, from the second step on.

    With `offload`, moments move when their policy is updated. The renderer is updated last, so its moments are on the device while the next
    step samples. References stay where they were made: the planner was in main memory then.
    """
    planner, renderer = held(parts, config).values()
    if not config.offload:
        return sum(one.module + one.moments + one.reference for one in (planner, renderer))
    working = planner if phase in ("prompts", "plans", "planner") else renderer
    moments = planner.moments if phase == "planner" else renderer.moments
    return working.module + moments + renderer.reference


def drawn(parts: Parts, config: RunConfig, phase: str) -> int:
    """Returns the bytes of the pictures' trained steps: latents before and after each step. Updates have them a second time, in
    micro-batches, with the reference's means."""
    renderer: Any = parts.renderer
    count = config.groups * config.plans * config.images * renderer.options.trained_steps
    copies = 2 if phase not in ("planner", "renderer") else 5 if config.segments.image.kl else 4
    return count * copies * 4 * int(torch.Size(renderer.latent_shape).numel())


def bytes_by_phase(parts: Parts, config: RunConfig, found: dict[Any, Any] | None = None) -> dict[str, tuple[int, int]]:
    """Returns for each phase the bytes that it needs, and the bytes on the device in all."""
    phases = Counter(parts, config).phases({} if found is None else found)
    return {phase: (mine, mine + stays(parts, config, phase) + drawn(parts, config, phase)) for phase, mine in phases.items()}
