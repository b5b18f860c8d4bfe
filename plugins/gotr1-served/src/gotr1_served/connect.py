"""Makes a client from options, with the key from the environment, and with this process's part of what the run may ask and spend."""

from __future__ import annotations

import json
import os

from gotr1_core.errors import UsageError
from gotr1_served.client import Client, Connection
from gotr1_served.ledger import UNITS, Ledger, Prices
from gotr1_served.options import ServerOptions

CHECKED = "GOTR1_SERVED_CHECKED"
"""Environment variable with what checks before a run spent, as JSON by server and model. Processes that a check starts inherit it."""


def process_of_run() -> tuple[int, int]:
    """Returns the number of this process in its run, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def make_client(options: ServerOptions, key: str, processes: tuple[int, int] = (0, 1)) -> Client:
    """Returns a client with an account of its own.

    Args:
        options: the server, and what may be spent.
        key: the component's place in the config, for messages.
        processes: number of this process in the run, and how many there are. They share the limit of requests at once.

    Raises:
        UsageError: the environment variable with the key is not set, or cannot be sent; or there are more processes than requests at once.
    """
    process, count = processes
    if options.concurrency < count:
        message = f"{key}.concurrency={options.concurrency} cannot be shared by {count} processes"
        raise UsageError(message, hint=f"set {key}.concurrency={count} or more")
    connection = Connection(
        options.base_url,
        read_key(options, key),
        concurrency=options.concurrency // count + (process < options.concurrency % count),
        timeout=options.timeout,
        deadline=options.deadline,
        patience=options.patience,
        tries=options.tries,
    )
    budget = {unit: float(most) for unit in UNITS if (most := getattr(options, unit)) is not None}
    return Client(connection, Ledger(budget, Prices(options.price_read or 0.0, options.price_written or 0.0)), key)


def close_checked(client: Client, model: str) -> None:
    """Closes the client of a check. The run that follows counts what it spent, see `count_checks`."""
    rows, name = json.loads(os.environ.get(CHECKED, "{}")), f"{client.connection.base_url} {model}"
    row = rows.get(name, {})
    rows[name] = {unit: row.get(unit, 0.0) + amount for unit, amount in client.ledger.spent.items()}
    os.environ[CHECKED] = json.dumps(rows)
    client.close()


def count_checks(client: Client, model: str, process: int) -> None:
    """Adds what checks of the same server and model have spent to the account of a run's first process."""
    rows = json.loads(os.environ.get(CHECKED, "{}"))
    row = rows.pop(f"{client.connection.base_url} {model}", {})
    os.environ[CHECKED] = json.dumps(rows)
    for unit, amount in row.items() if process == 0 else ():
        client.ledger.spent[unit] += amount


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
