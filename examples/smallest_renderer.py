"""The smallest trainable renderer: it reads which colour the plan names for each cell of a grid, and samples one colour per cell."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageColor
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gotr1_core import IMAGE, ActionStats, Chain, Component, Prompt, Rollout, Sampling, UsageError, hookimpl
from gotr1_core.chain import SCALE
from gotr1_core.config.paths import InputPath
from gotr1_core.policies.lora import merged_state
from gotr1_core.sampling import sample_token, token_stats, uniforms

COLORS = ("white", "red", "green", "blue", "yellow", "purple", "cyan")
PALETTE = torch.tensor([ImageColor.getrgb(color) for color in COLORS], dtype=torch.uint8)
GRID, SIDE, WIDTH = 3, 60, 32


def read(chain: Chain) -> Tensor:
    planned = torch.zeros(GRID, GRID, dtype=torch.long)
    for region in chain.regions:
        left, top, right, bottom = (round(edge * GRID / SCALE) for edge in region.box)
        named = [COLORS.index(word) for word in region.phrase.split() if word in COLORS]
        planned[top:bottom, left:right] = named[0] if named else 0
    return planned.flatten()


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(len(COLORS), WIDTH), nn.Tanh(), nn.Linear(WIDTH, len(COLORS)))
        nn.init.constant_(self.net[-1].bias[:1], 2.0)

    def forward(self, segments: Mapping[str, Rollout]) -> dict[str, ActionStats]:
        t, temperature = segments[IMAGE].tensors, segments[IMAGE].sampling.image_temperature
        log_prob, entropy = token_stats(self.net, t["planned"].flatten(), t["tokens"].flatten(), temperature=temperature)
        return {IMAGE: ActionStats(log_prob.view_as(t["tokens"]), entropy.view_as(t["tokens"]))}


class SmallestOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: InputPath | None = Field(None, description="A folder that `gotr1 export --merge` wrote. Without it, weights are random.")


class SmallestRenderer:
    lora_prefix = "net"

    def __init__(self, options: SmallestOptions, device: torch.device | str = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = Module().to(device)
        if options.model is not None:
            self.module.load_state_dict(load_file(Path(options.model) / "model.safetensors"))

    @torch.no_grad()
    def render(
        self,
        prompts: Sequence[Prompt],
        chains: Sequence[Chain],
        *,
        seeds: Sequence[int],
        sampling: Sampling,
        plans: Rollout | None = None,
        groups: Sequence[int] | None = None,
    ) -> Rollout:
        planned = torch.stack([read(chain) for chain in chains]).to(self.module.net[-1].weight.device)
        uniform = uniforms(seeds, GRID * GRID).to(planned.device)
        tokens, log_prob = sample_token(self.module.net(planned.flatten()), uniform.flatten(), sampling.image_temperature)
        pixels = PALETTE[tokens.cpu()].view(-1, GRID, GRID, 3).numpy()
        images = tuple(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.NEAREST) for cells in pixels)
        tensors = {"planned": planned, "tokens": tokens.view_as(planned), "log_prob": log_prob.view_as(planned)}
        return Rollout(IMAGE, sampling, {**tensors, "mask": torch.ones_like(planned, dtype=torch.bool)}, images=images)

    def save(self, folder: Path) -> None:
        save_file(merged_state(self.module), folder / "model.safetensors")

    def not_there(self, *args: object, **more: object) -> None:
        raise UsageError("the smallest renderer has nothing but reinforcement learning", hint="add the method to its file")

    supervised_loss = enable_gradient_checkpointing = save_adapter = not_there


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("renderer", "smallest", f"{__name__}:SmallestRenderer", f"{__name__}:SmallestOptions", "a colour for each cell")
