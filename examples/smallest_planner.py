"""The smallest trainable planner: it reads a prompt as a bag of words, and writes a chain from a fixed list of regions."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gotr1_core import PLAN, ActionStats, Component, Prompt, Region, Rollout, Sampling, UsageError, hookimpl, parse
from gotr1_core.config.paths import InputPath
from gotr1_core.policies.lora import merged_state
from gotr1_core.policies.padding import right_pad
from gotr1_core.sampling import decode, token_stats, uniforms

COLORS, SHAPES = ("red", "green", "blue", "yellow", "purple", "cyan"), ("circle", "square", "triangle", "cross")
BOXES = [(x, y, x + 333, y + 333) for x in (0, 666) for y in (0, 666)]
REGIONS = [Region(f"{color} {shape}", box).text for color in COLORS for shape in SHAPES for box in BOXES]
END, START, WORDS, WIDTH = len(REGIONS), len(REGIONS) + 1, 2048, 64


def read(prompt: Prompt) -> Tensor:
    words = ["", *prompt.text.lower().replace(",", " ").split()]
    return torch.tensor([zlib.crc32(text.encode()) % WORDS for text in (*words, *map(" ".join, pairwise(words)))])


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.tokens = nn.Embedding(WORDS, WIDTH), nn.Embedding(START + 1, WIDTH)
        self.cell, self.head = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, END + 1)
        nn.init.constant_(self.head.bias[END:], 2.5)

    def start(self, words: Tensor, length: Tensor) -> Tensor:
        mask = torch.arange(words.shape[1], device=words.device) < length.unsqueeze(1)
        return torch.tanh((self.words(words) * mask.unsqueeze(-1)).sum(1))

    def step(self, token: Tensor, state: Tensor) -> Tensor:
        return self.cell(self.tokens(token), state)

    def forward(self, segments: Mapping[str, Rollout]) -> dict[str, ActionStats]:
        t, temperature = segments[PLAN].tensors, segments[PLAN].sampling.temperature
        tokens, state, states = t["tokens"], self.start(t["words"], t["length"]), []
        for token in (torch.full_like(tokens[:, 0], START), *tokens[:, :-1].unbind(1)):
            state = self.step(token, state)
            states.append(state)
        log_prob, entropy = token_stats(self.head, torch.stack(states, 1).flatten(0, 1), tokens.flatten(), temperature=temperature)
        return {PLAN: ActionStats(log_prob.view_as(tokens), entropy.view_as(tokens))}


class SmallestOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: InputPath | None = Field(None, description="A folder that `gotr1 export --merge` wrote. Without it, weights are random.")


class SmallestPlanner:
    lora_prefix = "head"

    def __init__(self, options: SmallestOptions, device: torch.device | str = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = Module().to(device)
        if options.model is not None:
            self.module.load_state_dict(load_file(Path(options.model) / "model.safetensors"))

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        words, length = (rows.to(self.module.head.weight.device) for rows in right_pad([read(prompt) for prompt in prompts]))
        state = self.module.start(words, length)

        def advance(token: Tensor | None) -> Tensor:
            nonlocal state
            state = self.module.step(torch.full_like(length, START) if token is None else token, state)
            return self.module.head(state)

        drawn = decode(advance, uniforms(seeds, sampling.max_chain_tokens), sampling.temperature, stop=END)
        chains = tuple(parse("".join(REGIONS[token] for token in row if token != END)) for row in drawn.tokens.tolist())
        tensors = {"words": words, "length": length, "tokens": drawn.tokens, "truncated": ~drawn.finished}
        return Rollout(PLAN, sampling, {**tensors, "log_prob": drawn.log_prob, "mask": drawn.mask}, chains=chains)

    def save(self, folder: Path) -> None:
        save_file(merged_state(self.module), folder / "model.safetensors")

    def not_there(self, *args: object, **more: object) -> None:
        raise UsageError("the smallest planner has nothing but reinforcement learning", hint="add the method to its file")

    supervised_loss = enable_gradient_checkpointing = save_adapter = not_there


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("planner", "smallest", f"{__name__}:SmallestPlanner", f"{__name__}:SmallestOptions", "a bag of words and a GRU")
