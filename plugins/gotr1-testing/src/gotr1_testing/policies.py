"""Lists the checks of planners and of renderers."""

from __future__ import annotations

from gotr1_testing.chance import CHANCE
from gotr1_testing.check import Check
from gotr1_testing.exports import EXPORTS
from gotr1_testing.learning import LEARNING
from gotr1_testing.log_probs import LOG_PROBS, LORA, PLANNER_ONLY, RENDERER_ONLY
from gotr1_testing.slopes import SLOPES
from gotr1_testing.subject import Subject
from gotr1_testing.whole_rollouts import WHOLE_ROLLOUTS

PLANNER: tuple[Check[Subject], ...] = (*LOG_PROBS, *PLANNER_ONLY, *WHOLE_ROLLOUTS, *CHANCE, LORA, *SLOPES, *LEARNING, *EXPORTS)
RENDERER: tuple[Check[Subject], ...] = (*LOG_PROBS, *RENDERER_ONLY, *WHOLE_ROLLOUTS, *CHANCE, LORA, *SLOPES, *LEARNING, *EXPORTS)
