"""Random inputs for test_fuzz.py: settings, YAML, paths, pictures, data files and the files of a run. A seed always gives the same inputs.

Each function takes a random generator and returns what to try: words of a command line, or bytes of a file.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from gotr1_core.config.messages import dotted_keys
from gotr1_core.config.models import RunConfig, SftConfig

# -- settings and YAML ------------------------------------------------------------------------------------------------------

VALUES = [
    *(
        "",
        "~",
        "null",
        "true",
        "no",
        "0",
        "-0.0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "0.5",
        "1e-5",
        "-1e9",
        "1e400",
        ".inf",
        "-.inf",
        ".nan",
        "1_000",
    ),
    *("0x1F", "0o17", "0b1", "1:30", "2024-01-01", "1e", "1e5", f"1{'0' * 30}", "9" * 5000, "9223372036854775807", "4294967296"),
    *(
        "x",
        "toy",
        "janus",
        "scenes",
        "grpo",
        "ppo",
        "rloo",
        "both",
        "planner",
        "keep",
        "refill",
        "auto",
        "cosine",
        "pi",
        "reward",
        "scenes:toy",
    ),
    *(
        "pi * boxes",
        "pi / 0",
        "pi ** 999999",
        "((((((pi",
        "1 if pi else 0",
        "__import__('os')",
        "-" * 200 + "pi",
        "min()",
        "pi.real",
        "0 < pi",
    ),
    *("[]", "[1, 1]", "[0.9, 2]", "[[]]", "[toy, toy]", "[{}]", "{}", "{name: toy}", "{name: [toy]}", "{name: }", "{a: {b: {c: 1}}}"),
    *(
        "[" * 300,
        "{a: " * 300,
        "&a [*a, *a]",
        "&a [*a]",
        "*a",
        "<<: {a: 1}",
        "!!python/object:os.system x",
        "!!bool x",
        "!!binary x",
        "!!set {a}",
    ),
    *(
        "!!int x",
        "!!float x",
        "!!null x",
        "!!timestamp x",
        "!!omap [a]",
        "!!pairs [a]",
        "? a",
        "- a",
        "a: b: c",
        "'",
        '"',
        '"\\x00"',
        '"\\ud800"',
    ),
    *(
        "/",
        ".",
        "..",
        "../../x",
        "~",
        "~nobody-has-this-name",
        "/dev/null",
        "/dev/zero",
        "red.png",
        "train.txt",
        "folder",
        "loop",
        "runs/mine",
    ),
    *(
        "${HERE}",
        "${HERE}/x",
        "$HOME",
        "%s%n",
        "é",
        "猫",
        "\u2028",
        "\ufeff",
        "\x1b[31m",
        "a\tb",
        "a\nb",
        "x" * 10_000,
        "\u202e",
        "🙂" * 100,
    ),
]
KEYS = [
    *dotted_keys(RunConfig),
    *("planner.shade", "planner.model", "judge.toy.x", "judge.plans.per_box", "algorithm.clip_low", "variants"),
]
STAGE_ONE = [*dotted_keys(SftConfig), "policy.shade", "data.x"]


def setting(rng: random.Random, keys: Sequence[str] = KEYS) -> str:
    """A KEY=VALUE word. Some keys are misspelt, cut or have a part too many."""
    key = rng.choice(keys)
    if rng.random() < 0.15:
        parts = key.split(".")
        key = rng.choice([key[:-1], f"{key}.x", parts[0], f".{key}", f"{key}.", "..", key.upper(), f"{key}..x", "", "=", "0"])
    return f"{key}={rng.choice(VALUES)}" if rng.random() < 0.95 else key


def settings(rng: random.Random, name: str) -> list[str]:
    """A command line with odd settings."""
    commands = [
        ["train", "--preset", "toy", "--dry-run"],
        ["train", "--preset", "toy", "--dry-run", "--json"],
        ["config", "show", "--preset", "toy"],
        ["generate", "x", "--preset", "toy", "--overwrite", "--out", "out"],
        ["score", "red.png", "--prompt", "x", "--judge", "toy"],
        ["check", "judge", "plans", "--only", "scores-are-in-range"],
        ["sft", "policy=toy", "data=train.txt", "output=out"],
    ]
    line = rng.choices(commands, [6, 1, 3, 1, 1, 1, 1])[0]
    keys = STAGE_ONE if line[0] == "sft" else ["per_box", "x"] if line[0] == "check" else KEYS
    return [*line, *(setting(rng, keys) for _ in range(rng.choice([1, 1, 1, 2, 3])))]


def config_files(rng: random.Random, name: str) -> list[str]:
    """A command line with a damaged config file."""
    text = rng.choice(CONFIGS)
    for _ in range(rng.choice([1, 1, 2, 4])):
        text = mutated_text(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    file = Path(f"{name}.yaml")
    file.write_bytes(mutated(rng, data) if rng.random() < 0.2 else data)
    stage = ["--stage", "sft"] if "policy" in text else []
    return [*rng.choice([["config", "validate", *stage], ["config", "show"], ["train", "--dry-run"]]), str(file)]


CONFIGS = [
    "planner: {name: toy, shade: 0.2}\nrenderer: toy\njudge: toy\nreward: pi\nprompts: {source: scenes, held_out: 4}\n"
    "evaluation: {prompts: 4}\nlora: null\nsteps: 7\n",
    "planner:\n  name: toy\n  shade: &a 0.2\nrenderer:\n  name: toy\njudge:\n- name: toy\n  as: one\n- plans\nreward: one * plans.boxes\n"
    "prompts:\n  file: train.txt\n  held_out: 1\noptimizer:\n  learning_rate: 1.0e-05\n  betas:\n  - 0.9\n  - 0.95\nplugins: []\n"
    "segments:\n  plan: {kl: 0.1}\nsampling: {temperature: 1.0}\noutput: ${HERE}/runs\nname: x\n",
    "policy: toy\ndata: train.txt\noutput: out\nsteps: 3\nweights: {plan: 1.0}\n",
]


def mutated_text(rng: random.Random, text: str) -> str:
    """A text with a line or a value changed, moved, doubled or left out."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {rng.choice(VALUES)}"
        case 3:
            lines[at] = " " * rng.randrange(9) + lines[at].lstrip()
        case 4:
            lines.insert(at, rng.choice(VALUES))
        case 5:
            lines[at] = lines[at].replace(
                rng.choice(":,{}[]- .") or ":", rng.choice(["", "::", "\t", "&a ", "*a", "!", "#", "|", ">", "\x00", "%"])
            )
        case _:
            lines.insert(at, f"{rng.choice(KEYS).split('.')[0]}: {rng.choice(VALUES)}")
    return "\n".join(lines)


