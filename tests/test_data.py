import gzip
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort
from somvq.data.cohort import Cohort, split_subjects
from somvq.data.folder import find_scans, subject_of
from somvq.data.preprocess import LARGEST_SCAN, Scan, normalise, pad_with_background, pad_with_mean, read_scan, resample
from somvq.errors import DataError

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


@pytest.fixture
def folder(tmp_path):
    """Three subjects, one scan each."""
    for seed in range(3):
        save(tmp_path / "lab" / f"sub-{seed:02d}_T1w.nii.gz", brain(seed))
    return tmp_path / "lab"


@pytest.fixture
def caches(tmp_path):
    return tmp_path / "prepared"


def prepare(folder, caches, **settings):
    return prepare_cohort(folder, CohortSettings(**settings), caches)


def in_file_units(cohort, row):
    entry = cohort.index.scans[row]
    return cohort.read([row])[0, 0] * entry.deviation + entry.mean


def left_behind(caches):
    return [] if not caches.exists() else [path.name for path in caches.iterdir() if path.suffix != ".lock"]


def contents(cohort):
    return (cohort.folder / "volumes.npy").read_bytes(), (cohort.folder / "index.json").read_text()


# A scan, read


def patched(path, offset, number, kind):
    """`path`, uncompressed, with a number of its header changed; the checksum of a .gz would give it away."""
    content = bytearray(path.read_bytes())
    stored = np.array(number, kind).tobytes()
    content[offset : offset + len(stored)] = stored
    path.write_bytes(content)


def nan(path, share):
    voxels = brain().astype(np.float32)
    voxels.flat[: int(share * voxels.size)] = np.nan
    return save(path, voxels)


def truncated(path, keep):
    save(path, brain())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def flipped(path):
    save(path, brain())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def header_of(path, offset, number, kind):
    save(path, brain())
    patched(path, offset, number, kind)


def colours(path):
    save(path, np.zeros(GRID, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def singular(path):
    image = nib.Nifti1Image(brain(), COARSE)
    image.header["srow_x"] = 0
    image.header["sform_code"] = 1
    path.write_bytes(image.to_bytes())
    patched(path, 280, [0, 0, 0, 0], "<f4")


def hollow(path):
    voxels = np.full(GRID, 100, np.int16)
    voxels[10, 10, :10] = range(10)
    save(path, voxels)


BAD = {  # how to make it, its name's end, what is said of it
    "constant": (lambda path: save(path, np.full(GRID, 7, np.int16)), ".nii.gz", "every voxel is 7"),
    "mask": (lambda path: save(path, (brain() > 300).astype(np.uint8)), ".nii.gz", "2 different values"),
    "brighter than its background nowhere": (hollow, ".nii.gz", "nothing in it is brighter"),
    "NaN": (lambda path: nan(path, 0.002), ".nii.gz", "138 of 69,120 voxels are NaN"),
    "all NaN": (lambda path: nan(path, 1), ".nii.gz", "are NaN or infinite"),
    "cut in the middle": (lambda path: truncated(path, 0.5), ".nii.gz", "ends too early"),
    "last byte missing": (lambda path: truncated(path, 0.99999), ".nii.gz", "ends too early"),
    "flipped bit": (flipped, ".nii.gz", "checksum does not fit"),
    "uncompressed and cut": (lambda path: truncated(path, 0.5), ".nii", "Expected 138240 bytes"),
    "MGH cut": (lambda path: path.write_bytes(nib.MGHImage(brain(), COARSE).to_bytes()[:9000]), ".mgh", "Expected"),
    "MGZ cut": (lambda path: path.write_bytes(mgz(brain())[:-2]), ".mgz", "ends too early"),
    "empty": (lambda path: path.touch(), ".nii.gz", "the file is empty"),
    "twenty bytes": (lambda path: path.write_bytes(bytes(20)), ".nii", "does not begin like"),
    "text": (lambda path: path.write_text("see the other disk"), ".nii.gz", "not gzipped"),
    "not gzipped": (lambda path: path.write_bytes(nib.Nifti1Image(brain(), COARSE).to_bytes()), ".nii.gz", "not gzip"),
    "gzipped": (lambda path: path.write_bytes(gzip.compress(b"x" * 999)), ".nii", "does not end in .gz: rename it"),
    "DICOM": (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(500)), ".nii", "convert it to NIfTI"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), ".nii.gz", "fetch"),
    "git-annex": (lambda path: path.write_text("/annex/objects/MD5E-s1--9.nii.gz\n"), ".nii.gz", "fetch the data"),
    "dangling link": (lambda path: path.symlink_to("../gone.nii.gz"), ".nii.gz", "a link to ../gone.nii.gz"),
    "link to itself": (lambda path: path.symlink_to(path.name), ".nii.gz", "which is not there"),
    "pipe": (lambda path: os.mkfifo(path), ".nii.gz", "it is not a file"),
    "three volumes": (lambda path: save(path, np.stack([brain()] * 3, -1)), ".nii.gz", "(40, 48, 36, 3)"),
    "one slice": (lambda path: save(path, brain()[:, :, :1]), ".nii.gz", "(40, 48, 1) is not one 3-D volume"),
    "two dimensions": (lambda path: save(path, brain()[:, :, 0]), ".nii.gz", "(40, 48) is not one 3-D volume"),
    "32000 a side": (lambda path: header_of(path, 42, [32000] * 3, "<i2"), ".nii", "(32000, 32000, 32000)"),
    "seven huge sides": (lambda path: header_of(path, 40, [7] + [32767] * 7, "<i2"), ".nii", "which no scan has"),
    "negative side": (lambda path: header_of(path, 42, -20, "<i2"), ".nii", "(-20, 48, 36)"),
    "unknown type": (lambda path: header_of(path, 70, 999, "<i2"), ".nii", "data code 999"),
    "infinite intercept": (lambda path: header_of(path, 112, [1, np.inf], "<f4"), ".nii", "inter"),
    "unknown MGH type": (lambda path: path.write_bytes(mgz(brain(), kind=99)), ".mgz", "there is not, 99"),
    "complex": (lambda path: save(path, brain().astype(np.complex64)), ".nii.gz", "are complex"),
    "colours": (colours, ".nii.gz", "are colours"),
    "singular affine": (singular, ".nii", "affine is not invertible"),
    "NaN in the affine": (lambda path: header_of(path, 280, np.nan, "<f4"), ".nii", "affine is not invertible"),
    "metres": (lambda path: save(path, brain(), np.diag([0.004, 0.004, 0.004, 1])), ".nii.gz", "0.004 x 0.004 x 0.004"),
}


