import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from brains import (
    COARSE,
    brain,
    contents,
    left_behind,
    mgz_bytes,
    pair,
    patched,
    prepare,
    rotated,
    save,
    stored,
    truncated,
)

from somvq.config import CohortSettings
from somvq.data.cache import list_prepared, prepare_cohort
from somvq.data.check import check_cohort, write_manifest
from somvq.data.cohort import FORMAT, SPLITS, Cohort
from somvq.data.digests import Digests
from somvq.data.preprocess import box_of
from somvq.data.report import check_lines, check_report, summary_lines
from somvq.data.splits import split_scans, split_subjects
from somvq.errors import DataError
from somvq.sources import find_scans
from somvq.sources.found import ScanFile

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
    printed = "\n".join(
        [
            *check_lines(checked, 80),
            *check_lines(checked, 150),
            json.dumps(check_report(checked)),
            *summary_lines(cohort),
        ]
    )
    stored = [path.read_bytes() for path in (*cohort.folder.iterdir(), tmp_path / "cohort.csv")]
    assert POISON.decode() not in printed
    assert not [content for content in stored if POISON in content]
    assert POISON.decode() not in "".join(capfd.readouterr())


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


@pytest.fixture
def masked(folder):
    """The three scans, each with a mask, as a manifest lists them."""
    lines = ["path,subject_id,mask_path"]
    for path in sorted(folder.iterdir()):
        mask = save(folder.parent / "masks" / path.name, (np.asarray(nib.load(path).dataobj) > 300).astype(np.uint8))
        lines.append(f"lab/{path.name},{path.name[:6]},masks/{mask.name}")
    manifest = folder.parent / "masked.csv"
    manifest.write_text("\n".join(lines))
    return manifest


@pytest.mark.parametrize("changed", ["lab", "masks"])
def test_a_scan_or_mask_that_changes_meanwhile_is_left_out_and_taken_the_next_time(changed, masked, caches):
    path = masked.parent / changed / "sub-01_T1w.nii.gz"
    whole = path.read_bytes()
    for seed in (3, 4):  # enough to go on without one
        save(masked.parent / "lab" / f"sub-{seed:02d}_T1w.nii.gz", brain(seed))
        masked.write_text(f"{masked.read_text()}\nlab/sub-{seed:02d}_T1w.nii.gz,sub-{seed:02d},")

    before = {other: other.read_bytes() for other in masked.parent.glob("*/*.nii.gz") if other != path}

    def meddle(what, done, total):
        if (what, done) == ("preprocessing", 1):
            save(path, brain(5) if changed == "lab" else (brain(1) > 600).astype(np.uint8))

    cohort = prepare_cohort(masked, CohortSettings(), caches, meddle)
    assert [scan.subject for scan in cohort.index.scans] == ["sub-00", "sub-02", "sub-03", "sub-04"]
    assert cohort.index.left_out == (
        "lab/sub-01_T1w.nii.gz: it changed while it was being prepared; leave it alone and run again",
    )
    after = {other: other.read_bytes() for other in masked.parent.glob("*/*.nii.gz") if other != path}
    assert after == before, "nothing is written to anyone's scans"
    path.write_bytes(whole)
    again = prepare(masked, caches)
    assert again.folder == cohort.folder, "the same files and settings"
    assert len(again.index.scans) == 5
    assert contents(again) == contents(prepare(masked, caches.with_name("afresh")))


def test_what_could_not_be_read_once_is_tried_again(folder, caches, monkeypatch):
    """A network disk that was away for a moment must not cost a scan for ever."""
    save(folder / "sub-03_T1w.nii.gz", brain(3))
    opened = gzip.open

    def away(path, *more):
        if "sub-03" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *more)

    monkeypatch.setattr(gzip, "open", away)
    [line] = prepare(folder, caches).index.left_out
    assert line == "sub-03_T1w.nii.gz: cannot be read (Input/output error); copy it again"
    stays = prepare(folder, caches)
    assert len(stays.index.scans) == 3
    monkeypatch.undo()
    assert len(prepare(folder, caches).index.scans) == 4


def test_a_corrected_checksum_and_a_new_wrong_one_are_seen(folder, caches):
    manifest = folder.parent / "cohort.csv"
    paths = sorted(folder.iterdir())
    paths.append(save(folder / "sub-03_T1w.nii.gz", brain(3)))

    def prepared(wrong):
        lines = ["path,subject_id,sha256"]
        for path in paths:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"lab/{path.name},{path.name[:6]},{'0' * 64 if path.name[:6] == wrong else digest}")
        manifest.write_text("\n".join(lines))
        return [scan.subject for scan in prepare(manifest, caches).index.scans]

    assert prepared("sub-01") == ["sub-00", "sub-02", "sub-03"]
    assert prepared("") == ["sub-00", "sub-01", "sub-02", "sub-03"]
    assert prepared("sub-02") == ["sub-00", "sub-01", "sub-03"]


