import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort
from somvq.data.check import check_cohort, write_manifest
from somvq.data.cohort import FORMAT, SPLITS, Cohort
from somvq.data.digests import Digests, sha256_of
from somvq.data.preprocess import fit, normalise, on_cohort_grid, resample
from somvq.data.report import check_lines, check_report, summary_lines
from somvq.data.scan import LARGEST_SCAN, Scan, read_scan
from somvq.data.splits import split_scans, split_subjects
from somvq.data.survey import Source, look_at
from somvq.errors import DataError
from somvq.files import parts_of
from somvq.sources import find_scans
from somvq.sources.found import ScanFile

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


# A scan, read


def patched(path, offset, number, kind):
    """`path`, uncompressed, with a number of its header changed; the checksum of a .gz would give it away."""
    content = bytearray(path.read_bytes())
    stored = np.array(number, kind).tobytes()
    content[offset : offset + len(stored)] = stored
    path.write_bytes(content)


def hole(path):
    voxels = brain().astype(np.float32)
    voxels[18:21, 22:25, 14:23] = np.nan
    return save(path, voxels)


def all_nan(path):
    return save(path, np.full(GRID, np.nan, np.float32))


def pair(path, voxels=None, header=None):
    """An Analyze pair as OASIS has it: big-endian, 4-D."""
    header = header or nib.AnalyzeHeader(endianness=">")
    voxels = brain()[..., None] if voxels is None else voxels
    header.set_data_dtype(np.int16)
    header.set_data_shape(voxels.shape)
    header.set_zooms((4.0,) * 3 + (1.0,) * (voxels.ndim - 3))
    nib.AnalyzeImage(voxels, None, header).to_filename(path)
    return path


def short_pair(path):
    pair(path)
    image = path.with_suffix(".img")
    image.write_bytes(image.read_bytes()[:-1000])


def pair_without_image(path):
    pair(path)
    path.with_suffix(".img").write_bytes(b"")


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
    "NaN": (hole, ".nii.gz", "voxels of the brain are NaN or infinite, more than 0.1%"),
    "all NaN": (all_nan, ".nii.gz", "69,120 of 69,120 voxels are NaN or infinite"),
    "pair cut": (short_pair, ".hdr", "its voxels need 138,240 bytes and there are 137,240: the copy is incomplete"),
    "pair of nothing": (pair_without_image, ".hdr", "its voxels need 138,240 bytes and there are 0"),
    "header of a pair cut": (
        lambda path: [path.write_bytes(bytes(100)), path.with_suffix(".img").touch()],
        ".hdr",
        "does not begin like",
    ),
    "cut in the middle": (lambda path: truncated(path, 0.5), ".nii.gz", "ends too early"),
    "last byte missing": (lambda path: truncated(path, 0.99999), ".nii.gz", "ends too early"),
    "flipped bit": (flipped, ".nii.gz", "checksum does not fit"),
    "uncompressed and cut": (lambda path: truncated(path, 0.5), ".nii", "its voxels need 138,240 bytes and there are "),
    "MGH cut": (
        lambda path: path.write_bytes(nib.MGHImage(brain(), COARSE).to_bytes()[:9000]),
        ".mgh",
        "its voxels need ",
    ),
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
def test_a_bad_scan_is_left_out_and_named_in_one_line(what, folder, caches):
    make, suffix, said = BAD[what]
    make(folder / f"sub-99_T1w{suffix}")
    cohort = prepare(folder, caches)
    assert [scan.subject for scan in cohort.index.scans] == ["sub-00", "sub-01", "sub-02"]
    [line] = cohort.index.left_out
    assert "\n" not in line
    assert line.startswith(f"sub-99_T1w{suffix}: ")
    assert said in line
    assert any(advice in line for advice in ("; copy", "; export", "; extract", "; set", "; mend", "; remove")), line
    with pytest.raises(DataError) as refusal:
        prepare(folder, caches, strict=True)
    assert str(refusal.value).endswith(f"{line}; without --strict it is left out")


SMALL = brain()[::2, ::2, ::2].copy()


