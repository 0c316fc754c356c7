"""What can go wrong that a user can mend: each is printed as one line, without a traceback."""


class SomvqError(Exception):
    """A request that cannot be carried out: names the thing, its value, what is allowed and what to type."""

    exit_status = 2


class DefinitionError(SomvqError):
    """A sweep file, a job file or a setting that does not say anything possible."""


class DataError(SomvqError):
    """A scan or a cohort that cannot be used."""


class NotNow(DataError):
    """A scan that may be readable another time: its disk was away, or memory ran out."""


class StudyError(SomvqError):
    """A study that cannot be made, found or gone on with as asked."""


class RunError(SomvqError):
    """A run that failed on the way."""

    exit_status = 1
