"""What a user may ask for: the keys of a config, and how a config is put together.

Here are the pydantic models, the merging of presets, files and ``KEY=VALUE`` words, and the error messages about wrong keys.
Nothing here makes components or loads plugins: :mod:`gotr1_core.components` does.
Read ``models.py`` first: it lists every key with its default.
"""
