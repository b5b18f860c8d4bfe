"""The command line: one small file for each command, and what commands share.

Commands read options, call the other packages and print. Training, judging and files are done elsewhere.
A module here imports little when it is loaded; each command imports the rest when it runs, so that `gotr1 --help` is fast.
Read main.py first: it puts the commands together and prints errors. Then train.py.
"""
