"""GRPO's loss, compared with the loss of TRL's trainer on the same log-probabilities, if `trl` is installed (passes with trl 1.16.0).

TRL's ``bnpo`` is a mean over the tokens of a batch, as ours per token. Its ``grpo`` is a mean over samples of their means, as ours per
sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gotr1_core.config.models import SegmentConfig
from gotr1_core.samples import PLAN, ActionStats
from gotr1_rl.grpo import Grpo, GrpoOptions

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own

ROWS, LENGTH = 6, 5
LENGTHS = torch.tensor([5, 1, 3, 2, 5, 4])


def trainer(folder: Path, **options: Any) -> Any:
    """TRL's trainer around a very small model. Tests replace the model's outputs."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "a": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "a")), pad_token="<pad>", eos_token="<eos>", unk_token="a"
    )
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    )
    model.save_pretrained(folder / "model")  # from where TRL makes its reference
    settings = trl.GRPOConfig(
        output_dir=str(folder / "run"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=ROWS,
        num_generations=2,
        **options,
    )
    data = Dataset.from_list([{"prompt": "a"}] * 4)
    return trl.GRPOTrainer(
        str(folder / "model"), lambda completions, **_: [0.0] * len(completions), settings, data, processing_class=tokenizer
    )


def theirs(folder: Path, parts: dict[str, Tensor], mask: Tensor, settings: SegmentConfig, ratio: str) -> tuple[float, Tensor]:
    """TRL's loss, and its gradient with respect to log-probabilities."""
    made = trainer(
        folder,
        beta=settings.kl,
        use_bias_correction_kl=False,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        importance_sampling_level=ratio,
        loss_type="bnpo" if ratio == "token" else "grpo",
    )
    leaf = parts["log_prob"].clone().requires_grad_()
    made._get_per_token_logps_and_entropies = lambda *_, **__: (leaf, parts["entropy"], None)
    made.current_gradient_accumulation_steps = 1
    ids = torch.full((ROWS, LENGTH), 2)
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": torch.ones(ROWS, 1), "completion_ids": ids, "completion_mask": mask.long()}
    inputs |= {"advantages": parts["advantages"], "old_per_token_logps": parts["old"], "ref_per_token_logps": parts["reference"]}
    loss = made._compute_loss(made.model, inputs)
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_loss_is_trls(tmp_path: Path, ratio: Any, kl: float) -> None:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    log_prob = -normal(ROWS, LENGTH).abs() - 0.5
    parts = {"log_prob": log_prob, "entropy": normal(ROWS, LENGTH).abs(), "advantages": normal(ROWS)}
    parts |= {"old": log_prob + 0.4 * normal(ROWS, LENGTH), "reference": log_prob + 0.4 * normal(ROWS, LENGTH)}
    mask = torch.arange(LENGTH) < LENGTHS.unsqueeze(1)
    settings = SegmentConfig(clip_low=0.2, clip_high=0.28, kl=kl)
    leaf = log_prob.clone().requires_grad_()
    scored = ActionStats(leaf, parts["entropy"])
    loss = Grpo(GrpoOptions(ratio=ratio)).loss(
        PLAN, scored, parts["old"], parts["reference"] if kl else None, parts["advantages"], mask, settings
    )
    mine = loss.sums[PLAN] / loss.counts[PLAN]
    value, gradient = theirs(tmp_path, parts, mask, settings, ratio)
    assert mine.item() == pytest.approx(value, rel=1e-12)  # float64, some thirty terms of size one
    torch.testing.assert_close(torch.autograd.grad(mine, leaf)[0], gradient, rtol=1e-12, atol=1e-14)
    assert gradient.abs().max() > 0.01
