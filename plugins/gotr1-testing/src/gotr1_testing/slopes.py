"""Gradients against directional finite differences, module by module.

A central difference (f(x + h) - f(x - h)) / 2h errs by rounding, about e / h where e is the noise of f, and by curvature, a multiple of
h squared, which two steps of which one is half the other remove (Richardson). Both are measured, not assumed: e by Hamming's
difference table over eight points so close together that f is a straight line (Moré & Wild, "Estimating computational noise", 2011), what
is left of curvature by halving the step again. The step is the one whose sum of both is smallest, and that sum is the tolerance: it knows
nothing of the gradient that is judged by it. Weights are made float64 where the code bears it. Where everything is computed in
float64 e is 1e-15 of f and gradients agree to 1e-9; stock RMSNorm, softmax and logits go through float32, there e is 1e-7 of f
and they agree to about 1e-4.

A gradient that cannot be told to five percent fails. Adapters of a float32 model of some millions of parameters are told to one to three;
only half precision is noisier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, sqrt

import torch
from torch import Tensor, nn

from gotr1_core import gaussian
from gotr1_testing.finding import Check, Measured, worst
from gotr1_testing.subject import Drawn, Subject

COARSE, ENOUGH = 0.05, 1e-3
"""Relative: a tolerance above the first tells nothing, and one below the second need not be bettered."""
LIKELY = (-0.35, -0.1, 0.1, 0.35)
"""Log-ratios to the old policy, and to the reference: inside and beyond a clip of 0.2."""

Function = Callable[[], Tensor]


def surrogate(subject: Subject, drawn: Drawn) -> Function:
    """The clipped objective of PPO (arXiv 1707.06347, eq. 7), summed over actions.

    It has kinks, which no finite difference may cross: which actions the clip holds back is told once, and stays so.
    """
    old, advantage = _shifted(subject, drawn, LIKELY), _pattern(drawn, (1.0, -0.6, 0.4))
    with torch.no_grad():
        ratio = (_masked(subject, drawn) - old).exp()
        held = ratio.clamp(0.8, 1.2) * advantage < ratio * advantage

    def value() -> Tensor:
        ratio = (_masked(subject, drawn) - old).exp()
        return (ratio * advantage)[drawn.mask & ~held].sum()

    return value


def divergence(subject: Subject, drawn: Drawn) -> Function:
    """The estimator k3 of the divergence from a reference, of Gaussian actions the divergence itself, summed over actions."""
    with torch.no_grad():
        first = subject.score(drawn)
    if first.mean is not None and first.std is not None:
        return _gaussian_divergence(subject, drawn, first.mean, first.std)
    reference = _shifted(subject, drawn, LIKELY[1:])

    def value() -> Tensor:
        gap = reference - _masked(subject, drawn)
        return (gap.exp() - 1 - gap)[drawn.mask].sum()

    return value


def _gaussian_divergence(subject: Subject, drawn: Drawn, mean: Tensor, std: Tensor) -> Function:
    """From a reference whose means are up to a third of a std away."""
    away = (_pattern(drawn, LIKELY) * std).view(*std.shape, *[1] * (mean.dim() - 2))
    reference = (mean + away).double()

    def value() -> Tensor:
        scored = subject.score(drawn)
        assert scored.mean is not None and scored.std is not None
        return gaussian.divergence(scored.mean.double(), reference, scored.std.double())[drawn.mask].sum()

    return value


def _masked(subject: Subject, drawn: Drawn) -> Tensor:
    return torch.where(drawn.mask, subject.score(drawn).log_prob.double(), 0.0)


def _pattern(drawn: Drawn, values: Sequence[float]) -> Tensor:
    """Values that take turns from action to action."""
    index = torch.arange(drawn.mask.numel(), device=drawn.mask.device).view(drawn.mask.shape) % len(values)
    return torch.tensor(values, dtype=torch.float64, device=drawn.mask.device)[index]


def _shifted(subject: Subject, drawn: Drawn, by: Sequence[float]) -> Tensor:
    with torch.no_grad():
        return _masked(subject, drawn) + _pattern(drawn, by)


@dataclass(frozen=True)
class Slope:
    """Of one module's parameters, along one direction: by backward pass, by differences, and how far both may be apart."""

    name: str
    gradient: float
    difference: float
    tolerance: float


def gradient_is_the_slope(subject: Subject, function: Callable[[Subject, Drawn], Function]) -> Measured:
    """Every module that trains, along a direction half of its gradient and half at random."""
    subject.needs_training()
    subject.needs_small()
    drawn = _few(subject)
    _make_fine(subject, drawn)
    value = function(subject, drawn)
    modules = list(_modules(subject.module))
    gradients = _gradients(subject, value)
    with torch.no_grad():
        noise = _noise(subject, value)
        size = abs(value().item())
        slopes = [_slope(name, module, gradients, value, noise, int(drawn.mask.sum())) for name, module in modules]
    scale = max(abs(s.gradient) for s in slopes)
    # A module that hardly matters is compared on the scale of those that do.
    found = [_measured(s, max(abs(s.gradient), 1e-2 * scale)) for s in slopes]
    kind = "float64 throughout" if noise <= 1e-12 * max(size, 1.0) else f"noise {noise:.0e} of {size:.3g}"
    chosen = worst(found)
    return Measured(chosen.value, chosen.limit, f"relative, worst of {len(slopes)} modules: {chosen.note}; {kind}")


def _measured(slope: Slope, scale: float) -> Measured:
    if scale == 0:
        return Measured(float("nan"), COARSE, f"{slope.name}, where nothing has a gradient")
    tolerance = slope.tolerance / scale
    if tolerance > COARSE:
        return Measured(float("inf"), COARSE, f"{slope.name}, too noisy to tell (to {tolerance:.0%}): half precision?")
    return Measured(abs(slope.gradient - slope.difference) / scale, tolerance, slope.name)


