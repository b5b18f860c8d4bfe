"""Scenes for training the VQ model: any things, anywhere, also ones no prompt asks for."""

from __future__ import annotations

import random

from gotr1_scenes.world import MAX_THINGS, Scene, Thing, any_look, place


def random_scene(seed: str) -> Scene:
    """One to four things, uniform over looks; a function of ``seed`` alone."""
    rng = random.Random(seed)
    boxes = place(rng.randint(1, MAX_THINGS), rng)
    return tuple(Thing(any_look(rng), box) for box in boxes)