def mgz(voxels, kind=None):
    content = bytearray(nib.MGHImage(voxels, COARSE).to_bytes())
    if kind is not None:
        content[20:24] = kind.to_bytes(4, "big")
    return gzip.compress(content)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_scan_is_refused_in_one_line_that_names_it_and_nothing_is_left(what, folder, caches):
    make, suffix, said = BAD[what]
    make(folder / f"sub-99_T1w{suffix}")
    with pytest.raises(DataError) as refusal:
        prepare(folder, caches)
    line = str(refusal.value)
    assert "\n" not in line
    assert line.startswith(f"{folder}/sub-99_T1w{suffix}: ")
    assert said in line
    assert any(advice in line for advice in ("; copy", "; export", "; extract", "; set", "; mend", "; remove")), line
    assert line.endswith("; or leave it out with --skip-bad-scans")
    assert left_behind(caches) == []


def test_a_damaged_gzip_is_refused_or_gives_the_same_voxels(tmp_path):
    path = save(tmp_path / "a.nii.gz", brain())
    whole, voxels = path.read_bytes(), read_scan(path).voxels
    random = np.random.default_rng(0)
    bits = [*range(8 * 12), *random.choice(8 * len(whole), 200, replace=False)]  # the gzip header, and anywhere
    cuts = [1, 2, 4, 8, *random.integers(9, len(whole), 16)]
    refused = 0
    for damaged in [flip(whole, int(bit)) for bit in bits] + [whole[:-cut] for cut in cuts]:
        path.write_bytes(damaged)
        try:
            assert np.array_equal(read_scan(path).voxels, voxels), "other voxels were read"
        except DataError:
            refused += 1
    assert refused >= 200 + len(cuts)