def kinds(folder):
    """A scan in each kind of file: the path that is read, and the file that is damaged."""
    for suffix, image in (
        (".nii", nib.Nifti1Image(SMALL, COARSE)),
        (".nii.gz", nib.Nifti1Image(SMALL, COARSE)),
        (".mgh", nib.MGHImage(SMALL, COARSE)),
        (".mgz", nib.MGHImage(SMALL, COARSE)),
        (".hdr", nib.Nifti1Pair(SMALL, COARSE)),
    ):
        nib.save(image, folder / f"kind{suffix}")
        yield folder / f"kind{suffix}", folder / f"kind{suffix}"
    yield folder / "kind.hdr", folder / "kind.img"
    yield pair(folder / "analyze.hdr", SMALL[..., None]), folder / "analyze.hdr"
    yield folder / "analyze.hdr", folder / "analyze.img"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves an .mgh open
@pytest.mark.parametrize(
    "kind", range(8), ids=["nii", "nii.gz", "mgh", "mgz", "hdr", "img", "Analyze hdr", "Analyze img"]
)
def test_damage_gives_the_same_voxels_or_a_named_error(kind, tmp_path, capfd):
    """200 flipped bits and truncations: a gzip file has a checksum of its own, any file one in its manifest."""
    path, damaged_file = list(kinds(tmp_path))[kind]
    whole, voxels = damaged_file.read_bytes(), read_scan(path).voxels
    promised = ScanFile(path, path.name, "sub-01", sha256=sha256_of(parts_of(path)))
    random = np.random.default_rng(kind)
    bits = [*random.integers(0, 8 * min(len(whole), 352), 80), *random.integers(0, 8 * len(whole), 80)]
    cuts = [0, 1, 2, 4, 8, *random.integers(9, len(whole), 35)]
    silent = refused = 0
    for damaged in [flip(whole, int(bit)) for bit in bits] + [whole[: len(whole) - cut] for cut in cuts]:
        damaged_file.write_bytes(damaged)
        look = look_at(Source(promised, ""), CohortSettings())
        assert bool(look.refusal) == (damaged != whole)
        assert look.refusal.startswith(f"{path}: ") or damaged == whole
        assert "\n" not in look.refusal
        unpromised = look_at(Source(replace(promised, sha256=""), ""), CohortSettings())
        refused += bool(unpromised.refusal)
        assert unpromised.refusal.startswith(f"{path}: ") or not unpromised.refusal
        assert "\n" not in unpromised.refusal
        with suppress(DataError):
            silent += not np.array_equal(read_scan(path).voxels, voxels)
    assert refused >= 30
    if path.suffix in (".gz", ".mgz"):
        assert silent == 0, "other voxels were read"
    assert capfd.readouterr() == ("", ""), "nibabel's own remarks reach the screen"


def flip(content, bit):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


POISON = b"Dr Mabuse"


def poisoned(folder):
    """A scan of each kind whose header says who was scanned by whom."""
    nifti = nib.Nifti1Image(brain(1), COARSE)
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        nifti.header[field] = POISON
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension(6, POISON))
    nib.save(nifti, folder / "sub-01_T1w.nii.gz")
    header = nib.AnalyzeHeader(endianness=">")
    for field in ("descrip", "db_name", "patient_id", "generated", "aux_file"):
        header[field] = POISON
    pair(folder / "sub-02_T1w.hdr", brain(2)[..., None], header)
    (folder / "sub-03_T1w.mgz").write_bytes(gzip.compress(mgz_bytes(brain(3)) + POISON))
    for damaged, offset in (("sub-04", 40), ("sub-05", 70), ("sub-06", 344), ("sub-07", 0)):
        path = folder / f"{damaged}_T1w.nii"
        path.write_bytes(nib.Nifti1Image(brain(4), COARSE, nifti.header).to_bytes())
        patched(path, offset, [0x6D61] * 2, "<i2")


def test_free_text_of_headers_is_never_printed_or_stored(tmp_path, caches, capfd):
    folder = tmp_path / "lab"
    folder.mkdir()
    poisoned(folder)
    assert all(POISON in gzip.decompress(p.read_bytes()) if "z" in p.suffix else True for p in folder.iterdir())
    settings = CohortSettings()
    cohort = prepare_cohort(folder, settings, caches)
    assert len(cohort.index.left_out) >= 3
    checked = check_cohort(folder, find_scans(folder, settings), settings, lambda *_: None)
    write_manifest(tmp_path / "cohort.csv", checked)
    printed = "\n".join([*check_lines(checked), json.dumps(check_report(checked)), *summary_lines(cohort)])
    stored = [path.read_bytes() for path in (*cohort.folder.iterdir(), tmp_path / "cohort.csv")]
    assert POISON.decode() not in printed
    assert not [content for content in stored if POISON in content]
    assert POISON.decode() not in "".join(capfd.readouterr())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves an .mgh open
