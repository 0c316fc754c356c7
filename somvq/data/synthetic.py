"""Synthetic T1 brains, made by warping one average brain and scanning it with random settings.

For trying somvq without data, ranking models and measuring codebook use. Every brain has the gyri of the same average
(ICBM152), moved and refolded: nothing measured on it says anything about real anatomy.
"""

# Shapes: X Y Z voxels of the grid, K L M voxels of the warp grid, N voxels inside the brain.
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]

FIELD_OF_VIEW_MM = (145.22, 186.56, 145.22)  # 137 x 176 x 137 voxels of 1.06 mm: cuts 0.2 % of the average brain
CENTRE_MM = (0.0, -17.0, 10.6)  # of the field of view, in MNI space
WARP_VOXEL_MM = 3.0  # displacements are made on this grid whatever the scan's, so that its anatomy is the same
SQUARINGS = 6  # 64 small steps make one displacement


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How brains and scanners differ: standard deviations of normal factors, or what the comment says."""

    age_years: tuple[float, float] = (18, 90)  # lowest and highest
    atrophy: float = 0.35  # around (age - 50) / 40
    warp_mm: tuple[tuple[float, float], ...] = ((60, 1.4), (30, 1.0), (14, 0.8), (8, 0.5))  # (correlation length, sd)
    ventricle_pull_mm2: float = 114  # one unit of atrophy moves a wall by this times the ventricle map's slope per mm
    icv: float = 0.010  # relative length
    stretch: float = 0.005  # relative length, each axis
    rotation_degrees: float = 1.0  # each axis
    shift_mm: float = 0.7  # each axis
    sulci: float = 5.0  # log-odds of CSF against GM at the bottom of a sulcus; not drawn
    gyri: float = 2.0  # log-odds of WM against GM in the core of a gyrus; not drawn
    sulcal_atrophy: float = 0.5  # log-odds of CSF against GM for one unit of atrophy; not drawn
    csf_wm: tuple[float, float] = (0.28, 0.05)  # mean and sd of the CSF brightness, WM being 1
    gm_wm: tuple[float, float] = (0.68, 0.04)  # mean and sd of the GM brightness, WM being 1
    texture: float = 0.03  # relative brightness
    gamma: float = 0.06  # log
    bias: float = 0.06  # log brightness
    noise: tuple[float, float] = (0.012, 0.030)  # relative to WM in voxels of 1.06 mm, lowest and highest
    blur_mm: tuple[float, float] = (0.40, 0.75)  # sd of the point spread, lowest and highest
    gain: tuple[float, float] = (6.8, 0.35)  # mean and sd of the log of the WM value


RANGES = Ranges()


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What makes one subject: the known causes of its image, written to the manifest. Units as in `Ranges`."""

    age: float
    atrophy: float
    icv: float
    gm_wm: float
    csf_wm: float
    noise: float
    gain: float  # the value of WM
    seed: int

    @classmethod
    def draw(cls, cohort_seed: int, index: int) -> Factors:
        """The factors of subject `index` (from 0), whatever the number of subjects."""
        seed = int(np.random.SeedSequence((cohort_seed, index)).generate_state(1)[0])
        random = np.random.default_rng(seed)
        age = random.uniform(*RANGES.age_years)
        return cls(
            age=round(age, 1),
            atrophy=round(random.normal((age - 50) / 40, RANGES.atrophy), 3),
            icv=round(random.normal(1, RANGES.icv), 4),
            gm_wm=round(float(np.clip(random.normal(*RANGES.gm_wm), 0.5, 0.88)), 3),
            csf_wm=round(float(np.clip(random.normal(*RANGES.csf_wm), 0.12, 0.5)), 3),
            noise=round(random.uniform(*RANGES.noise), 4),
            gain=round(random.lognormal(*RANGES.gain), 1),
            seed=seed,
        )


