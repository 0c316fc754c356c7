"""Brains known at every point of the world, and the ways in which they are stored, for tests of scans and cohorts."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort
from somvq.data.preprocess import fit

COLIN = Path(__file__).parent / "data" / "colin27_T1w.nii.gz"
COARSE = np.diag([4.0, 4.0, 4.0, 1.0])  # mm
COARSE[:3, 3] = -80, -96, -72
GRID = (40, 48, 36)


def head(affine, shape=GRID, seed=0):
    """An asymmetric brain of 1.4 litres, known at every point of the world, on the grid of `affine`."""
    x, y, z = np.einsum("ij,jabc->iabc", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    x, y, z = x / 66, y / 82, z / 62
    brightness = 700 + 150 * np.sin(3 * x + 2 * y + seed) + 120 * np.cos(4 * z - y) + 100 * x
    return brightness / (1 + np.exp(12 * (x**2 + y**2 + z**2 + 0.15 * x * y - 1)))


def brain(seed=0, affine=COARSE, shape=GRID):
    return np.rint(head(affine, shape, seed)).astype(np.int16)


def save(path, voxels, affine=COARSE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def prepare(folder, caches, **settings):
    return prepare_cohort(folder, CohortSettings(**settings), caches)


def fitted(scan, shape, **settings):
    return fit(scan, shape, CohortSettings(**settings))


def said(remarks):
    return [str(remark) for remark in remarks]


def in_file_units(cohort, row):
    entry = cohort.index.scans[row]
    return cohort.read([row])[0, 0] * entry.deviation + entry.mean


def left_behind(caches):
    names = [] if not caches.exists() else [path.name for path in caches.iterdir()]
    return [name for name in names if not name.endswith((".lock", ".digests.json"))]


def contents(cohort):
    return (cohort.folder / "volumes.npy").read_bytes(), (cohort.folder / "index.json").read_text()


def patched(path, offset, number, kind):
    """`path`, uncompressed, with a number of its header changed; the checksum of a .gz would give it away."""
    content = bytearray(path.read_bytes())
    stored = np.array(number, kind).tobytes()
    content[offset : offset + len(stored)] = stored
    path.write_bytes(content)


def pair(path, voxels=None, header=None):
    """An Analyze pair as OASIS has it: big-endian, 4-D."""
    header = header or nib.AnalyzeHeader(endianness=">")
    voxels = brain()[..., None] if voxels is None else voxels
    header.set_data_dtype(np.int16)
    header.set_data_shape(voxels.shape)
    header.set_zooms((4.0,) * 3 + (1.0,) * (voxels.ndim - 3))
    nib.AnalyzeImage(voxels, None, header).to_filename(path)
    return path


def truncated(path, keep):
    save(path, brain())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def mgz(voxels, kind=None):
    content = bytearray(nib.MGHImage(voxels, COARSE).to_bytes())
    if kind is not None:
        content[20:24] = kind.to_bytes(4, "big")
    return gzip.compress(content)


SMALL = brain()[::2, ::2, ::2].copy()


def flip(content, bit):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def mgz_bytes(voxels):
    return nib.MGHImage(voxels, COARSE).to_bytes()


def stored(path, codes):
    """The same brain with its axes in another order in the file."""
    image = nib.Nifti1Image(brain(), COARSE)
    orientation = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(orientation)
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(np.asarray(turned.dataobj), turned.affine), path)
    return path


def rotated(degrees):
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = 3 * turn @ np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine[:3, 3] = -affine[:3, :3] @ (np.array((60, 70, 60)) - 1) / 2
    return affine
