"""Compares gradients with directional finite differences, module by module.

A central difference (f(x + h) - f(x - h)) / 2h has two errors. Rounding is about e / h, where e is the noise of f. Curvature is a multiple
of h squared, and two steps, one of them half the other, remove most of it (Richardson). Both errors are measured, not assumed:

- e by Hamming's difference table over eight points, so close together that f is a straight line (Moré & Wild, "Estimating computational
  noise", 2011);
- the rest of curvature by halving the step again.

The check takes the step for which the sum of both is smallest, and that sum is the tolerance. So the tolerance does not depend on the
gradient that it judges.

Weights are converted to float64, and all that the code converts to float32 becomes float64 too, if the code works so. Where everything is
computed in float64, e is 1e-15 of f and gradients agree to 1e-9. Then modules are compared in groups: the error of any one of them, even of
small effect, is far above the tolerance of its group. Those of a group that differs are compared one by one.

In other code some numbers are float32. There e is 1e-7 of f and gradients agree to about 1e-4. A gradient that cannot be determined to five
percent fails. For adapters of a float32 model of some millions of parameters it can, to one to three percent. Half precision is noisier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from math import comb, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gotr1_core import gaussian
from gotr1_core.border.contract import ContractError
from gotr1_testing.check import Check, Measured, worst
from gotr1_testing.subject import Drawn, Subject

MAX_TOLERANCE, SMALL_TOLERANCE = 0.05, 1e-3
"""Relative. A tolerance above the first says nothing; one below the second is not improved further."""
MAX_CHANGE = 0.05
"""Nats. If a float32 log-probability changes by more in float64, the code does not work in it. One in half precision may change more."""
SMALL_EFFECT = 1e-2
"""Relative to the largest slope of any module. Modules with less effect are compared on this scale."""
GROUP, GROUP_TOLERANCE = 64, 1e-6
"""Modules that are compared together where everything is computed in float64, each with the same part in the direction. A tenth of the
slope of one module of small effect is some 1e-4 of the group's."""
LOG_RATIOS = (-0.35, -0.1, 0.1, 0.35)
"""Log-ratios to the old policy and to the reference: inside and outside a clip of 0.2."""

Function = Callable[[], Tensor]


def clipped_objective(subject: Subject, drawn: Drawn) -> Function:
    """The clipped objective of PPO (arXiv 1707.06347, eq. 7), summed over actions, a scalar.

    It has kinks, which no finite difference may cross. So which actions the clip holds back is decided once and does not change.
    """
    old, advantage = _shifted_log_probs(subject, drawn, LOG_RATIOS), _alternating(drawn, (1.0, -0.6, 0.4))
    with torch.no_grad():
        ratio = (_masked_log_probs(subject, drawn) - old).exp()
        clipped = ratio.clamp(0.8, 1.2) * advantage < ratio * advantage

    def value() -> Tensor:
        ratio = (_masked_log_probs(subject, drawn) - old).exp()
        return (ratio * advantage)[drawn.mask & ~clipped].sum()

    return value


def reference_divergence(subject: Subject, drawn: Drawn) -> Function:
    """The divergence from a reference, summed over actions, a scalar: its estimator k3, or the exact one for Gaussian actions."""
    with torch.no_grad():
        first = subject.action_stats(drawn)
    if first.mean is not None and first.std is not None:
        return _gaussian_divergence(subject, drawn, first.mean, first.std)
    reference = _shifted_log_probs(subject, drawn, LOG_RATIOS[1:])

    def value() -> Tensor:
        gap = reference - _masked_log_probs(subject, drawn)
        return (gap.exp() - 1 - gap)[drawn.mask].sum()

    return value


def _gaussian_divergence(subject: Subject, drawn: Drawn, mean: Tensor, std: Tensor) -> Function:
    """From a reference whose means are up to a third of a std away."""
    offset = (_alternating(drawn, LOG_RATIOS) * std).view(*std.shape, *[1] * (mean.dim() - 2))
    reference = (mean + offset).double()

    def value() -> Tensor:
        stats = subject.action_stats(drawn)
        assert stats.mean is not None and stats.std is not None
        return gaussian.divergence(stats.mean.double(), reference, stats.std.double())[drawn.mask].sum()

    return value


