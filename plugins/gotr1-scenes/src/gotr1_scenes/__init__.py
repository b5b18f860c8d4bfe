"""The embedded world of gotr1: prompts, painter, exact judge, benchmark and weights of miniature models."""
