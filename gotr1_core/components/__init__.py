"""From a config to components: planner, renderer, judges, algorithm and prompts.

Here are the checks that run before weights are loaded, and the code that makes each component once.
The config's keys are in :mod:`gotr1_core.config`. Training itself is in :mod:`gotr1_core.loop`.
Read ``build.py`` first, then ``preflight.py``.
"""
