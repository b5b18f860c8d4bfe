"""Released checkpoints to transformers' format and back: every form of release, and what is reported of incomplete ones."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, JanusForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from gotr1_core.cli.main import call
from gotr1_core.config.models import LoraConfig
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.policies.lora import add_lora
from gotr1_core.samples import Prompt, Sampling
from gotr1_janus import convert
from gotr1_janus.cache import cache_entry, import_once
from gotr1_janus.checkpoint import check_janus
from gotr1_janus.convert import export_checkpoint, import_checkpoint
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy
from gotr1_janus.processor import GOT_TOKENS, TEMPLATE, read_tokenizer
from gotr1_janus.released import EMBEDDINGS, HEAD, read_config

SPECIAL = ["<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>"]
SPECIAL += ["<|User|>", "<|Assistant|>"]
LEFT = ["gen_vision_model.quantize.codebook_used", "vision_model.vision_tower.attn_pool.latent"]


def quiet(line: str) -> None:
    del line


def write(folder: Path, tensors: dict[str, Tensor], form: str) -> None:
    """Writes weights instead of ``model.safetensors`` in one of the forms of the releases."""
    (folder / "model.safetensors").unlink()
    suffix = "bin" if "bin" in form else "safetensors"
    stem = "pytorch_model" if suffix == "bin" else "model"

    def save(part: dict[str, Tensor], name: str) -> None:
        if suffix == "bin":
            torch.save(part, folder / name, _use_new_zipfile_serialization="old" not in form)
        else:
            save_file(part, folder / name)

    if "sharded" not in form:
        return save(tensors, f"{stem}.{suffix}")
    names = list(tensors)
    where = {name: f"{stem}-{i % 3 + 1:05d}-of-00003.{suffix}" for i, name in enumerate(names)}
    for file in set(where.values()):
        save({name: tensors[name] for name in names if where[name] == file}, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(found[n].dtype == wanted[n].dtype and torch.equal(found[n], wanted[n]) for n in wanted)


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """A copy of a released checkpoint, to change."""
    return Path(shutil.copytree(release, tmp_path / "copy"))


# -- there and back ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("safetensors", torch.float16),
        ("sharded safetensors", torch.bfloat16),
        ("bin", torch.float32),
        ("sharded bin", torch.bfloat16),
        ("old bin", torch.float16),
    ],
)
def test_there_and_back(copy: Path, tiny_janus: Path, tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    before = {name: tensor.to(dtype) for name, tensor in load_file(copy / "model.safetensors").items()}
    write(copy, before, form)
    out, back, said = tmp_path / "out", tmp_path / "back", []
    import_checkpoint(copy, out, said.append, limit=20_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    found = weights(out)
    assert same(found, {name: tensor.to(dtype) for name, tensor in load_file(tiny_janus / "model.safetensors").items()})
    assert any(all(name in line for name in LEFT) for line in said)
    assert said[-1].endswith(f"{sum(t.nbytes for t in found.values()) / 1e9:.2f} GB")
    model, report = JanusForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == dtype
    export_checkpoint(out, back, quiet, limit=20_000)
    assert same(weights(back), before)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        known = json.loads((copy / name).read_text())
        written = json.loads((back / name).read_text())
        written.get("language_config", {}).pop("vocab_size", None)  # of which the original says nothing
        assert written == known, name
    again = tmp_path / "again"
    import_checkpoint(back, again, quiet)
    assert same(weights(again), found)


def test_heads_are_not_tied(release: Path, tmp_path: Path) -> None:
    """transformers' config ties heads by default, and would drop ``lm_head`` when it loads or saves."""
    import_checkpoint(release, tmp_path / "out", quiet)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False
    model = JanusForConditionalGeneration.from_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(
        load_file(tmp_path / "saved" / "model.safetensors")["lm_head.weight"], load_file(release / "model.safetensors")[HEAD]
    )


