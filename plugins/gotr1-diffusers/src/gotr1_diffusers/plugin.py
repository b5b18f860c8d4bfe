"""Registers what gotr1-diffusers provides: the renderers ``sdxl`` and ``flow``."""

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component(
        "renderer", "sdxl", "gotr1_diffusers.sdxl:SdxlPolicy", "gotr1_diffusers.options:SdxlOptions", "Stable Diffusion XL draws it"
    )
    yield Component(
        "renderer", "flow", "gotr1_diffusers.flow:FlowPolicy", "gotr1_diffusers.options:FlowOptions", "Stable Diffusion 3 draws it"
    )