def test_a_damaged_header_never_escapes_as_another_exception(tmp_path, capfd):
    random = np.random.default_rng(1)
    small = SMALL
    outcomes = {"read": 0, "refused": 0}
    analyze = pair(tmp_path / "a.hdr", small[..., None]).read_bytes()
    headers = ((nib.Nifti1Image(small, COARSE).to_bytes(), ".nii"), (mgz_bytes(small), ".mgh"), (analyze, ".hdr"))
    for content, suffix in headers:
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
    ours, theirs = (fitted(each, (48, 48, 48)).scan for each in (scan, expected))
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
    assert said(scan.remarks) == ["2 voxels are NaN or infinite, 1 of them in the brain: set to 0"]
    assert scan.voxels[0, 0, 0] == scan.voxels[20, 24, 18] == 0


def test_nan_all_round_the_brain_is_background(tmp_path):
    """As SPM writes it."""
    whole = brain()
    voxels = np.where(whole > 20, whole.astype(np.float32), np.nan)
    scan = read_scan(save(tmp_path / "a.nii.gz", voxels))
    assert said(scan.remarks) == [f"{np.isnan(voxels).sum():,} voxels are NaN or infinite: set to 0"]
    assert np.array_equal(scan.voxels, np.nan_to_num(voxels))


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_that_says_nothing_scales_nothing(slope, tmp_path):
    path = save(tmp_path / "a.nii", brain())
    patched(path, 112, [slope, 0], "<f4")
    assert np.array_equal(read_scan(path).voxels, brain())


def test_a_voxel_size_of_0_is_taken_for_1_mm(tmp_path):
    nib.save(nib.Nifti1Image(brain(), None), tmp_path / "a.nii")
    patched(tmp_path / "a.nii", 80, [0, 0, 0], "<f4")
    assert read_scan(tmp_path / "a.nii").voxel_mm == (1, 1, 1)


def test_doubts_about_left_and_right_are_said(tmp_path):
    nowhere = nib.Nifti1Image(brain(), None)
    nib.save(nowhere, tmp_path / "nowhere.nii.gz")
    torn = nib.Nifti1Image(brain(), COARSE)
    torn.set_qform(np.diag([2, 2, 2, 1]), code=1)
    nib.save(torn, tmp_path / "torn.nii.gz")
    unknown = "its header does not say which way its axes point: its axes are taken for LAS"
    guess = ", a guess; --orient says otherwise"
    assert said(read_scan(tmp_path / "nowhere.nii.gz").remarks) == [unknown + guess]
    assert said(read_scan(pair(tmp_path / "pair.hdr")).remarks) == [unknown + guess]
    scan = read_scan(tmp_path / "torn.nii.gz")
    assert said(scan.remarks) == ["its sform and qform disagree: the sform is used"]
    assert scan.voxel_mm == (4, 4, 4), "the zooms are the qform's"


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR", "ASL"])
def test_an_analyze_pair_lies_as_the_user_says(axes, tmp_path):
    image = nib.Nifti1Image(brain(), COARSE)
    order = nib.orientations.ornt_transform(nib.io_orientation(COARSE), nib.orientations.axcodes2ornt(axes))
    scan = read_scan(pair(tmp_path / "a.hdr", np.asarray(image.as_reoriented(order).dataobj)[..., None]), orient=axes)
    assert np.array_equal(scan.voxels, brain())
    assert np.allclose(scan.affine[:3, :3], COARSE[:3, :3])
    assert said(scan.remarks) == [f"its header does not say which way its axes point: its axes are taken for {axes}"]
    told = read_scan(save(tmp_path / "b.nii.gz", brain()), orient=axes)
    assert np.array_equal(told.voxels, brain()), "what a header says is believed"


@pytest.mark.parametrize(("litres", "told"), [(1.4, ["5.1 litres are brighter than its background: kept; a whole head?"
                                                     " strip its skull"]),
                                              (0.7, ["only 0.64 litres are brighter than its background: kept; is it a"
                                                     " whole brain?"]),
                                              (1.0, [])])  # fmt: skip
