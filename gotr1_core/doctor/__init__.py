"""The doctor: is this installation fit to train, and is this run healthy?

It reads metrics and examines the machine. It changes nothing: whether a run stops is decided in `runs`, and printing is in `cli`.
Read rules.py first: every rule with its limit and its hint. How a rule measures is in measures.py, checks of an installation
are in environment.py. `docs/doctor.md` explains each limit.
"""
