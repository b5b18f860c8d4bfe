"""Fixtures for all tests: a Janus so small that each test can build a real one (random weights, nine image tokens), and a run."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gotr1_core.samples import Sample, SegmentName
    from gotr1_janus.policy import JanusPolicy

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# -- coverage ---------------------------------------------------------------------------------------------------------------

CORE_TESTS = Path(__file__).parent / "tests"
MEASURE = "COVERAGE_PROCESS_START"  # coverage's own: a Python process that starts with this variable measures itself


@contextmanager
def unmeasured() -> Iterator[None]:
    """Measures no coverage in this process and in processes that start meanwhile. Measuring makes Python about 1.5 times slower."""
    start = os.environ.pop(MEASURE, None)
    if start is None:
        yield
        return
    from coverage import process_startup

    coverage = process_startup.coverage  # type: ignore[attr-defined]
    coverage.stop()
    try:
        yield
    finally:
        coverage.start()
        os.environ[MEASURE] = start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measures how much of the core the tests in tests/ run. Tests of plugins, and those with the mark ``unmeasured``, count nothing."""
    measured = CORE_TESTS in item.path.parents and not item.get_closest_marker("unmeasured")
    with nullcontext() if measured else unmeasured():
        return (yield)


def pytest_collection_finish() -> None:
    """Imports the whole core while it is measured: a test that counts nothing may be the first to need a module."""
    if MEASURE in os.environ:
        import gotr1_core

        for module in pkgutil.walk_packages(gotr1_core.__path__, "gotr1_core."):
            if not module.name.startswith("gotr1_core.templates"):
                import_module(module.name)


# -- a tiny Janus -----------------------------------------------------------------------------------------------------------

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
EXTRA = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
TAGS = ["<|box_start|>", "<|box_end|>", "<|obj_start|>", "<|obj_end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|User|>{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyzAT0123456789(),. "
PATCHES, STRIDE = 3, 4


def make_tokenizer() -> Any:
    """One token per character, so that only the alphabet must be chosen."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BOS, EOS, "<|User|>", "<|Assistant|>", *EXTRA.values(), *TAGS]
    words = [*special, *(c.replace(" ", "Ġ") for c in CHARACTERS)]  # Ġ is how byte-level tokenizers write a space
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, extra_special_tokens=EXTRA, padding_side="left"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model(tokenizer: Any) -> Any:
    """Two layers of 32, two heads; weights ten times as large as usual, so that distributions are not flat."""
    import torch
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=PATCHES * STRIDE,
        patch_size=STRIDE,
        projection_dim=32,
        num_image_tokens=PATCHES**2,
    )
    vq = JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=24,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        num_patches=PATCHES,
        projection_dim=32,
        image_token_embed_dim=32,
        initializer_range=0.2,
    )
    image_token = tokenizer.convert_tokens_to_ids(EXTRA["image_token"])
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=image_token, tie_word_embeddings=False)
    model = JanusForConditionalGeneration(config).eval()
    boi = tokenizer.convert_tokens_to_ids(EXTRA["boi_token"])
    with torch.no_grad():
        for part in (model.model.generation_embeddings, model.model.generation_aligner, model.model.generation_head, model.lm_head):
            for parameter in part.parameters():
                parameter.normal_(std=0.3)
        # A chain ends after about ten tokens, so that some do within a test's limit and some do not.
        seen = model.model.language_model(input_ids=torch.randint(0, len(tokenizer), (16, 24))).last_hidden_state
        mean = seen.flatten(0, 1).mean(0)
        model.lm_head.weight[boi] += mean / mean.norm() ** 2
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model


@pytest.fixture(scope="session")
def tiny_janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers Janus checkpoint with its tokenizer, the same in every session."""
    folder = tmp_path_factory.mktemp("janus") / "tiny"
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def policy(tiny_janus: Path) -> JanusPolicy:
    """A fresh policy around the tiny checkpoint."""
    from gotr1_janus.options import JanusOptions
    from gotr1_janus.policy import JanusPolicy

    return JanusPolicy(JanusOptions(model=str(tiny_janus), instruction="{prompt}", attention="eager"))


class LettersJudge:
    """Rewards that a random policy can earn: the share of letters in the chain (0 for every third length), and brightness."""

    def __init__(self, options: None = None) -> None:
        from gotr1_core.samples import IMAGE, PLAN

        self.rewards: Mapping[str, SegmentName] = {"letters": PLAN, "bright": IMAGE}
        self.seen: list[int] = []

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        import numpy as np

        self.seen.append(len(samples))
        found: dict[str, list[float]] = {name: [] for name in names}
        for sample in samples:
            raw = sample.chain.raw
            if "letters" in found:
                found["letters"].append(0.0 if len(raw) % 3 == 0 else sum(c.isalpha() for c in raw) / len(raw))
            if "bright" in found:
                assert sample.image is not None
                found["bright"].append(float(np.asarray(sample.image).mean()) / 255)
        return found


@pytest.fixture
def letters_judge() -> LettersJudge:
    return LettersJudge()


SHORT = ["steps=3", "groups=4", "plans=2", "prompts.held_out=6", "evaluation.prompts=3", "evaluation.every=2", "save_samples=1"]


@pytest.fixture(scope="session")
def miniature_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run called NAME of three steps with the default preset. Only read it; copy it to change it."""
    from gotr1_core.cli.main import call

    output = tmp_path_factory.mktemp("runs")
    assert call(["train", *SHORT, f"output={output}", "name=NAME"]) == 0
    return output / "NAME"


INTRUDER = """
from pathlib import Path

Path(__file__).with_name("ran").touch()

class Intruder:
    @classmethod
    def from_pretrained(cls, *words, **settings):
        return cls()
"""


class Yes:
    """A standard input that answers every question with yes, and counts the questions."""

    def __init__(self) -> None:
        self.asked = 0

    def readline(self, *_: object) -> str:
        self.asked += 1
        return "yes\n"

    read = readline

    def fileno(self) -> int:
        raise OSError("not a file")


@pytest.fixture
def intruder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Path]]:
    """Copies a checkpoint and adds Python to it, which all of its configs name. Checks afterwards that nothing asked and nothing ran."""
    copies: list[Path] = []
    answers = Yes()
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))  # transformers copies the code there before it runs it
    monkeypatch.setattr("sys.stdin", answers)

    def plant(checkpoint: Path) -> Path:
        folder = tmp_path / f"intruder-{len(copies)}"
        copies.append(Path(shutil.copytree(checkpoint, folder)))
        for config in [*folder.rglob("*config.json")]:
            content = json.loads(config.read_text(encoding="utf-8"))
            content["auto_map"] = {
                **dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "intruder.Intruder"),
                **dict.fromkeys(("AutoImageProcessor", "AutoProcessor"), "intruder.Intruder"),
                "AutoTokenizer": ["intruder.Intruder", "intruder.Intruder"],
            }
            for key in {"tokenizer_class", "image_processor_type"} & content.keys():
                content[key] = "Intruder"
            config.write_text(json.dumps(content), encoding="utf-8")
            (config.parent / "intruder.py").write_text(INTRUDER, encoding="utf-8")
        return folder

    yield plant
    assert answers.asked == 0
    assert not list(tmp_path.rglob("ran"))