# -- bytes ------------------------------------------------------------------------------------------------------------------


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some changed, left out, put in or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed = changed[:at]
            case 2:
                del changed[at : at + rng.choice([1, 2, 4, 100])]
            case 3:
                changed[at:at] = rng.randbytes(rng.choice([1, 2, 4, 100]))
            case 4:
                changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00"])
            case _:
                start = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + rng.choice([1, 12, 200])]
    return bytes(changed)


def pictures(rng: random.Random) -> bytes:
    """A damaged PNG, JPEG or WebP file: any mode, with metadata of all kinds."""
    mode = rng.choice(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
    size = rng.choice([(8, 8), (1, 1), (1, 99), (33, 17)])
    wide = mode == "I;16"
    image = Image.frombytes(mode, size, rng.randbytes(size[0] * size[1] * 2)) if wide else Image.effect_noise(size, 99).convert(mode)
    form = (
        "PNG"
        if wide or mode in ("1", "LA", "P")
        else rng.choice(["JPEG", "WEBP"])
        if mode == "CMYK"
        else rng.choice(["PNG", "JPEG", "WEBP"])
    )
    image = image.convert("RGB") if form == "JPEG" and mode in ("RGBA", "LA", "P") else image.convert("RGB") if form == "WEBP" else image
    more: dict[str, Any] = {}
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(10)
    exif[0x010E] = "x" * rng.choice([1, 1000])
    if rng.random() < 0.5:
        more["exif"] = exif.tobytes()
    if form == "PNG" and rng.random() < 0.5:
        info = PngImagePlugin.PngInfo()
        info.add_text("a", "b" * rng.choice([1, 2000]), zip=rng.random() < 0.5)
        more["pnginfo"] = info
    if form == "PNG" and mode in ("P", "L") and rng.random() < 0.5:
        more["transparency"] = rng.randrange(256)
    if rng.random() < 0.3:
        more["icc_profile"] = rng.randbytes(200)
    if form == "JPEG":
        more["progressive"] = rng.random() < 0.5
    file = io.BytesIO()
    image.save(file, form, **more)
    return mutated(rng, file.getvalue()) if rng.random() < 0.95 else rng.randbytes(rng.randrange(300))


CHAIN = "<|obj_start|>a red circle<|obj_end|><|box_start|>(100,200),(300,400)<|box_end|>"
ROWS: list[dict[str, Any]] = [
    {"prompt": "a circle", "id": "1", "category": "c", "metadata": {"a": [1, {"b": None}]}},
    {"prompt": "a circle", "chain": CHAIN, "image": "red.png", "scores": {"pi": 0.5}, "reward": None, "well_formed": True},
    {"prompt": "猫 \u2028", "chain": [CHAIN, CHAIN], "image": None, "legend": {"1": "a"}},
]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    10**30,
    "",
    " ",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": {}},
    float("nan"),
    float("inf"),
    "\0",
    "\ud800",
    "../x",
    10**400,
    ["a"],
    [["1", "x"]],
    {"step": 2, "score": "x"},
]


