"""Dagster's sqlite storage with its connections kept open, for the instance on one machine.

Dagster's own makes an engine and a connection for every transaction, and whenever the last one to a
database is closed, sqlite writes its log back and syncs it: more than half of what a small step
took. The files are the same, and both storages can work on them at once. `dagster.yaml` names this
one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from dagster import AssetKey, DagsterInstance, EventLogRecord, deserialize_value
from dagster._core.events import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    EVENT_TYPE_TO_PIPELINE_RUN_STATUS,
)
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.schema import AssetKeyTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
    SqliteEventLogStorageWatchdog,
)
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from dagster._core.storage.sqlite_storage import (
    DagsterSqliteStorage,
    _event_logs_directory,
    _runs_directory,
    _schedule_directory,
)
from dagster._utils import mkdir_p
from filelock import FileLock
from sqlalchemy import bindparam, create_engine, event
from watchdog.observers import Observer

if TYPE_CHECKING:
    from dagster import EventLogEntry
    from dagster._core.event_api import EventHandlerFn
    from dagster._serdes import ConfigurableClassData
    from sqlalchemy import Connection, Engine
    from watchdog.events import FileSystemEvent

_MOST_RUNS = 16  # whose logs are kept open, of the many that a webserver looks into
_IN_INDEX = ASSET_EVENTS | ASSET_CHECK_EVENTS | EVENT_TYPE_TO_PIPELINE_RUN_STATUS.keys()
# Statements are made once, which takes longer than running them.
_INSERT_EVENT = SqlEventLogStorageTable.insert()
_INSERT_ASSET = AssetKeyTable.insert()
_UPDATE_ASSET = AssetKeyTable.update().where(AssetKeyTable.c.asset_key == bindparam("key"))


def instance_in(home: Path) -> DagsterInstance:
    """Open the instance of a Dagster home; one without a configuration gets this storage."""
    if (home / "dagster.yaml").exists():
        return DagsterInstance.from_config(str(home))
    storage = {
        "module": SqliteStorage.__module__,
        "class": SqliteStorage.__name__,
        "config": {"base_dir": str(home)},
    }
    ref = InstanceRef.from_dir(str(home), overrides={"storage": {"custom": storage}})
    return DagsterInstance.from_ref(ref)


class SqliteStorage(DagsterSqliteStorage):
    """The storage of an instance on one machine, in the files of `DagsterSqliteStorage`."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        """Open the databases below a folder, which are made if they are not there."""
        super(DagsterSqliteStorage, self).__init__()  # type: ignore[no-untyped-call]
        # Dagster hands over what a run intends to make in batches of this size, if there is one.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")
        self.base_dir = base_dir
        with _alone_in(base_dir):
            self._run_storage = _RunStorage.from_local(_runs_directory(base_dir))
            self._event_log_storage = _EventLogStorage(_event_logs_directory(base_dir))
        self._schedule_storage = _ScheduleStorage(_schedule_directory(base_dir))
        self._inst_data = inst_data

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> SqliteStorage:
        """See `dagster._serdes.ConfigurableClass`."""
        return cls.from_local(inst_data=inst_data, **config_value)


class _Database:
    """A database whose connections are kept for as long as its file is the same."""

    def __init__(self, url: str, prepare: Callable[[], None] = lambda: None) -> None:
        self._url = url
        self._path = Path(url.removeprefix("sqlite:///"))
        self._prepare = prepare
        self._engine: Engine | None = None
        self._opened: tuple[int, int] | None = None

    def begin(self) -> AbstractContextManager[Connection]:
        """Begin a transaction, which is committed with the block, or rolled back if it raises."""
        if self._engine is None or self._opened != self._identity():
            self.close()
            self._prepare()
            self._engine = _engine(self._url)
            with self._engine.connect():
                self._opened = self._identity()
        return self._engine.begin()

    def close(self) -> None:
        if self._engine is not None:
            # What a process has inherited by a fork is not its own to close.
            self._engine.dispose(close=self._opened is None or self._opened[0] == os.getpid())
        self._engine = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            return os.getpid(), self._path.stat().st_ino
        except FileNotFoundError:
            return None


def _engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
    event.listen(engine, "connect", _relax)
    return engine


def _relax(connection: sqlite3.Connection, _: object) -> None:
    """Let no commit wait for the disk: with its write-ahead log the database stays whole anyhow.

    A power cut can take the last events that were told. What they told of is in the store, which
    does wait, and the next run finds it there.
    """
    connection.execute("PRAGMA synchronous=NORMAL").close()


def _alone_in(folder: str) -> FileLock:
    """Let one process at a time make databases: two at once leave one that neither can use."""
    mkdir_p(folder)
    return FileLock(os.path.join(folder, "databases.lock"))


def _is_complete(path: str) -> bool:
    """Say whether Dagster has finished making a database: its revision is what it writes last."""
    if not os.path.exists(path):
        return False
    with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)) as connection:
        try:
            return bool(connection.execute("SELECT count(*) FROM alembic_version").fetchone()[0])
        except sqlite3.OperationalError:  # no such table
            return False


class _Facts:
    """What Dagster asks of a database before every statement, and what stays so once it is."""

    def __init__(self) -> None:
        self._found: set[tuple[str, ...]] = set()

    def holds(self, fact: tuple[str, ...], look: Callable[[], bool]) -> bool:
        if fact not in self._found and look():
            self._found.add(fact)
        return fact in self._found


class _RunStorage(SqliteRunStorage):
    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self._database = _Database(conn_string)
        self._facts = _Facts()
        self._id: str | None = None

    @classmethod
    def from_local(
        cls, base_dir: str, inst_data: ConfigurableClassData | None = None
    ) -> _RunStorage:
        if _is_complete(os.path.join(base_dir, "runs.db")):
            return cls(create_db_conn_string(base_dir, "runs"), inst_data)
        return super().from_local(base_dir, inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._database.begin() as connection:
            yield connection

    def get_run_storage_id(self) -> str:
        if self._id is None:
            self._id = super().get_run_storage_id()
        return self._id

    def has_run_stats_index_cols(self) -> bool:
        return self._facts.holds(("run stats",), super().has_run_stats_index_cols)

    def has_backfill_id_column(self) -> bool:
        return self._facts.holds(("backfill id",), super().has_backfill_id_column)

    def dispose(self) -> None:
        self._database.close()


class _ScheduleStorage(SqliteScheduleStorage):
    """A run on its own needs no schedules: their database is made when it is first asked for."""

    def __init__(self, base_dir: str) -> None:
        mkdir_p(base_dir)
        url = create_db_conn_string(base_dir, "schedules")
        super().__init__(url)
        self._database = _Database(url, lambda: self._prepare(base_dir))

    def _prepare(self, base_dir: str) -> None:
        with _alone_in(base_dir):
            if not _is_complete(os.path.join(base_dir, "schedules.db")):
                SqliteScheduleStorage.from_local(base_dir)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._database.begin() as connection:
            yield connection

    def dispose(self) -> None:
        self._database.close()


class _EventLogStorage(SqliteEventLogStorage):
    """A database for each run, and one, the index, for what is asked across runs."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._turn = RLock()
        self._databases: dict[str, _Database] = {}  # the least recently used one first
        self._begun: dict[str, Connection] = {}  # transactions of the thread whose turn it is
        self._block: ExitStack | None = None
        self._told: list[EventLogEntry] = []  # in the block, and not stored yet
        self._facts = _Facts()
        super().__init__(base_dir, inst_data)

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `mlops_assets.dagster_internals.steps.together`."""
        with self._turn, ExitStack() as block:
            if self._block is not None:
                yield
                return
            self._block = block
            try:
                yield
                self._store_told()
            finally:
                self._block, self._told = None, []

    def store_event(self, event: EventLogEntry) -> None:
        self.store_event_batch([event])

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        with self.together():
            self._told += events

    def _store_told(self) -> None:
        """Store what was told in the block so far, in a statement for each run's log.

        What Dagster asks across runs is kept in the index as well, as `SqliteEventLogStorage` does.
        """
        entries, self._told = self._told, []
        rows = [self._event_to_row(entry) for entry in entries]
        for run_id in dict.fromkeys(entry.run_id for entry in entries):
            with self._connect(run_id) as connection:
                connection.execute(_INSERT_EVENT, [row for row in rows if row["run_id"] == run_id])
        for entry, row in zip(entries, rows, strict=True):
            if entry.dagster_event_type in _IN_INDEX:
                with self._connect(INDEX_SHARD_NAME) as connection:
                    self._store_in_index(connection, entry, row)

    def _store_in_index(
        self, connection: Connection, event: EventLogEntry, row: Mapping[str, Any]
    ) -> None:
        event_id = connection.execute(_INSERT_EVENT, row).lastrowid
        if event.dagster_event_type in ASSET_EVENTS:
            self._store_asset_event_tags(connection, [event], [event_id])
            self._store_asset_event(connection, event, event_id)
        elif event.dagster_event_type in ASSET_CHECK_EVENTS:
            self.store_asset_check_event(event, event_id)

    def _store_asset_event(self, conn: Connection, event: EventLogEntry, event_id: int) -> None:
        if event.dagster_event is None or event.dagster_event.asset_key is None:
            return
        has_columns = self._has_asset_key_index_cols_on_connection(conn)
        values = self._get_asset_entry_values(event, event_id, has_columns)
        key = event.dagster_event.asset_key.to_string()
        if values and not conn.execute(_UPDATE_ASSET, {"key": key, **values}).rowcount:
            conn.execute(_INSERT_ASSET, {"asset_key": key, **values})

    def _get_latest_materialization_records(
        self, raw_asset_rows: Iterable[Any]
    ) -> Mapping[AssetKey, EventLogRecord | None]:
        found: dict[AssetKey, EventLogRecord | None] = {}
        others = []  # Dagster asks for these by a slow query, also when there are none
        for row in raw_asset_rows:
            key = AssetKey.from_db_string(row["asset_key"])
            latest = deserialize_value(row["last_materialization"] or "null")
            if key is None or row["asset_details"] or not isinstance(latest, EventLogRecord):
                others.append(row)
            else:
                found[key] = latest
        if others:
            found |= super()._get_latest_materialization_records(others)
        return found

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._turn, ExitStack() as alone:
            if self._told:
                self._store_told()
            if shard not in self._begun:
                (self._block or alone).enter_context(self._transaction(shard))
            yield self._begun[shard]

    @contextmanager
    def _transaction(self, shard: str) -> Iterator[None]:
        with self._database(shard).begin() as connection:
            self._begun[shard] = connection
            try:
                yield
            finally:
                del self._begun[shard]

    def _database(self, shard: str) -> _Database:
        database = self._databases.pop(shard, None) or _Database(
            self.conn_string_for_shard(shard), lambda: self._prepare(shard)
        )
        for other in [name for name in self._databases if name not in self._begun][:-_MOST_RUNS]:
            self._databases.pop(other).close()
        self._databases[shard] = database
        return database

    def _prepare(self, shard: str) -> None:
        path, index = self.path_for_shard(shard), self.path_for_shard(INDEX_SHARD_NAME)
        if _is_complete(path):
            return
        if shard != INDEX_SHARD_NAME and _is_complete(index):
            _copy_schema(index, path)
            return
        engine = _engine(self.conn_string_for_shard(shard))
        self._initdb(engine, for_index_shard=shard == INDEX_SHARD_NAME)
        engine.dispose()

    def has_table(self, table_name: str) -> bool:
        return self._facts.holds(("table", table_name), partial(super().has_table, table_name))

    def has_asset_key_col(self, column_name: str) -> bool:
        return self._facts.holds(
            ("column", column_name),
            partial(super().has_asset_key_col, column_name),
        )

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        return self._facts.holds(
            ("column", column_name),
            partial(super()._has_asset_key_col_on_connection, conn, column_name),
        )

    def has_secondary_index(self, name: str) -> bool:
        return self._facts.holds(("index", name), partial(super().has_secondary_index, name))

    def watch(self, run_id: str, cursor: str | None, callback: EventHandlerFn) -> None:
        observer: Any = self._obs
        if observer is None:
            observer = self._obs = Observer()  # type: ignore[assignment]
            observer.start()
        watchdog = _Watchdog(self, run_id, callback, cursor)
        watched = observer.schedule(watchdog, self._base_dir, recursive=True)
        self._watchers[run_id][callback] = (watchdog, watched)

    def dispose(self) -> None:
        super().dispose()
        with self._turn:
            for database in self._databases.values():
                database.close()
            self._databases.clear()


class _Watchdog(SqliteEventLogStorageWatchdog):
    """Looks at what a run has told also when it is in the write-ahead log only."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._patterns = [self._log_path, f"{self._log_path}-wal"]

    def on_modified(self, event: FileSystemEvent) -> None:
        self._process_log()


def _copy_schema(source: str, path: str) -> None:
    """Make the tables of one event log in another, as Dagster would but in one transaction."""
    with closing(sqlite3.connect(source, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)) as connection:
        statements = [
            sql
            for (sql,) in connection.execute(
                "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
                " ORDER BY type DESC"  # tables before indexes
            )
        ]
        [[revision]] = connection.execute("SELECT version_num FROM alembic_version")
    with closing(
        sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        connection.execute("COMMIT")
