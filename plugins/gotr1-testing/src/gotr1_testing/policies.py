"""Which checks a planner and a renderer pass."""

from __future__ import annotations

from gotr1_testing.chance import CHANCE
from gotr1_testing.finding import Check
from gotr1_testing.learning import LEARNING
from gotr1_testing.scoring import OF_PICTURES, OF_PLANS, SCORING, WITH_LORA
from gotr1_testing.slopes import SLOPES
from gotr1_testing.subject import Subject

PLANNER: tuple[Check[Subject], ...] = (*SCORING, *OF_PLANS, *CHANCE, WITH_LORA, *SLOPES, *LEARNING)
RENDERER: tuple[Check[Subject], ...] = (*SCORING, *OF_PICTURES, *CHANCE, WITH_LORA, *SLOPES, *LEARNING)
