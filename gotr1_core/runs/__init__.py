"""A run on disk: its folder, its checkpoints, and what listeners hear about it.

Here a run starts, resumes and is restored. Here are its records, its report and the experiment trackers.
The training loop is not here: :mod:`gotr1_core.loop` calls back through its ``Recorder`` protocol.
Read ``start.py`` first.
"""
