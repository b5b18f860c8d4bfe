"""Policies that start from random weights, for tests of exports: the enumerable policy with ``save``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from gotr1_core.config.paths import InputPath
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.policies.lora import merged_state
from gotr1_testing.enumerable import TinyPolicy


class FreshOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: InputPath | None = None
    note: str = ""


class Fresh(TinyPolicy):
    """Starts from random weights, or from what :meth:`save` wrote."""

    def __init__(self, options: FreshOptions, device: Any = "cpu") -> None:
        del device
        super().__init__()
        if options.model is not None:
            self.module.load_state_dict(load_file(Path(options.model) / "model.safetensors"))

    def save(self, folder: Path) -> None:
        save_file(merged_state(self.module), folder / "model.safetensors")


class Closed(Fresh):
    """Cannot be loaded from a folder."""

    def __init__(self, options: None, device: Any = "cpu") -> None:
        super().__init__(FreshOptions(), device)


class SavesHalf(Fresh):
    """Forgets a part of its weights when it is saved."""

    def save(self, folder: Path) -> None:
        weights = merged_state(self.module)
        save_file({**weights, "plan_head.weight": 0.5 * weights["plan_head.weight"]}, folder / "model.safetensors")


class ForgetsAdapters(Fresh):
    """Saves the weights without what its adapters add."""

    def save(self, folder: Path) -> None:
        weights = {name.replace("base_layer.", ""): t for name, t in self.module.state_dict().items() if ".lora_" not in name}
        save_file(weights, folder / "model.safetensors")


@hookimpl
def gotr1_components() -> Iterator[Component]:
    for kind in ("planner", "renderer"):
        yield Component(kind, "fresh", f"{__name__}:Fresh", f"{__name__}:FreshOptions")  # type: ignore[arg-type]
        yield Component(kind, "closed", f"{__name__}:Closed")  # type: ignore[arg-type]