@dataclass(frozen=True)
class Grid:
    """Cubic voxels that cover the field of view, axes to the right, front and top."""

    voxel_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        x, y, z = (int(np.ceil(length / self.voxel_mm - 1e-6)) for length in FIELD_OF_VIEW_MM)
        return x, y, z

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """From voxels to MNI mm: (4, 4)."""
        affine = np.diag([self.voxel_mm, self.voxel_mm, self.voxel_mm, 1.0])
        affine[:3, 3] = np.array(CENTRE_MM) - self.voxel_mm * (np.array(self.shape) - 1) / 2
        return affine

    def axes_mm(self) -> list[Floats]:
        """Voxel centres along each axis, in mm from the centre: (X,), (Y,), (Z,)."""
        return [(self.voxel_mm * (np.arange(n) - (n - 1) / 2)).astype(np.float32) for n in self.shape]


WARP_GRID = Grid(WARP_VOXEL_MM)


@dataclass(frozen=True)
class Template:
    """The average brain on a grid; every map is (X, Y, Z)."""

    mask: Floats  # 0 to 1
    csf: Floats  # log-odds against GM
    wm: Floats  # log-odds against GM
    detail: Floats  # brightness that the tissues do not explain, WM being 1
    cortex: Floats  # 1 near the surface of the brain, 0 deep inside
    ventricle_slope: Floats  # gradient per mm of a smooth map of the ventricles, on the warp grid: (3, K, L, M)


@lru_cache(maxsize=4)
def load_template(grid: Grid) -> Template:
    """The average brain, read from nilearn's own files and brought to `grid`."""
    t1, gm, wm, mask = read_maps(grid)
    inside = mask > 0.5
    csf = np.clip(mask - gm - wm, 0, 1)
    tissues = np.stack([csf, gm, wm]) / np.maximum(csf + gm + wm, 1e-6)
    means = np.linalg.lstsq(tissues[:, inside].T, t1[inside], rcond=None)[0]
    depth_mm = grid.voxel_mm * ndimage.distance_transform_edt(inside)
    height_mm = grid.axes_mm()[2] + CENTRE_MM[2]
    ventricles = (csf > 0.5) & (depth_mm > 25) & (height_mm > -15)
    smooth_ventricles = resample(blur(ventricles, 5 / grid.voxel_mm), grid.affine, WARP_GRID)
    return Template(
        mask=mask,
        csf=sharp_log_odds(csf, gm),
        wm=sharp_log_odds(wm, gm),
        detail=(t1 - np.tensordot(means, tissues, 1)) * inside / means[2],
        cortex=blur(inside & (depth_mm < 14), 2 / grid.voxel_mm),
        ventricle_slope=np.asarray(np.gradient(smooth_ventricles, WARP_VOXEL_MM), np.float32),
    )


def read_maps(grid: Grid) -> list[Floats]:
    """T1 brightness, GM and WM shares and brain mask of ICBM152 (1 mm, from nilearn), all 0 to 1: four (X, Y, Z)."""
    from nilearn import datasets  # here: it takes seconds to import

    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    images = [load(resolution=1).slicer[20:177, 20:214, :162] for load in loaders]  # half of them is air
    t1, gm, wm = (np.asarray(image.dataobj, np.float32) for image in images)
    mask = ndimage.binary_fill_holes(t1 > 0.02)
    antialias = np.sqrt(max(grid.voxel_mm**2 - 1, 0)) / 2.355  # makes the full width at half maximum one voxel
    return [resample(blur(array, antialias), images[0].affine, grid) for array in (t1, gm, wm, mask)]


def blur(array: npt.NDArray[np.generic], sd: float) -> Floats:
    """Gaussian smoothing by `sd` voxels."""
    blurred: Floats = ndimage.gaussian_filter(array.astype(np.float32), sd)
    return blurred


