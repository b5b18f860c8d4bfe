"""What one does besides reinforcement learning: supervised training, generating, judging pictures, exporting.

The command line and the Python API call these functions. Options of commands and printing are in `cli`, the RL loop is at the top level.
Read generation.py first: it is the shortest path from a prompt to a picture. Stage one is in sft.py.
"""