def test_whole_heads_and_too_little_brain_are_said(litres, told, tmp_path):
    scan = Scan(tmp_path, brain().astype(np.float32), COARSE @ np.diag([litres, litres, litres, 1]))
    assert said(fitted(scan, (48, 48, 48)).scan.remarks) == told


def test_an_artefact_is_said_and_one_that_cannot_be_stored_is_refused(tmp_path):
    spiky = brain().astype(np.float32)
    spiky[20, 24, 18] = 1e9
    scan, _, _ = normalise(Scan(tmp_path, spiky, COARSE), spiky)
    assert said(scan.remarks) == [
        "one of its voxels is 263 deviations from the mean: kept; an artefact that flattens the brain?"
    ]
    dark = brain().astype(np.float32)
    dark[0, 0, 0] = -1e9  # outside the brain, whose deviation it does not raise
    with pytest.raises(DataError, match="an artefact that leaves nothing of the brain; export it again"):
        fitted(Scan(tmp_path, dark, COARSE), (48, 48, 48), normalise="brain")


def test_a_mask_leaves_only_the_brain(tmp_path, folder, caches):
    voxels = brain()
    inside = voxels > 300
    scan = save(tmp_path / "a.nii.gz", np.where(inside, voxels, 77).astype(np.int16))
    mask = save(tmp_path / "mask.nii.gz", inside.astype(np.uint8))
    assert np.array_equal(read_scan(scan, mask=mask).voxels, np.where(inside, voxels, 0))
    turned = nib.Nifti1Image(inside.astype(np.uint8)[..., None], COARSE)
    nib.save(turned, tmp_path / "four.nii.gz")
    assert np.array_equal(read_scan(scan, mask=tmp_path / "four.nii.gz").voxels, np.where(inside, voxels, 0))
    moved = COARSE.copy()
    moved[0, 3] += 4
    for other, told in (
        (save(tmp_path / "small.nii.gz", inside[1:].astype(np.uint8)), "on another grid; give the mask of the same"),
        (save(tmp_path / "moved.nii.gz", inside.astype(np.uint8), moved), "on another grid; give the mask of the same"),
        (save(tmp_path / "empty.nii.gz", np.zeros(GRID, np.uint8)), "is 0 everywhere; make it again, or give none"),
        (tmp_path / "gone.nii.gz", "cannot be read .no such file.; copy or convert it again"),
    ):
        with pytest.raises(DataError, match=told) as refusal:
            read_scan(scan, mask=other)
        assert str(other) in str(refusal.value)


# A scan, prepared


def test_the_z_score_of_the_largest_scan_fits_into_float16():
    """(n - 1) / sqrt(n) is the largest z-score that n numbers can have (Samuelson's inequality)."""
    voxels = np.zeros((16, 16, 16), np.float32)
    voxels[0, 0, 0] = 1e30
    scan, _, _ = normalise(Scan(Path("spike"), voxels, COARSE), voxels)
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
    coarse = resample(Scan(tmp_path, noise, COARSE), (8, 8, 8), 0).voxels[1:-1, 1:-1, 1:-1]
    assert coarse.shape == (23, 23, 23)
    assert coarse.mean() == pytest.approx(100, abs=0.5)
    assert 2 < coarse.std() < 4, "the mean of 8 voxels is less noisy by the root of 8, or a little more"