def resample(array: Floats, affine: npt.NDArray[np.float64], grid: Grid) -> Floats:
    """A map of voxels placed by `affine`, brought to `grid` by linear interpolation: (X, Y, Z)."""
    matrix = np.linalg.inv(affine) @ grid.affine
    resampled: Floats = ndimage.affine_transform(array, matrix[:3, :3], matrix[:3, 3], grid.shape, order=1)
    return resampled


def sharp_log_odds(tissue: Floats, gm: Floats) -> Floats:
    """Log-odds of `tissue` against GM, doubled: one brain has sharper borders than the average of 152."""
    return 2 * np.log((np.clip(tissue, 0, 1) + 1e-3) / (np.clip(gm, 0, 1) + 1e-3))


class SmoothNoise:
    """Draws Gaussian fields of unit variance that mean the same in mm on every grid."""

    def __init__(self, random: np.random.Generator, grid: Grid) -> None:
        self.random = random
        self.grid = grid

    def draw(self, length_mm: float, *, fields: tuple[int, ...] = ()) -> Floats:
        """White noise on knots `length_mm` / 2 apart, seen through a Gaussian window: (*fields, X, Y, Z)."""
        weights = []
        for axis_mm, extent_mm in zip(self.grid.axes_mm(), FIELD_OF_VIEW_MM, strict=True):
            reach = int(np.ceil(extent_mm / length_mm)) + 5  # knots on each side; the same for every voxel size
            offset = axis_mm[:, None] / (length_mm / 2) - np.arange(-reach, reach + 1, dtype=np.float32)
            window = np.exp(-0.43 * offset**2)
            weights.append(window / np.sqrt((window**2).sum(1, keepdims=True)))
        knots = self.random.standard_normal((*fields, *(w.shape[1] for w in weights)), dtype=np.float32)
        noise: Floats = np.einsum("xa,yb,zc,...abc->...xyz", *weights, knots, optimize=True)
        return noise


def make_subject(grid: Grid, factors: Factors) -> npt.NDArray[np.int16]:
    """One synthetic scan, at least 1 in the brain and 0 outside: (X, Y, Z)."""
    random = np.random.default_rng((factors.seed, 1))
    template = load_template(grid)
    places = warp(grid, template, factors, random)
    brain = sample(template.mask, places) > 0.5
    brightness = np.zeros(grid.shape, np.float32)
    brightness[brain] = paint(template, places[:, brain], refold(grid, factors, random)[:, brain], factors)
    return np.where(brain, scan(brightness, grid, factors, random), 0).astype(np.int16)


def sample(array: Floats, places: Floats) -> Floats:
    """Linear interpolation of (X, Y, Z) at `places` (3, ...) in voxels, the border repeated: (...)."""
    values: Floats = ndimage.map_coordinates(array, places, order=1, mode="nearest", output=np.float32)
    return values


def warp(grid: Grid, template: Template, factors: Factors, random: np.random.Generator) -> Floats:
    """Where in the template, in voxels, each voxel of the subject comes from: (3, X, Y, Z)."""
    angles = np.deg2rad(RANGES.rotation_degrees) * random.standard_normal(3)
    stretch = factors.icv * (1 + RANGES.stretch * random.standard_normal(3))
    matrix = (np.eye(3) + np.cross(np.eye(3), angles)) / stretch  # for a degree, a rotation's first order suffices
    shift_mm = RANGES.shift_mm * random.standard_normal(3)
    places_mm = upsample(displacement(template, factors, random), grid)
    places_mm += np.einsum("ij,jxyz->ixyz", matrix.astype(np.float32), np.meshgrid(*grid.axes_mm(), indexing="ij"))
    origin = (np.array(grid.shape) - 1) / 2 + shift_mm / grid.voxel_mm
    return places_mm / grid.voxel_mm + origin.astype(np.float32)[:, None, None, None]