def _masked_log_probs(subject: Subject, drawn: Drawn) -> Tensor:
    return torch.where(drawn.mask, subject.action_stats(drawn).log_prob.double(), 0.0)


def _alternating(drawn: Drawn, values: Sequence[float]) -> Tensor:
    """The values in turn, one per action ``[B, T]``."""
    index = torch.arange(drawn.mask.numel(), device=drawn.mask.device).view(drawn.mask.shape) % len(values)
    return torch.tensor(values, dtype=torch.float64, device=drawn.mask.device)[index]


def _shifted_log_probs(subject: Subject, drawn: Drawn, by: Sequence[float]) -> Tensor:
    with torch.no_grad():
        return _masked_log_probs(subject, drawn) + _alternating(drawn, by)


@dataclass(frozen=True)
class Slope:
    """The slope for one module's parameters along one direction.

    Attributes:
        name: of the module.
        gradient: the slope by the backward pass.
        difference: the slope by finite differences.
        tolerance: how far they may differ, absolute.
    """

    name: str
    gradient: float
    difference: float
    tolerance: float


def gradient_is_the_slope(subject: Subject, function: Callable[[Subject, Drawn], Function]) -> Measured:
    """Compares gradient and slope for every module that trains, along a direction that is half gradient, half random.

    ``function`` gives the scalar function of the parameters, from the subject and what it drew.
    """
    subject.require_trainable()
    subject.require_small()
    drawn = _draw_one_per_prompt(subject)
    with _raised_precision(subject, drawn):
        return _compare_modules(subject, drawn, function(subject, drawn))


def _compare_modules(subject: Subject, drawn: Drawn, value: Function) -> Measured:
    """Compares gradient and slope of ``value`` for every module, or for groups of modules where everything is float64."""
    modules = list(_trained_modules(subject.module))
    gradients = _gradients(subject, value)
    with torch.no_grad():
        noise = _noise(subject, value)
        size = abs(value().item())
        directions = {name: _direction(module, gradients) for name, module in modules}
        scale = max(abs(direction.slope) for direction in directions.values())
        actions = int(drawn.mask.sum())

        def measure(names: Sequence[str]) -> Measured:
            direction = join_directions([directions[name] for name in names])
            label = names[0] if len(names) == 1 else f"{names[0]} and the {len(names) - 1} modules after it"
            goal = (SMALL_TOLERANCE if len(names) == 1 else GROUP_TOLERANCE) * max(abs(direction.slope), SMALL_EFFECT * scale)
            slope = _slope(label, direction, value, noise, actions, goal)
            return _measured(slope, max(abs(slope.gradient), SMALL_EFFECT * scale))

        exact = noise <= 1e-12 * max(size, 1.0)
        measurements = []
        for start in range(0, len(modules), GROUP if exact else 1):
            names = list(directions)[start : start + (GROUP if exact else 1)]
            together = measure(names)
            alone = [measure([name]) for name in names] if len(names) > 1 and not together.within else []
            measurements += [m for m in alone if not m.within] or [together]
    chosen = worst(measurements)
    precision = "float64 throughout" if exact else f"noise {noise:.0e} of {size:.3g}"
    return Measured(chosen.value, chosen.limit, f"relative, worst of {len(modules)} modules: {chosen.note}; {precision}")


def _measured(slope: Slope, scale: float) -> Measured:
    if scale == 0:
        return Measured(float("nan"), MAX_TOLERANCE, f"{slope.name}, where nothing has a gradient")
    tolerance = slope.tolerance / scale
    if tolerance > MAX_TOLERANCE:
        return Measured(float("inf"), MAX_TOLERANCE, f"{slope.name}, too noisy to measure (to {tolerance:.0%}): half precision?")
    return Measured(abs(slope.gradient - slope.difference) / scale, tolerance, slope.name)


def _draw_one_per_prompt(subject: Subject) -> Drawn:
    """A sample of every prompt, at the largest guidance scale."""
    rows = subject.rows[:: subject.case.samples_per_prompt]
    return subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)), rows)


