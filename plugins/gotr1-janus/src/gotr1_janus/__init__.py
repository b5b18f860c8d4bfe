"""Janus as planner and renderer of gotr1."""
