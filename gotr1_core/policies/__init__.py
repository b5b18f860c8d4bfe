"""What authors of policies share: code that most planners and renderers need.

Here are tokenization, the context window, padding, decoding with a cache, LoRA, and finding weights on disk or on the hub. Not here:
the policies, which are plugins, and what they must do (``gotr1_core.protocols``). Read ``decoder.py`` first, then ``tokenization.py``.
"""