def flip(content, bit):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves an .mgh open
def test_a_damaged_header_never_escapes_as_another_exception(tmp_path, capfd):
    random = np.random.default_rng(1)
    small = brain()[::2, ::2, ::2].copy()
    outcomes = {"read": 0, "refused": 0}
    for content, suffix in ((nib.Nifti1Image(small, COARSE).to_bytes(), ".nii"), (mgz_bytes(small), ".mgh")):
        for _ in range(400):
            damaged = bytearray(content)
            damaged[random.integers(284)] = random.integers(256)
            path = tmp_path / f"a{suffix}"
            path.write_bytes(damaged)
            try:
                read_scan(path)
                outcomes["read"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
    assert capfd.readouterr() == ("", ""), "nibabel's own remarks reach the screen"


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


@pytest.mark.parametrize(
    ("codes", "suffix"), [("LAS", ".nii.gz"), ("LIA", ".nii"), ("PSR", ".nii.gz"), ("LIA", ".mgz")]
)
def test_the_order_of_axes_in_the_file_does_not_matter(codes, suffix, tmp_path):
    expected = read_scan(save(tmp_path / "ras.nii.gz", brain()))
    scan = read_scan(stored(tmp_path / f"other{suffix}", codes))
    assert np.array_equal(scan.voxels, expected.voxels)
    assert np.allclose(scan.affine, expected.affine, atol=1e-4)
    ours, theirs = (pad_with_background(each, (48, 48, 48)).scan for each in (scan, expected))
    assert np.array_equal(ours.voxels, theirs.voxels)


def test_the_type_of_numbers_in_the_file_does_not_matter(tmp_path):
    expected = read_scan(save(tmp_path / "int16.nii.gz", brain())).voxels
    big_endian = nib.Nifti1Image(brain(), COARSE, nib.Nifti1Header(endianness=">"))
    assert big_endian.to_bytes()[:4] == (348).to_bytes(4, "big")
    nib.save(big_endian, tmp_path / "big.nii.gz")
    save(tmp_path / "float64.nii", brain().astype(np.float64))
    save(tmp_path / "four.nii.gz", brain()[..., None])
    scaled = nib.Nifti1Image(brain(), COARSE)
    scaled.header.set_slope_inter(0.5, 10)
    save_raw(tmp_path / "scaled.nii", scaled)
    for name in ("big.nii.gz", "float64.nii", "four.nii.gz"):
        voxels = read_scan(tmp_path / name).voxels
        assert voxels.dtype == np.float32
        assert voxels.dtype.isnative
        assert np.array_equal(voxels, expected), name
    assert np.array_equal(read_scan(tmp_path / "scaled.nii").voxels, expected * 0.5 + 10)


def save_raw(path, image):
    """Writes stored numbers and slope as they are: nibabel would undo the slope."""
    header = image.header.copy()
    path.write_bytes(header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F"))
    patched(path, 108, 352, "<f4")
    patched(path, 112, [0.5, 10], "<f4")


def test_a_number_too_large_for_float32_is_refused_without_a_warning(tmp_path):
    voxels = brain().astype(np.float64)
    voxels[:10] = 1e300
    with pytest.raises(DataError, match="NaN or infinite"):
        read_scan(save(tmp_path / "a.nii.gz", voxels))


def test_a_few_broken_voxels_are_set_to_0_and_counted(tmp_path):
    voxels = brain().astype(np.float32)
    voxels[0, 0, 0], voxels[20, 24, 18] = np.nan, np.inf
    scan = read_scan(save(tmp_path / "a.nii.gz", voxels))
    assert scan.warnings == ("2 NaN or infinite voxels set to 0",)
    assert scan.voxels[0, 0, 0] == scan.voxels[20, 24, 18] == 0


def test_doubts_about_left_and_right_are_said(tmp_path):
    nowhere = nib.Nifti1Image(brain(), None)
    nib.save(nowhere, tmp_path / "nowhere.nii.gz")
    torn = nib.Nifti1Image(brain(), COARSE)
    torn.set_qform(np.diag([2, 2, 2, 1]), code=1)
    nib.save(torn, tmp_path / "torn.nii.gz")
    assert read_scan(tmp_path / "nowhere.nii.gz").warnings == (
        "no orientation in its header: left and right are a guess",
    )
    scan = read_scan(tmp_path / "torn.nii.gz")
    assert scan.warnings == ("its sform and qform disagree: the sform is used",)
    assert scan.voxel_mm == (4, 4, 4), "the zooms are the qform's"


def test_a_head_with_its_skull_a_tilt_and_an_artefact_are_said(tmp_path):
    big = COARSE @ np.diag([1.4, 1.4, 1.4, 1])
    cohort_line = pad_with_background(Scan(tmp_path, brain().astype(np.float32), big), (48, 48, 48)).scan.warnings[0]
    assert cohort_line.startswith("5.1 litres")
    spiky = brain().astype(np.float32)
    spiky[20, 24, 18] = 1e9
    scan, _, _ = normalise(Scan(tmp_path, spiky, COARSE))
    assert scan.warnings == ("one of its voxels is 263 deviations from the mean: an artefact that flattens the brain?",)


# A scan, prepared


def test_the_z_score_of_the_largest_scan_fits_into_float16():
    """(n - 1) / sqrt(n) is the largest z-score that n numbers can have (Samuelson's inequality)."""
    voxels = np.zeros((16, 16, 16), np.float32)
    voxels[0, 0, 0] = 1e30
    scan, _, _ = normalise(Scan(Path("spike"), voxels, COARSE))
    assert scan.voxels.max() == pytest.approx((16**3 - 1) / 16**1.5)
    assert np.finfo(np.float16).max > LARGEST_SCAN**0.5


def rotated(degrees):
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = 3 * turn @ np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine[:3, 3] = -affine[:3, :3] @ (np.array((60, 70, 60)) - 1) / 2
    return affine


@pytest.mark.parametrize("degrees", [0, 10, 40])
def test_resampling_puts_an_oblique_scan_where_its_affine_says(degrees, folder, caches):
    affine = rotated(degrees)
    save(folder / "sub-99_T1w.nii.gz", brain(0, affine, (60, 70, 60)), affine)
    cohort = prepare(folder, caches, voxel_mm=4)
    assert cohort.index.shape == (48, 48, 48)
    assert [entry.warnings for entry in cohort.index.scans] == [()] * 4
    prepared = np.array(cohort.index.scans[3].affine)
    assert np.allclose(prepared[:3, :3], np.diag([4, 4, 4]))
    truth = head(prepared, cohort.index.shape)
    assert np.sqrt(np.mean((in_file_units(cohort, 3) - truth) ** 2)) < 0.03 * truth.max()


def test_a_coarser_grid_averages_instead_of_picking_voxels(tmp_path):
    noise = np.random.default_rng(0).normal(100, 10, (48, 48, 48)).astype(np.float32)
    coarse = resample(Scan(tmp_path, noise, COARSE), 8).voxels[1:-1, 1:-1, 1:-1]
    assert coarse.shape == (23, 23, 23)
    assert coarse.mean() == pytest.approx(100, abs=0.5)
    assert 2 < coarse.std() < 4, "the mean of 8 voxels is less noisy by the root of 8, or a little more"


def test_a_tilted_scan_that_is_not_resampled_is_said(folder, caches):
    for path in find_scans(folder):
        path.unlink()
    for seed in range(3):
        save(folder / f"sub-{seed:02d}.nii.gz", brain(seed, rotated(10), (60, 70, 60)), rotated(10))
    assert prepare(folder, caches).index.scans[0].warnings == (
        "its axes are tilted by 14 degrees: --voxel-mm 3 straightens them",
    )


def test_colin27_goes_through_at_its_own_grid_and_at_half_of_it(tmp_path, caches):
    lab = tmp_path / "lab"
    lab.mkdir()
    shutil.copy(COLIN, lab / "colin_T1w.nii.gz")
    image = nib.load(COLIN)
    voxels = np.asarray(image.dataobj)
    for name, other in (("mirrored", voxels[::-1]), ("upended", voxels[:, :, ::-1])):
        (lab / f"{name}_T1w.nii").write_bytes(nib.Nifti1Image(other, image.affine).to_bytes())
    cohort = prepare(lab, caches)
    assert cohort.index.shape == (144, 176, 144)
    assert [entry.warnings for entry in cohort.index.scans] == [()] * 3
    scan = cohort.read([0])[0, 0]
    assert scan.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert scan.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)
    units = np.rint(in_file_units(cohort, 0))
    assert np.array_equal(np.bincount(units.astype(int).ravel())[1:], np.bincount(voxels.ravel())[1:]), "brain is lost"
    assert cohort.read([1])[0, 0, 4:141].std() == pytest.approx(scan[3:140].std(), abs=1e-3)
    half = prepare(lab, caches, voxel_mm=2.12)
    assert half.index.shape == (80, 96, 80)
    whole_ml, half_ml = (np.sum(in_file_units(c, 0) > 20) * mm**3 / 1000 for c, mm in ((cohort, 1.06), (half, 2.12)))
    assert half_ml == pytest.approx(whole_ml, rel=0.02)


def test_padding_repeats_the_background_whatever_its_value(tmp_path):
    for lift in (-3, 0, 50):
        voxels = brain().astype(np.float32) + lift
        voxels[0, 0, 0] = lift - 400  # an artefact below the background, which is not to become a frame
        fitted = pad_with_background(Scan(tmp_path, voxels, COARSE), (64, 64, 64))
        frame = fitted.scan.voxels[[0, -1]] * fitted.deviation + fitted.mean
        np.testing.assert_allclose(frame, lift, atol=1e-3)
        turned = resample(Scan(tmp_path, voxels, rotated(30)), 3).voxels
        assert np.all(np.abs(turned[[0, -1], [0, -1], [0, -1]] - lift) < 1), "corners of another value"


def test_the_published_padding_is_0_after_z_scores_four_voxels_before_and_three_behind(tmp_path):
    voxels = np.zeros((41, 48, 41), np.float32)
    voxels[6:-6, 6:-6, 6:-6] = np.random.default_rng(0).uniform(300, 900, (29, 36, 29))
    voxels[6, 6, 6] = 0
    fitted = pad_with_mean(Scan(tmp_path, voxels, COARSE), (48, 48, 48))
    assert fitted.box == ((4, 45), (0, 48), (4, 45))
    own = fitted.scan.voxels[4:45, :, 4:45]
    np.testing.assert_allclose(own, (voxels - voxels.mean()) / voxels.std(ddof=1), atol=1e-5)
    padding = np.ones((48, 48, 48), bool)
    padding[4:45, :, 4:45] = False
    assert np.all(fitted.scan.voxels[padding] == 0)
    assert own[0, 0, 0] < -0.5, "so the frame is brighter than the background"


def test_the_prepared_cohort_says_where_its_scans_are_no_padding(folder, caches):
    cohort = prepare(folder, caches, shape=(64, 48, 64))
    for row, scan in enumerate(cohort.index.scans):
        (x0, x1), (_, _), (z0, z1) = scan.box
        assert 0 < x0 < x1 < 64
        outside = cohort.read([row])[0, 0].copy()
        outside[x0:x1, :, z0:z1] = outside[0, 0, 0]
        assert np.ptp(outside) == 0


def test_brain_is_the_same_whatever_fills_the_padding(folder, caches):
    by_background, by_mean = (prepare(folder, caches, padding=p, shape=(64, 64, 64)) for p in ("background", "mean"))
    for row, scan in enumerate(by_mean.index.scans):
        (x0, x1), (y0, y1), (z0, z1) = scan.box
        brain = by_mean.brain(row)
        assert brain.sum() == brain[x0:x1, y0:y1, z0:z1].sum(), "the frame is brighter than the background"
        assert brain.sum() == pytest.approx(by_background.brain(row).sum(), rel=0.05)


def test_a_token_knows_how_much_of_it_is_brain(folder, caches):
    cohort = prepare(folder, caches)
    shares = cohort.share_of_brain([0, 1])
    assert shares.shape == (2, *(side // 16 for side in cohort.index.shape))
    assert shares.min() < 0.2 < 0.9 < shares.max() <= 1
    assert shares[0].mean() == pytest.approx(cohort.brain(0).mean(), rel=1e-5)


@pytest.mark.parametrize(("split", "counts"), [("18/6/0", (18, 6, 0)), ("50/25/25", (12, 6, 6)), ("1/1/1", (8, 8, 8))])
def test_subjects_are_split_in_the_proportions_asked_for(split, counts):
    names = [f"sub-{number:03d}" for number in range(24)]
    found = list(split_subjects(names, CohortSettings(split=split)).values())
    assert tuple(found.count(part) for part in ("train", "val", "test")) == counts


@pytest.mark.parametrize("split", ["80/20", "0/1/1", "1/0/1", "a/b/c", "-1/2/3"])
def test_a_split_that_leaves_no_one_to_train_or_validate_with_is_refused(split):
    with pytest.raises(ValueError, match="is not TRAIN/VAL/TEST"):
        CohortSettings(split=split)


def test_a_crop_that_cuts_the_brain_warns_and_one_that_cuts_much_is_refused(folder, caches):
    assert prepare(folder, caches, shape=(48, 48, 48)).index.scans[0].warnings == ()
    warned = prepare(folder, caches, shape=(48, 48, 32)).index.scans
    assert all("of its brain lies outside 48x48x32 voxels" in " ".join(scan.warnings) for scan in warned)
    with pytest.raises(DataError, match=r"more than 5%; ask for a larger --shape$") as refusal:
        prepare(folder, caches, shape=(48, 48, 16))
    assert str(refusal.value).count("\n") == 3, "one line for each of the three, and one for all"
    assert len(left_behind(caches)) == 2


def test_a_resampling_beyond_all_memory_is_refused(folder, caches):
    with pytest.raises(DataError, match=r"ask for a larger --voxel-mm|smaller --shape or a larger --voxel-mm"):
        prepare(folder, caches, voxel_mm=0.05)
    with pytest.raises(DataError, match="shape 2048x2048x2048 is more than any scan has; ask for a smaller --shape"):
        prepare(folder, caches, shape=(2048, 2048, 2048))
    assert left_behind(caches) == []


# A folder


@pytest.mark.parametrize(("make", "said"), [
    (lambda folder: None, "does not exist"),
    (lambda folder: folder.mkdir(), "holds no T1 volume"),
    (lambda folder: folder.write_text(""), "is not a folder"),
    (lambda folder: save(folder / "notes" / ".hidden.nii.gz", brain()), "holds no T1 volume"),
])  # fmt: skip
def test_a_folder_without_scans_is_refused(make, said, tmp_path, caches):
    make(tmp_path / "my lab")
    with pytest.raises(DataError, match=said) as refusal:
        prepare(tmp_path / "my lab", caches)
    assert str(refusal.value).startswith(f"cohort {tmp_path}/my lab ")
    assert "\n" not in str(refusal.value)
    assert not caches.exists()


def test_fewer_than_3_subjects_are_refused_before_any_scan_is_read(tmp_path, caches):
    for name in ("sub-01_ses-1", "sub-01_ses-2", "sub-02"):
        (tmp_path / "lab").mkdir(exist_ok=True)
        (tmp_path / "lab" / f"{name}.nii.gz").write_text(name)
    with pytest.raises(DataError, match=r"^2 subjects \(sub-01, sub-02\) cannot be split .* at least 3$"):
        prepare(tmp_path / "lab", caches)
    assert not caches.exists()


def test_what_a_labs_disk_holds_is_found_once_or_passed_over(folder):
    first = folder / "sub-00_T1w.nii.gz"
    save(folder / "sub-07" / "ses 1" / "anat" / "T1 final.NII.GZ", brain(7))
    (folder / "SUB8.MGZ").write_bytes(mgz(brain(8)))
    (folder / "._sub-00_T1w.nii.gz").write_bytes(b"of a Mac")
    (folder / "sub-00_T1w.json").write_text("{}")
    save(folder / ".git" / "annex" / "x.nii.gz", brain())
    for other in ("sub-00_T2w.nii.gz", "sub-00_space-MNI_desc-brain_mask.nii.gz", "sub-00_task-rest_bold.nii"):
        save(folder / other, brain())
    (folder / "loop").symlink_to(folder)
    (folder / "sub-07" / "up").symlink_to("..")
    (folder / "sub-00_again.nii.gz").symlink_to(first)
    elsewhere = folder.parent / "elsewhere"
    save(elsewhere / "T1.nii.gz", brain(9))
    (folder / "sub-09").symlink_to(elsewhere)
    found = {str(path.relative_to(folder)): subject_of(path.relative_to(folder)) for path in find_scans(folder)}
    assert found == {
        "SUB8.MGZ": "SUB8",
        "sub-00_T1w.nii.gz": "sub-00",
        "sub-01_T1w.nii.gz": "sub-01",
        "sub-02_T1w.nii.gz": "sub-02",
        "sub-07/ses 1/anat/T1 final.NII.GZ": "sub-07",
        "sub-09/T1.nii.gz": "sub-09",
    }
    read_scan(folder / "sub-07" / "ses 1" / "anat" / "T1 final.NII.GZ")
    read_scan(folder / "SUB8.MGZ")


@pytest.mark.parametrize(("file", "subject"), [
    ("sub-01_ses-1_T1w.nii.gz", "sub-01"),
    ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01"),
    ("OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.nii", "OAS1_0001"),
    ("OASIS_OAS1_0001_MR2/aligned_norm.nii.gz", "OAS1_0001"),
    ("sub-OAS30001_ses-d0129_run-01_T1w.nii.gz", "sub-OAS30001"),
    ("OAS30001_MR_d0129/mri/norm.mgz", "OAS30001"),
    ("Anna B.v2.NII.GZ", "Anna B.v2"),
    ("brain.mgz", "brain"),
])  # fmt: skip
def test_a_subject_is_read_from_the_name(file, subject):
    assert subject_of(Path(file)) == subject


def test_names_that_leave_open_whose_scan_it_is_are_refused(tmp_path, caches):
    for who in ("anna", "ben", "carl"):
        for name in ("a", "b", "c"):
            save(tmp_path / "lab" / who / f"{name}.nii.gz", brain())
    with pytest.raises(DataError, match=r"^ben/a.nii.gz and anna/a.nii.gz are both called 'a', .* as in sub-01_T1w"):
        prepare(tmp_path / "lab", caches)


def test_a_name_that_is_not_utf8_is_refused(folder, caches):
    os.rename(os.fsencode(folder / "sub-02_T1w.nii.gz"), os.fsencode(folder) + b"/sub-02_M\xfcller.nii.gz")
    with pytest.raises(DataError, match=r"^'sub-02_M\\udcfcller.nii.gz': its name is not UTF-8"):
        prepare(folder, caches)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(folder, monkeypatch):
    (folder / "sub-03").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("sub-03"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"/sub-03: cannot be listed \(Permission denied\); mend its permissions$"):
        find_scans(folder)


def test_the_same_scan_under_two_subjects_is_refused(folder, caches):
    first = folder / "sub-00_T1w.nii.gz"
    for twin in (folder / "sub-03_T1w.nii.gz", folder / "sub-04_T1w.nii", folder / "sub-05_T1w.nii.gz"):
        if twin.name.startswith("sub-03"):
            shutil.copy(first, twin)
        elif twin.suffix == ".nii":
            twin.write_bytes(gzip.decompress(first.read_bytes()))
        else:
            twin.symlink_to(first)
        with pytest.raises(DataError, match=f"{twin} is the same scan as {first}, of another subject; remove one"):
            prepare(folder, caches)
        twin.unlink()
    assert left_behind(caches) == []


def test_mixed_voxel_sizes_are_refused_with_the_option_to_type(folder, caches):
    coarse = COARSE @ np.diag([1.25, 1.25, 1.25, 1])
    save(folder / "sub-03_T1w.nii.gz", brain(0, coarse), coarse)
    for settings in ({}, {"shape": (48, 48, 48)}):
        with pytest.raises(DataError, match=r"4 mm \(sub-00_T1w.nii.gz\) to 5 mm \(sub-03.*with --voxel-mm 4$"):
            prepare(folder, caches, **settings)
    assert len(prepare(folder, caches, voxel_mm=4).index.scans) == 4


def test_bad_scans_can_be_left_out_and_are_named(folder, caches):
    save(folder / "sub-03_T1w.nii.gz", brain(3))
    truncated(folder / "sub-01_T1w.nii.gz", 0.5)
    (folder / "sub-04_T1w.nii.gz").symlink_to("gone")
    with pytest.raises(DataError, match=r"2 of 5 scans cannot be used: .* --skip-bad-scans\n.*sub-01.*\n.*sub-04"):
        prepare(folder, caches)
    cohort = prepare(folder, caches, skip_bad_scans=True)
    assert [scan.subject for scan in cohort.index.scans] == ["sub-00", "sub-02", "sub-03"]
    assert [line[:19] for line in cohort.index.left_out] == ["sub-01_T1w.nii.gz: ", "sub-04_T1w.nii.gz: "]
    with pytest.raises(DataError, match=r"2 of 5 scans cannot be used: .* --skip-bad-scans"):
        prepare(folder, caches)  # prepared now, but not agreed to
    truncated(folder / "sub-02_T1w.nii.gz", 0.5)
    with pytest.raises(DataError, match=r"^2 subjects .* give scans of at least 3; left out 3 of 5 scans: .*sub-01"):
        prepare(folder, caches, skip_bad_scans=True)


def test_agreeing_to_skip_bad_scans_does_not_make_another_cohort_where_there_are_none(folder, caches):
    assert prepare(folder, caches).fingerprint == prepare(folder, caches, skip_bad_scans=True).fingerprint


# Splits


@pytest.mark.parametrize(
    ("subjects", "counts"), [(179, (128, 23, 28)), (24, (17, 3, 4)), (4, (2, 1, 1)), (3, (1, 1, 1))]
)
def test_splits_have_the_papers_shares(subjects, counts):
    splits = list(split_subjects([f"{number:03d}" for number in range(subjects)], CohortSettings()).values())
    assert tuple(splits.count(split) for split in ("train", "val", "test")) == counts


def test_splits_are_seeded_and_do_not_depend_on_order():
    names = [f"{number:03d}" for number in range(24)]
    assert split_subjects(names, CohortSettings()) == split_subjects(names[::-1] + names, CohortSettings())
    assert split_subjects(names, CohortSettings()) != split_subjects(names, CohortSettings(split_seed=1))


def test_sessions_of_one_subject_stay_together(tmp_path, caches):
    for subject in range(1, 7):
        for session in (1, 2):
            save(tmp_path / "lab" / f"sub-{subject:02d}_ses-{session}.nii.gz", brain(subject + session / 10))
    cohort = prepare(tmp_path / "lab", caches)
    assert len(cohort.index.scans) == 12
    assert {split: len(rows) for split, rows in cohort.rows.items()} == {"train": 8, "val": 2, "test": 2}
    assert len({(scan.subject, scan.split) for scan in cohort.index.scans}) == 6
    written = json.loads((cohort.folder / "index.json").read_text())["scans"]
    assert [scan["split"] for scan in written] == [scan.split for scan in cohort.index.scans]


# The cache


def test_a_cohort_is_prepared_once(folder, caches):
    calls = []
    first = prepare_cohort(folder, CohortSettings(), caches, lambda *call: calls.append(call))
    assert [what for what, _, _ in calls] == ["hashing"] * 3 + ["checking"] * 3 + ["preprocessing"] * 3
    stats = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(first.folder.iterdir())]
    calls.clear()
    second = prepare_cohort(folder, CohortSettings(), caches, lambda *call: calls.append(call))
    assert {what for what, _, _ in calls} == {"hashing"}
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(second.folder.iterdir())] == stats
    assert left_behind(caches) == [first.folder.name]


def test_the_demo_cohort_is_six_train_one_val_one_test(tiny_cohort):
    assert tiny_cohort.summary() == "8 scans of 48x48x48 voxels, 6 train / 1 val / 1 test"
    assert tiny_cohort.volumes.dtype == np.float16
    assert tiny_cohort.read([0, 3]).shape == (2, 1, 48, 48, 48)
    assert not tiny_cohort.volumes.flags.writeable
    assert [scan.warnings for scan in tiny_cohort.index.scans] == [()] * 8


def test_the_fingerprint_is_of_contents_and_settings_not_of_places(folder, caches, tmp_path):
    first = prepare(folder, caches)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "lab")
    assert prepare(moved, caches).folder == first.folder
    (moved / "z").mkdir()
    (moved / "sub-00_T1w.nii.gz").rename(moved / "z" / "sub-00_T1w.nii.gz")
    assert prepare(moved, caches).folder == first.folder
    os.utime(folder / "sub-00_T1w.nii.gz", (0, 0))
    assert prepare(folder, caches).fingerprint == first.fingerprint
    others = [prepare(folder, caches, **settings).fingerprint for settings in ({"split_seed": 1}, {"voxel_mm": 5})]
    save(folder / "sub-00_T1w.nii.gz", brain(0.5))
    others.append(prepare(folder, caches).fingerprint)
    assert len({first.fingerprint, *others}) == 4
    assert str(tmp_path) not in (first.folder / "index.json").read_text()


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


