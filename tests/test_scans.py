import gzip
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from brains import (
    COARSE,
    COLIN,
    GRID,
    SMALL,
    brain,
    fitted,
    flip,
    head,
    in_file_units,
    left_behind,
    mgz,
    mgz_bytes,
    pair,
    patched,
    prepare,
    rotated,
    said,
    save,
    stored,
    truncated,
)

from somvq.config import CohortSettings
from somvq.data.digests import sha256_of
from somvq.data.preprocess import background, moments, normalise, resample
from somvq.data.preprocess import prepare as prepare_scan
from somvq.data.scan import LARGEST_SCAN, Scan, read_scan
from somvq.data.survey import Source, look_at
from somvq.errors import DataError
from somvq.files import parts_of
from somvq.sources.found import ScanFile

# A scan, read


def hole(path):
    voxels = brain().astype(np.float32)
    voxels[18:21, 22:25, 14:23] = np.nan
    return save(path, voxels)


def all_nan(path):
    return save(path, np.full(GRID, np.nan, np.float32))


def short_pair(path):
    pair(path)
    image = path.with_suffix(".img")
    image.write_bytes(image.read_bytes()[:-1000])


def pair_without_image(path):
    pair(path)
    path.with_suffix(".img").write_bytes(b"")


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
    "gzipped": (lambda path: path.write_bytes(gzip.compress(b"x" * 999)), ".nii", "does not end in .gz); rename it"),
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
    assert re.search("; (copy|export|extract|set|mend|remove|fetch|convert|rename) ", f"{line} "), line
    with pytest.raises(DataError) as refusal:
        prepare(folder, caches, strict=True)
    assert str(refusal.value).endswith(f"{line}; without --strict it is left out")


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
    with pytest.raises(DataError, match="one of its voxels is 263 deviations from the mean, an artefact that leaves"):
        normalise(Scan(tmp_path, spiky, COARSE), *moments(spiky))
    spiky[20, 24, 18] = 40_000
    scan = normalise(Scan(tmp_path, spiky, COARSE), *moments(spiky))
    [remark] = said(scan.remarks)
    assert remark.endswith(" deviations from the mean: kept; an artefact that flattens the brain?")
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
        (tmp_path / "gone.nii.gz", "cannot be read .no such file.; copy it again"),
    ):
        with pytest.raises(DataError, match=told) as refusal:
            read_scan(scan, mask=other)
        assert str(other) in str(refusal.value)


# A scan, prepared


def test_the_z_score_of_the_largest_scan_fits_into_float16():
    """(n - 1) / sqrt(n) is the largest z-score that n numbers can have (Samuelson's inequality)."""
    voxels = np.zeros((16, 16, 16), np.float32)
    voxels[0, 0, 0] = 1e30
    scan = (voxels - np.float32(moments(voxels)[0])) / np.float32(moments(voxels)[1])
    assert scan.max() == pytest.approx((16**3 - 1) / 16**1.5)
    assert np.finfo(np.float16).max > LARGEST_SCAN**0.5


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
            found = prepare_scan(path, None, (48, 64, 48), CohortSettings())
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
        turned = resample(Scan(tmp_path, voxels, rotated(30)), (3, 3, 3), background(voxels)).voxels
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
