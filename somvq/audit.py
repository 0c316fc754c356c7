"""What made a run: command, code, versions, machine, device. Kept in its config.json, and nowhere else."""

import hashlib
import os
import platform
import shlex
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryFile

from pydantic import BaseModel, ConfigDict, Field

from somvq.files import write_whole
from somvq.processes import usable_cores

COMMAND = "_SOMVQ_COMMAND"  # tells workers what the user typed; SOMVQ_* are settings
PACKAGES = ("somvq", "torch", "optuna", "wandb", "numpy", "nibabel", "scikit-learn", "scikit-image")
SLURM = ("CLUSTER_NAME", "JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "STEP_ID", "PROCID", "RESTART_COUNT")
THREADING = ("OMP_", "MKL_", "KMP_", "OPENBLAS_", "GOMP_")
GIT_S = 2.0  # seconds; a disk that is slower holds up no run
PATCH_BYTES = 1_000_000  # the largest patch that is kept
UNTRACKED = 100  # files that are named


class Fact(BaseModel):
    """A part of an audit; one that a later version wrote can be read too."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Checkout(Fact):
    """A git checkout as it stood."""

    folder: str
    sha: str
    dirty: bool | None  # none: git took too long to say
    diff_sha256: str = ""  # of its uncommitted changes to files that git tracks
    untracked: tuple[str, ...] = ()
    patch: bytes = Field(b"", exclude=True, repr=False)  # those changes, kept beside config.json


class Device(Fact):
    """What computed, and what decides how it rounds."""

    name: str
    capability: str  # of a GPU its compute capability, of a CPU its instruction set
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    threads: int
    settings: dict[str, str] = {}  # OMP_* and the like
    flags: dict[str, str] = {}  # torch's, on determinism and precision


class Audit(Fact):
    """What a run was begun with."""

    command: str  # as typed; passwords masked
    cwd: str
    host: str
    git: dict[str, Checkout] = {}  # source: somvq's, where it is run from a checkout; folder: cwd's, where another
    versions: dict[str, str]
    platform: dict[str, str]
    slurm: dict[str, str] = {}

    def keep_patches(self, folder: Path) -> None:
        """Writes uncommitted changes into `folder`, as source.patch and folder.patch."""
        for name, checkout in self.git.items():
            if checkout.patch:
                write_whole(folder / f"{name}.patch", methodcaller("write", checkout.patch))


@cache
def read_audit() -> Audit:
    """What this process begins runs with; read once."""
    return Audit(
        command=os.environ.get(COMMAND) or typed_command(),
        cwd=working_folder(),
        host=socket.gethostname(),
        git=read_checkouts(Path(__file__), working_folder()),
        versions=read_versions(),
        platform=read_platform(),
        slurm={f"SLURM_{name}": found for name in SLURM if (found := os.environ.get(f"SLURM_{name}"))},
    )


def typed_command() -> str:
    """The command line of this process as a shell reads it, passwords masked."""
    from somvq.settings import mask  # attempts, which have no command to tell, need no settings

    program = Path(sys.argv[0])
    begun_by = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*begun_by, *map(mask, sys.argv[1:])])


def working_folder() -> str:
    """Where this process stands; empty if that was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def read_checkouts(source: Path, folder: str) -> dict[str, Checkout]:
    """The checkouts that the file `source` is tracked in, and that `folder` is in."""
    tracked = ask_git(str(source.parent), "ls-files", "--error-unmatch", source.name) is not None
    ours = read_checkout(str(source.parent)) if tracked else None  # not tracked: installed below someone's checkout
    theirs = read_checkout(folder) if folder else None
    found = {"source": ours, "folder": theirs if theirs and not (ours and ours.folder == theirs.folder) else None}
    return {name: checkout for name, checkout in found.items() if checkout}


def read_checkout(folder: str) -> Checkout | None:
    """The git checkout around `folder`; none if there is none, or no git, or git refuses."""
    named = ask_git(folder, "rev-parse", "--show-toplevel", "HEAD")
    if named is None:
        return None
    top, sha = os.fsdecode(named).rstrip("\n").rsplit("\n", 1)
    status = ask_git(top, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal")
    if status is None:
        return Checkout(folder=top, sha=sha, dirty=None)
    entries = status.decode(errors="replace").split("\0")[:-1]
    untracked = [entry[3:] for entry in entries if entry.startswith("??")]
    dirty = len(entries) > len(untracked)
    plain = ("--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-relative")
    prefixes = ("--src-prefix=a/", "--dst-prefix=b/")  # whatever the user's are, so that `git apply` reads it
    diff = ask_git(top, "diff", *plain, *prefixes, "HEAD") if dirty else None
    return Checkout(
        folder=top,
        sha=sha,
        dirty=dirty,
        diff_sha256=hashlib.sha256(diff).hexdigest() if diff else "",
        untracked=tuple(untracked[:UNTRACKED]),
        patch=hide_passwords(diff) if diff and len(diff) <= PATCH_BYTES else b"",
    )


def hide_passwords(diff: bytes) -> bytes:
    """`diff`, whose lines may be of a somvq.yaml that has a database's password."""
    from somvq.settings import mask

    return mask(diff.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def ask_git(folder: str, *words: str) -> bytes | None:
    """What git answers; none if it fails, is not there or takes too long. It changes nothing and asks nobody."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's, say
    command = ["git", "-C", folder, "--no-optional-locks", "-c", "core.fsmonitor=false", *words]
    try:
        with TemporaryFile() as answer:  # no pipe, which something that git started could hold open
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                env={**own, "GIT_TERMINAL_PROMPT": "0"},
                timeout=GIT_S,
                check=False,
            )
            answer.seek(0)
            return answer.read() if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def read_versions() -> dict[str, str]:
    """The versions of what decides numbers, and a hash of all that is installed."""
    found = {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}
    every = sorted({f"{package.name}=={package.version}" for package in distributions()})
    return {**found, "all": hashlib.sha256("\n".join(every).encode()).hexdigest()[:16]}


def installed(package: str) -> str:
    """The version of `package`; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read_platform() -> dict[str, str]:
    """The operating system, the processor and how many of its cores this process may use."""
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux
        system = platform.platform()
    return {"os": system, "kernel": platform.release(), "cpu": cpu_name(), "cores": str(usable_cores())}


def cpu_name() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def read_device() -> Device:
    """What torch computes on in this process."""
    import torch

    common = {
        "threads": torch.get_num_threads(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(THREADING)},
        "flags": {
            "deterministic": str(torch.are_deterministic_algorithms_enabled()),
            "cudnn_deterministic": str(torch.backends.cudnn.deterministic),
            "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
            "float32_matmul": torch.get_float32_matmul_precision(),
        },
    }
    if not torch.cuda.is_available():
        return Device(name=cpu_name(), capability=torch.backends.cpu.get_cpu_capability(), **common)
    return Device(
        name=torch.cuda.get_device_name(),
        capability=".".join(map(str, torch.cuda.get_device_capability())),
        driver=nvidia_driver(),
        cuda=torch.version.cuda or "",
        cudnn=str(torch.backends.cudnn.version() or ""),
        **common,
    )


def nvidia_driver() -> str:
    """The version of NVIDIA's driver; empty where its file does not say."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")