def test_one_brain_gives_one_array_however_it_is_stored(tmp_path):
    """RAS, LAS, LIA, .mgz and Analyze to the bit, oblique within interpolation."""
    affine, grid, tilted = COARSE @ np.diag([0.75, 0.75, 0.75, 1]), (56, 68, 52), rotated(20)
    ras = nib.Nifti1Image(np.rint(head(affine, grid)).astype(np.int16), affine)
    nib.save(ras, tmp_path / "ras.nii.gz")
    for name, axes in (("las.nii", "LAS"), ("lia.nii.gz", "LIA"), ("lia.mgz", "LIA"), ("psr.hdr", "PSR")):
        order = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
        turned = ras.as_reoriented(order)
        kind = {".mgz": nib.MGHImage, ".hdr": nib.Nifti1Pair}.get(Path(name).suffix, nib.Nifti1Image)
        nib.save(kind(np.asarray(turned.dataobj), turned.affine), tmp_path / name)
    save(tmp_path / "oblique.nii.gz", np.rint(head(tilted, (64, 74, 64))).astype(np.int16), tilted)
    arrays, remarks = {}, {}
    for path in sorted(tmp_path.iterdir()):
        if path.suffix != ".img":
            found = fitted(on_cohort_grid(read_scan(path), None, (48, 64, 48)), (48, 64, 48))
            arrays[path.name], remarks[path.name] = found.scan.voxels, said(found.scan.remarks)
    assert remarks.pop("oblique.nii.gz") == ["its axes are tilted by 28 degrees: resampled along the world's axes"]
    assert remarks == {name: [] for name in ("las.nii", "lia.mgz", "lia.nii.gz", "psr.hdr", "ras.nii.gz")}
    plain, oblique = arrays.pop("ras.nii.gz"), arrays.pop("oblique.nii.gz")
    for name, array in arrays.items():
        assert np.array_equal(array, plain), name
    assert np.sqrt(np.mean((oblique - plain) ** 2)) < 0.05, "z-scores, linear interpolation"
    assert np.corrcoef(oblique.ravel(), plain.ravel())[0, 1] > 0.998


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
        for normalised in ("volume", "brain"):
            found = fitted(Scan(tmp_path, voxels, COARSE), (64, 64, 64), normalise=normalised)
            frame = found.scan.voxels[[0, -1]] * found.deviation + found.mean
            np.testing.assert_allclose(frame, lift, atol=1e-3)
        turned = on_cohort_grid(Scan(tmp_path, voxels, rotated(30)), 3, (64, 64, 64)).voxels
        assert np.all(np.abs(turned[[0, -1], [0, -1], [0, -1]] - lift) < 1), "corners of another value"


def test_the_published_padding_is_0_after_z_scores_four_voxels_before_and_three_behind(tmp_path):
    voxels = np.zeros((41, 48, 41), np.float32)
    voxels[6:-6, 6:-6, 6:-6] = np.random.default_rng(0).uniform(300, 900, (29, 36, 29))
    voxels[6, 6, 6] = 0
    found = fitted(Scan(tmp_path, voxels, COARSE), (48, 48, 48), padding="mean")
    assert found.box == ((4, 45), (0, 48), (4, 45))
    own = found.scan.voxels[4:45, :, 4:45]
    np.testing.assert_allclose(own, (voxels - voxels.mean()) / voxels.std(ddof=1), atol=1e-5)
    padding = np.ones((48, 48, 48), bool)
    padding[4:45, :, 4:45] = False
    assert np.all(found.scan.voxels[padding] == 0)
    assert own[0, 0, 0] < -0.5, "so the frame is brighter than the background"


@pytest.mark.parametrize("padding", ["background", "mean"])
def test_z_scores_in_the_brain_do_not_depend_on_what_surrounds_it(padding, tmp_path):
    voxels = brain().astype(np.float32)
    inside = voxels > np.percentile(voxels, 1) + 0.05 * (np.percentile(voxels, 99) - np.percentile(voxels, 1))
    for shape in ((48, 48, 48), (64, 80, 64)):
        found = fitted(Scan(tmp_path, voxels, COARSE), shape, padding=padding, normalise="brain")
        assert found.mean == pytest.approx(voxels[inside].mean(), rel=1e-6)
        assert found.deviation == pytest.approx(voxels[inside].std(ddof=1), rel=1e-6)
        scores = np.sort(found.scan.voxels, axis=None)[-inside.sum() :]
        assert scores.max() == pytest.approx((voxels.max() - found.mean) / found.deviation, rel=1e-5)


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
    for scan in prepare(folder, caches, shape=(48, 48, 32)).index.scans:
        [warning] = scan.warnings
        assert (
            warning == f"{scan.lost:.1%} of its brain lies outside 48x48x32 voxels: cut off; a larger --shape keeps it"
        )
        assert 0.005 < scan.lost < 0.05
    with pytest.raises(DataError, match=r"more than 5%; ask for a larger --shape$") as refusal:
        prepare(folder, caches, shape=(48, 48, 16))
    assert str(refusal.value).startswith("0 subjects (none) cannot be split into train, val and test")
    assert len(left_behind(caches)) == 2


