"""gotr1: reinforcement learning for planned text-to-image. Score the plan, score the picture, prove the gradients."""