def test_grouped_queries_and_biases(copy: Path, tmp_path: Path) -> None:
    """Sizes come from the tensors. The language model then computes what a plain Llama with the release's names does."""
    tensors = load_file(copy / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in list(tensors.items()):
        if ".k_proj." in name or ".v_proj." in name:
            tensors[name] = tensor[:16].clone()
        if name.startswith("language_model") and "_proj." in name:
            tensors[name.replace(".weight", ".bias")] = torch.randn(tensors[name].shape[0], generator=generator)
    write(copy, tensors, "safetensors")
    import_checkpoint(copy, tmp_path / "out", quiet)
    model = JanusForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    text = model.config.text_config
    assert (text.num_attention_heads, text.num_key_value_heads, text.attention_bias, text.mlp_bias) == (2, 1, True, True)
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tensors[HEAD]), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=512, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    prefix = "language_model."
    plain.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    ids = torch.tensor([[1, 9, 20, 33, 4]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)  # the same sums, in the same order


def test_the_language_configs_own_numbers_are_kept(release: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(release / "model.safetensors").items()}
    given = {"num_attention_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "max_position_embeddings": 77, "hidden_size": 4096}
    text = read_config({"language_config": given}, shapes)["text_config"]
    assert {key: text[key] for key in given} == {**given, "hidden_size": 32}


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (64, 4), (1024, 16), (1152, 16)])
def test_heads_of_the_tower(release: Path, width: int, heads: int) -> None:
    """Neither config nor tensors give their number. The released towers are 1024 wide and have 16."""
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(release / "model.safetensors").items()}
    shapes["vision_model.vision_tower.patch_embed.proj.weight"] = (width, 3, 4, 4)
    assert read_config({"language_config": {"num_attention_heads": 2}}, shapes)["vision_config"]["num_attention_heads"] == heads


