"""Keeps rows of JSON on disk, in SQLite, for several processes: what judges said about samples. Nothing is pickled.

A folder has one file, ``scores.sqlite``. It is bounded in size: the rows that were used longest ago go first.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError

FILE = "scores.sqlite"
APPLICATION = 0x676F7431  # "got1": marks our databases, in the header of the file
LARGEST = 2**30  # bytes of a cache
WAIT = 30.0  # seconds that a process waits for another one that writes
_AT_ONCE = 500  # keys in one query
_TABLE = """
CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, judge TEXT NOT NULL, row TEXT NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS scores_used ON scores (used);
"""


def user_folder() -> Path:
    """Returns the folder of the user's own cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gotr1"


class ScoreCache:
    """The cache in a folder. It may be used from several processes and threads.

    What goes wrong while it is used never ends a run: it is said once, and then nothing is found and nothing is kept.

    Args:
        folder: is made if it is missing.
        largest: bytes that the file may have.

    Raises:
        UsageError: the folder cannot be used, or has a database of something else.
    """

    def __init__(self, folder: Path, largest: int = LARGEST) -> None:
        self.file, self.largest, self.works = folder / FILE, largest, True
        self._own = threading.local()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                try:
                    self._prepare()
                except sqlite3.DatabaseError as error:
                    if isinstance(error, sqlite3.OperationalError):
                        raise
                    self._set_aside(error)
                    self._prepare()
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UsageError(f"the cache {folder} cannot be used: {reason}", hint="choose another folder: --cache DIR, or off") from None

    def read(self, keys: Sequence[str]) -> dict[str, Any]:
        """Returns the rows that are known, by key, and notes that they were used."""
        rows: dict[str, Any] = {}
        with self._guarded() as database:
            for start in range(0, len(keys) if database else 0, _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                query = f"SELECT key, row FROM scores WHERE key IN ({','.join('?' * len(some))})"
                for key, row in database.execute(query, some):
                    with suppress(ValueError):  # somebody wrote into it
                        rows[key] = json.loads(row)
            if rows:
                now = time.time()
                database.executemany("UPDATE scores SET used = ? WHERE key = ?", [(now, key) for key in rows])
        return rows

    def write(self, rows: Mapping[str, Any], *, judge: str) -> None:
        """Keeps rows by key. ``judge`` is the name under which they are listed."""
        if not rows:
            return
        now = time.time()
        with self._guarded() as database:
            if database:
                texts = [(key, judge, json.dumps(row, allow_nan=False), now) for key, row in rows.items()]
                database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", texts)
                self._shrink(database)

    def judges(self) -> list[dict[str, Any]]:
        """Returns for each ``judge`` the number of its ``scores``, their ``bytes``, and when one was ``used`` last, in seconds."""
        query = "SELECT judge, COUNT(*), SUM(LENGTH(row)), MAX(used) FROM scores GROUP BY judge ORDER BY judge"
        return [dict(zip(("judge", "scores", "bytes", "used"), row, strict=True)) for row in self._database().execute(query)]

    def clear(self, judge: str | None = None) -> int:
        """Removes the scores of a judge, or all. Returns how many there were."""
        database = self._database()
        found = "WHERE judge = ?" if judge is not None else ""
        removed = database.execute(f"DELETE FROM scores {found}", [judge] if judge is not None else []).rowcount
        database.execute("VACUUM")
        return int(removed)

    def size(self) -> int:
        """Returns the bytes in use."""
        return self._size(self._database())

    @staticmethod
    def _size(database: sqlite3.Connection) -> int:
        pages, free, each = (
            int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * each

    def _shrink(self, database: sqlite3.Connection) -> None:
        """Removes the tenth of the rows that was used longest ago, again and again while there are too many."""
        while self._size(database) > self.largest:
            (count,) = database.execute("SELECT COUNT(*) FROM scores").fetchone()
            if not count:
                return
            oldest = "SELECT key FROM scores ORDER BY used LIMIT ?"
            database.execute(f"DELETE FROM scores WHERE key IN ({oldest})", [max(1, count // 10)])

    @contextmanager
    def _guarded(self) -> Iterator[Any]:
        """One transaction. Yields the database, or None once something went wrong with it."""
        if not self.works:
            yield None
            return
        try:
            database = self._database()
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")
        except sqlite3.Error as error:
            self.works = False
            with suppress(sqlite3.Error):
                self._database().execute("ROLLBACK")
            print(f"warning: the cache {self.file} is not used any more: {error}; judges are asked instead", file=sys.stderr)

    def _database(self) -> sqlite3.Connection:
        """Returns the connection of this thread. After a fork, a process opens its own."""
        if getattr(self._own, "process", None) != os.getpid():
            self._own.database = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None)
            self._own.database.execute("PRAGMA synchronous = NORMAL")
            self._own.process = os.getpid()
        database: sqlite3.Connection = self._own.database
        return database

    def _prepare(self) -> None:
        database = self._database()
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and (application or tables):
            raise UsageError(f"{self.file} is a database of something else", hint="choose another folder: --cache DIR, or off")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.executescript(_TABLE)
        (check,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise sqlite3.DatabaseError(check)

    def _set_aside(self, error: Exception) -> None:
        """Renames a damaged file, so that a new one can be begun."""
        with suppress(sqlite3.Error):
            self._own.database.close()
        self._own = threading.local()
        aside = self.file.with_name(f"{FILE}.damaged")
        self.file.replace(aside)
        for end in ("-wal", "-shm"):
            self.file.with_name(FILE + end).unlink(missing_ok=True)
        print(f"warning: the cache {self.file} was damaged ({error}); it is now {aside.name}, and a new one begins", file=sys.stderr)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time look at the file and make it."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
