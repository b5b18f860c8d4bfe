"""The recipe of the small SDXL, cut short: every stage runs, resumes where it stopped, and gives the next stage what it needs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from gotr1_core.chain import Chain, Region, parse
from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.annotate import annotated
from gotr1_scenes.painter import paint, paint_array
from gotr1_scenes_recipe import check_sdxl, sdxl, vae
from gotr1_scenes_recipe.pictures import random_scene

SCENE = annotated("train", 0, 0, clean=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return sdxl.make_tokenizer(2000)


def test_the_worlds_words_are_tokens(tokenizer: Any) -> None:
    for index in range(300):
        made = annotated("validation", 0, index)
        for text in (made.phrase.text, made.chain.without_boxes()):
            words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())
            assert len(tokenizer(text, add_special_tokens=False).input_ids) == len(words)
        for region in made.chain.regions:
            assert len(tokenizer(region.phrase).input_ids) <= sdxl.LENGTH


def test_no_letter_ends_a_text(tokenizer: Any) -> None:
    ids = tokenizer("Ünïcode 猫! z\n9", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.bos_token_id not in ids
    assert max(ids) < len(tokenizer) < 2000


def test_all_of_it_is_small() -> None:
    pipeline = sdxl.make_pipeline(vae.make_vae(), 0)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < 0.9 * sdxl.LIMIT  # float16; the logs come on top
    assert pipeline.vae_scale_factor == 8
    assert pipeline.unet.config.sample_size * 8 == vae.SIDE


def test_latents_become_standard_and_pictures_stay() -> None:
    torch.manual_seed(0)
    model = vae.make_vae().eval()
    pictures = np.stack([paint_array(random_scene(f"x/{i}"), vae.SIDE) for i in range(4)])
    before = vae.rebuild(model, pictures)
    with torch.no_grad():
        spread = model.encode(vae.pixels_of(pictures)).latent_dist.std
    vae.normalise(model, 40)
    assert np.abs(vae.rebuild(model, pictures).astype(int) - before.astype(int)).max() <= 1  # rounding of float32
    fresh = np.stack([paint_array(random_scene(f"vae/scale/{i}"), vae.SIDE) for i in range(40)])
    with torch.no_grad():
        posterior = model.encode(vae.pixels_of(fresh)).latent_dist
    latents = posterior.mode()
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-4
    with torch.no_grad():
        now = model.encode(vae.pixels_of(pictures)).latent_dist.std
    ratio = now / spread  # by channel, one number
    assert (ratio / ratio[:1, :, :1, :1] - 1).abs().max() < 1e-3


def test_a_stopped_vae_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop does not change the result."""
    monkeypatch.setattr(vae, "EVERY", 1)
    monkeypatch.setattr(vae, "read_right", lambda model, count: 0.0)
    vae.train(tmp_path / "whole", steps=3, size=2)
    honest, calls = vae.update, iter(range(9))

    def stops(*arguments: Any) -> dict[str, float]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(vae, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        vae.train(tmp_path / "cut", steps=3, size=2)
    vae.train(tmp_path / "cut", steps=3, size=2)
    one, other = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [json.loads(line)["step"] for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert rows == [0, 2]


def test_boxes_change_places() -> None:
    chain = Chain.of(["a ", Region("red cat", (0, 0, 1, 2)), " and ", Region("dog", (3, 3, 9, 9)), "."])
    other = check_sdxl.swapped(chain)
    assert [(r.phrase, r.box) for r in other.regions] == [("red cat", (3, 3, 9, 9)), ("dog", (0, 0, 1, 2))]
    assert other.without_boxes() == chain.without_boxes()
    twins = parse(Chain.of([Region("cat", (0, 0, 1, 2)), Region("cat", (3, 3, 9, 9))]).raw)
    assert [r.box for r in check_sdxl.swapped(twins).regions] == [(3, 3, 9, 9), (0, 0, 1, 2)]


def test_a_painted_scene_follows_its_plan_and_not_another() -> None:
    picture = paint(SCENE.scene, vae.SIDE)
    made = Sample(Prompt(SCENE.phrase.text, metadata=SCENE.phrase.wish.as_metadata()), SCENE.chain, picture)
    assert check_sdxl.follows(made)
    if len(SCENE.chain.regions) == 2:
        assert not check_sdxl.follows(replace(made, chain=check_sdxl.swapped(SCENE.chain)))
    assert not check_sdxl.follows(replace(made, image=paint((), vae.SIDE)))


def test_one_command_makes_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path), "--vae-steps", "1", "batch=2", "micro_batch=2", "save_every=1", "sort_window=1", "optimizer.warmup=1"]
    for steps in (1, 2):  # the second time it goes on
        monkeypatch.setattr(sys, "argv", ["sdxl", *words, f"steps={steps}"])
        sdxl.main()
    shipped = tmp_path / "shipped"
    assert {"unet", "vae", "text_encoder", "text_encoder_2", "model_index.json", "log-vae.jsonl", "log-sft.jsonl"} <= {
        path.name for path in shipped.iterdir()
    }
    rows = [json.loads(line) for line in (shipped / "log-sft.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 1
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) < sdxl.LIMIT
    capsys.readouterr()
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["check", "--model", str(shipped), "--count", "6", "--steps", "2", "--pictures", str(sheet)])
    monkeypatch.setattr(check_sdxl, "reconstructions", lambda policy: [1.0])  # of 500: the least of it
    check_sdxl.main()
    told = capsys.readouterr().out
    assert "pictures right, plan right" in told
    assert "boxes exchanged" in told
    assert sheet.is_file()