@pytest.mark.parametrize("missing", ["nothing", "folder", "pipe"])
def test_a_file_that_a_manifest_promises_and_that_is_not_there_is_left_out(missing, folder, caches):
    manifest = folder.parent / "cohort.csv"
    lines = [f"lab/{path.name},{path.name[:6]}," for path in sorted(folder.iterdir())]
    gone = folder.parent / "gone.nii.gz"
    manifest.write_text("\n".join(["path,subject_id,sha256", *lines, f"gone.nii.gz,sub-09,{'0' * 64}"]))
    {"nothing": lambda: None, "folder": gone.mkdir, "pipe": lambda: os.mkfifo(gone)}[missing]()
    [line] = prepare(manifest, caches).index.left_out
    said = "no such file" if missing == "nothing" else "it is not a file"
    assert line.startswith(f"gone.nii.gz: cannot be read ({said}); ")


def test_the_published_padding_holds_whole_volumes(folder, caches):
    """As the paper's code did: a brain far from the middle of its volume is not cut off."""
    far = COARSE.copy()
    save(folder / "sub-03_T1w.nii.gz", np.pad(brain(3), ((24, 0), (0, 0), (0, 0))), far)
    cohort = prepare(folder, caches, padding="mean")
    assert cohort.index.left_out == ()
    assert cohort.index.shape == (64, 48, 48)
    cut = prepare(folder, caches, padding="mean", shape=(48, 48, 48))
    assert [line[:45] for line in cut.index.left_out] == ["sub-03_T1w.nii.gz: 9.2% of its brain lies out"]


def test_specks_far_from_the_brain_do_not_make_its_box(tmp_path):
    whole = np.zeros((160, 160, 160), bool)
    whole[30:130, 20:140, 40:120] = True
    speckled = whole.copy()
    speckled[2, 2, 2] = speckled[155, 80, 3] = True
    assert box_of(speckled) == box_of(whole) == (slice(30, 130), slice(20, 140), slice(40, 120))
    few = np.zeros((9, 9, 9), bool)
    few[4, 4, 3:5] = True
    assert box_of(few) == (slice(4, 5), slice(4, 5), slice(3, 5))


def test_many_unreadable_scans_do_not_make_a_line_of_pages(folder, caches):
    for number in range(40):
        (folder / f"sub-1{number:02d}_T1w.nii.gz").touch()
    (folder / "sub-01_T1w.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"left out 40 of 42 scans: .*; and 35 more: somvq cohort check lists them$"
    ) as e:
        prepare(folder, caches)
    assert len(str(e.value)) < 1000


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
from somvq.data.cache import list_prepared, prepare_cohort

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


def test_what_killed_preparations_left_is_removed_and_never_listed(folder, caches):
    killed = start(folder, caches, "die")
    killed.communicate(timeout=60)
    [partial] = left_behind(caches)
    shutil.copytree(prepare(folder, caches, split_seed=1).folder, caches / ".lab-0123456789ab.partial")
    assert [cohort.folder.name for cohort in list_prepared(caches)] == [
        prepare(folder, caches, split_seed=1).folder.name
    ]
    assert not (caches / partial).exists()
    assert not (caches / ".lab-0123456789ab.partial").exists()


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
    assert calls[-1] == ("preprocessing", 20, 20)
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


@pytest.mark.parametrize("kind", ["straight", "cropped", "resampled", "tilted", "with NaN", "masked"])
def test_preparing_holds_no_more_than_three_volumes(kind, tmp_path, caches):
    affine, shape = COARSE @ np.diag([0.5, 0.5, 0.5, 1]), (96, 96, 80)
    if kind == "tilted":
        affine = rotated(10) @ np.diag([2 / 3, 2 / 3, 2 / 3, 1])
        affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    lines = ["path,subject_id,mask_path"]
    for seed in range(3):
        voxels = brain(seed, affine, shape).astype(np.float32)
        if kind == "with NaN":
            voxels[voxels < 20] = np.nan
        name = f"sub-{seed:02d}_T1w.nii"
        save(tmp_path / "lab" / name, voxels, affine)
        mask = ""
        if kind == "masked":
            mask = save(tmp_path / "lab" / f"mask-{seed}.nii", (voxels > 300).astype(np.uint8), affine).name
        lines.append(f"{name},sub-{seed:02d},{mask}")
    (tmp_path / "lab" / "manifest.csv").write_text("\n".join(lines))
    tracemalloc.start()
    try:
        settings = {"resampled": {"voxel_mm": 1.9}, "cropped": {"shape": (80, 80, 64)}}.get(kind, {})
        cohort = prepare(tmp_path / "lab", caches, **settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(cohort.index.scans) == 3
    volume = 4 * max(np.prod(cohort.index.shape), np.prod(shape))
    assert peak < 3.5 * volume, f"{peak / volume:.2f} volumes"
