"""The smallest benchmark: eight prompts, and whether a plan names the colour and the shape that its prompt asks for."""

from collections.abc import Iterator, Mapping, Sequence

from gotr1_core import Component, Prompt, Sample, hookimpl

COLORS, SHAPES = ("red", "blue"), ("circle", "square", "triangle", "cross")
PROMPTS = [Prompt(f"a {color} {shape}", f"{color}-{shape}", category=color) for color in COLORS for shape in SHAPES]


class SmallestBenchmark:
    def __init__(self, options: None) -> None:
        pass

    def prompts(self, count: int | None) -> Sequence[Prompt]:
        return PROMPTS[:count]

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        return {word: [self.names(sample, place) for sample in samples] for place, word in ((1, "color"), (2, "shape"))}

    def names(self, sample: Sample, place: int) -> float:
        wanted = sample.prompt.text.split()[place]
        return float(any(wanted in region.phrase.split() for region in sample.chain.regions))


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("benchmark", "smallest", f"{__name__}:SmallestBenchmark", summary="does the plan name what is asked for")
