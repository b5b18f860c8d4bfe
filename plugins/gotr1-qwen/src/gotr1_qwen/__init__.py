"""Planners of gotr1: Qwen-VL and Qwen, and one that reads chains from a file."""
