"""A PostgreSQL server of our own, on a private socket, that tests may stop and start."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

PASSWORD = "not-a-secret"
SETTINGS = "-c listen_addresses= -c fsync=off -c max_connections=200 -c shared_buffers=16MB"


def find_binaries() -> Path | None:
    """Where initdb and pg_ctl are, if they are."""
    places = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


def server_user() -> str | None:
    """Who runs the server: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return None
    known = Path("/etc/passwd").read_text()
    return "postgres" if "\npostgres:" in known else "nobody"


class PostgreSQL:
    """A running server with a password, and databases in it."""

    def __init__(self, binaries: Path):
        self.binaries, self.user = binaries, server_user()
        self.folder = Path(tempfile.mkdtemp(prefix="somvq-pg-", dir="/tmp"))  # a socket's path is short
        (self.folder / "password").write_text(PASSWORD)
        self.folder.chmod(0o755)
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        auth = ["--username=somvq", "--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}"]
        self.call("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", *auth)
        self.databases = 0
        self.start()

    @property
    def url(self) -> str:
        """The server's first database."""
        return self.url_of("postgres")

    def url_of(self, database: str, *, user: str = "somvq", password: str | None = PASSWORD) -> str:
        """The URL of `database`."""
        said = f"{user}:{password}" if password is not None else user
        return f"postgresql://{said}@/{database}?host={self.folder}"

    def execute(self, statement: str) -> None:
        """Runs a statement as the server's owner."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        self.databases += 1
        self.execute(f"CREATE DATABASE test{self.databases}")
        return self.url_of(f"test{self.databases}")

    def start(self) -> None:
        """Starts the server and waits for it."""
        options = f"{SETTINGS} -c unix_socket_directories={self.folder}"
        self.call("pg_ctl", "start", "--wait", f"--log={self.folder / 'log'}", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """Stops it: `fast` ends connections and writes everything, `immediate` is a crash."""
        self.call("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def remove(self) -> None:
        """Stops it for good."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def call(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs as its user; pg_ctl's server must not keep our output open."""
        command = [str(self.binaries / program), f"--pgdata={self.folder / 'data'}", *arguments]
        with (self.folder / "calls").open("a+") as said:
            done = subprocess.run(command, user=self.user, cwd=self.folder, stdout=said, stderr=said, check=False)
            said.seek(0)
            assert done.returncode == 0, said.read()