DAMAGE = {
    "no index": lambda cache: (cache / "index.json").unlink(),
    "torn index": lambda cache: cut(cache / "index.json", 500),
    "empty index": lambda cache: cut(cache / "index.json", 0),
    "no volumes": lambda cache: (cache / "volumes.npy").unlink(),
    "volumes cut": lambda cache: cut(cache / "volumes.npy", 100_000),
    "header cut": lambda cache: cut(cache / "volumes.npy", 40),
    "volumes empty": lambda cache: cut(cache / "volumes.npy", 0),
    "volumes of another shape": lambda cache: np.save(cache / "volumes.npy", np.zeros((3, 48, 48, 16), np.float16)),
    "volumes of another type": lambda cache: np.save(cache / "volumes.npy", np.zeros((3, 48, 48, 48), np.int16)),
    "volumes of another kind": lambda cache: (cache / "volumes.npy").write_bytes(b"PK\x03\x04" + bytes(200)),
    "another format": lambda cache: (cache / "index.json").write_text(
        (cache / "index.json").read_text().replace('"format": 2', '"format": 1')
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_cache_is_refused_and_made_again(what, folder, caches):
    cohort = prepare(folder, caches)
    whole = contents(cohort)
    DAMAGE[what](cohort.folder)
    with pytest.raises(DataError, match=r"delete it and it is made again$"):
        Cohort(cohort.folder)
    assert contents(prepare(folder, caches)) == whole


def test_a_scan_that_changes_meanwhile_is_refused(folder, caches):
    def meddle(what, done, total):
        if (what, done) == ("preprocessing", 1):
            save(folder / "sub-01_T1w.nii.gz", brain(5))

    with pytest.raises(DataError, match=r"sub-01_T1w.nii.gz: it changed while it was being prepared; leave it alone"):
        prepare_cohort(folder, CohortSettings(), caches, meddle)
    assert left_behind(caches) == []


def test_a_full_disk_leaves_nothing(folder, caches, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=400_000))
    with pytest.raises(DataError, match=r"3 scans of 48x48x48 voxels need 0.00066 GB and 0.0004 GB are free; free"):
        prepare(folder, caches)
    assert left_behind(caches) == []


def test_an_interrupt_leaves_nothing(folder, caches):
    def interrupt(what, done, total):
        if (what, done) == ("preprocessing", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(folder, CohortSettings(), caches, interrupt)
    assert left_behind(caches) == []


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort

def on_scan(what, done, total):
    time.sleep(0.02)
    print(what)
    if sys.argv[3] == "die" and (what, done) == ("preprocessing", 2):
        os.kill(os.getpid(), signal.SIGKILL)

prepare_cohort(Path(sys.argv[1]), CohortSettings(), Path(sys.argv[2]), on_scan)
"""


def start(folder, caches, how):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder, caches, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_preparation_that_is_killed_leaves_nothing_that_is_taken_for_a_cache(folder, caches):
    killed = start(folder, caches, "die")
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    [partial] = left_behind(caches)
    assert partial.startswith(".lab-")
    assert partial.endswith(".partial")
    with pytest.raises(DataError):
        Cohort(caches / partial)
    cohort = prepare(folder, caches)
    assert left_behind(caches) == [cohort.folder.name]
    assert contents(cohort) == contents(prepare(folder, caches.with_name("afresh")))


def test_two_processes_at_once_make_one_cache(folder, caches):
    processes = [start(folder, caches, "live") for _ in range(2)]
    printed = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "".join(out for out, _ in printed).count("preprocessing") == 3, "both have made it"
    assert left_behind(caches) == [prepare(folder, caches).folder.name]
    assert contents(prepare(folder, caches)) == contents(prepare(folder, caches.with_name("afresh")))


@pytest.mark.parametrize("voxel_mm", [None, 1.9])
def test_preparing_holds_no_more_than_three_volumes(voxel_mm, tmp_path, caches):
    affine, shape = COARSE @ np.diag([0.5, 0.5, 0.5, 1]), (80, 96, 72)
    for seed in range(6):
        save(tmp_path / "lab" / f"sub-{seed:02d}_T1w.nii", brain(seed, affine, shape), affine)
    tracemalloc.start()
    try:
        cohort = prepare(tmp_path / "lab", caches, voxel_mm=voxel_mm)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.5 * 4 * np.prod(cohort.index.shape)
