"""Registered versions as an SQLite home holds them: read without MLflow, whose import takes seconds."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from model_code.settings import Settings


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered name.

    Attributes:
        name: Registered name.
        version: Number, as text.
        at: ISO 8601 time of its registration, UTC.
        run_id: Run that it was released from.
        tags: Tags, such as `recipe`, `bundle` and `verdict`.
        aliases: Among `champion` and `challenger`.
    """

    name: str
    version: str
    at: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


def read_registered(settings: Settings, name: str | None = None) -> tuple[RegisteredVersion, ...] | None:
    """Return the versions of one name or of all, oldest first; None where only MLflow's client can read the registry.

    That is the case with a server, and with a database of other tables than these.
    """
    file = settings.database
    if file is None:
        return None
    if not file.exists():
        return ()
    tags: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    aliases: dict[tuple[str, int], list[str]] = defaultdict(list)
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database, database:
            for key, value, *version in database.execute("SELECT key, value, name, version FROM model_version_tags"):
                tags[tuple(version)][key] = value
            for alias, *version in database.execute("SELECT alias, name, version FROM registered_model_aliases"):
                aliases[tuple(version)].append(alias)
            rows = database.execute(
                "SELECT name, version, creation_time, run_id FROM model_versions "
                "WHERE current_stage != 'Deleted_Internal' ORDER BY name, version"
            ).fetchall()
    except sqlite3.Error:
        return None
    return tuple(
        RegisteredVersion(
            name=found,
            version=str(version),
            at=format_time(created_ms),
            run_id=run_id or "",
            tags=tags[found, version],
            aliases=tuple(sorted(aliases[found, version])),
        )
        for found, version, created_ms, run_id in rows
        if name in (None, found)
    )


def format_time(time_ms: int) -> str:
    """Return a time of MLflow, ms since 1970, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
