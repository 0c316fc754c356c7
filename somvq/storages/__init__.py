"""Where Optuna keeps trials, by the scheme of a URL."""

from collections.abc import Callable
from pathlib import Path

from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from somvq.errors import StudyError
from somvq.settings import mask
from somvq.storages.journal import Journal
from somvq.storages.postgresql import PostgreSQL
from somvq.storages.sqlite import SQLite
from somvq.storages.store import Store, explain, is_away

__all__ = ["STORAGES", "Store", "default_url", "explain", "is_away", "open_store"]

STORAGES: dict[str, Callable[..., Store]] = {
    "sqlite": SQLite,
    "journal": Journal,
    "postgresql": PostgreSQL,
    "postgres": PostgreSQL,
    "postgresql+psycopg": PostgreSQL,
}
FORMS = "sqlite:///PATH, journal:///PATH (shared disks) or postgresql://USER@HOST/DATABASE"


def default_url(study_folder: Path) -> str:
    """The storage of a study for which none was asked: a SQLite file in its folder."""
    return f"sqlite:///{study_folder.resolve() / 'study.db'}"


def open_store(url: str, *, looking: bool = False) -> Store:
    """The storage at `url`, made where there is none yet; for who is only `looking`, opened quicker, and not made.

    Raises:
        StudyError: the URL is of no kind that is known, or nothing answers there (see is_away).
    """
    scheme = url.partition(":")[0]
    if scheme not in STORAGES or scheme == url:
        raise StudyError(f"storage {mask(url)} is not known; give {FORMS}")
    try:
        return STORAGES[scheme](url, looking=looking)
    except (SQLAlchemyError, OptunaError, OSError, RuntimeError) as error:
        raise StudyError(f"storage {mask(url)} cannot be opened: {explain(error)}") from error
