"""The smallest source of prompts: a colour and a shape, drawn by the seed and the prompt's number."""

from collections.abc import Iterator, Sequence
from random import Random

from gotr1_core import Component, Example, Prompt, UsageError, hookimpl

COLORS, SHAPES = ("red", "green", "blue", "yellow", "purple", "cyan"), ("circle", "square", "triangle", "cross")
PAIRS = [(color, shape) for color in COLORS for shape in SHAPES]
SPLITS = {"validation": PAIRS[::5], "train": [pair for pair in PAIRS if pair not in PAIRS[::5]]}  # no prompt is in both


class SmallestSource:
    def __init__(self, options: None) -> None:
        pass

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return [self.prompt(split, seed, number) for number in range(start, start + count)]

    def prompt(self, split: str, seed: int, number: int) -> Prompt:
        random = Random(f"{split}/{seed}/{number}")  # the same arguments give the same prompt, in every process
        color, shape = random.choice(SPLITS[split])
        return Prompt(f"a {color} {shape}", f"{split}-{seed}-{number}", category=shape)

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        raise UsageError("the smallest source has no chains and pictures to learn from", hint="add them to its file")


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("source", "smallest", f"{__name__}:SmallestSource", summary="a colour and a shape")
