"""Readers of the user's data: one for prompts, one for supervised examples, one for chains and one for pictures.

Every command reads a kind of file with the same reader: what is understood is read, what is not is refused with its line. Not here: sources
of prompts (plugins have them), and the files that runs write (``gotr1_core.runs``, ``gotr1_core.pictures``).
Read ``rows.py`` first: it tells JSON, tables and text apart. Then ``prompts.py``, ``chains.py``, ``pictures.py``, ``examples.py``.
"""
