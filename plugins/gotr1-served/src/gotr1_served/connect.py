"""Makes a client from options, with the key from the environment, and keeps one for each server and account of a process."""

from __future__ import annotations

import os

from gotr1_core.errors import UsageError
from gotr1_served.client import Client, Connection
from gotr1_served.ledger import UNITS, Ledger, Prices
from gotr1_served.options import ServerOptions


def make_client(options: ServerOptions, key: str) -> Client:
    """Returns a client with an account of its own. ``key`` is the component's place in the config, for messages.

    Raises:
        UsageError: the environment variable with the key is not set, or cannot be sent.
    """
    connection = Connection(
        options.base_url,
        read_key(options, key),
        concurrency=options.concurrency,
        timeout=options.timeout,
        deadline=options.deadline,
        patience=options.patience,
        tries=options.tries,
    )
    budget = {unit: float(most) for unit in UNITS if (most := getattr(options, unit)) is not None}
    return Client(connection, Ledger(budget, Prices(options.price_read or 0.0, options.price_written or 0.0)))


def read_key(options: ServerOptions, key: str) -> str | None:
    """Returns the secret key, or None if none is needed.

    Raises:
        UsageError: its environment variable is not set, or holds something that no header can have.
    """
    name = options.key_name
    if name is None:
        return None
    secret = os.environ.get(name, "").strip()
    if not secret:
        raise UsageError(f"{key}: the environment variable {name} has no key for {options.base_url}", hint=f"export {name}=…")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise UsageError(f"{key}: the environment variable {name} holds something that is no key", hint="copy the key again")
    return secret
