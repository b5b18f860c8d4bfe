"""Random scenes for training the VQ model and the VAE: any things at any place, also those that no prompt asks for."""

from __future__ import annotations

import random

from gotr1_scenes.world import MAX_THINGS, Scene, Thing, place_boxes, random_look


def random_scene(seed: str) -> Scene:
    """Returns a scene of one to four things, uniform over looks. It depends on ``seed`` alone."""
    rng = random.Random(seed)
    boxes = place_boxes(rng.randint(1, MAX_THINGS), rng)
    return tuple(Thing(random_look(rng), box) for box in boxes)
