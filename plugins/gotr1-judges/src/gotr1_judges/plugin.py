"""Registers the judges of gotr1-judges."""

from __future__ import annotations

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl

JUDGES = {
    "qwen-vl": ("rubric:QwenJudge", "QwenJudgeOptions", "Qwen2.5-VL or Qwen3-VL reads plan and picture: sem, spa, ri, pi"),
    "internvl": ("rubric:InternJudge", "InternJudgeOptions", "InternVL3 reads plan and picture: sem, spa, ri, pi"),
    "detector": ("detector:DetectorJudge", "DetectorOptions", "Grounding DINO or OWLv2 finds the planned objects: ri"),
    "hps": ("preference:HpsJudge", "HpsOptions", "HPS v2.1: how much people like the picture for the prompt"),
    "pickscore": ("preference:PickScoreJudge", "PickScoreOptions", "PickScore: how much people like the picture for the prompt"),
    "clip": ("preference:ClipJudge", "ClipOptions", "CLIPScore: how similar picture and prompt are to a CLIP"),
}


@hookimpl
def gotr1_components() -> Iterator[Component]:
    """Yields the judges of ``JUDGES``."""
    for name, (target, options, summary) in JUDGES.items():
        yield Component("judge", name, f"gotr1_judges.{target}", f"gotr1_judges.options:{options}", summary)
