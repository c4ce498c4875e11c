"""What the steps' folders say, in one SQLite file: states and numbers of many steps without opening all their files.

The folders are the truth. Every opening compares the file with them (a `stat` a folder) and reads what is new; where
the file is gone, broken or of another version it is made again from the folders. Nothing in it is secret.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palimpsest.records import Record
from palimpsest.study.store import Store

NAME = "index.sqlite"
VERSION = "1"
TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE steps (
    folder TEXT PRIMARY KEY, stamp TEXT NOT NULL, id TEXT, kind TEXT, name TEXT, method TEXT, seed INTEGER,
    status TEXT NOT NULL, error TEXT, seconds REAL, finished TEXT, body TEXT NOT NULL
);
CREATE TABLE records (
    folder TEXT NOT NULL, number INTEGER NOT NULL, measure TEXT, prompt_form TEXT, task TEXT,
    value REAL, count INTEGER, n INTEGER, body TEXT NOT NULL, PRIMARY KEY (folder, number)
) WITHOUT ROWID;
"""
WAIT_SECONDS = 10.0  # for another process that is writing


class Index:
    """Reads like a `Store`, from one file. Open it with `of`, which brings it up to date."""

    def __init__(self, store: Store, file: sqlite3.Connection) -> None:
        self.store, self.file = store, file
        self.stamps: dict[str, str] = {}

    @classmethod
    def of(cls, store: Store, say: Callable[[str], None] = lambda line: None) -> Index:
        """The index of a study's folder, up to date. say: gets one line where it had to be made again, and why."""
        path = store.folder / NAME
        missing = not path.exists()
        try:
            return cls._opened(store, str(path), missing, say)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "readonly" in str(error)):
                return cls._opened(store, ":memory:", True, lambda line: None)
            say(f"{NAME} could not be read ({error}); made again from the steps' folders")
        except OSError:
            return cls._opened(store, ":memory:", True, lambda line: None)
        for suffix in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return cls._opened(store, str(path), True, lambda line: None)

    @classmethod
    def _opened(cls, store: Store, path: str, new: bool, say: Callable[[str], None]) -> Index:
        file = sqlite3.connect(path, timeout=WAIT_SECONDS)
        try:
            file.execute("PRAGMA synchronous = OFF")  # what a power cut breaks is made again
            version = None
            if file.execute("SELECT count(*) FROM sqlite_master WHERE name = 'about'").fetchone()[0]:
                found = file.execute("SELECT value FROM about WHERE name = 'version'").fetchone()
                version = found[0] if found else None
            if version != VERSION:
                if version is not None or not new:
                    say(f"{NAME} is of another version; made again from the steps' folders")
                elif any(_folders(store)):
                    say(f"{NAME} is not there; made from the steps' folders")
                for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    file.execute(f'DROP TABLE "{name}"')
                file.executescript(TABLES)
                file.execute("INSERT INTO about VALUES ('version', ?)", (VERSION,))
            made = cls(store, file)
            file.execute("SELECT 1 FROM records LIMIT 1")
            made.refresh()
            return made
        except BaseException:
            file.close()
            raise

    def refresh(self) -> None:
        """Read what is new in the folders, and forget what is gone."""
        self.stamps = dict(self.file.execute("SELECT folder, stamp FROM steps"))
        found = _folders(self.store)
        with self.file:
            for folder in self.stamps.keys() - found.keys():
                self._remove(folder)
            for folder, stamp in found.items():
                if self.stamps.get(folder) != stamp:
                    self._read(folder, stamp)

    def note(self, step: str) -> None:
        """Take in one step that has just ended. Where the file breaks meanwhile, go on without one."""
        try:
            self._note(step)
        except sqlite3.Error:
            self.file.close()
            self.file = sqlite3.connect(":memory:")
            self.file.executescript(TABLES)
            self.refresh()

    def _note(self, step: str) -> None:
        folder = step[:16]
        stamp = _stamp(self.store.path(step) / "record.json")
        with self.file:
            if stamp is None:
                self._remove(folder)
            elif self.stamps.get(folder) != stamp:
                self._read(folder, stamp)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    # -- reading, as a store does --------------------------------------------------------------------

    def record(self, step: str) -> dict[str, Any] | None:
        """record.json of a step, or None where it has not run to an end."""
        found = self.file.execute("SELECT body FROM steps WHERE folder = ?", (step[:16],)).fetchone()
        return dict(json.loads(found[0])) if found else None

    def state(self, step: str) -> str:
        """`done`, `failed` or `open`."""
        found = self.file.execute("SELECT status FROM steps WHERE folder = ?", (step[:16],)).fetchone()
        return str(found[0]) if found else "open"

    def states(self) -> dict[str, str]:
        """State of every step that has ended, by the name of its folder."""
        return dict(self.file.execute("SELECT folder, status FROM steps"))

    def errors(self) -> dict[str, str]:
        """Error of every step that failed, by the name of its folder."""
        return dict(self.file.execute("SELECT folder, coalesce(error, '') FROM steps WHERE status = 'failed'"))

    def seconds(self) -> list[tuple[str, str, float]]:
        """(kind, method, seconds) of every finished step."""
        return self.file.execute(
            "SELECT kind, method, seconds FROM steps WHERE status = 'done' AND seconds IS NOT NULL"
        ).fetchall()

    def bodies(self) -> list[dict[str, Any]]:
        """record.json of every step that has ended."""
        return [dict(json.loads(body)) for (body,) in self.file.execute("SELECT body FROM steps")]

    def step_records(self, step: str) -> list[Record]:
        """The numbers of a step, before they have a place."""
        rows = self.file.execute("SELECT body FROM records WHERE folder = ? ORDER BY number", (step[:16],))
        return [Record.from_json(json.loads(body)) for (body,) in rows]

    # -- writing -------------------------------------------------------------------------------------

    def _remove(self, folder: str) -> None:
        self.file.execute("DELETE FROM steps WHERE folder = ?", (folder,))
        self.file.execute("DELETE FROM records WHERE folder = ?", (folder,))
        self.stamps.pop(folder, None)

    def _read(self, folder: str, stamp: str) -> None:
        self._remove(folder)
        body = self.store.record(folder)
        if body is None:  # no record of ours: the step is open
            return
        values = [body.get(name) for name in ("id", "kind", "name", "method", "seed")]
        ends = [body.get(name) for name in ("status", "error", "seconds", "finished")]
        row = (folder, stamp, *values, *ends, json.dumps(body, ensure_ascii=False))
        self.file.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.file.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (folder, n, r.measure, r.prompt_form, r.task, r.value, r.count, r.n, _text(r))
                for n, r in enumerate(self.store.step_records(folder))
            ],
        )
        self.stamps[folder] = stamp


def _text(record: Record) -> str:
    return json.dumps(record.to_json(), ensure_ascii=False)


def _folders(store: Store) -> dict[str, str]:
    """Every step's folder that holds a record, with the stamp of that."""
    steps = store.folder / "steps"
    if not steps.is_dir():
        return {}
    stamps = {e.name: _stamp(Path(e.path) / "record.json") for e in os.scandir(steps) if not e.name.startswith(".")}
    return {name: stamp for name, stamp in stamps.items() if stamp is not None}


def _stamp(path: Path) -> str | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