def odd_json(rng: random.Random, value: Any) -> Any:
    """A JSON value in which one value, at any depth, is another one, is left out, or has another key."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, rng.choice(["", "prompts", "step", "\0", "é", "evaluation"]): rng.choice(ODD)}
            case _:
                return {**value, key: odd_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return rng.choice([value[:at], [*value, *value], [*value[:at], odd_json(rng, value[at]), *value[at + 1 :]]])
    return rng.choice(ODD)


def data_files(rng: random.Random) -> tuple[str, bytes]:
    """The suffix and the bytes of a damaged file of prompts, chains or examples: JSON Lines, JSON, a table or text."""
    rows = [rng.choice(ROWS) for _ in range(rng.choice([1, 2, 5]))]
    rows = [odd_json(rng, row) if rng.random() < 0.4 else row for row in rows]
    suffix = rng.choice([".jsonl", ".json", ".csv", ".tsv", ".txt", "", ".ndjson"])
    if suffix == ".json":
        text = json.dumps(rows, indent=rng.choice([None, 1]))
    elif suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        text = "\n".join(
            [mark.join(ROWS[0]), *(mark.join(json.dumps(v) for v in row.values()) if isinstance(row, dict) else "x" for row in rows)]
        )
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=rng.random() < 0.8) for row in rows)
    for _ in range(rng.choice([0, 0, 1])):
        text = mutated_text(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    return suffix, mutated(rng, data) if rng.random() < 0.3 else data


def run_files(rng: random.Random, run: Path) -> str:
    """Damages one file of a run. Returns its name."""
    files = sorted(
        path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml", ".html", ".safetensors")
    )
    path = rng.choice(files)
    data = path.read_bytes()
    text = data.decode("utf-8", errors="replace")
    match rng.randrange(4):
        case 0 if path.suffix == ".json":
            path.write_text(json.dumps(odd_json(rng, json.loads(text))), encoding="utf-8")
        case 0 if path.suffix == ".jsonl":
            lines = [json.dumps(odd_json(rng, json.loads(line))) if rng.random() < 0.5 else line for line in text.splitlines()]
            path.write_text("\n".join([*lines, ""]), encoding="utf-8")
        case 1 if path.suffix != ".safetensors":
            path.write_bytes(mutated_text(rng, text).encode("utf-8", "surrogatepass"))
        case _:
            path.write_bytes(mutated(rng, data))
    return str(path.relative_to(run))


# -- paths ------------------------------------------------------------------------------------------------------------------

SEGMENTS = [
    "..",
    ".",
    "",
    "~",
    "~nobody-has-this-name",
    "loop",
    "train.txt",
    "folder",
    "red.png",
    "runs",
    "mine",
    "checkpoints",
    "step-000001",
]
SEGMENTS += [
    "config.yaml",
    "state.json",
    "a\0b",
    "x" * 300,
    "-",
    "--",
    " ",
    "é",
    "猫.png",
    "a=b",
    "a\nb",
    "step-²",
    "*",
    "?",
    "${HERE}",
    "pipe",
]
SEGMENTS += [
    "/",
    "/proc/self/mem",
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "/proc/1/root",
    "nothing",
    "a" * 255,
    "\x1b[31m",
    "toy.yaml",
    ".lock",
]


def random_path(rng: random.Random) -> str:
    """A path of one to four parts, most of which are there."""
    return "/".join(rng.choice(SEGMENTS) for _ in range(rng.choice([1, 1, 2, 2, 3, 4])))


def paths(lines: Sequence[Sequence[str]], fill: Callable[[Sequence[str], str], list[str]]) -> Callable[[random.Random, str], list[str]]:
    """A function that puts a random path into one of the command lines."""
    return lambda rng, name: fill(rng.choice(lines), random_path(rng))