def test_a_resampling_beyond_all_memory_is_refused(folder, caches):
    with pytest.raises(DataError, match=r"ask for a larger --voxel-mm|smaller --shape or a larger --voxel-mm"):
        prepare(folder, caches, voxel_mm=0.05)
    with pytest.raises(DataError, match="shape 2048x2048x2048 is more than any scan has; ask for a smaller --shape"):
        prepare(folder, caches, shape=(2048, 2048, 2048))
    assert left_behind(caches) == []


# Scans together


def test_fewer_than_3_subjects_are_refused_before_any_scan_is_read(tmp_path, caches):
    for name in ("sub-01_ses-1", "sub-01_ses-2", "sub-02"):
        (tmp_path / "lab").mkdir(exist_ok=True)
        (tmp_path / "lab" / f"{name}.nii.gz").write_text(name)
    with pytest.raises(DataError, match=r"^2 subjects \(sub-01, sub-02\) cannot be split .* at least 3$"):
        prepare(tmp_path / "lab", caches)
    assert not caches.exists()


def test_the_same_scan_under_two_subjects_is_nobodys(folder, caches):
    """Whatever its order and compression: whose it is is not known, and it could leak from one split into another."""
    save(folder / "sub-06_T1w.nii.gz", brain(6))
    first = folder / "sub-00_T1w.nii.gz"
    for twin in (folder / "sub-03_T1w.nii.gz", folder / "sub-04_T1w.nii", folder / "sub-05_T1w.mgz"):
        if twin.name.startswith("sub-03"):
            shutil.copy(first, twin)
        elif twin.suffix == ".nii":
            twin.write_bytes(gzip.decompress(first.read_bytes()))
        else:
            stored(twin, "LIA")
        cohort = prepare(folder, caches)
        assert [scan.subject for scan in cohort.index.scans] == ["sub-01", "sub-02", "sub-06"]
        advice = "of another subject; find out whose it is, and remove the other"
        assert cohort.index.left_out == (
            f"{first.name}: it is the same scan as {twin.name}, {advice}",
            f"{twin.name}: it is the same scan as {first.name}, {advice}",
        )
        twin.unlink()


def test_the_same_scan_twice_of_one_subject_counts_once(folder, caches):
    shutil.copy(folder / "sub-00_T1w.nii.gz", folder / "sub-00_again_T1w.nii.gz")
    cohort = prepare(folder, caches, take="every")
    assert [scan.file for scan in cohort.index.scans] == [f"sub-{n}_T1w.nii.gz" for n in ("00", "01", "02")]
    assert cohort.index.left_out == (
        "sub-00_again_T1w.nii.gz: it is the same scan as sub-00_T1w.nii.gz; remove one of them",
    )


def test_mixed_voxel_sizes_are_refused_with_the_option_to_type(folder, caches):
    coarse = COARSE @ np.diag([1.25, 1.25, 1.25, 1])
    save(folder / "sub-03_T1w.nii.gz", brain(0, coarse), coarse)
    for settings in ({}, {"shape": (48, 48, 48)}):
        with pytest.raises(DataError, match=r"4 mm \(sub-00_T1w.nii.gz\) to 5 mm \(sub-03.*with --voxel-mm 4$"):
            prepare(folder, caches, **settings)
    assert len(prepare(folder, caches, voxel_mm=4).index.scans) == 4


def test_one_bad_scan_never_ends_a_preparation(folder, caches):
    save(folder / "sub-03_T1w.nii.gz", brain(3))
    truncated(folder / "sub-01_T1w.nii.gz", 0.5)
    (folder / "sub-04_T1w.nii.gz").symlink_to("gone")
    cohort = prepare(folder, caches)
    assert [scan.subject for scan in cohort.index.scans] == ["sub-00", "sub-02", "sub-03"]
    assert [line[:19] for line in cohort.index.left_out] == ["sub-01_T1w.nii.gz: ", "sub-04_T1w.nii.gz: "]
    truncated(folder / "sub-02_T1w.nii.gz", 0.5)
    with pytest.raises(DataError, match=r"^2 subjects .* give scans of at least 3; left out 3 of 5 scans: .*sub-01"):
        prepare(folder, caches)


