"""The mechanics of training, which know nothing of planning or of pictures.

Here are optimizers, the moving average (EMA), critics, sums over processes, sharding, tensors and files. Not here: the training loop
(``gotr1_core.loop``, ``gotr1_core.update``) and runs on disk (``gotr1_core.runs``). Read ``optim.py`` first, then ``collectives.py``.
"""
