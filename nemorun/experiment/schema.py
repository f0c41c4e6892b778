"""The store's tables, as a list of migrations that only ever grows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from nemorun.errors import StoreError

#: Each migration is a list of statements; `PRAGMA user_version` counts those that were run.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE experiments (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            folder TEXT NOT NULL,
            created_at REAL NOT NULL
        )""",
        "CREATE INDEX experiments_name ON experiments (name)",
        """CREATE TABLE tasks (
            experiment TEXT NOT NULL REFERENCES experiments (id),
            position INTEGER NOT NULL,
            name TEXT NOT NULL,
            run_dir TEXT NOT NULL,
            executor TEXT NOT NULL,
            handle TEXT,
            state TEXT NOT NULL DEFAULT 'PENDING',
            reason TEXT NOT NULL DEFAULT '',
            message TEXT NOT NULL DEFAULT '',
            exit_code INTEGER,
            attempt INTEGER NOT NULL DEFAULT 0,
            started_at REAL,
            ended_at REAL,
            PRIMARY KEY (experiment, name)
        )""",
    ),
)


def migrate(db: sqlite3.Connection, fill: Callable[[sqlite3.Connection], None] = lambda db: None) -> None:
    """Bring the tables up to date, safe while others do the same; `fill` is called for new ones.

    Raises StoreError for a newer store.
    """
    if (version := _version(db)) == len(MIGRATIONS):
        return
    if version == 0:
        db.execute("PRAGMA journal_mode = WAL")  # kept in the file from here on
    db.execute("BEGIN IMMEDIATE")
    version = _version(db)
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the experiment store was written by a newer nemorun (schema {version}; this one knows "
            f"{len(MIGRATIONS)}): upgrade with `pip install --upgrade nemorun`, or set another NEMORUN_HOME"
        )
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            db.execute(statement)
    if version == 0:
        fill(db)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