@pytest.mark.parametrize("prepared", [False, True])
def test_strict_refuses_bad_scans_with_a_line_each(prepared, folder, caches):
    for bad in ("sub-03", "sub-04"):
        (folder / f"{bad}_T1w.nii.gz").touch()
    assert not prepared or prepare(folder, caches)
    with pytest.raises(DataError, match=r"2 of 5 scans cannot be used: .* without --strict .*\n.*sub-03.*\n.*sub-04"):
        prepare(folder, caches, strict=True)
    assert len(left_behind(caches)) == prepared


def test_strictness_does_not_make_another_cohort(folder, caches):
    assert prepare(folder, caches).fingerprint == prepare(folder, caches, strict=True).fingerprint


def test_a_manifests_checksum_is_kept(folder, caches):
    """So that damage to a file that has no checksum of its own is seen."""
    lines = ["path,subject_id,sha256"]
    for path in sorted(folder.iterdir()):
        lines.append(f"lab/{path.name},{path.name[:6]},{hashlib.sha256(path.read_bytes()).hexdigest()}")
    manifest = folder.parent / "cohort.csv"
    manifest.write_text("\n".join(lines))
    cohort = prepare(manifest, caches, strict=True)
    assert cohort.folder.name.startswith("cohort-")
    save(folder / "sub-01_T1w.nii.gz", brain(7))
    with pytest.raises(DataError, match=r"sub-01_T1w.nii.gz: its sha256 is \w{12}..., not \w{12}... as its manifest"):
        prepare(manifest, caches, strict=True)


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


def people(count, **covariates):
    known = [{name: value(n) for name, value in covariates.items()} for n in range(count)]
    return [ScanFile(Path(f"{n}.nii"), f"{n}.nii", f"sub-{n:03d}", covariates=known[n]) for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_has_each_value_in_proportion(seed):
    scans = people(179, cdr=lambda n: [0.0, 0.0, 0.0, 0.5, 1.0][n % 5], age=lambda n: float(18 + 37 * n % 79))
    for covariate in ("cdr", "age"):
        settings = CohortSettings(stratify=covariate, split_seed=seed)
        splits = split_scans(scans, settings)
        assert [list(splits.values()).count(split) for split in SPLITS] == [128, 23, 28]
        assert splits == split_scans(scans, settings)
        assert splits != split_scans(scans, CohortSettings(stratify=covariate, split_seed=seed + 1))
        means = [np.mean([scan.covariates[covariate] for scan in scans if splits[scan.subject] == s]) for s in SPLITS]
        everyone = [scan.covariates[covariate] for scan in scans]
        assert np.abs(np.array(means) - np.mean(everyone)).max() < 0.12 * np.std(everyone)


def test_strata_of_words_and_of_people_without_a_value_are_shared_out_too():
    scans = people(60, sex=lambda n: "FM"[n % 3 == 0]) + [ScanFile(Path("x"), "x", f"sub-9{n:02d}") for n in range(30)]
    splits = split_scans(scans, CohortSettings(stratify="sex", split="1/1/1"))
    for stratum, each in ((lambda scan: scan.covariates.get("sex") == "F", 13), (lambda scan: not scan.covariates, 10)):
        members = [splits[scan.subject] for scan in scans if stratum(scan)]
        assert all(abs(members.count(split) - each) <= 1 for split in SPLITS), members


def test_a_covariate_that_nobody_has_is_refused_with_those_there_are():
    with pytest.raises(DataError, match="no scan has the covariate height of --stratify; there are: age, sex"):
        split_scans(people(5, age=float, sex=str), CohortSettings(stratify="height"))


def test_a_manifests_own_split_is_honoured(folder, caches):
    for seed in range(3, 6):
        save(folder / f"sub-{seed:02d}_T1w.nii.gz", brain(seed))
    wanted = {
        "sub-00": "test",
        "sub-01": "train",
        "sub-02": "val",
        "sub-03": "train",
        "sub-04": "test",
        "sub-05": "val",
    }
    lines = [f"sub-{n:02d}_T1w.nii.gz,sub-{n:02d},{wanted[f'sub-{n:02d}']}" for n in range(6)]
    (folder / "manifest.csv").write_text("\n".join(["path,subject_id,split", *lines]))
    assert {scan.subject: scan.split for scan in prepare(folder, caches).index.scans} == wanted
    truncated(folder / "sub-02_T1w.nii.gz", 0.5)
    truncated(folder / "sub-05_T1w.nii.gz", 0.5)
    with pytest.raises(DataError, match=r"^the usable scans are 2 train, 0 val, 2 test .* left out 2 of 6 .*sub-02"):
        prepare(folder, caches)


# What is in files


def test_a_digest_is_that_of_sha256sum_and_is_remembered(tmp_path, monkeypatch):
    path, both = save(tmp_path / "a.nii.gz", brain()), pair(tmp_path / "b.hdr")
    for file in tmp_path.iterdir():
        age(file)
    monkeypatch.setattr("somvq.data.digests.STILL_WARM_S", -1)  # of ctime, which nobody can set
    first = Digests(tmp_path / "record.json")
    assert first.of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert first.of(both) == hashlib.sha256(both.read_bytes() + both.with_suffix(".img").read_bytes()).hexdigest()
    assert first.of(tmp_path / "gone.nii") == first.of(tmp_path) == ""
    first.save()
    monkeypatch.setattr("somvq.data.digests.sha256_of", lambda parts: "read again")
    again = Digests(tmp_path / "record.json")
    assert (again.of(path), again.of(both)) == (first.of(path), first.of(both))
    save(path, brain(1))
    assert again.of(path) == "read again"
    with both.with_suffix(".img").open("r+b") as image:
        image.write(b"x")
    assert again.of(both) == "read again", "the voxels of a pair are its content"


def age(path):
    os.utime(path, (1e9, 1e9))


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    """It could change again within one tick of the file system's clock, and nothing would tell."""
    path = save(tmp_path / "a.nii.gz", brain())
    digests = Digests(tmp_path / "record.json")
    digests.of(path)
    digests.save()
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 3}', "torn {"])
def test_a_damaged_record_of_digests_is_made_again(content, tmp_path):
    path = save(tmp_path / "a.nii.gz", brain())
    (tmp_path / "record.json").write_text(content)
    assert Digests(tmp_path / "record.json").of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


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
        (cache / "index.json").read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT - 1}')
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
from contextlib import suppress
from dataclasses import replace
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


