"""Renderers of gotr1: Stable Diffusion XL and Stable Diffusion 3."""
