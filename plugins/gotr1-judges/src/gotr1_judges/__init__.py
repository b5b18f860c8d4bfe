"""Judges for gotr1: multimodal LLMs with rubrics, detectors, and preference models."""