def test_many_scans_are_shared_out_among_processes_and_come_out_alike(tmp_path, caches, monkeypatch):
    for seed in range(20):
        save(tmp_path / "lab" / f"sub-{seed:02d}_T1w.nii.gz", brain(seed))
    (tmp_path / "lab" / "sub-99_T1w.nii.gz").write_text("not a scan")
    calls = []
    monkeypatch.setattr("somvq.processes.usable_cores", lambda: 2)
    several = prepare_cohort(tmp_path / "lab", CohortSettings(), caches, lambda *call: calls.append(call))
    assert calls[-1] == ("preprocessing", 19, 20)
    monkeypatch.setattr("somvq.processes.usable_cores", lambda: 1)
    assert contents(several) == contents(prepare(tmp_path / "lab", caches.with_name("one")))
    assert several.index.left_out[0].startswith("sub-99_T1w.nii.gz: cannot be read (it is not gzipped")


@pytest.mark.slow
def test_a_preparation_killed_at_ten_random_moments_is_right_in_the_end(tmp_path, caches):
    """The whole process group dies by kill -9, in whatever it does; what is there then is right or is made again."""
    for seed in range(24):
        save(tmp_path / "lab" / f"sub-{seed:02d}_T1w.nii.gz", brain(seed))
    began = time.monotonic()
    whole = start(tmp_path / "lab", caches.with_name("afresh"), "live")
    printed = whole.communicate(timeout=120)
    assert whole.returncode == 0, printed
    takes = time.monotonic() - began
    random, killed = np.random.default_rng(0), 0
    for moment in random.uniform(0.2, 1.1, 10) * takes:
        process = start(tmp_path / "lab", caches, "live")
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        for folder in caches.glob("lab-*"):
            assert contents(Cohort(folder)) == contents(Cohort(next(caches.with_name("afresh").glob("lab-*"))))
            if killed < 9:
                shutil.rmtree(folder)
    assert killed >= 5
    cohort = prepare(tmp_path / "lab", caches)
    assert left_behind(caches) == [cohort.folder.name]
    assert contents(cohort) == contents(prepare(tmp_path / "lab", caches.with_name("afresh")))


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
