"""A PostgreSQL database, for workers on many machines."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from optuna.storages import get_storage
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from somvq.errors import StudyError
from somvq.settings import mask
from somvq.storages.glance import Glance
from somvq.storages.store import Store, open_database

DRIVER = "postgresql+psycopg"
ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 6}  # seconds
CONNECT = {"connect_timeout": 10, "application_name": "somvq", **ALIVE}
POOL = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 2}  # Optuna needs two connections to begin
TABLES = "tables of Optuna"  # no study's name: those have no spaces
WAIT_FOR_EVER = text(
    "SELECT set_config(name, '0', false) FROM pg_settings"
    " WHERE name IN ('lock_timeout', 'statement_timeout', 'idle_session_timeout')"
)
NOTICE_LOST_HOSTS = text(  # the server, too, within 90 s, not two hours
    "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),"
    " set_config('tcp_keepalives_count', '6', false)"
)
LOCK, UNLOCK = text("SELECT pg_advisory_lock(:key)"), text("SELECT pg_advisory_unlock(:key)")


class PostgreSQL(Store):
    """postgresql://USER@HOST/DATABASE; the password may come from PGPASSWORD or ~/.pgpass."""

    def __init__(self, url: str, *, looking: bool = False):
        super().__init__(url)
        address = rewritten(url)
        self.locks = create_engine(address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=CONNECT)
        if looking:
            self.storage = Glance(create_engine(address, poolclass=NullPool, connect_args=CONNECT))
            return
        with advisory_lock(self.locks, TABLES):  # two that make its tables at once would break them
            storage = open_database(address, **POOL, connect_args=CONNECT)
        self.storage = get_storage(storage)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """See Store; the server frees it with the connection of its own that holds it."""
        with advisory_lock(self.locks, name):
            yield


def rewritten(url: str) -> str:
    """`url` for SQLAlchemy: always psycopg 3, whichever driver its version means by postgresql://.

    Raises:
        StudyError: it is no address of a database; SQLAlchemy's own words may hold the password.
    """
    try:
        address = make_url(url).set(drivername=DRIVER)
    except (SQLAlchemyError, ValueError):
        address = None
    if address is None or not address.database:
        raise StudyError(f"storage {mask(url)} names no database; give postgresql://USER@HOST/DATABASE")
    return address.render_as_string(hide_password=False)


@contextmanager
def advisory_lock(engine: Engine, name: str) -> Iterator[None]:
    """Holds the database's lock `name`."""
    with engine.connect() as connection:
        connection.execute(WAIT_FOR_EVER)
        connection.execute(NOTICE_LOST_HOSTS)
        connection.execute(LOCK, {"key": key_of(name)})
        yield
        with suppress(SQLAlchemyError):  # a server that was restarted has freed it: what was done under it is done
            connection.execute(UNLOCK, {"key": key_of(name)})


def key_of(name: str) -> int:
    """A number of 63 bits that all processes make of `name`."""
    return int.from_bytes(hashlib.sha256(f"somvq {name}".encode()).digest()[:8], "big") >> 1
