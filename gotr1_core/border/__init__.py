"""The border between the core and components: their functions are called here, and what comes back is checked, once per call.

What breaks the contract of :mod:`gotr1_core.protocols`, and what a component raises, becomes an error that names the component.
Training itself is in :mod:`gotr1_core.loop`; ``gotr1 check`` measures more than these checks, such as log-probabilities and gradients.
``discovery.py`` finds plugins and ``registration.py`` checks what they register. Read ``calls.py`` first, then
``contract.py`` and ``algorithm_calls.py``.
"""