@contextmanager
def _raised_precision(subject: Subject, drawn: Drawn) -> Iterator[None]:
    """Computes in float64 while the block runs, as far as the module's code allows it; the weights stay converted.

    First all float32 becomes float64. If the code does not work so, only the weights are float64, and what it converts to float32 itself
    is float32. Some code raises on mixed types. Some loses its mask: the lowest float64 number becomes minus infinity in float32, and then
    a row of padding that may attend to nothing is NaN. Then weights are float32.
    """
    tensors = [*subject.module.parameters(), *subject.module.buffers()]
    types = [t.dtype for t in tensors]
    plain, limit = subject.log_prob(drawn), MAX_CHANGE if torch.finfo(subject.dtype).eps < 1e-6 else torch.inf
    for dtype, everywhere in ((torch.float64, True), (torch.float64, False), (torch.float32, False)):
        subject.module.to(dtype)
        with Float64Mode() if everywhere else nullcontext():
            try:
                works = bool(((subject.log_prob(drawn) - plain).abs() < limit).all())
            except (RuntimeError, ContractError):  # the module's code, called through the border
                works = False
            if works:
                yield
                return
    for tensor, before in zip(tensors, types, strict=True):
        tensor.data = tensor.data.to(before)
    yield


class Float64Mode(TorchFunctionMode):
    """Where code asks for float32, it gets float64: ``x.float()``, ``x.to(torch.float32)``, ``softmax(x, -1, torch.float32)``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def lift(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(lift, args), **{name: lift(value) for name, value in (kwargs or {}).items()})


def _trained_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The submodules with parameters of their own that train, by name."""
    for name, submodule in module.named_modules():
        if any(p.requires_grad for p in submodule.parameters(recurse=False)):
            yield name or "the module", submodule


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad]


def _gradients(subject: Subject, value: Function) -> dict[int, Tensor]:
    subject.module.zero_grad()
    value().backward()
    gradients = {id(p): torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in subject.trained.values()}
    subject.module.zero_grad()
    return gradients


def _noise(subject: Subject, value: Function, points: int = 8) -> float:
    """The standard deviation of the function's rounding error: the largest estimate of the difference table's columns 4 to 6."""
    generator = torch.Generator().manual_seed(1)
    parameters = list(subject.trained.values())
    direction = [_random(p, generator) * p.double().norm() / p.numel() ** 0.5 for p in parameters]
    values = []
    for k in range(points):
        saved = [p.clone() for p in parameters]
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d.to(p.dtype), alpha=1e-6 * (k - points / 2))
        values.append(value().item())
        for p, before in zip(parameters, saved, strict=True):
            p.copy_(before)
    column = torch.tensor(values, dtype=torch.float64)
    estimates = []
    for order in range(1, 7):
        column = column.diff()
        estimates.append(sqrt(column.square().mean().item() / comb(2 * order, order)))
    return max(*estimates[3:], 1e-16 * max(abs(v) for v in values))


def _random(parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)


@dataclass(frozen=True)
class Direction:
    """A direction of length 1 in the space of some parameters: ``steps``, shaped like them. ``slope`` is the gradient along it."""

    parameters: Sequence[nn.Parameter]
    steps: Sequence[Tensor]
    slope: float


