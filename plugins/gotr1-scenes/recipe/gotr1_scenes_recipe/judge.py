"""Makes the small judge: an InternVL of three million parameters. It answers the rubrics and finds phrases in pictures of the world.

    python -m gotr1_scenes_recipe.judge --out build/judge --ship plugins/gotr1-scenes/src/gotr1_scenes/weights/internvl

One command does all: it makes an untrained model, trains it on painted pictures, lets the shipped miniatures draw more pictures, continues
training with both, and writes the model in float16. Given again, the command continues where it stopped. ``--start`` begins with the
weights of an earlier judge; then there are no auxiliary losses. Questions go through the judge ``internvl`` itself, so training and use
have the same inputs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast

import gotr1_scenes
from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig
from gotr1_core.plugins import Registry
from gotr1_core.policies.pretrained import load_pretrained
from gotr1_core.samples import Sample
from gotr1_scenes.judge import plan_layout
from gotr1_scenes.world import CANVAS, GRID
from gotr1_scenes_recipe.miniature import learn_bpe, world_examples
from gotr1_scenes_recipe.packing import forward
from gotr1_scenes_recipe.questions import ASKS, BOX, HAS, NAMES, STANDS, WRITTEN, TaughtPicture, TaughtQuestion, make_questions
from gotr1_scenes_recipe.samples import draw_samples, painted_sample
from gotr1_scenes_recipe.state import resume, save
from gotr1_scenes_recipe.teaching import Heads, word_targets
from gotr1_scenes_recipe.verdicts import verdict

HIDDEN, SIDE, PATCH = 192, 168, 14  # a patch is one square of the world's grid, which distinguishes things best
RUBRICS = Path(gotr1_scenes.__file__).parent / "rubrics"
PAD, USER, ANSWER, END = "<pad>", "<user>", "<answer>", "<end>"
VISION = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
MARKS = ["<ref>", "</ref>", "<box>", "</box>"]
FRAME = r"\{\"\p{L}+\": \"?|\"?, \"\p{L}+\": \"?"
SPLIT = FRAME + r"|\s?\d+,?|\[+|\]+,?|\s?\p{L}+|\s?[^\s\p{L}\d]|\s+"
"""A coordinate with its comma is one token. A key of JSON with its quotes is one, too."""
TEMPLATE = (
    "{% for message in messages %}<user>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
PROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "crop_to_patches": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PAIRS = ("janus/janus", "qwen/sdxl")
LIMIT = 12_000_000  # maximum bytes of the shipped folder
ANSWER_TOKENS = 192  # the longest verdict has about 150
SAMPLES, SKETCHED = 6, 3  # samples of a step; samples of a step with questions about their sketch
DRILLS = {NAMES: "What is named? ", ASKS: "What is asked? ", STANDS: "Do they stand so?"}
KINDS_ASKED = ("sem", "spa", "ri", "pi", HAS, *DRILLS, *WRITTEN.values())
# Weights of their losses. Verdicts are hardest to learn. What a digit cannot tell without a verdict is noise.
WEIGHTS = {"pi": 0.25, "spa": 0.25} | dict.fromkeys((*DRILLS, *WRITTEN.values()), 3.0)
PAINTED_SHARE = 0.23  # share of the steps in which all samples are painted, at the beginning; later half of them are


def make_tokenizer(examples: int = 20_000) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer learnt from prompts, plans, boxes, verdicts and the rubrics."""
    annotated = list(world_examples(examples))
    texts = [text for e in annotated for text in (e.phrase.text, e.chain.without_boxes())]
    texts += [BOX.format(json.dumps([[round(1000 * v / 48) for v in thing.box] for thing in e.scene])) for e in annotated]
    texts += [verdict(e.phrase.wish, plan_layout(e.chain), sketch=sketch) for e in annotated for sketch in (False, True)]
    texts += [file.read_text(encoding="utf-8").split("\n\n", 1)[1] for file in RUBRICS.glob("*.txt")] * 100
    bpe = learn_bpe(texts, [PAD, USER, ANSWER, END, *VISION.values(), *MARKS], SPLIT)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, padding_side="left", extra_special_tokens=VISION
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> InternVLForConditionalGeneration:
    """Returns an InternVL with random weights. A picture has 144 patches of 14 pixels, which become 36 tokens."""
    torch.manual_seed(seed)
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},  # about a hundred positions
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {"hidden_size": 160, "intermediate_size": 480, "num_hidden_layers": 4, "num_attention_heads": 5}
    vision |= {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH], "layer_scale_init_value": 1.0}
    image = tokenizer.convert_tokens_to_ids(VISION["context_image_token"])
    tokens = (SIDE // PATCH) ** 2 // 4
    model = InternVLForConditionalGeneration(
        InternVLConfig(text_config=text, vision_config=vision, image_token_id=image, image_seq_length=tokens, tie_word_embeddings=True)
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, text[name])
    return model


def save_untrained(folder: Path, seed: int, start: Path | None = None) -> None:
    """Writes the untrained model with all files that the judge needs. If ``start`` is given, the model has the weights of that folder."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    if start is not None:
        copy_weights(model, tokenizer, start)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if start is not None:
        shutil.copy(start / "log.jsonl", folder / "log-start.jsonl")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters, {len(tokenizer)} tokens", flush=True)


def copy_weights(model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Copies the weights of an earlier judge into ``model``.

    The embedding of a token that the earlier judge lacks is the mean of the tokens that spelled it there. If that judge wrote no verdicts,
    a verdict's places on the grid begin as the same places in thousandths, which it has learnt for boxes.
    """
    earlier = load_pretrained(InternVLForConditionalGeneration, folder, dtype=torch.float32)
    earlier_tokenizer = load_pretrained(PreTrainedTokenizerFast, folder)
    vocabulary, embeddings = earlier_tokenizer.get_vocab(), earlier.get_input_embeddings().weight
    wrote_verdicts = any("reason" in token for token in vocabulary)
    thousandths = {} if wrote_verdicts else {f" {k}": round(1000 * k * GRID / CANVAS) for k in range(CANVAS // GRID + 1)}
    rows = []
    for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = tokenizer.convert_tokens_to_string([token])
        if text in thousandths:
            spelled = earlier_tokenizer([f" {thousandths[text]}", f" {thousandths[text]},"], add_special_tokens=False).input_ids
            rows.append(embeddings[[token_id for ids in spelled for token_id in ids]].mean(0))
        else:
            ids = [vocabulary[token]] if token in vocabulary else earlier_tokenizer(text, add_special_tokens=False).input_ids
            rows.append(embeddings[ids].mean(0))
    earlier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.load_state_dict(earlier.state_dict())
    model.get_input_embeddings().weight.data.copy_(torch.stack(rows))


def make_judge(model: Path, scoring: str = "expected") -> Any:
    """Returns the judge ``internvl`` with this model and the world's rubrics."""
    options = {"model": str(model), "rubrics": str(RUBRICS), "scoring": scoring, "answer_tokens": ANSWER_TOKENS, "attention": "sdpa"}
    return make_component(Registry(), "judge", ComponentConfig(name="internvl", batch=64, **options))


def make_student(model: Path) -> Any:
    """Returns a judge for training, with the rubrics of both ways of scoring. Those of written verdicts have names of their own."""
    judge, expected = make_judge(model, "text"), make_judge(model)
    judge.rubrics = {**expected.rubrics, **{name: judge.rubrics[reward] for reward, name in WRITTEN.items()}}
    return judge


# -- training ---------------------------------------------------------------------------------------------------------------


def train(out: Path, drawn: Sequence[Sample], *, until: int, steps: int, rate: float, seed: int, threads: int, taught: bool = True) -> None:
    """Trains until step ``until`` of ``steps``. It saves every 250 steps, so that an interrupted run continues.

    If ``taught``, the auxiliary losses of ``teaching.py`` are added.
    """
    torch.set_num_threads(threads)
    judge = make_student(out / "untrained")
    model = judge.answerer.model.float().requires_grad_(True)
    torch.manual_seed(seed)
    model.teaching = Heads(HIDDEN) if taught else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    first = resume(out, model, optimizer)
    begun = time.time()
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, until):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
            row = update(judge, optimizer, *make_questions(batch(step, drawn, seed), SKETCHED, random.Random(f"ask/{seed}/{step}")))
            if step % 50 == 0 or step + 1 == until:
                line = json.dumps({"step": step, **row, "seconds": round(time.time() - begun, 1)})
                print(line, file=log, flush=True)
                print(line, flush=True)
            if (step + 1) % 250 == 0 or step + 1 == until:
                save(out, model, optimizer, step + 1)


def batch(step: int, drawn: Sequence[Sample], seed: int) -> list[Sample]:
    """Returns the samples of one step. They depend on seed and step alone.

    Drawn and painted samples alternate, so that the first ones, which also have sketches, are of both kinds.
    """
    rng = random.Random(f"batch/{seed}/{step}")
    chosen = rng.sample(drawn, min(SAMPLES // 2, len(drawn)))
    painted = [painted_sample(f"judge/{seed}/{step}/{i}") for i in range(SAMPLES - len(chosen))]
    return [sample for pair in zip(chosen, painted, strict=False) for sample in pair] + painted[len(chosen) :]


def update(
    judge: Any, optimizer: torch.optim.Optimizer, shown: Sequence[TaughtPicture], asked: Sequence[TaughtQuestion]
) -> dict[str, float]:
    """Takes one optimizer step on questions with their answers.

    Returns:
        The values to log: the loss of each kind of question, the auxiliary losses, and the mean error of scores (``NAME.off``).
    """
    answerer = judge.answerer
    digits = digit_tokens(judge)
    rows, answer_positions, targets = encode_questions(judge, asked, digits)
    pixels = answerer.pictures.inputs([picture.image for picture in shown])["pixel_values"]
    features = answerer.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    words = word_targets(answerer.chat.tokenizer, rows, asked)
    positions = [[*own, *(at for at, _, _ in targets_of)] for own, targets_of in zip(answer_positions, words, strict=True)]
    states = forward(answerer.model, features, rows, subjects(asked), positions)
    is_answer = torch.tensor([k < len(own) for own, both in zip(answer_positions, positions, strict=True) for k in range(len(both))])
    hidden = states[is_answer]
    logits = answerer.model.lm_head(hidden).float()
    firsts = torch.tensor([0, *(len(own) for own in answer_positions)]).cumsum(0)[:-1]
    heads = answerer.model.teaching
    auxiliary: dict[str, Tensor] = {}
    if heads is not None:
        auxiliary = heads.of_pictures(features, shown) | heads.of_answers(hidden[firsts], asked)
        auxiliary |= heads.of_words(states[~is_answer], [target for targets_of in words for target in targets_of])
    owners = torch.tensor([i for i, own in enumerate(answer_positions) for _ in own])
    losses = -(targets * logits.log_softmax(-1)).sum(-1)
    counts = torch.tensor([value_count(question) for question in asked])
    mean = torch.zeros(len(asked)).index_add(0, owners, losses) / counts
    optimizer.zero_grad(set_to_none=True)
    kinds = {name: torch.tensor([question.reward == name for question in asked]) for name in KINDS_ASKED}
    means = [
        WEIGHTS.get(name, 1.0) * mean[rows_of].mean() for name, rows_of in kinds.items() if rows_of.any()
    ]  # for any number of questions
    torch.stack([*means, *auxiliary.values()]).sum().backward()
    torch.nn.utils.clip_grad_norm_(answerer.model.parameters(), 1.0)
    optimizer.step()
    log = {name: round(float(value.detach()), 4) for name, value in auxiliary.items()}
    expected = (logits.detach()[:, digits].softmax(-1) * torch.arange(10) / 9).sum(-1)
    for name, rows_of in kinds.items():
        if rows_of.any():
            log[name] = round(float(mean.detach()[rows_of].mean()), 4)
        if rows_of.any() and name not in ("ri", *DRILLS, *WRITTEN.values()):
            exact = torch.tensor([float(question.answer) for question in asked if question.reward == name])
            log[f"{name}.off"] = round(float((expected[rows_of[owners]] - exact).abs().mean()), 4)
    return log


def value_count(one: TaughtQuestion) -> int:
    """Returns the number of values in an answer: one score, or numbers and words. Text between them is learnt soon and does not count."""
    return max(1, len(re.findall(r"\w+", one.answer.replace("box", "")))) if isinstance(one.answer, str) else 1


def digit_tokens(judge: Any) -> list[int]:
    """Returns the tokens of 0 to 9 at the beginning of an answer."""
    return [token for (token,) in judge.answerer.chat.tokenizer(list("0123456789"), add_special_tokens=False).input_ids]


def question_parts(judge: Any, one: TaughtQuestion) -> Sequence[str]:
    """Returns the parts of a question: those of the rubric, or words of our own if the question is for no reward."""
    if one.reward in DRILLS:
        return [DRILLS[one.reward], "" if one.reward == STANDS else one.fields["plan"]]
    if one.reward == HAS:
        parts = ["Is there ", one.fields["phrase"], "?"]
        return ["It says: ", one.fields["plan"], f" {parts[0]}", *parts[1:]] if one.fields["plan"] else parts
    return judge.rubrics[one.reward].fill(**one.fields)


def encode_questions(judge: Any, asked: Sequence[TaughtQuestion], digits: Sequence[int]) -> tuple[list[Tensor], list[list[int]], Tensor]:
    """Encodes questions with their answers.

    Returns:
        The token ids ``[length]`` of each question; its positions that predict the answer's tokens; and the target probabilities ``[K, V]``
        at these K positions. A score lies between two digits, whose probabilities are such that their mean is the score.
    """
    answerer = judge.answerer
    picture = answerer.pictures.placeholders(None)
    end, size = answerer.stops[0], answerer.model.config.text_config.vocab_size
    rows, places, targets = [], [], []
    for one in asked:
        ids = answerer.chat.prompt_ids(question_parts(judge, one), None if one.picture is None else picture)
        if one.reward == STANDS:  # the beginning of the answer is part of the question
            ids += answerer.chat.tokenizer(one.fields["plan"], add_special_tokens=False).input_ids
        if isinstance(one.answer, str):
            answer = [*answerer.chat.tokenizer(one.answer, add_special_tokens=False).input_ids, end]
            target = F.one_hot(torch.tensor(answer), size).float()
        else:
            low = min(8, int(9 * one.answer))
            target = torch.zeros(1, size)
            target[0, digits[low]], target[0, digits[low + 1]] = 1 - (9 * one.answer - low), 9 * one.answer - low
            answer = [digits[low]]
        rows.append(torch.tensor([*ids, *answer[:-1]]))
        places.append(list(range(len(ids) - 1, len(ids) - 1 + len(answer))))
        targets.append(target)
    return rows, places, torch.cat(targets)


def subjects(asked: Sequence[TaughtQuestion]) -> list[int | str]:
    """Returns the subject of each question: the number of its picture, or its plan."""
    return [one.fields["plan"] if one.picture is None else one.picture for one in asked]


# -- on disk ----------------------------------------------------------------------------------------------------------------


def ship(out: Path, folder: Path) -> None:
    """Writes the shipped folder: float16 weights, tokenizer, image processor, and the log."""
    judge = make_judge(out / "untrained")
    resume(out, judge.answerer.model)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(out / "untrained", folder)
    model = load_pretrained(InternVLForConditionalGeneration, folder)
    model.load_state_dict(judge.answerer.model.state_dict())
    model.half().save_pretrained(folder)
    shutil.copy(out / "log.jsonl", folder / "log.jsonl")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"the folder has more than {LIMIT / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--start", type=Path, help="begin with the weights of an earlier judge, which was trained with the auxiliary losses"
    )
    parser.add_argument("--ship", type=Path, help="folder for the trained model")
    parser.add_argument(
        "--draw", action="append", metavar="PLANNER/RENDERER", help=f"models that draw training samples; default: {' and '.join(PAIRS)}"
    )
    parser.add_argument("--drawn", type=int, default=4096, help="samples of each")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if not (args.out / "untrained" / "preprocessor_config.json").is_file():  # the last file that is written
        save_untrained(args.out / "untrained", args.seed, args.start)
    settings = {"steps": args.steps, "rate": args.rate, "seed": args.seed, "threads": args.threads, "taught": args.start is None}
    if args.start is None:
        train(args.out, [], until=int(PAINTED_SHARE * args.steps), **settings)
    drawn = [s for pair in args.draw or PAIRS for s in draw_samples(args.out / "drawn", pair, args.drawn)]
    train(args.out, drawn, until=args.steps, **settings)
    if args.ship is not None:
        ship(args.out, args.ship)


if __name__ == "__main__":
    main()
