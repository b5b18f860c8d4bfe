"""Pictures: chains drawn as boxes with labels, and samples written to files and read back.

How policies render pictures is not here but in the plugins; the grammar of chains is the module `gotr1_core.chain`.
Read draw_chain.py first: it draws what spatial judges look at. The files of samples are in sample_files.py.
"""