def _direction(module: nn.Module, gradients: dict[int, Tensor]) -> Direction:
    """The direction of one module's own parameters: half gradient, half random."""
    parameters = _own_parameters(module)
    gradient = [gradients[id(p)].double() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    random = [_random(p, generator) for p in parameters]
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        random[0][module.padding_idx] = 0  # torch gives this row no gradient, even where it is looked up as content
    # A random direction alone is nearly orthogonal to the gradient, and would say little about it.
    steps = [g / _norm(gradient) + r / _norm(random) for g, r in zip(gradient, random, strict=True)]
    if _norm(steps) < 0.1:  # opposite directions, as in a module with one parameter
        steps = [2 * g / _norm(gradient) for g in gradient]
    length = _norm(steps)
    steps = [step / length for step in steps]
    return Direction(parameters, steps, sum((g * d).sum().item() for g, d in zip(gradient, steps, strict=True)))


def join_directions(directions: Sequence[Direction]) -> Direction:
    """One direction that goes along each of these equally far. Modules may share a parameter: it goes along both of their directions."""
    share = len(directions) ** -0.5
    parameters = {id(p): p for direction in directions for p in direction.parameters}
    steps = {key: torch.zeros_like(p, dtype=torch.float64) for key, p in parameters.items()}
    for direction in directions:
        for parameter, step in zip(direction.parameters, direction.steps, strict=True):
            steps[id(parameter)] += share * step
    return Direction(list(parameters.values()), list(steps.values()), share * sum(direction.slope for direction in directions))


def _slope(name: str, direction: Direction, value: Function, noise: float, actions: int, goal: float) -> Slope:
    """Tries smaller and smaller steps, and keeps the one with the smallest tolerance. Steps are relative to the parameters' norm.

    The first step is where noise and curvature should be about equal. A tolerance below ``goal`` is not improved further.
    """
    parameters, expected = direction.parameters, direction.slope
    size = max(_norm([p.double() for p in parameters]), 1e-3)
    # A step that changes each action's log-probability by about a twentieth; with the low noise of float64, by a thousandth.
    first = (0.05 if noise > 1e-10 else 1e-3) * actions**0.5 / max(abs(expected), 1e-30)
    best = Slope(name, expected, float("nan"), float("inf"))
    differences: list[float] = []
    for k in range(7):
        h = min(first, 0.02 * size) / 2**k
        differences.append(_difference(parameters, direction.steps, value, h))
        improved = [(4 * fine - rough) / 3 for rough, fine in pairwise(differences)]  # without the square of h
        if len(improved) < 2:
            continue
        # Rounding: four standard deviations of the error of two values over 2h, magnified by the line above. Curvature: the rest falls by
        # 16 with each step, so the last two differ by fifteen times the error of the last one.
        tolerance = 4 * noise / (sqrt(2) * h) * 5 / 3 + abs(improved[-2] - improved[-1]) + 1e-10 * abs(expected)
        if tolerance < best.tolerance:
            best = Slope(name, expected, improved[-1], tolerance)
        if best.tolerance < goal:
            break
    return best


def _norm(tensors: Sequence[Tensor]) -> float:
    return max(torch.stack([t.square().sum() for t in tensors]).sum().sqrt().item(), 1e-30)


def _difference(parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], value: Function, h: float) -> float:
    """The central difference with step ``h``. The parameters are restored."""
    saved = [p.clone() for p in parameters]
    ends = []
    for sign in (1, -1):
        for p, before, d in zip(parameters, saved, direction, strict=True):
            p.copy_(before.double() + sign * h * d)
        ends.append(value().item())
    for p, before in zip(parameters, saved, strict=True):
        p.copy_(before)
    return (ends[0] - ends[1]) / (2 * h)


def surrogate_gradient_is_the_slope(subject: Subject) -> Measured:
    """The gradient of the clipped objective, in every module that trains."""
    return gradient_is_the_slope(subject, clipped_objective)


def surrogate_gradient_is_the_slope_with_lora(subject: Subject) -> Measured:
    """The same for adapters that are not zero."""
    return gradient_is_the_slope(subject.with_lora(), clipped_objective)


def kl_gradient_is_the_slope(subject: Subject) -> Measured:
    """The gradient of the divergence from a reference, in every module that trains."""
    return gradient_is_the_slope(subject, reference_divergence)


SLOPES = (
    Check(
        "surrogate-gradient-is-the-slope",
        "the gradient of the clipped surrogate is its slope",
        surrogate_gradient_is_the_slope,
        changes=True,
    ),
    Check(
        "surrogate-gradient-is-the-slope-lora",
        "the same for adapters that are not zero",
        surrogate_gradient_is_the_slope_with_lora,
        changes=True,
    ),
    Check("kl-gradient-is-the-slope", "the gradient of the divergence is its slope", kl_gradient_is_the_slope, changes=True),
)
