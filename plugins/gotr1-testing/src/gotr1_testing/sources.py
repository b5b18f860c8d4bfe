"""Checks of prompt sources and of benchmarks: the same prompts for the same question, prompts that a run can use, and fair measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from PIL import Image

from gotr1_core.border.calls import call_benchmark, call_examples, call_measure, call_prompts
from gotr1_core.chain import parse
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Benchmark, PromptSource
from gotr1_core.samples import Example, Prompt, Sample
from gotr1_testing.check import Check, Measured, NotRun
from gotr1_testing.judges import MAX_DIFFERENCE, changed_samples, largest_difference
from gotr1_testing.subject import CHAINS

SPLITS = ("train", "validation")
COUNT = 24
MANY = 256
"""Prompts of each split that are compared with those of the other."""
BENCHMARK_PROMPTS = 4


def _asked(source: PromptSource, start: int, count: int, seed: int = 3) -> list[Prompt]:
    """``count`` prompts of either split from number ``start`` on."""
    return [prompt for split in SPLITS for prompt in call_prompts(source, split, count, seed, start)]


def same_prompts_again(source: PromptSource) -> Measured:
    """Asks for the same prompts again, after it was asked for others. A resumed run goes on with the prompts that it would have drawn."""
    first = _asked(source, 5, COUNT)
    _asked(source, 0, 7, seed=4)
    wrong = sum(a != b for a, b in zip(first, _asked(source, 5, COUNT), strict=True))
    return Measured(wrong, 0.0, f"of {len(first)} prompts are others when asked for again")


def prompts_have_numbers(source: PromptSource) -> Measured:
    """Asks for prompts together and in pieces. Processes and steps ask for pieces; prompt number i must not depend on them."""
    wrong = 0
    for split in SPLITS:
        together = call_prompts(source, split, COUNT, 3, 2)
        pieces = [p for start, count in ((2, 1), (3, 0), (3, 7), (10, COUNT - 8)) for p in call_prompts(source, split, count, 3, start)]
        wrong += sum(a != b for a, b in zip(together, pieces, strict=True))
    return Measured(wrong, 0.0, f"of {2 * COUNT} prompts are others when asked for in pieces")


def _usable(prompts: Sequence[Prompt]) -> Measured:
    """Counts prompts without a text, and those whose metadata a file of samples would change."""
    notes = [f"{prompt.id or number}: no text" for number, prompt in enumerate(prompts) if not prompt.text.strip()]
    notes += [f"{p.id or n}: metadata {dict(p.metadata)!r:.80}" for n, p in enumerate(prompts) if not _is_kept(p.metadata)]
    return Measured(len(notes), 0.0, f"of {len(prompts)} prompts cannot be used{f': {notes[0]}' if notes else ''}")


def _is_kept(metadata: Mapping[str, object]) -> bool:
    """True if JSON gives the same metadata back: it has no tuples, and no keys that are numbers."""
    return bool(json.loads(json.dumps(dict(metadata))) == dict(metadata))


def prompts_are_usable(source: PromptSource) -> Measured:
    """Every prompt has a text, and metadata that JSON gives back."""
    return _usable(_asked(source, 0, COUNT))


def splits_are_apart(source: PromptSource) -> Measured:
    """No prompt of the validation split is a training prompt."""
    train, validation = ({prompt.key for prompt in call_prompts(source, split, MANY, 0)} for split in SPLITS)
    return Measured(len(train & validation), 0.0, f"of {len(validation)} validation prompts are training prompts too ({len(train)})")


def examples_have_numbers(source: PromptSource) -> Measured:
    """Examples are the same together, in pieces and again, and their chains are well-formed."""
    try:
        together = call_examples(source, "train", 2, 9, 3)
    except UsageError as reason:
        raise NotRun(f"it has no examples: {reason.message}") from None
    pieces = [e for start, count in ((2, 4), (6, 5)) for e in call_examples(source, "train", start, count, 3)]
    others = sum(_example(a) != _example(b) for a, b in zip(together, pieces, strict=True))
    malformed = sum(not example.chain.well_formed for example in together)
    note = f"of {len(together)} examples: {others} others when asked for in pieces, {malformed} with a malformed chain"
    return Measured(others + malformed, 0.0, note)


def _example(example: Example) -> tuple[object, ...]:
    image = example.image
    return example.prompt, example.chain, (image.size, image.mode, image.tobytes()) if image is not None else None


SOURCE = (
    Check("same-prompts-again", "the same question gives the same prompts", same_prompts_again),
    Check("prompts-have-numbers", "prompt number i is the same together and in pieces", prompts_have_numbers),
    Check("prompts-are-usable", "prompts have texts, and metadata that JSON gives back", prompts_are_usable),
    Check("splits-are-apart", "no validation prompt is a training prompt", splits_are_apart),
    Check("examples-have-numbers", "examples are the same in pieces, and well-formed", examples_have_numbers),
)


# -- benchmarks -------------------------------------------------------------------------------------------------------------


def same_benchmark_again(benchmark: Benchmark) -> Measured:
    """All prompts, again all prompts, and the first few of them."""
    first, again, few = call_benchmark(benchmark, None), call_benchmark(benchmark, None), call_benchmark(benchmark, BENCHMARK_PROMPTS)
    wrong = sum(a != b for a, b in zip(first, again, strict=False)) + abs(len(first) - len(again))
    wrong += sum(a != b for a, b in zip(first, few, strict=False)) + abs(min(BENCHMARK_PROMPTS, len(first)) - len(few))
    return Measured(wrong, 0.0, f"of {len(first)} prompts are others when asked for again, or for the first {BENCHMARK_PROMPTS}")


def benchmark_prompts_are_usable(benchmark: Benchmark) -> Measured:
    """Every prompt has a text, and metadata that JSON gives back."""
    return _usable(call_benchmark(benchmark, None))


def benchmark_samples(benchmark: Benchmark) -> list[Sample]:
    """The first prompts, each with a picture and a plan, without a picture, and with a malformed plan."""
    prompts = call_benchmark(benchmark, BENCHMARK_PROMPTS)
    white, black = (Image.new("RGB", (96, 96), color) for color in ("white", "black"))
    rows = [(CHAINS[0], white), (CHAINS[1], None), (parse("a <|obj_start|>x"), black)]
    return [Sample(prompt, chain, image, (i, j, 0)) for i, prompt in enumerate(prompts) for j, (chain, image) in enumerate(rows)]


def measured_alone_as_together(benchmark: Benchmark) -> Measured:
    """Measures samples together, backwards and alone. One without a picture must not be an error."""
    samples = benchmark_samples(benchmark)
    together, backwards = call_measure(benchmark, samples), call_measure(benchmark, samples[::-1])
    alone = [call_measure(benchmark, [sample]) for sample in samples]
    if any(table.keys() != together.keys() for table in (backwards, *alone)):
        return Measured(float("nan"), MAX_DIFFERENCE, "the measures' names depend on the samples")
    gap = largest_difference(together, {name: row[::-1] for name, row in backwards.items()})
    gap = max(gap, largest_difference(together, {name: [single[name][0] for single in alone] for name in together}))
    return Measured(gap, MAX_DIFFERENCE, f"largest difference of {', '.join(together)}")


def measuring_leaves_samples_alone(benchmark: Benchmark) -> Measured:
    """Measuring does not change the samples."""
    samples = benchmark_samples(benchmark)
    changed = changed_samples(samples, lambda passed: call_measure(benchmark, passed))
    return Measured(changed, 0.0, "samples that measuring has changed")


BENCHMARK = (
    Check("same-prompts-again", "the same question gives the same prompts", same_benchmark_again),
    Check("prompts-are-usable", "prompts have texts, and metadata that JSON gives back", benchmark_prompts_are_usable),
    Check("measured-alone-as-together", "a measurement depends on its sample alone; no picture is no error", measured_alone_as_together),
    Check("leaves-samples-alone", "measuring does not change the caller's samples", measuring_leaves_samples_alone),
)
