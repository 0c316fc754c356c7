"""How long a cohort of 179 scans takes to prepare, and to load: `python benchmarks/cohorts.py [SCANS]`.

Three kinds of files, as labs have them: cropped NIfTI on the paper's grid (no resampling), OASIS-1's Analyze pairs, and
FreeSurfer's 256^3 .mgz brought to 1.06 mm. The brains are a few synthetic ones, each moved and rescaled into many.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from somvq.data.cohort import Cohort
from somvq.data.demo import make_demo_cohort

SCANS = int(sys.argv[1]) if len(sys.argv) > 1 else 179
Voxels = npt.NDArray[np.int16]


def brains(folder: Path) -> list[Voxels]:
    """A few whole synthetic brains at 1.06 mm."""
    make_demo_cohort(folder, subjects=4, voxel_mm=1.06)
    return [np.asarray(nib.load(path).dataobj, np.int16) for path in sorted(folder.glob("*.nii.gz"))]


def variant(made: list[Voxels], number: int) -> Voxels:
    """One of many brains that are not alike in any voxel's value."""
    voxels = np.roll(made[number % len(made)], number % 3, axis=number % 3)
    return (voxels * (1 + 0.001 * number)).astype(np.int16)


def write_nifti(folder: Path, voxels: Voxels, number: int) -> None:
    affine = np.diag([1.06, 1.06, 1.06, 1])
    nib.save(nib.Nifti1Image(voxels, affine), folder / f"sub-{number:03d}_T1w.nii.gz")


def write_oasis(folder: Path, voxels: Voxels, number: int) -> None:
    session = folder / f"disc{number % 12 + 1}" / f"OAS1_{number:04d}_MR1" / "PROCESSED" / "MPRAGE" / "T88_111"
    session.mkdir(parents=True)
    header = nib.AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_data_shape((176, 208, 176, 1))
    whole = np.zeros((176, 208, 176, 1), ">i2")
    whole[19:156, 16:192, 19:156, 0] = voxels
    image = nib.AnalyzeImage(whole, None, header)
    image.to_filename(session / f"OAS1_{number:04d}_MR1_mpr_n4_anon_111_t88_masked_gfc.img")


def write_freesurfer(folder: Path, voxels: Voxels, number: int) -> None:
    mri = folder / f"sub-{number:03d}" / "mri"
    mri.mkdir(parents=True)
    whole = np.zeros((256, 256, 256), np.uint8)
    inside = np.clip(voxels / (np.percentile(voxels, 99.5) / 255), 0, 255).astype(np.uint8)
    whole[60:197, 60:197, 40:216] = inside[::-1, ::-1].transpose(0, 2, 1)[:, ::-1]
    affine = np.array([[-1, 0, 0, 128], [0, 0, 1, -128], [0, -1, 0, 128], [0, 0, 0, 1]])
    nib.save(nib.MGHImage(whole, affine), mri / "norm.mgz")


KINDS: dict[str, tuple[Callable[[Path, Voxels, int], None], list[str]]] = {
    "NIfTI 137x176x137, cropped": (write_nifti, []),
    "OASIS-1 Analyze 176x208x176": (write_oasis, []),
    "FreeSurfer .mgz 256^3 to 1.06 mm": (write_freesurfer, ["--voxel-mm", "1.06"]),
}


def timed(command: list[str], place: Path) -> tuple[float, float]:
    """Seconds of a command, and the peak memory in MB of its largest process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def write_scans(name: str, brains_in: Path, folder: Path) -> None:
    made = brains(brains_in)
    for number in range(SCANS):
        KINDS[name][0](folder, variant(made, number), number + 1)


def load(folder: Path, seconds: "multiprocessing.Queue[float]") -> None:
    began = time.perf_counter()
    cohort = Cohort(folder)
    for row in range(SCANS):
        cohort.read([row])
    seconds.put(time.perf_counter() - began)


def apart(work: Callable[..., None], *words: object) -> None:
    """`work` in a process of its own: a command that is started counts the memory of who starts it as its own."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=words)
    process.start()
    process.join()
    assert process.exitcode == 0


def measure(name: str, brains_in: Path, place: Path) -> list[str]:
    """One row of the table."""
    options = KINDS[name][1]
    folder = place / "lab"
    folder.mkdir()
    apart(write_scans, name, brains_in, folder)
    command = [sys.executable, "-m", "somvq", "cohort", "prepare", "lab", "--shape", "144x176x144", *options]
    prepared, memory = timed(command, place)
    again, _ = timed(command, place)
    [index] = (place / "cohorts" / "prepared").glob("*/index.json")
    seconds = multiprocessing.get_context("spawn").Queue()
    apart(load, index.parent, seconds)
    loaded = seconds.get()
    return [name, f"{prepared:.1f}", f"{1000 * prepared / SCANS:.0f}", f"{memory:.0f}", f"{again:.1f}", f"{loaded:.2f}"]


def main() -> None:
    table = Table(title=f"{SCANS} scans to 144x176x144 on {len(os.sched_getaffinity(0))} cores")
    for heading in (
        "scans",
        "prepare s",
        "ms a scan",
        "peak MB of a process",
        "found again s",
        "load all as float32 s",
    ):
        table.add_column(heading)
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(KINDS):
            place = Path(scratch) / str(number)
            place.mkdir()
            table.add_row(*measure(name, Path(scratch) / "brains", place))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