def displacement(template: Template, factors: Factors, random: np.random.Generator) -> Floats:
    """Smooth and invertible, in mm on the warp grid, by scaling and squaring a constant velocity: (3, K, L, M)."""
    noise = SmoothNoise(random, WARP_GRID)
    velocity_mm = RANGES.ventricle_pull_mm2 * factors.atrophy * template.ventricle_slope
    for length_mm, sd_mm in RANGES.warp_mm:
        velocity_mm = velocity_mm + sd_mm * noise.draw(length_mm, fields=(3,))
    step = velocity_mm / (WARP_VOXEL_MM * 2**SQUARINGS)
    here = np.indices(WARP_GRID.shape, dtype=np.float32)
    for _ in range(SQUARINGS):
        step = step + np.stack([sample(component, here + step) for component in step])
    moved_mm: Floats = step * WARP_VOXEL_MM
    return moved_mm


def upsample(field: Floats, grid: Grid) -> Floats:
    """A field (3, K, L, M) on the warp grid, brought to `grid` by linear interpolation: (3, X, Y, Z)."""
    weights = []
    for axis_mm, knots_mm in zip(grid.axes_mm(), WARP_GRID.axes_mm(), strict=True):
        offset_mm = np.clip(axis_mm, knots_mm[0], knots_mm[-1])[:, None] - knots_mm
        weights.append(np.maximum(1 - np.abs(offset_mm) / WARP_VOXEL_MM, 0))
    upsampled: Floats = np.einsum("xa,yb,zc,kabc->kxyz", *weights, field, optimize=True)
    return upsampled


def refold(grid: Grid, factors: Factors, random: np.random.Generator) -> Floats:
    """What individual folding adds to the log-odds of CSF and of WM near the surface: (2, X, Y, Z)."""
    noise = SmoothNoise(random, grid)
    fold = noise.draw(8)  # zero in the sheets that become sulci, large in the cores of gyri
    # A sheet is 0.3 units of `fold` wide; voxels that are larger see it wider and fainter.
    width = math.hypot(0.3, 0.1 * grid.voxel_mm)
    sulci = (RANGES.sulci * 0.3 / width) * np.exp(-((fold / width) ** 2)) - 0.7
    sulci += (RANGES.sulci / 4) * noise.draw(9) + RANGES.sulcal_atrophy * factors.atrophy
    gyri = RANGES.gyri * (np.abs(fold) - 0.7 + 0.5 * noise.draw(7))
    return np.stack([sulci, gyri])


def paint(template: Template, places: Floats, folding: Floats, factors: Factors) -> Floats:
    """Brightness of the tissues at `places` (3, N) with `folding` (2, N), WM being 1: (N,)."""
    cortex = sample(template.cortex, places)
    csf = np.exp(sample(template.csf, places) + cortex * folding[0])
    wm = np.exp(sample(template.wm, places) + cortex * folding[1])
    tissues = (factors.csf_wm * csf + factors.gm_wm + wm) / (csf + 1 + wm)
    brightness: Floats = np.maximum(tissues + 0.6 * sample(template.detail, places), 0)
    return brightness


def scan(brightness: Floats, grid: Grid, factors: Factors, random: np.random.Generator) -> Floats:
    """What a scanner makes of `brightness`: texture, contrast, bias field, Rician noise, blur and gain: (X, Y, Z)."""
    smooth = SmoothNoise(random, grid)
    gamma, blur_mm = math.exp(random.normal(0, RANGES.gamma)), random.uniform(*RANGES.blur_mm)
    image = np.maximum(brightness * (1 + RANGES.texture * smooth.draw(4)), 0) ** gamma
    image *= np.exp(RANGES.bias * smooth.draw(110))
    noise = factors.noise * (1.06 / grid.voxel_mm) ** 1.5  # the mean of n voxels is less noisy by the root of n
    real, imaginary = noise * random.standard_normal((2, *grid.shape), dtype=np.float32)
    blurred = blur(np.hypot(image + real, imaginary), blur_mm / grid.voxel_mm)
    scanned: Floats = np.clip(np.rint(blurred * factors.gain), 1, np.iinfo(np.int16).max)
    return scanned