# -- tokens -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_got(copy: Path, tokenizer_files: Any) -> Path:
    """A release whose tokenizer does not have the tags yet, with exactly as many embeddings as tokens."""
    tokenizer_files(copy)
    (copy / "processor_config.json").unlink()
    tensors = load_file(copy / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in (EMBEDDINGS, HEAD):
        tensors[name] = torch.randn(len(SPECIAL) + 256, 32, generator=generator)
    write(copy, tensors, "safetensors")
    return copy


def test_gots_tokens_and_their_embeddings(without_got: Path, tmp_path: Path) -> None:
    before, said = load_file(without_got / "model.safetensors"), []
    import_checkpoint(without_got, tmp_path / "out", said.append)
    found = weights(tmp_path / "out")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer.convert_tokens_to_ids(list(GOT_TOKENS)) == [264, 265, 266, 267]
    for name, source in (("model.language_model.embed_tokens.weight", EMBEDDINGS), ("lm_head.weight", HEAD)):
        assert torch.equal(found[name][:264], before[source])
        assert torch.equal(found[name][264:], before[source].mean(0).expand(4, -1))
    assert "4 embeddings are added to 264" in said[0]
    assert JanusPolicy(JanusOptions(model=str(tmp_path / "out"))).module.model.lm_head.weight.shape == (268, 32)
    export_checkpoint(tmp_path / "out", tmp_path / "back", quiet)
    assert same(weights(tmp_path / "back"), before)


def test_embeddings_that_were_trained_are_exported(without_got: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    import_checkpoint(without_got, out, quiet)
    trained = load_file(out / "model.safetensors")
    trained["lm_head.weight"][266] += 1
    save_file(trained, out / "model.safetensors", metadata={"format": "pt"})
    export_checkpoint(out, tmp_path / "back", said.append)
    found = weights(tmp_path / "back")
    assert torch.equal(found[HEAD], trained["lm_head.weight"])
    assert len(found[EMBEDDINGS]) == 268
    assert json.loads((tmp_path / "back" / "config.json").read_text())["language_config"]["vocab_size"] == 268
    assert "were trained and stay" in said[0]


def test_a_tokenizer_from_another_folder(copy: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (copy / name).unlink()
    assert call(["import", str(copy), str(tmp_path / "out"), "--tokenizer", str(release)]) == 0
    tokens = len(load_file(release / "model.safetensors")[HEAD])
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"folder": str(tmp_path / "out"), "tokens": tokens, "embeddings": tokens, "dtype": "float32"}
    assert (tmp_path / "out" / "released" / "tokenizer.json").is_file()


def test_conversations(without_got: Path) -> None:
    tokenizer = read_tokenizer(without_got)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id  # as LlamaTokenizerFast does, which the file names
    seen = {"role": "User", "content": [{"type": "image"}, {"type": "text", "text": "what is it? "}]}
    said = {"role": "Assistant", "content": [{"type": "text", "text": "a cat"}]}

    def render(messages: list[Any], go_on: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=go_on))

    asked = "<|User|>: <image_placeholder>\nwhat is it?\n\n"
    assert render([seen], True) == f"{asked}<|Assistant|>:"
    assert render([seen, said], False) == f"{asked}<|Assistant|>: a cat"
    then = {"role": "user", "content": " and now?\n"}
    assert render([seen, said, then], True) == f"{asked}<|Assistant|>: a cat{tokenizer.eos_token}<|User|>: and now?\n\n<|Assistant|>:"
    assert render([{"role": "system", "content": "Be brief."}, then], True) == "System: Be brief.\n\n<|User|>: and now?\n\n<|Assistant|>:"


def test_the_processor(copy: Path, tmp_path: Path) -> None:
    pictures = {"image_size": 12, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "VLMImageProcessor"}
    (copy / "preprocessor_config.json").write_text(json.dumps(pictures))
    import_checkpoint(copy, tmp_path / "out", quiet)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "JanusProcessor"
    assert processor.num_image_tokens == 9
    assert processor.image_processor.image_mean == (0.1, 0.2, 0.3)
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["generation_kwargs"]["boi_token_id"] == processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")


# -- what is wrong ----------------------------------------------------------------------------------------------------------


def change(name: str, **keys: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return damage


def tensors(edit: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors")

    return damage


def form(name: str, then: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        write(folder, load_file(folder / "model.safetensors"), name)
        then(folder)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


class Code:
    """Code that a pickle runs when somebody loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickled code ran",)


QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"
BAD = [
    (remove("config.json"), "has no config.json", "complete download"),
    (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read", "download"),
    (change("config.json", model_type="llama"), "config.json is a llama model, not multi_modality", "Janus-Pro or GoT-R1"),
    (change("config.json", model_type="janus"), "is a janus model", "transformers' format already"),
    (change("config.json", language_config=None), "has no language_config", "config.json included"),
    (change("config.json", language_config={"tie_word_embeddings": True}), "ties lm_head", "own"),
    (change("config.json", language_config={"num_attention_heads": 5}), "5 attention heads, but q_proj has 32 rows", "own config"),
    (change("config.json", language_config={"num_attention_heads": 2, "rms_norm_eps": "x"}), "do not describe a Janus: ", "own config"),
    (remove("model.safetensors"), "has no weights", "complete download"),
    (cut("model.safetensors"), "model.safetensors is cut off or damaged", "download it again"),
    (form("bin", cut("pytorch_model.bin")), "pytorch_model.bin is cut off or damaged", "download it again"),
    (form("old bin", cut("pytorch_model.bin")), "pytorch_model.bin is", "download it again"),
    (form("sharded safetensors", cut("model-00002-of-00003.safetensors")), "model-00002-of-00003.safetensors is cut off", "again"),
    (form("sharded safetensors", remove("model-00002-of-00003.safetensors")), "lacks model-00002-of-00003.safetensors", "missing files"),
    (form("sharded bin", remove("pytorch_model-00003-of-00003.bin")), "lacks pytorch_model-00003-of-00003.bin", "missing files"),
    (form("sharded bin", lambda f: (f / "pytorch_model.bin.index.json").write_text("[]")), "is not an index of shards", "again"),
    (
        form("sharded bin", change("pytorch_model.bin.index.json", weight_map={"a": "../../secret.bin"})),
        "lacks ../../secret.bin",
        "missing files",
    ),
    (form("bin", lambda f: torch.save({"a": Code()}, f / "pytorch_model.bin")), "could run code and is not loaded", "again"),
    (form("bin", lambda f: torch.save({"a": 1}, f / "pytorch_model.bin")), "is not a dictionary of tensors", "optimizer"),
    (tensors(lambda t: t.pop(QUERY)), f"missing: {QUERY}", "complete"),
    (tensors(lambda t: t.pop(EMBEDDINGS)), f"not a Janus: missing: {EMBEDDINGS}", "shard"),
    (tensors(lambda t: t.update({QUERY: torch.zeros(31, 32)})), f"another shape: {QUERY} is [31, 32] and not [32, 32]", "complete"),
    (tensors(lambda t: t.update({EMBEDDINGS: torch.zeros(4)})), "do not describe a Janus: ", "own config"),
    (tensors(lambda t: t.update({"gen_head.new.weight": torch.zeros(1)})), "unknown: gen_head.new.weight", "complete"),
    (tensors(lambda t: t.update({HEAD: t[HEAD].int()})), f"{HEAD} is I32", "float16, bfloat16 or float32"),
    (form("bin", lambda f: torch.save({HEAD: torch.zeros(1).int()}, f / "pytorch_model.bin")), f"{HEAD} is torch.int32", "float16"),
    (remove("tokenizer.json"), "has no tokenizer.json", "--tokenizer DIR"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read", "--tokenizer DIR"),
    (change("tokenizer_config.json", bos_token="<none>"), "has no bos_token in its vocabulary", "tokenizer_config.json"),
]


@pytest.mark.parametrize(("damage", "said", "hint"), BAD)
def test_bad_input(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str, hint: str) -> None:
    monkeypatch.chdir(tmp_path)
    damage(copy)
    with pytest.raises(UsageError) as caught:
        import_checkpoint(copy, tmp_path / "out", quiet)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint and hint in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]  # nothing was written, and no code ran


@pytest.mark.parametrize(
    ("word", "role"), [("<begin_of_image>", "boi_token"), ("<end_of_image>", "eoi_token"), ("<｜▁pad▁｜>", "pad_token")]
)
def test_a_tokenizer_that_lacks_a_token(copy: Path, tmp_path: Path, tokenizer_files: Any, word: str, role: str) -> None:
    (copy / "processor_config.json").unlink()
    tokenizer_files(copy, special=[token for token in SPECIAL if token != word])
    with pytest.raises(UsageError, match=re.escape(f"lacks {word}, its {role}")) as caught:
        import_checkpoint(copy, tmp_path / "out", quiet)
    assert caught.value.hint and "--tokenizer DIR" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_many_names_are_counted(copy: Path, tmp_path: Path) -> None:
    tensors(lambda t: [t.pop(name) for name in list(t) if name.startswith("gen_vision_model.decoder.conv_blocks")])(copy)
    with pytest.raises(UsageError, match=r"missing: gen_vision_model\.decoder\.conv_blocks\.\S+, .* and \d+ more"):
        import_checkpoint(copy, tmp_path / "out", quiet)


def test_the_command_says_it_in_two_lines(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "config.json").unlink()
    assert call(["import", str(copy), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [f"error: {copy} has no config.json", "hint: give the folder of a complete download"]
    assert call(["import", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_nothing_is_overwritten(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    for words in (["import", str(release), str(tmp_path / "out")], ["import", "--export", str(release), str(tmp_path / "out")]):
        assert call(words) == 2
        assert "exists already and is not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine").is_file()


def test_exports_of_models_that_were_not_imported(release: Path, tiny_janus: Path, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="is not in transformers' format"):
        export_checkpoint(release, out, quiet)
    with pytest.raises(UsageError, match=r"has no released/import\.json"):
        export_checkpoint(tiny_janus, out, quiet)
    import_checkpoint(copy, tmp_path / "imported", quiet)
    tensors(lambda t: t.pop("lm_head.weight"))(tmp_path / "imported")
    with pytest.raises(UsageError, match=r"missing, or of another shape: lm_head\.weight"):
        export_checkpoint(tmp_path / "imported", out, quiet)
    assert not out.exists()


# -- disks ------------------------------------------------------------------------------------------------------------------


def test_no_room_is_reported_before_anything_is_written(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Gotr1Error, match=r"needs 0\.00 GB, and its disk has 0\.00 GB left") as caught:
        import_checkpoint(release, tmp_path / "out", quiet)
    assert caught.value.hint and "make room" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up(release: Path, tmp_path: Path) -> None:
    """Tested with a limit on file sizes: the system refuses to write in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(Gotr1Error, match="out cannot be written: ") as caught:
            import_checkpoint(release, tmp_path / "out", quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.code == 1
    assert caught.value.hint and "make room" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SafetensorError("no space left"), OSError(28, "No space left on device")])
def test_an_interrupted_import_leaves_nothing(release: Path, tmp_path: Path, error: BaseException) -> None:
    def fail(line: str) -> None:
        if line.startswith("model-00003"):
            raise error

    with pytest.raises((KeyboardInterrupt, Gotr1Error)):
        import_checkpoint(release, tmp_path / "out", fail, limit=20_000)
    assert not list(tmp_path.iterdir())


def process(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300, check=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from gotr1_janus.convert import import_checkpoint
def say(line):
    if line.startswith("model-00003"):
        os.kill(os.getpid(), signal.SIGKILL)
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), say, limit=20_000)
"""


def test_a_killed_import_leaves_nothing_that_looks_complete(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert process(KILLED, release, out).returncode == -signal.SIGKILL
    (part,) = tmp_path.iterdir()
    assert len(list(part.glob("*.safetensors"))) == 3
    assert not (part / "config.json").exists()
    assert not list(part.glob("*.index.json"))
    import_checkpoint(release, out, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


MEASURED = """
import sys
from pathlib import Path
from gotr1_janus.checkpoint import check_janus
from gotr1_janus.convert import export_checkpoint, import_checkpoint
small, large, out = map(Path, sys.argv[1:])
def megabytes(key):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 1024
import_checkpoint(small, out / "a", len, limit=1 << 23)
export_checkpoint(out / "a", out / "b", len, limit=1 << 23)
for work, there, back in ((import_checkpoint, large, out / "c"), (export_checkpoint, out / "c", out / "d")):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = megabytes("VmRSS")
    work(there, back, len, limit=1 << 23)
    print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow  # a process for each
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_one_shard_is_in_memory_at_a_time(copy: Path, release: Path, tmp_path: Path, kind: str) -> None:
    """192 MB of layers in files of 16 MB, written in shards of 8. One of each may be in memory, and room for what the allocator keeps."""
    found = load_file(copy / "model.safetensors")
    layer = {name: tensor for name, tensor in found.items() if name.startswith("language_model.model.layers.0.")}
    suffix = "safetensors" if kind == "safetensors" else "bin"
    stem = "model" if kind == "safetensors" else "pytorch_model"
    where, files = dict.fromkeys(found, f"{stem}-0.{suffix}"), {f"{stem}-0.{suffix}": found}
    for number in range(12):
        wide = {name.replace("layers.0.", f"layers.{number}."): tensor for name, tensor in layer.items()}
        for name in wide:
            if "mlp" in name:  # three of 32 x 43690 in float32
                wide[name] = torch.full((32, 43_690) if "down" in name else (43_690, 32), 0.5)
        files[f"{stem}-{number + 1}.{suffix}"] = wide
        where |= dict.fromkeys(wide, f"{stem}-{number + 1}.{suffix}")
    for file, held in files.items():
        held = {name: tensor for name, tensor in held.items() if where[name] == file}
        save_file(held, copy / file) if suffix == "safetensors" else torch.save(held, copy / file)
    (copy / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    (copy / "model.safetensors").unlink()
    done = process(MEASURED, release, copy, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert all(float(line) < 64 for line in done.stdout.split())
    assert sum(path.stat().st_size for path in (tmp_path / "out" / "d").glob("*.safetensors")) > 190e6


# -- the cache --------------------------------------------------------------------------------------------------------------


def test_a_policy_takes_a_release_and_imports_it_once(
    release: Path, tiny_janus: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = JanusOptions(model=str(release), instruction="{prompt}", attention="eager")
    sizes = JanusPolicy.preflight(options)
    assert not own_cache.exists()  # a preflight writes nothing
    policy = JanusPolicy(options)
    assert capsys.readouterr().err.startswith(f"{release} is a released checkpoint: imported once, into {own_cache}")
    assert policy.base == str(cache_entry(release))
    assert sizes == JanusPolicy.preflight(options)
    again = JanusPolicy(options)
    assert "imported" not in capsys.readouterr().err
    direct = JanusPolicy(JanusOptions(model=str(tiny_janus), instruction="{prompt}", attention="eager"))
    sampling = Sampling(max_chain_tokens=8)
    chains = []
    for made in (policy, again, direct):
        made.text, made.window = direct.text, direct.window  # the release has Janus's own template
        chains.append(made.plan([Prompt("a cat")], seeds=[3], sampling=sampling).chains[0].raw)
    assert len(set(chains)) == 1


def test_adapters_name_the_model_that_they_fit(release: Path, own_cache: Path, tmp_path: Path) -> None:
    """peft could not load them onto a model in the release's format."""
    policy = JanusPolicy(JanusOptions(model=str(release), instruction="{prompt}"))
    add_lora(policy, LoraConfig(rank=2))
    policy.save_adapter(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(cache_entry(release))


def test_a_release_in_the_hubs_local_cache(release: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(release, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    options = JanusOptions(model="owner/tiny", instruction="{prompt}")
    assert JanusPolicy.preflight(options)["image_tokens"] == 9
    assert Path(JanusPolicy(options).base).parent == own_cache / "janus"


def test_a_release_on_the_hub_is_to_be_downloaded() -> None:
    with pytest.raises(UsageError, match="imported from a folder") as caught:
        check_janus({"model_type": "multi_modality"}, "planner.model=owner/name")
    assert caught.value.hint is not None
    assert "hf download OWNER/NAME --local-dir DIR" in caught.value.hint


def test_a_release_that_has_changed_is_imported_again(copy: Path, own_cache: Path) -> None:
    first = import_once(copy)
    assert import_once(copy) == first
    tensors(lambda t: t[HEAD].add_(1))(copy)
    second = import_once(copy)
    assert second != first
    assert torch.equal(weights(second)["lm_head.weight"], weights(first)["lm_head.weight"] + 1)


def test_several_ask_at_once(release: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    original = import_checkpoint

    def counted(folder: Path, out: Path, say: Any) -> None:
        made.append(out)
        original(folder, out, say)

    monkeypatch.setattr(convert, "import_checkpoint", counted)
    threads = [threading.Thread(target=import_once, args=(release,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [cache_entry(release)]


def test_a_trained_model_goes_back_with_what_was_kept(release: Path, own_cache: Path, tmp_path: Path) -> None:
    policy = JanusPolicy(JanusOptions(model=str(release), instruction="{prompt}"))
    with torch.no_grad():
        policy.module.model.lm_head.weight.add_(1)
    policy.save(tmp_path / "trained")
    export_checkpoint(tmp_path / "trained", tmp_path / "back", quiet)
    wanted = load_file(release / "model.safetensors")
    wanted[HEAD] += 1
    assert same(weights(tmp_path / "back"), wanted)


def test_generate_with_the_preset(release: Path, own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "generate",
        "a cat",
        "--preset",
        "got-r1",
        f"planner.model={release}",
        "sampling.max_chain_tokens=8",
        "planner.instruction='{prompt}'",
    ]
    assert call([*words, "--out", str(tmp_path / "pictures")]) == 0
    printed = capsys.readouterr()
    assert "imported once" in printed.err
    assert Path(json.loads(printed.out)["image"]).is_file()