def _few(subject: Subject) -> Drawn:
    """A sample of every prompt, guided."""
    rows = subject.rows[:: subject.case.each]
    return subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)), rows)


def _make_fine(subject: Subject, drawn: Drawn) -> None:
    """Weights to float64 where the module's code bears it, else to float32; from a coarser type and back changes no bit.

    Some code raises on mixed types, and some loses its mask: float64's lowest number, added to what is then cast to float32, is
    minus infinity, and a row of padding that may attend to nothing NaN.
    """
    tensors = [*subject.module.parameters(), *subject.module.buffers()]
    types = [t.dtype for t in tensors]
    for dtype in (torch.float64, torch.float32):
        subject.module.to(dtype)
        try:
            if subject.log_prob(drawn).isfinite().all():
                return
        except RuntimeError:
            pass
    for tensor, before in zip(tensors, types, strict=True):
        tensor.data = tensor.data.to(before)


def _modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that own parameters that train."""
    for name, part in module.named_modules():
        if any(p.requires_grad for p in part.parameters(recurse=False)):
            yield name or "the module", part


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad]


def _gradients(subject: Subject, value: Function) -> dict[int, Tensor]:
    subject.module.zero_grad()
    value().backward()
    found = {id(p): torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in subject.trained.values()}
    subject.module.zero_grad()
    return found


def _noise(subject: Subject, value: Function, points: int = 8) -> float:
    """The standard deviation of f's rounding error: the largest estimate of the table's columns 4 to 6."""
    generator = torch.Generator().manual_seed(1)
    parameters = list(subject.trained.values())
    along = [_random(p, generator) * p.double().norm() / p.numel() ** 0.5 for p in parameters]
    values = []
    for k in range(points):
        kept = [p.clone() for p in parameters]
        for p, d in zip(parameters, along, strict=True):
            p.add_(d.to(p.dtype), alpha=1e-6 * (k - points / 2))
        values.append(value().item())
        for p, before in zip(parameters, kept, strict=True):
            p.copy_(before)
    column = torch.tensor(values, dtype=torch.float64)
    estimates = []
    for order in range(1, 7):
        column = column.diff()
        estimates.append(sqrt(column.square().mean().item() / comb(2 * order, order)))
    return max(*estimates[3:], 1e-16 * max(abs(v) for v in values))


def _random(parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)


def _slope(name: str, module: nn.Module, gradients: dict[int, Tensor], value: Function, noise: float, actions: int) -> Slope:
    """Steps are shares of the module's own size, tried from where noise and curvature should balance."""
    parameters = _own(module)
    mine = [gradients[id(p)].double() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    others = [_random(p, generator) for p in parameters]
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        others[0][module.padding_idx] = 0  # torch gives that row no gradient: it is fixed, also where it is looked up as content
    # A random direction alone is nearly orthogonal to the gradient, and would say little about it.
    direction = [a / _norm(mine) + b / _norm(others) for a, b in zip(mine, others, strict=True)]
    length = _norm(direction)
    direction = [d / length for d in direction]
    expected = sum((g * d).sum().item() for g, d in zip(mine, direction, strict=True))
    size = max(_norm([p.double() for p in parameters]), 1e-3)
    # Where each action's log-probability changes by about a twentieth; with noise as low as float64's by a thousandth.
    first = (0.05 if noise > 1e-10 else 1e-3) * actions**0.5 / max(abs(expected), 1e-30)
    best = Slope(name, expected, float("nan"), float("inf"))
    differences: list[float] = []
    for k in range(7):
        h = min(first, 0.02 * size) / 2**k
        differences.append(_difference(parameters, direction, value, h))
        better = [(4 * fine - rough) / 3 for rough, fine in pairwise(differences)]  # without the square of h
        if len(better) < 2:
            continue
        # Four deviations of the rounding of two values over 2h, magnified by the line above. What is left of curvature falls by 16 with
        # each step, so the last two differ by fifteen times what the last one errs.
        tolerance = 4 * noise / (sqrt(2) * h) * 5 / 3 + abs(better[-2] - better[-1]) + 1e-10 * abs(expected)
        if tolerance < best.tolerance:
            best = Slope(name, expected, better[-1], tolerance)
        if best.tolerance < ENOUGH * abs(expected):
            break
    return best


def _norm(tensors: Sequence[Tensor]) -> float:
    return max(torch.stack([t.square().sum() for t in tensors]).sum().sqrt().item(), 1e-30)


def _difference(parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], value: Function, h: float) -> float:
    kept = [p.clone() for p in parameters]
    ends = []
    for sign in (1, -1):
        for p, before, d in zip(parameters, kept, direction, strict=True):
            p.copy_(before.double() + sign * h * d)
        ends.append(value().item())
    for p, before in zip(parameters, kept, strict=True):
        p.copy_(before)
    return (ends[0] - ends[1]) / (2 * h)


def surrogate_gradient(subject: Subject) -> Measured:
    return gradient_is_the_slope(subject, surrogate)


def surrogate_gradient_with_lora(subject: Subject) -> Measured:
    return gradient_is_the_slope(subject.with_lora(), surrogate)


def divergence_gradient(subject: Subject) -> Measured:
    return gradient_is_the_slope(subject, divergence)


SLOPES = (
    Check("surrogate-gradient-is-the-slope", "the gradient of the clipped surrogate is its slope", surrogate_gradient, changes=True),
    Check("surrogate-gradient-is-the-slope-lora", "the same of adapters that do something", surrogate_gradient_with_lora, changes=True),
    Check("kl-gradient-is-the-slope", "the gradient of the divergence is its slope", divergence_gradient, changes=True),
)
