import os
import typing
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from somvq.config import CohortSettings, LayoutName
from somvq.data.demo import make_demo_cohort
from somvq.data.scan import read_scan
from somvq.errors import DataError
from somvq.sources import LAYOUTS, find_scans
from somvq.sources.names import session_in, subject_in, subject_of, torn_people
from somvq.sources.tables import read_table

LIA = np.array([[-1.0, 0, 0, 128], [0, 0, 1, -128], [0, -1, 0, 128], [0, 0, 0, 1]])
T88 = "mpr_n4_anon_111_t88_masked_gfc"
OASIS1_TABLE = """ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay
OAS1_0001_MR1,F,R,74,2,3,29,0,1344,0.743,1.306,N/A
OAS1_0002_MR1,F,R,55,4,1,29,0.5,1147,0.81,1.531,N/A
OAS1_0003_MR1,F,R,73,4,3,27,1,1454,0.708,1.207,N/A
OAS1_0004_MR1,M,R,28,,,,,1588,0.803,1.105,N/A
OAS1_0001_MR2,F,R,74,2,3,,,1344,0.74,1.3,40
"""


def brain(shape, dtype):
    """A ball with a slope of brightness, 0 outside."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in shape)]
    return (np.where(x**2 + y**2 + z**2 < 0.4, 4 * np.round(10 + 5 * x + 3 * y), 0)).astype(dtype)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """One real volume of each kind; the other files of a layout are links to it."""
    folder = tmp_path_factory.mktemp("volumes")
    header = nib.AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_data_shape((176, 208, 176, 1))
    nib.AnalyzeImage(brain((176, 208, 176), np.int16)[..., None], None, header).to_filename(folder / "t88.img")
    raw = nib.nifti1.Nifti1PairHeader(endianness=">")
    raw.set_data_dtype(np.int16)
    pair = nib.Nifti1Pair(brain((256, 256, 128), np.int16)[..., None], np.diag([1, 1, 1.25, 1]), raw)
    pair.to_filename(folder / "raw.hdr")
    nib.save(nib.MGHImage(brain((256, 256, 256), np.uint8), LIA), folder / "conformed.mgz")
    nib.save(nib.Nifti1Image(brain((160, 192, 224), np.float32) / 100, LIA), folder / "aligned.nii.gz")
    small = brain((40, 48, 36), np.int16)
    nib.save(nib.Nifti1Image(small, np.diag([4, 4, 4, 1])), folder / "small.nii.gz")
    nib.save(nib.Nifti1Image((small > 0).astype(np.uint8), np.diag([4, 4, 4, 1])), folder / "mask.nii.gz")
    return folder


def put(source, *targets):
    """Links to a volume; of a pair, to both halves."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
        if source.suffix == ".hdr":
            os.link(source.with_suffix(".img"), target.with_suffix(".img"))


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# One of each layout: builds it and returns the (file, subject, session) of what is to be found


def make_manifest(root, volumes):
    for name in ("a", "b", "c"):
        put(volumes / "small.nii.gz", root / "scans" / f"{name}.nii.gz")
    rows = "".join(f"scans/{name}.nii.gz,{name.upper()},1,{age}\n" for name, age in (("a", 20), ("b", 30), ("c", 40)))
    write(root / "manifest.csv", f"path,subject_id,session,age\n{rows}")
    return [(f"scans/{name}.nii.gz", name.upper(), "1") for name in ("a", "b", "c")]


def make_neurite(root, volumes):
    for number in (1, 2, 4):
        folder = root / f"OASIS_OAS1_{number:04d}_MR1"
        put(volumes / "aligned.nii.gz", folder / "aligned_norm.nii.gz", folder / "aligned_orig.nii.gz")
        put(volumes / "small.nii.gz", folder / "norm.nii.gz", folder / "slice_norm.nii.gz", folder / "seg35.nii.gz")
    write(root / "subjects.txt", "OASIS_OAS1_0001_MR1\n")
    return [(f"OASIS_OAS1_{n:04d}_MR1/aligned_norm.nii.gz", f"OAS1_{n:04d}", "MR1") for n in (1, 2, 4)]


def make_oasis1(root, volumes):
    found = []
    for disc, session, averaged in ((1, "0001_MR1", 4), (1, "0002_MR1", 3), (2, "0003_MR1", 6), (12, "0001_MR2", 5)):
        folder, t88 = root / f"disc{disc}" / f"OAS1_{session}", "PROCESSED/MPRAGE/T88_111"
        name = f"OAS1_{session}_mpr_n{averaged}_anon"
        put(volumes / "t88.hdr", *(folder / t88 / f"{name}_111_t88_{kind}.hdr" for kind in ("masked_gfc", "gfc")))
        put(volumes / "t88.hdr", folder / "FSL_SEG" / f"{name}_111_t88_masked_gfc_fseg.hdr")
        put(volumes / "t88.hdr", folder / "RAW" / f"OAS1_{session}_mpr-1_anon.hdr")
        touch(folder / f"OAS1_{session}.txt", folder / t88 / f"{name}_111_t88_masked_gfc_tra_90.gif")
        file = f"disc{disc}/OAS1_{session}/{t88}/{name}_111_t88_masked_gfc.hdr"
        found.append((file, f"OAS1_{session[:4]}", session[5:]))
    return found


def make_oasis2(root, volumes):
    found = []
    for part, session in ((1, "0001_MR1"), (1, "0001_MR2"), (2, "0100_MR1")):
        folder = root / f"OAS2_RAW_PART{part}" / f"OAS2_{session}" / "RAW"
        put(volumes / "raw.hdr", *(folder / f"mpr-{number}.nifti.hdr" for number in (1, 2, 3)))
        found.append((str((folder / "mpr-1.nifti.hdr").relative_to(root)), f"OAS2_{session[:4]}", session[5:]))
    return found


def make_freesurfer(root, volumes):
    for name in ("OAS1_0001_MR1", "OAS30001_MR_d0129", "sub-01_ses-2", "bert"):
        mri = root / name / "mri"
        put(volumes / "conformed.mgz", *(mri / f"{kind}.mgz" for kind in ("norm", "brain", "brainmask", "aseg", "T1")))
    elsewhere = root.parent / "freesurfer-templates" / "fsaverage"
    put(volumes / "conformed.mgz", elsewhere / "mri" / "norm.mgz")
    (root / "fsaverage").symlink_to(elsewhere)
    return [
        ("OAS1_0001_MR1/mri/norm.mgz", "OAS1_0001", "MR1"),
        ("OAS30001_MR_d0129/mri/norm.mgz", "OAS30001", "d0129"),
        ("bert/mri/norm.mgz", "bert", ""),
        ("sub-01_ses-2/mri/norm.mgz", "sub-01", "ses-2"),
    ]


def make_oasis3(root, volumes):
    xnat = root / "OAS30001_MR_d0129"
    put(volumes / "small.nii.gz", xnat / "anat1" / "NIFTI" / "sub-OAS30001_ses-d0129_run-01_T1w.nii.gz")
    put(volumes / "small.nii.gz", xnat / "anat2" / "sub-OAS30001_ses-d0129_run-02_T1w.nii.gz")
    put(volumes / "small.nii.gz", xnat / "anat3" / "sub-OAS30001_ses-d0129_T2w.nii.gz")
    put(volumes / "small.nii.gz", root / "sub-OAS30002/ses-d2340/anat/sub-OAS30002_ses-d2340_acq-mprage_T1w.nii.gz")
    put(volumes / "small.nii.gz", root / "0AS_data_files" / "sub-OAS39999_ses-d0000_T1w.nii.gz")
    touch(root / "OAS30003_MR_d0001" / "func1" / "sub-OAS30003_ses-d0001_task-rest_bold.nii.gz")
    return [
        ("OAS30001_MR_d0129/anat1/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz", "OAS30001", "d0129"),
        ("sub-OAS30002/ses-d2340/anat/sub-OAS30002_ses-d2340_acq-mprage_T1w.nii.gz", "OAS30002", "d2340"),
    ]


MNI = "space-MNI152NLin2009cAsym_res-1_"


def make_derivatives(root, volumes):
    for number in (1, 2, 3):
        for grid in ("", MNI):
            stem = root / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_{grid}desc"
            put(volumes / "small.nii.gz", Path(f"{stem}-preproc_T1w.nii.gz"))
            put(volumes / "mask.nii.gz", Path(f"{stem}-brain_mask.nii.gz"))
    write(root / "dataset_description.json", "{}")
    return [(f"sub-0{n}/anat/sub-0{n}_{MNI}desc-preproc_T1w.nii.gz", f"sub-0{n}", "") for n in (1, 2, 3)]


def make_bids(root, volumes):
    found = []
    for stem in ("sub-01/ses-1/anat/sub-01_ses-1", "sub-01/ses-2/anat/sub-01_ses-2", "sub-02/anat/sub-02_acq-x_run-1"):
        put(volumes / "small.nii.gz", root / f"{stem}_T1w.nii.gz", root / f"{stem}_T2w.nii.gz")
        name = stem.rpartition("/")[2]
        found.append((f"{stem}_T1w.nii.gz", name[:6], "ses-" + name[-1] if "ses" in name else ""))
    for folder in ("derivatives/mriqc", "sourcedata", "code"):
        put(volumes / "small.nii.gz", root / folder / "sub-09" / "anat" / "sub-09_T1w.nii.gz")
    return found


def make_folder(root, volumes):
    put(volumes / "small.nii.gz", root / "anna.nii.gz", root / "more" / "ben.NII.GZ")
    put(volumes / "conformed.mgz", root / "carl.mgz")
    put(volumes / "t88.hdr", root / "dora.hdr")
    files = [("anna.nii.gz", "anna"), ("more/ben.NII.GZ", "ben"), ("carl.mgz", "carl"), ("dora.hdr", "dora")]
    return [(file, subject, file) for file, subject in files]


MAKERS = {
    "manifest": make_manifest,
    "neurite": make_neurite,
    "oasis1": make_oasis1,
    "oasis2": make_oasis2,
    "freesurfer": make_freesurfer,
    "oasis3": make_oasis3,
    "derivatives": make_derivatives,
    "bids": make_bids,
    "folder": make_folder,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, volumes):
    """Each layout's folder and what is in it, by name."""
    place = tmp_path_factory.mktemp("layouts")
    return {name: (place / name, make(place / name, volumes)) for name, make in MAKERS.items()}


def find(root, **settings):
    return find_scans(root, CohortSettings(**settings))


def triples(found):
    return [(scan.file, scan.subject, scan.session) for scan in found.scans]


def files(found):
    return [scan.file for scan in found.scans]


def refusal(root, **settings):
    with pytest.raises(DataError) as refused:
        find(root, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# What holds for every layout


def test_layouts_are_those_of_the_settings_in_the_order_of_looking():
    assert list(LAYOUTS) == list(typing.get_args(LayoutName)) == list(MAKERS)
    assert [layout.name for layout in LAYOUTS.values()] == list(LAYOUTS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_layout_is_recognised_by_looking_and_no_other_before_it(name, made):
    root, expected = made[name]
    assert next(layout.name for layout in LAYOUTS.values() if layout.recognise(root)) == name
    found = find(root)
    assert found.layout == name
    assert triples(found) == sorted(expected, key=lambda scan: (scan[1], scan[0]))
    assert found.left_out == ()
    assert all(scan.path == root / scan.file for scan in found.scans)


@pytest.mark.parametrize("name", MAKERS)
def test_a_layout_is_found_the_same_when_named_and_however_its_folder_is_given(name, made, tmp_path, monkeypatch):
    root, _ = made[name]
    found = find(root)
    assert find(root, layout=name) == found
    assert find(Path(f"{root}/")) == found
    (tmp_path / "link").symlink_to(root)
    through = find(tmp_path / "link")
    assert (triples(through), through.notes) == (triples(found), found.notes)
    assert [scan.covariates for scan in through.scans] == [scan.covariates for scan in found.scans]
    monkeypatch.chdir(root)
    assert triples(find(Path())) == triples(found)


@pytest.mark.parametrize("name", MAKERS)
def test_every_scan_that_is_found_can_be_read(name, made):
    found = find(made[name][0])
    read = set()
    for scan in found.scans:
        if scan.path.stat().st_ino not in read:  # most are links to one volume
            assert np.ptp(read_scan(scan.path, mask=scan.mask).voxels) > 0
        read.add(scan.path.stat().st_ino)
    every = find(made[name][0], take="every")
    assert len({scan.path for scan in every.scans}) == len(every.scans) >= len(found.scans)


@pytest.mark.parametrize("name", MAKERS)
def test_a_layout_that_does_not_fit_is_refused_and_the_one_that_does_is_named(name, made):
    root, _ = made[name]
    too = {"folder"} | ({"bids"} if name == "oasis3" else set())  # any folder is one, and part of OASIS-3 is BIDS
    for other in {*MAKERS} - {name} - too:
        said = refusal(root, layout=other)
        assert said.startswith(f"cohort {root} is not of layout {other} (")
        assert f"it looks like layout {name} (" in said
        assert said.endswith(f"give --layout {name}, or none")


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("manifest", "folder")])
def test_an_unrelated_folder_beside_it_does_not_hide_a_layout(name, made, tmp_path):
    root, expected = made[name]
    for inner in root.iterdir():
        (tmp_path / inner.name).symlink_to(inner)
    for stranger in ("AAA notes", "lost", "zzz"):
        touch(tmp_path / stranger / "readme.txt")
    assert triples(find(tmp_path)) == sorted(expected, key=lambda scan: (scan[1], scan[0]))


def test_recognising_a_layout_does_not_walk_a_disk(tmp_path, monkeypatch):
    for number in range(250):
        for inner in range(20):
            os.makedirs(tmp_path / f"{number}" / f"{inner}")
    looked_at = []
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: looked_at.append(place) or listed(place))
    monkeypatch.setattr(os, "walk", None)
    assert [name for name, layout in LAYOUTS.items() if layout.recognise(tmp_path)] == ["folder"]
    assert len(looked_at) < 2500 < 250 * 20


# What is refused of any of them


def test_what_is_no_cohort_is_refused(tmp_path):
    assert refusal(tmp_path / "gone").endswith("gone does not exist; give a folder of T1 volumes or a manifest")
    file = write(tmp_path / "scan.nii.gz", "")
    assert refusal(file).endswith("is not a folder; give a folder of T1 volumes or a manifest (.csv, .tsv, .xlsx)")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith(
        "holds no T1 volume; put there files that end in .nii, .nii.gz, .mgz, .mgh, or .hdr with .img; there is nothing"
    )
    touch(*(tmp_path / "notes" / f"{number}.txt" for number in range(7)))
    assert refusal(tmp_path / "notes").endswith("there is 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more")


def test_a_space_is_refused_where_nothing_is_in_spaces(made):
    root, _ = made["bids"]
    assert refusal(root, space="T1w") == f"--space T1w chooses among derivatives, and {root} is of layout bids"


def test_a_name_that_no_index_can_hold_leaves_its_scan_out(tmp_path):
    put_names(tmp_path, "sub-01.nii.gz", "sub-02.nii.gz", "a\nb.nii.gz", "half\t.hdr")
    os.rename(os.fsencode(tmp_path / "sub-01.nii.gz"), os.fsencode(tmp_path) + b"/sub-01_M\xfcller.nii.gz")
    found = find(tmp_path)
    assert files(found) == ["sub-02.nii.gz"]
    assert found.left_out == (
        r"half\t.hdr: its .img is missing; copy it here as well, or remove this one",
        r"'a\nb.nii.gz': its name holds control characters; rename it",
        r"'sub-01_M\udcfcller.nii.gz': its name is not UTF-8; rename it",
    )
    put_names(tmp_path / "fs", "a/mri/norm.mgz")
    os.rename(os.fsencode(tmp_path / "fs" / "a"), os.fsencode(tmp_path) + b"/fs/\xfc")
    assert r"no whole scan of layout freesurfer: '\udcfc/mri/norm.mgz': its name is not UTF-8" in refusal(
        tmp_path / "fs"
    )


def test_subjects_that_look_like_visits_of_one_person_are_pointed_out(tmp_path):
    put_names(tmp_path, *(f"P{person:03d}_visit{visit}.nii.gz" for person in range(6) for visit in (1, 2)), "x-V3.nii")
    like = "12 subjects have names that look like visits of 6 people (P000_visit1, P000_visit2, ...)"
    notes = (f"{like}: one person may be in two splits; give subject_id in a manifest",)
    assert find(tmp_path).notes == notes
    table = write(tmp_path / "list.csv", HEADER + "a,Y_tp1\nb,Y_tp2\nc,Z_1\nd,Z_2\n")
    like = "2 subjects have names that look like visits of 1 person (Y_tp1, Y_tp2)"
    assert find(table).notes == (f"{like}: one person may be in two splits; give each one subject_id",)


@pytest.mark.parametrize("visit", ["_visit-1", "-tp1", "_ses1", "_SESSION_1", "_timepoint1", "-time-1", "_scan1", "_v1",
                                   "_MR1", "_V01"])  # fmt: skip
def test_a_visit_is_seen_however_it_is_written(visit):
    assert torn_people(["anna", f"anna{visit}", "ben", "carl1", "carl2"]) == [["anna", f"anna{visit}"]]


def test_of_each_session_or_subject_the_first_scan_is_taken_or_every_one(made):
    root, _ = made["oasis2"]
    assert len(find(root, take="every").scans) == 9
    by_session = find(root)
    assert len(by_session.scans) == 3
    assert by_session.notes[-1] == "6 more scans of the same sessions are passed over: --take every keeps them"
    by_subject = find(root, take="subject")
    assert [(scan.subject, scan.session) for scan in by_subject.scans] == [("OAS2_0001", "MR1"), ("OAS2_0100", "MR1")]
    assert by_subject.notes[-1] == "7 more scans of the same subjects are passed over: --take every keeps them"


# A manifest


HEADER = "path,subject_id\n"
COLUMNS = "a manifest has path and subject_id, and where wanted session, split, mask_path, sha256 and covariates"


def test_the_demo_cohort_is_a_manifest_with_covariates(tmp_path):
    make_demo_cohort(tmp_path / "demo", subjects=2, voxel_mm=8)
    found = find(tmp_path / "demo")
    assert found.layout == "manifest"
    assert triples(found)[0] == ("sub-001_synthetic_T1w.nii.gz", "sub-001", "sub-001_synthetic_T1w.nii.gz")
    assert {"age", "atrophy", "brain_ml"} <= set(found.scans[0].covariates)
    assert all(isinstance(value, float) for value in found.scans[0].covariates.values())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_a_manifest_is_understood_however_it_was_saved(suffix, tmp_path):
    lines = [" Path ;SUBJECT_ID;Session;Split;MRI Age;Site;;", "b.nii ; B ;1;Training;20,5;Ulm;;", "", ";;;;;;;",
             "a.nii;A;;dev;n/a;;;", "~/c.nii;C;;testing;31;12;;"]  # fmt: skip
    table = write(tmp_path / f"list{suffix}", "\ufeff" + "\r\n".join(lines) + "\r\n")
    a, b, c = find(table).scans
    assert (b.path, b.file, b.subject, b.session, b.split) == (tmp_path / "b.nii", "b.nii", "B", "1", "train")
    assert b.covariates == {"mri age": 20.5, "site": "Ulm"}
    assert (a.split, a.session, a.covariates) == ("val", "a.nii", {})
    assert c.path == Path("~/c.nii").expanduser()
    assert (c.split, c.file, c.covariates) == ("test", str(c.path), {"mri age": 31, "site": 12})
    tabs = write(tmp_path / f"tabs{suffix}", "path\tsubject_id\nb.nii\tB, or not\n")
    assert find(tabs).scans[0].subject == "B, or not"


def test_a_manifest_names_masks_and_checksums_and_files_elsewhere(tmp_path):
    inside = tmp_path / "lab" / "scans" / "b.nii"
    text = f"path,subject_id,mask_path,sha256\n/data/a.nii,A,../masks/a.nii,{'AB' * 32}\n{inside},B,,\n"
    a, b = find(write(tmp_path / "lab" / "list.csv", text)).scans
    assert (a.path, a.file) == (Path("/data/a.nii"), "/data/a.nii")
    assert a.mask == tmp_path / "lab" / ".." / "masks" / "a.nii"
    assert a.sha256 == "ab" * 32
    assert (b.path, b.file, b.mask, b.sha256) == (inside, "scans/b.nii", None, "")
    (tmp_path / "link").symlink_to(tmp_path / "lab")
    assert find(tmp_path / "link" / "list.csv").scans[1].file == "scans/b.nii"


def excel(path, *rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_a_manifest_may_be_an_excel_file(tmp_path):
    rows = [
        ("Path ", "subject_id", "age", "split"),
        ("a.nii", 7, 20.5, "train"),
        (None, None),
        ("b.nii", 8, None, "val"),
    ]
    a, b = find(excel(tmp_path / "list.xlsx", *rows)).scans
    assert (a.file, a.subject, a.split, a.covariates) == ("a.nii", "7", "train", {"age": 20.5})
    assert (b.file, b.subject, b.split, b.covariates) == ("b.nii", "8", "val", {})
    wide = excel(tmp_path / "wide.xlsx", ("path", "subject_id"), ("a.nii", "A", "more"))
    assert refusal(wide).endswith("wide.xlsx: line 2 has 3 cells and the header 2; make them equal")
    fake = write(tmp_path / "fake.xlsx", "path,subject_id")
    assert refusal(fake).endswith("fake.xlsx: is no Excel file; save it as .xlsx or as CSV UTF-8")


@pytest.mark.parametrize(("text", "said"), [
    ("path,age\na.nii,3\n", f"line 1: no column subject_id (there are path, age); {COLUMNS}"),
    ("", f"line 1: no column path (there are none); {COLUMNS}"),
    (HEADER, "no line after line 1; a manifest has a line for each scan"),
    ("path,Age,subject_id,age\n", "line 1: column age stands there twice; remove or rename one"),
    (HEADER + "a.nii,A\n\n,B\n", "line 4: path is empty; fill it in or remove the line"),
    (HEADER + "a.nii, \n", "line 2: subject_id is empty; fill it in or remove the line"),
    (HEADER + "a.nii,A\nb.nii,B\nx/../a.nii,C\n", "line 4: x/../a.nii is that of line 2 again; remove one"),
    (HEADER + "a.nii,A,3\n", "line 2 has 3 cells and the header 2; make them equal"),
    (HEADER + "a.nii,A\nb.nii\n", "line 3: subject_id is empty; fill it in or remove the line"),
    (HEADER + "a.nii,#N/A\n", "line 2: subject_id is '#N/A', which stands for nothing; fill it in or remove the line"),
    (HEADER + "~no-such-user/a.nii,A\n", "line 2: ~no-such-user/a.nii: whose ~ that is, is not known; write it out"),
    (HEADER + "a.nii,A\nb\0.nii,B\n", "line 3: a path holds a NUL byte; write the table again"),
    ("path,subject_id,split\na.nii,A,trian\n", "line 2: split 'trian' is none; write train, val or test"),
    ("path,subject_id,split\na.nii,A,train\nb.nii,B,\n",
     "line 3: split is empty, and given for 1 of 2 scans; give it for all or for none"),
    ("path,subject_id,split\na.nii,A,train\nb.nii,B,val\nc.nii,A,val\n",
     "line 4: subject A is in val, and in train on line 2; put all scans of a subject in one split"),
])  # fmt: skip
def test_a_manifest_that_leaves_something_open_is_refused_with_its_line(text, said, tmp_path):
    table = write(tmp_path / "manifest.csv", text)
    assert refusal(table) in (f"{table}: {said}", f"{table}: {said}".replace(": line", ": line", 1))
    if text and "path" in text.split("\n")[0]:
        assert refusal(tmp_path) == refusal(table)


def test_a_person_has_one_name_in_a_manifest_whatever_its_lines_call_them(tmp_path):
    lines = "a,OAS1_0001_MR1\nb,oas1_0001_mr2\nc,01\nd,sub-01\ne,02\nf,sub-01_ses-2\n"
    found = find(write(tmp_path / "list.csv", HEADER + lines))
    assert triples(found) == [
        ("e", "02", "e"), ("a", "OAS1_0001", "MR1"), ("b", "OAS1_0001", "MR2"), ("c", "sub-01", "c"),
        ("d", "sub-01", "d"), ("f", "sub-01", "ses-2"),
    ]  # fmt: skip
    assert found.notes == ("2 people have more than one subject_id, such as OAS1_0001: OAS1_0001_MR1, oas1_0001_mr2",)
    torn = "path,subject_id,split\na,OAS1_0001_MR1,train\nb,OAS1_0001_MR2,test\n"
    assert "line 3: subject OAS1_0001 is in test, and in train on line 2" in refusal(write(tmp_path / "torn.csv", torn))
    named = "path,subject_id,session\na,OAS1_0001_MR1,first\nb,OAS1_0001_MR2,n/a\n"
    assert [scan.session for scan in find(write(tmp_path / "named.csv", named)).scans] == ["first", "MR2"]


def test_no_line_of_a_manifest_is_passed_over_unless_that_is_asked_for(tmp_path):
    table = write(tmp_path / "list.csv", "path,subject_id,session\na,A,1\nb,A,1\nc,A,2\n")
    assert files(find(table)) == ["a", "b", "c"]
    assert find(table).notes == ()
    assert files(find(table, take="subject")) == ["a"]
    assert find(table, take="subject").notes == (
        "2 more scans of the same subjects are passed over: --take every keeps them",
    )


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_line_that_excel_writes_above_the_header_is_understood(first, tmp_path):
    text = f"\ufeff{first}\r\npath;subject_id;age\r\na.nii;A;20,5\r\nb.nii;B\r\nc.nii;C;3;4\r\n"
    table = write(tmp_path / "manifest.csv", text)
    assert refusal(table) == refusal(tmp_path) == f"{table}: line 5 has 4 cells and the header 3; make them equal"
    write(table, text.replace(";3;4", ";3"))
    assert [scan.covariates for scan in find(tmp_path).scans] == [{"age": 20.5}, {}, {"age": 3}]
    write(table, "sep=\t\npath\tsubject_id\na;b,c\tA\n")
    assert files(find(tmp_path)) == ["a;b,c"]


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_is_found_in_either_form_of_unicode(on_disk, written, tmp_path):
    name = "Müller.nii"
    put_names(tmp_path, unicodedata.normalize(on_disk, name))
    table = write(tmp_path / "list.csv", HEADER + unicodedata.normalize(written, name) + ",A\n")
    assert find(table).scans[0].path == tmp_path / unicodedata.normalize(on_disk, name)
    put_names(tmp_path, unicodedata.normalize(written, name))
    assert files(find(table)) == [unicodedata.normalize(written, name)], "as it is written, if there is one"


def test_cells_that_stand_for_nothing_are_absent_and_only_numbers_are_numbers(tmp_path):
    text = "path,subject_id,session,mask_path,sha256,split,a,b,c,d\nx,X,NULL,#N/A,.,n/a,#N/A,null,.,1_2\n"
    scan = find(write(tmp_path / "list.csv", text)).scans[0]
    assert (scan.session, scan.mask, scan.sha256, scan.split) == ("x", None, "", None)
    assert scan.covariates == {"d": "1_2"}


@pytest.mark.parametrize(("settings", "option"), [
    ({"stratify": "age"}, "--stratify age"),
    ({"split_seed": 1}, "--split-seed 1"),
    ({"split": "8/1/1"}, "--split 8/1/1"),
])  # fmt: skip
def test_options_of_splits_are_refused_where_a_manifest_gives_them(settings, option, tmp_path):
    table = write(tmp_path / "list.csv", "path,subject_id,age,split\na,A,3,train\nb,B,4,val\n")
    said = "the manifest gives splits of its own; take its column split out, or the option"
    assert refusal(table, **settings) == f"{option}: {said}"
    write(table, "path,subject_id,age,split\na,A,3,\nb,B,4,\n")
    assert len(find(table, **settings).scans) == 2


def test_a_table_in_another_encoding_is_refused_with_its_line(tmp_path):
    latin = write(tmp_path / "latin.csv", HEADER + "a.nii,A\nb.nii,Müller\n", "latin-1")
    assert refusal(latin) == f"{latin}: line 3 is not UTF-8; save it as CSV UTF-8"
    wide = write(tmp_path / "wide.csv", HEADER, "utf-16")
    assert refusal(wide) == f"{wide}: line 1 is not UTF-8; save it as CSV UTF-8"


def test_a_manifest_without_one_of_its_columns_is_not_passed_over(tmp_path):
    put_names(tmp_path, "sub-01_T1w.nii.gz")
    table = write(tmp_path / "manifest.csv", "file,subject_id\nsub-01_T1w.nii.gz,A\n")
    assert refusal(tmp_path).startswith(f"{table}: line 1: no column path (there are file, subject_id)")
    write(table, "file,md5\nsub-01_T1w.nii.gz,A\n")
    assert find(tmp_path).layout == "folder"


def put_names(root, *names):
    """Empty files: their names alone are looked at."""
    touch(*(root / name for name in names))


def test_a_scan_that_a_manifest_lists_need_not_be_there_yet(tmp_path):
    assert files(find(write(tmp_path / "list.csv", HEADER + "gone.nii,A\n"))) == ["gone.nii"]


def test_quoted_cells_may_hold_separators_and_lines_are_still_counted(tmp_path):
    table = read_table(write(tmp_path / "a.csv", 'a,b\n"1,5","two\nlines"\n3,4\n'))
    assert [(row.line, row.cells) for row in table.rows] == [(3, {"a": "1,5", "b": "two\nlines"}),
                                                             (4, {"a": "3", "b": "4"})]  # fmt: skip


# A folder


def test_what_a_labs_disk_holds_is_found_once_or_passed_over(tmp_path):
    lab = tmp_path / "lab"
    put_names(lab, "sub-00_T1w.nii.gz", "sub-07/ses 1/anat/T1 final.NII.GZ", "SUB8.MGZ", "._sub-00_T1w.nii.gz",
              "sub-00_T1w.json", ".git/annex/x.nii.gz", "sub-00_T2w.nii.gz", "sub-00_mask.nii.gz")  # fmt: skip
    (lab / "loop").symlink_to(lab)
    (lab / "sub-07" / "up").symlink_to("..")
    (lab / "sub-00_again.nii.gz").symlink_to(lab / "sub-00_T1w.nii.gz")
    put_names(tmp_path / "elsewhere", "T1.nii.gz")
    (lab / "sub-09").symlink_to(tmp_path / "elsewhere")
    assert {scan.file: scan.subject for scan in find(lab).scans} == {
        "SUB8.MGZ": "SUB8",
        "sub-00_T1w.nii.gz": "sub-00",
        "sub-07/ses 1/anat/T1 final.NII.GZ": "sub-07",
        "sub-09/T1.nii.gz": "sub-09",
    }


def test_of_a_pair_the_header_is_the_scan_and_a_half_is_left_out(tmp_path):
    put_names(tmp_path, "a.hdr", "a.img", "B.HDR", "B.IMG", "c.hdr", "x/d.img")
    found = find(tmp_path)
    assert files(found) == ["B.HDR", "a.hdr"]
    assert found.left_out == (
        "c.hdr: its .img is missing; copy it here as well, or remove this one",
        "x/d.img: its .hdr is missing; copy it here as well, or remove this one",
    )
    put_names(tmp_path / "halves", "c.hdr", "d.img")
    assert refusal(tmp_path / "halves").endswith(
        "holds no whole scan of layout folder: c.hdr: its .img is missing; copy it here as well, or remove this one "
        "(and 1 more)"
    )


def test_each_file_of_a_folder_is_a_session_so_that_all_are_kept(tmp_path):
    put_names(tmp_path, "sub-01_a.nii.gz", "sub-01_b.nii.gz", "sub-02.nii.gz")
    assert len(find(tmp_path).scans) == 3
    assert files(find(tmp_path, take="subject")) == ["sub-01_a.nii.gz", "sub-02.nii.gz"]


def test_folders_are_subjects_where_the_files_in_them_are_called_alike(tmp_path):
    put_names(tmp_path, "anna/a.nii", "anna/b.nii", "ben/a.nii", "more/carl.nii", "dora.nii", "more/sub-01/a.nii")
    found = find(tmp_path)
    assert [(scan.subject, scan.file) for scan in found.scans] == [
        ("anna", "anna/a.nii"), ("anna", "anna/b.nii"), ("ben", "ben/a.nii"),
        ("carl", "more/carl.nii"), ("dora", "dora.nii"), ("sub-01", "more/sub-01/a.nii"),
    ]  # fmt: skip
    assert found.notes == ("subjects are called after their folders (anna, ben)",)
    put_names(tmp_path, "emil/b.nii")
    assert find(tmp_path).notes == ("subjects are called after their folders (anna, ben, ...)",)


@pytest.mark.parametrize("names", [
    ["P001/T1.nii", "P002/T1.nii", "P003/T1.nii"],
    ["all/P001/T1.nii", "all/P002/T1.nii", "all/P003/T1.nii"],
    ["controls/P001/T1.nii", "controls/P002/T1.nii", "patients/P003/T1.nii"],
    ["P001/anat/T1.nii", "P002/anat/T1.nii", "P003/anat/T1.nii"],
])  # fmt: skip
def test_people_are_called_after_the_folder_that_tells_them_apart_and_groups_are_no_people(names, tmp_path):
    put_names(tmp_path, *names)
    assert [scan.subject for scan in find(tmp_path).scans] == ["P001", "P002", "P003"]


@pytest.mark.parametrize("names", [
    ["anna/a.nii.gz", "ben/a.nii.gz", "a.nii.gz"],
    ["anna/a.nii.gz", "ben/a.nii.gz", "ben/late/a.nii.gz"],
    ["P001/early/a.nii.gz", "P001/late/a.nii.gz", "P002/early/a.nii.gz"],
    ["controls/01/a.nii.gz", "patients/01/a.nii.gz", "patients/02/a.nii.gz"],
])  # fmt: skip
def test_names_that_leave_open_whose_scan_it_is_are_refused(names, tmp_path):
    put_names(tmp_path / "lab", *names)
    assert refusal(tmp_path / "lab").endswith(
        " are both called 'a', so whose they are is not known; "
        "name files or folders after subjects, as in sub-01_T1w.nii.gz, or give a manifest"
    )


def test_files_of_one_name_in_one_folder_are_scans_of_one_subject(tmp_path):
    put_names(tmp_path, "x2.nii", "x2.nii.gz", "x3.nii")
    assert [(scan.subject, scan.file) for scan in find(tmp_path).scans] == [
        ("x2", "x2.nii"), ("x2", "x2.nii.gz"), ("x3", "x3.nii"),
    ]  # fmt: skip


@pytest.mark.parametrize(("layout", "place", "file"), [
    ("oasis1", "a/b/c", f"OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_{T88}.nii"),
    ("oasis2", "a/b/c", "OAS2_0001_MR1/RAW/mpr-1.nii"),
    ("freesurfer", "a/b", "P001/mri/norm.mgz"),
    ("neurite", "a/b", "OASIS_OAS1_0001_MR1/aligned_norm.nii.gz"),
    ("derivatives", "a/b/fmriprep", "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"),
])  # fmt: skip
def test_a_data_set_some_folders_down_is_not_taken_for_a_folder(layout, place, file, tmp_path):
    put_names(tmp_path, *{f"{place}/{file}", f"{place}/{file.replace('preproc_T1w', 'brain_mask')}"})
    said = refusal(tmp_path)
    start = f"cohort {tmp_path} holds files of layout {layout} some folders down, as {place}/{file}: name the folder "
    assert said.startswith(f"{start}that holds them, {tmp_path}/a")
    assert said.endswith(", or --layout folder to take every volume")
    named = Path(said.partition("holds them, ")[2].partition(", or")[0])
    assert find(named).layout == layout
    assert len(find(tmp_path, layout="folder").scans) == 1


def test_files_of_another_layout_without_its_folders_are_a_folder(tmp_path):
    put_names(tmp_path, *(f"all/sub-0{n}_desc-preproc_T1w.nii.gz" for n in (1, 2)))
    assert (find(tmp_path).layout, len(find(tmp_path).scans)) == ("folder", 2)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    put_names(tmp_path, "sub-01/a.nii.gz", "sub-03/a.nii.gz")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("sub-03"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(tmp_path).endswith("/sub-03: cannot be listed (Permission denied); mend its permissions")


@pytest.mark.parametrize(("file", "subject"), [
    ("sub-01_ses-1_T1w.nii.gz", "sub-01"),
    ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01"),
    ("OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.nii", "OAS1_0001"),
    ("OASIS_OAS1_0001_MR2/aligned_norm.nii.gz", "OAS1_0001"),
    ("sub-OAS10001_T1w.nii.gz", "OAS1_0001"),
    ("sub-OAS30001_ses-d0129_run-01_T1w.nii.gz", "OAS30001"),
    ("OAS30001_MR_d0129/mri/norm.mgz", "OAS30001"),
    ("Anna B.v2.NII.GZ", "Anna B.v2"),
    ("brain.mgz", "brain"),
    ("Ben.HDR", "Ben"),
])  # fmt: skip
def test_a_subject_is_read_from_the_name_in_one_form(file, subject):
    assert subject_of(Path(file)) == subject


@pytest.mark.parametrize(("name", "subject", "session"), [
    ("oas1_0001_mr1", "OAS1_0001", "MR1"),
    ("Sub-Oas10001_ses-Mr2", "OAS1_0001", "MR2"),
    ("oas30001_MR_D0129", "OAS30001", "d0129"),
    ("sub-oas30001_ses-d0129_T1w", "OAS30001", "d0129"),
])  # fmt: skip
def test_oasis_names_are_known_in_any_case_of_letters(name, subject, session):
    assert (subject_in(name), session_in(name)) == (subject, session)


# OASIS


@pytest.mark.parametrize("place", ["{session}/PROCESSED/MPRAGE/T88_111/", "", "all/"])
@pytest.mark.parametrize("suffix", [".hdr", ".nii", ".nii.gz"])
def test_oasis1_may_lie_flat_or_in_one_folder_and_be_converted(place, suffix, tmp_path):
    for session in ("OAS1_0001_MR1", "OAS1_0001_MR2", "OAS1_0007_MR1"):
        name = f"{place.format(session=session)}{session}_{T88}"
        put_names(tmp_path, f"{name}{suffix}", f"{name}_fseg{suffix}", *([f"{name}.img"] if suffix == ".hdr" else []))
    found = find(tmp_path)
    assert found.layout == "oasis1"
    visits = [(scan.subject, scan.session) for scan in found.scans]
    assert visits == [("OAS1_0001", "MR1"), ("OAS1_0001", "MR2"), ("OAS1_0007", "MR1")]
    assert found.left_out == ()


def test_an_oasis_session_without_its_volume_is_left_out_and_named(tmp_path):
    put_names(tmp_path, f"disc1/OAS1_0001_MR1/PROCESSED/OAS1_0001_MR1_{T88}.nii", "disc1/OAS1_0002_MR1/RAW/x.hdr",
              f"disc2/OAS1_0003_MR1/PROCESSED/OAS1_0003_MR1_{T88}.hdr")  # fmt: skip
    found = find(tmp_path)
    assert len(found.scans) == 1
    assert found.left_out == (
        f"disc2/OAS1_0003_MR1/PROCESSED/OAS1_0003_MR1_{T88}.hdr: its .img is missing; copy it here as well, or remove "
        "this one",
        "disc1/OAS1_0002_MR1: holds no _mpr_n?_anon_111_t88_masked_gfc volume; unpack its disc again, or remove it",
    )
    put_names(tmp_path / "two", "OAS2_0001_MR1/RAW/mpr-1.nii", "OAS2_0001_MR2/RAW/notes.txt")
    found = find(tmp_path / "two")
    assert found.left_out == ("OAS2_0001_MR2: holds no RAW/mpr-1.nifti.hdr; unpack it again, or remove it",)
    assert found.notes[0].startswith("scans of OASIS-2 are whole heads")
    put_names(tmp_path / "none", "OAS1_0002_MR1/RAW/x.hdr", "OAS1_0003_MR1/RAW/x.hdr")
    assert "holds no whole scan of layout oasis1: OAS1_0002_MR1: holds no" in refusal(tmp_path / "none")


def test_oasis3_sessions_without_a_t1_are_counted(made):
    notes = find(made["oasis3"][0]).notes
    assert "1 session has no T1 volume, such as OAS30003_MR_d0001" in notes
    assert "1 more scan of a session is passed over: --take every keeps it" in notes


def test_sessions_of_another_oasis_are_not_broken_ones_of_this(tmp_path):
    put_names(tmp_path, f"OAS1_0001_MR1/PROCESSED/OAS1_0001_MR1_{T88}.nii", "OAS2_0001_MR1/RAW/mpr-1.nii",
              "OAS2_0001_MR2/RAW/mpr-1.nii")  # fmt: skip
    found = find(tmp_path)
    assert (found.layout, len(found.scans), found.left_out) == ("oasis1", 1, ())
    assert found.notes == ("2 sessions of other OASIS data sets are passed over, such as OAS2_0001_MR1",)
    assert find(tmp_path, layout="oasis2").notes[1] == (
        "1 session of another OASIS data set is passed over, such as OAS1_0001_MR1"
    )


def test_a_neurite_folder_without_the_aligned_volume_is_left_out(tmp_path):
    put_names(tmp_path, "OASIS_OAS1_0001_MR1/aligned_norm.nii.gz", "OASIS_OAS1_0002_MR1/norm.nii.gz")
    found = find(tmp_path)
    assert files(found) == ["OASIS_OAS1_0001_MR1/aligned_norm.nii.gz"]
    assert found.left_out == ("OASIS_OAS1_0002_MR1: holds no aligned_norm.nii.gz; unpack it again, or remove it",)


# FreeSurfer


def test_each_freesurfer_subject_has_its_best_volume(tmp_path):
    put_names(tmp_path, "a/mri/norm.mgz", "a/mri/brain.mgz", "b/mri/brain.mgz", "c/mri/brain.mgz", "c/mri/norm.mgz",
              "d/mri/brainmask.mgz")  # fmt: skip
    found = find(tmp_path)
    assert files(found) == ["a/mri/norm.mgz", "b/mri/brain.mgz", "c/mri/norm.mgz", "d/mri/brainmask.mgz"]
    counts = "mri/norm.mgz of 2 subjects and mri/brain.mgz of 1 subject and mri/brainmask.mgz of 1 subject"
    assert found.notes == (f"{counts}: no norm.mgz of b, d, so brightness may differ",)
    put_names(tmp_path, "e/mri/T1.mgz", "f/mri/brain.mgz", "g/mri/brain.mgz")
    found = find(tmp_path)
    assert found.notes[0].endswith(": no norm.mgz of b, d, f, ..., so brightness may differ")
    assert [line.partition(",")[0] for line in found.left_out] == ["e: its mri/ holds none of norm.mgz"]


def test_freesurfer_folders_without_volumes_are_counted(tmp_path):
    put_names(tmp_path, "a/mri/norm.mgz", "crashed/scripts/recon-all.log", "fsaverage/label/x", "log.txt")
    assert find(tmp_path).notes == ("mri/norm.mgz of 1 subject", "1 folder without mri/ is passed over: crashed")
    put_names(tmp_path, *(f"{name}/x" for name in ("scripts", "x", "y")))
    assert find(tmp_path).notes[1] == "4 folders without mri/ are passed over: crashed, scripts, x, ..."


def test_longitudinal_freesurfer_visits_are_one_person(tmp_path):
    names = ("sub-01_ses-1", "sub-01_ses-2", "sub-01", "sub-01_ses-1.long.sub-01", "sub-01_ses-2.long.sub-01",
             "x_t1", "x_t2", "x_base", "x_t1.long.x_base", "x_t2.long.x_base", "single")  # fmt: skip
    put_names(tmp_path, *(f"{name}/mri/norm.mgz" for name in names))
    found = find(tmp_path)
    assert [(scan.file.partition("/")[0], scan.subject, scan.session) for scan in found.scans] == [
        ("single", "single", ""),
        ("sub-01_ses-1.long.sub-01", "sub-01", "ses-1"),
        ("sub-01_ses-2.long.sub-01", "sub-01", "ses-2"),
        ("x_t1.long.x_base", "x_base", "x_t1"),
        ("x_t2.long.x_base", "x_base", "x_t2"),
    ]
    assert found.notes[1] == "6 cross-sectional and base folders of subjects that have .long. ones are passed over"


# BIDS


def test_raw_bids_says_where_the_brains_without_skulls_are(tmp_path):
    put_names(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/func/sub-02_task-rest_bold.nii.gz",
              "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz")  # fmt: skip
    assert find(tmp_path).notes == (
        "1 subject has no T1 volume: sub-02",
        f"its T1w are whole heads; {tmp_path}/derivatives/fmriprep has masks of the brain: name that folder",
    )


def test_subjects_without_a_t1_are_named_and_nearly_right_names_left_out(tmp_path):
    put_names(tmp_path, *(f"sub-0{n}/anat/sub-0{n}_T2w.nii" for n in (2, 3, 4, 5)), "sub-01/anat/sub-01_T1w.nii",
              "sub-06/anat/sub-06_T1W.nii.gz", "sub-07/ses-1/anat/sub-07_ses-1_T1.NII",
              "sub-01/anat/sub-01_inplaneT1.nii")  # fmt: skip
    found = find(tmp_path)
    assert files(found) == ["sub-01/anat/sub-01_T1w.nii"]
    assert found.notes == ("4 subjects have no T1 volume: sub-02, sub-03, sub-04, ...",)
    why = "its name is no BIDS name of a T1 volume; rename it to"
    assert found.left_out == (
        f"sub-06/anat/sub-06_T1W.nii.gz: {why} sub-06_T1w.nii.gz",
        f"sub-07/ses-1/anat/sub-07_ses-1_T1.NII: {why} sub-07_ses-1_T1w.NII",
    )


def preprocessed(root, *stems):
    put_names(root, *(f"{stem}desc-{kind}.nii.gz" for stem in stems for kind in ("preproc_T1w", "brain_mask")))


def test_derivatives_take_a_template_each_with_its_own_mask(made):
    root, _ = made["derivatives"]
    found = find(root)
    assert found.scans[0].mask == root / f"sub-01/anat/sub-01_{MNI}desc-brain_mask.nii.gz"
    assert found.notes == (
        "space MNI152NLin2009cAsym res-1 of 3 subjects; there is also space T1w of 3: --space chooses",
    )
    native = find(root, space="T1w")
    assert native.scans[0].file == "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    assert native.scans[0].mask == root / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    assert refusal(root, space="MNI") == (
        f"{root} holds no scan in space MNI; give --space MNI152NLin2009cAsym or --space T1w"
    )


def test_derivatives_never_mix_spaces_or_resolutions(tmp_path):
    preprocessed(tmp_path, "sub-01/anat/sub-01_", "sub-02/anat/sub-02_", "sub-02/anat/sub-02_space-MNI_res-1_",
                 "sub-02/anat/sub-02_space-MNI_res-2_", "sub-01/anat/sub-01_space-MNI_res-2_",
                 "sub-03/ses-1/anat/sub-03_ses-1_")  # fmt: skip
    assert files(find(tmp_path))[-1] == "sub-03/ses-1/anat/sub-03_ses-1_desc-preproc_T1w.nii.gz", "most have it"
    found = find(tmp_path, space="MNI")
    assert files(found) == [f"sub-0{n}/anat/sub-0{n}_space-MNI_res-2_desc-preproc_T1w.nii.gz" for n in (1, 2)]
    assert found.left_out == ("sub-03 ses-1: has no scan in space MNI res-2; run the pipeline again",)
    assert found.notes[0] == (
        "space MNI res-2 of 2 subjects; there is also space MNI res-1 of 1, space T1w of 3: --space chooses"
    )


def test_a_derivative_without_its_mask_is_left_out(tmp_path):
    preprocessed(tmp_path, "sub-01/anat/sub-01_")
    put_names(tmp_path / "sub-02" / "anat", "sub-02_desc-preproc_T1w.nii.gz", "sub-02_space-X_desc-brain_mask.nii.gz")
    put_names(tmp_path / "sub-03" / "anat", "sub-03_desc-preproc_T1w.nii.gz", "sub-03_desc-brain_mask.nii")
    found = find(tmp_path)
    assert [scan.subject for scan in found.scans] == ["sub-01", "sub-03"]
    assert found.scans[1].mask.name == "sub-03_desc-brain_mask.nii"
    assert found.left_out == (
        "sub-02/anat/sub-02_desc-preproc_T1w.nii.gz: its mask sub-02_desc-brain_mask.nii.gz is missing; "
        "run the pipeline again",
    )


def test_a_folder_of_pipelines_is_that_of_its_one_or_refused(tmp_path):
    preprocessed(tmp_path / "fmriprep", "sub-01/anat/sub-01_")
    found = find(tmp_path)
    assert (found.layout, files(found)) == ("derivatives", ["fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"])
    preprocessed(tmp_path / "smriprep", "sub-01/anat/sub-01_")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds derivatives of 2 pipelines (fmriprep, smriprep); name the folder of one"
    )


def test_participants_tell_covariates_also_of_derivatives(tmp_path):
    put_names(tmp_path, *(f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2, 3)))
    preprocessed(tmp_path / "derivatives" / "fmriprep", *(f"sub-0{n}/anat/sub-0{n}_" for n in (1, 2, 3)))
    table = "participant_id\tAge\tsex\tsite\nsub-01\t20\tM\tn/a\n02\tn/a\tF\t7\nsub-99\t1\tM\t1\n"
    write(tmp_path / "participants.tsv", table)
    for root in (tmp_path, tmp_path / "derivatives" / "fmriprep"):
        found = find(root)
        assert [scan.covariates for scan in found.scans] == [{"age": 20, "sex": "M"}, {"sex": "F", "site": 7}, {}]
        assert "participants.tsv tells age, sex, site of 2 of 3 scans" in found.notes


# Clinical tables


@pytest.fixture
def oasis(tmp_path):
    """OASIS-1 sessions of four people, one of whom came twice, and their table."""
    root = tmp_path / "oasis"
    for session in ("0001_MR1", "0001_MR2", "0002_MR1", "0003_MR1", "0004_MR1"):
        put_names(root, f"OAS1_{session}/PROCESSED/OAS1_{session}_{T88}.nii")
    write(root / "oasis_cross-sectional.csv", OASIS1_TABLE)
    return root


def test_an_oasis_table_tells_covariates_under_one_name_a_meaning(oasis):
    found = find(oasis)
    assert found.scans[0].covariates == {
        "sex": "F", "hand": "R", "age": 74, "education_level": 2, "ses": 3, "mmse": 29, "cdr": 0, "etiv": 1344,
        "nwbv": 0.743, "asf": 1.306,
    }  # fmt: skip
    assert "cdr" not in found.scans[1].covariates, "second visits have no rating"
    assert found.notes[0].startswith("oasis_cross-sectional.csv tells age, asf, cdr, ")
    assert found.notes[0].endswith(" of 5 of 5 scans")


def test_people_are_chosen_by_rating_and_counted_before_and_after(oasis):
    found = find(oasis, cdr="0")
    assert [(scan.subject, scan.session) for scan in found.scans] == [("OAS1_0001", "MR1")]
    before = "5 sessions of 4 people (of them later visits: 1; CDR 0: 1, 0.5: 1, 1: 1, blank: 2)"
    assert found.notes[-1] == f"--cdr 0 keeps 1 session of 1 person, of {before}"
    wide = find(oasis, cdr="0,0.5", include_blank_cdr=True)
    assert len(wide.scans) == 4
    assert wide.notes[-1].startswith("--cdr 0,0.5 --include-blank-cdr keeps 4 sessions of 3 people, of 5")
    assert refusal(oasis, cdr="2") == f"--cdr 2 keeps none of {before}; ask for other ratings"


def test_ratings_that_are_asked_for_must_be_known(oasis, made):
    (oasis / "oasis_cross-sectional.csv").unlink()
    assert refusal(oasis, cdr="0") == (
        "--cdr 0: no scan has a rating; put oasis_cross-sectional.csv beside the scans, or name it with --table FILE"
    )
    assert refusal(made["folder"][0], cdr="0") == (
        "--cdr 0: no scan has a rating; name a table with columns subject_id and cdr with --table FILE"
    )


def test_the_rating_of_a_manifest_is_one_too(tmp_path):
    table = write(tmp_path / "list.csv", "path,subject_id,CDR\na,A,0\nb,B,0.5\nc,C,\n")
    assert files(find(table, cdr="0")) == ["a"]
    assert files(find(table, cdr="0.5", include_blank_cdr=True)) == ["b", "c"]


@pytest.mark.parametrize("place", ["oasis", "above", "named"])
def test_a_table_is_found_in_the_folder_or_above_it_or_named(place, oasis, tmp_path):
    table = oasis / "oasis_cross-sectional.csv"
    target = {"oasis": oasis, "above": tmp_path, "named": tmp_path / "else"}[
        place
    ] / "oasis_cross-sectional-5708aa.xlsx"
    target.parent.mkdir(exist_ok=True)
    excel(target, *(line.split(",") for line in OASIS1_TABLE.splitlines()))
    table.unlink()
    settings = {"table": target} if place == "named" else {}
    assert len(find(oasis, cdr="0", **settings).scans) == 1


@pytest.mark.parametrize("files", [
    ["OAS1_0001_MR1/mri/norm.mgz", "OAS1_0002_MR1/mri/norm.mgz"],
    ["OASIS_OAS1_0001_MR1/aligned_norm.nii.gz", "OASIS_OAS1_0002_MR1/aligned_norm.nii.gz"],
    ["OAS1_0001_MR1.nii.gz", "OAS1_0002_MR1.nii.gz"],
])  # fmt: skip
def test_a_table_is_of_the_people_whatever_the_layout(files, tmp_path):
    put_names(tmp_path, *files)
    write(tmp_path / "oasis_cross-sectional.csv", OASIS1_TABLE)
    assert [scan.covariates["cdr"] for scan in find(tmp_path).scans] == [0, 0.5]


def test_numbers_that_nobody_can_have_are_left_out_and_counted(oasis):
    mangled = OASIS1_TABLE.replace(",0.743,1.306", ",743,1306").replace(",74,2", ",740,2")
    write(oasis / "oasis_cross-sectional.csv", mangled)
    found = find(oasis)
    assert not {"age", "nwbv", "asf"} & set(found.scans[0].covariates)
    name = "oasis_cross-sectional.csv"
    assert f"{name}: 2 values of age are left out, which nobody can have, such as 740" in found.notes
    assert f"{name}: 1 value of nwbv is left out, which nobody can have, such as 743" in found.notes


def test_a_rating_that_nobody_can_have_is_neither_a_rating_nor_a_blank(oasis):
    write(oasis / "oasis_cross-sectional.csv", OASIS1_TABLE.replace("0.5,1147", "05,1147"))
    found = find(oasis, cdr="0,0.5,1,2,3", include_blank_cdr=True)
    assert "OAS1_0002" not in {scan.subject for scan in found.scans}
    assert len(found.scans) == 4
    assert found.notes[1] == ("oasis_cross-sectional.csv: 1 value of cdr is left out, which nobody can have, such as 5")
    assert found.notes[2].endswith(
        "of 5 sessions of 4 people (of them later visits: 1; CDR 0: 1, 1: 1, 5: 1, blank: 2)"
    )


@pytest.mark.parametrize(("table", "why"), [
    ("participant_id\tage\nsub-00\t1\nsub-00\t2\n", "line 3: sub-00 stands on line 2 too"),
    ("participant_id\tage\nsub-00\t1\t2\n", "line 2 has 3 cells and the header 2"),
    ("participant_id\tage\tage\nsub-00\t1\t2\n", "line 1: column age stands there twice"),
    ("participant_id\tage\nsub-00\t\udcff\n", "line 2 is not UTF-8"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["lab", "."])
def test_a_broken_table_that_nobody_named_is_passed_over(place, table, why, tmp_path):
    put_names(tmp_path / "lab", "sub-00.nii.gz")
    path = tmp_path / place / "participants.tsv"
    path.write_bytes(table.encode(errors="surrogateescape"))
    found = find(tmp_path / "lab")
    assert found.scans[0].covariates == {}
    assert found.notes == (f"participants.tsv is passed over: {why}; mend it or name another with --table",)
    assert refusal(tmp_path / "lab", table=path).startswith(f"{path}: {why}; ")


def test_a_file_that_is_no_table_does_not_end_the_run(oasis):
    (oasis / "oasis_cross-sectional.csv").unlink()
    write(oasis / "oasis_cross-sectional.xlsx", "a password, perhaps")
    note = "oasis_cross-sectional.xlsx is passed over: is no Excel file; mend it or name another with --table"
    assert find(oasis).notes == (note,)
    write(oasis / "oasis_cross-sectional-2.csv", "\n\nwho,cdr\nOAS1_0001_MR1,0\n")
    assert find(oasis).notes == (note,)


def test_a_table_of_others_that_nobody_named_is_not_spoken_of(tmp_path):
    put_names(tmp_path / "lab", "sub-00.nii.gz")
    write(tmp_path / "lab" / "participants.tsv", "participant_id\tage\nsub-99\t1\n")
    assert find(tmp_path / "lab").notes == ()
    write(tmp_path / "participants.tsv", "participant_id\tage\nsub-00\t60\n")
    assert find(tmp_path / "lab").notes == ("participants.tsv tells age of 1 of 1 scan",)


def test_a_table_may_write_oasis_names_in_small_letters(oasis):
    write(oasis / "oasis_cross-sectional.csv", OASIS1_TABLE.replace("OAS1", "oas1").replace("MR", "mr"))
    assert len(find(oasis, cdr="0").scans) == 1


def test_oasis2_tables_count_education_in_years(tmp_path):
    put_names(tmp_path, "OAS2_0001_MR1/RAW/mpr-1.nii", "OAS2_0001_MR2/RAW/mpr-1.nii")
    columns = "Subject ID,MRI ID,Group,Visit,MR Delay,M/F,Hand,Age,EDUC,SES,MMSE,CDR,eTIV,nWBV,ASF"
    rows = ["OAS2_0001,OAS2_0001_MR1,Nondemented,1,0,M,R,87,14,2,27,0,1987,0.696,0.883",
            "OAS2_0001,OAS2_0001_MR2,Nondemented,2,457,M,R,88,14,2,30,0,2004,0.681,0.876"]  # fmt: skip
    write(tmp_path / "oasis_longitudinal.csv", "\n".join([columns, *rows]))
    first, second = find(tmp_path).scans
    assert (first.covariates["age"], second.covariates["age"], second.covariates["group"]) == (87, 88, "Nondemented")
    assert second.covariates["education"] == 14


def test_oasis3_scans_have_the_rating_of_the_nearest_visit_within_a_year(tmp_path):
    put_names(tmp_path, *(f"OAS30001_MR_{day}/anat1/sub-OAS30001_ses-{day}_T1w.nii.gz" for day in ("d0129", "d1000")),
              "OAS30002_MR_d2000/anat1/sub-OAS30002_ses-d2000_T1w.nii.gz")  # fmt: skip
    tables = tmp_path / "0AS_data_files"
    write(tables / "scans" / "OASIS3_demographics.csv",
          "OASISID,AgeatEntry,GENDER,EDUC\nOAS30001,65.15,2,12\nOAS30002,70,1,\n")  # fmt: skip
    ratings = write(tables / "OASIS3_UDSb4_cdr.csv",
          "OASISID,days_to_visit,MMSE,CDRTOT\nOAS30001,0,28,0\nOAS30001,339,28,0.5\nOAS30001,900,20,1\n"
          "OAS30001,1001,,\nOAS30002,1000,30,0\n")  # fmt: skip
    first, second, third = (scan.covariates for scan in find(tmp_path).scans)
    assert first == {"age": 65.5, "sex": "F", "education": 12, "cdr": 0, "mmse": 28}
    assert (second["cdr"], second["age"]) == (1, 67.89)
    assert third == {"age": 75.48, "sex": "M"}, "its nearest visit is 1000 days away"
    assert len(find(tmp_path, cdr="1").scans) == 1
    elsewhere = tables.rename(tmp_path.parent / f"{tmp_path.name}-tables")
    (elsewhere / "scans" / "OASIS3_demographics.csv").rename(elsewhere / "OASIS3_demographics.csv")
    assert find(tmp_path, table=elsewhere / ratings.name).scans[0].covariates == first


def test_a_named_table_may_be_of_any_people(tmp_path):
    put_names(tmp_path / "lab", "sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz", "anna.nii.gz")
    table = write(tmp_path / "who.csv", "subject_id;session;age;cdr\n01;1;60,5;0\nsub-01;ses-2;62;0,5\nanna;;30;\n")
    found = find(tmp_path / "lab", table=table)
    assert [scan.covariates for scan in found.scans] == [{"age": 30}, {"age": 60.5, "cdr": 0}, {"age": 62, "cdr": 0.5}]
    assert files(find(tmp_path / "lab", table=table, cdr="0.5")) == ["sub-01_ses-2_T1w.nii.gz"]


@pytest.mark.parametrize(("text", "said"), [
    (None, "table {table} does not exist; give a .csv, .tsv or .xlsx file"),
    ("a,b\n1,2\n", "table {table} has columns a, b; give a table of OASIS, or one with a column subject_id"),
    ("subject_id,age\nX,3\n", "table {table} says nothing of any scan, such as sub-01.nii.gz"),
    ("subject_id,age\nX,3\nY,4\nX,5\n", "{table}: line 4: X stands on line 2 too; remove one of them"),
])  # fmt: skip
def test_a_named_table_that_says_nothing_is_refused(text, said, tmp_path):
    put_names(tmp_path / "lab", "sub-01.nii.gz")
    table = tmp_path / "who.csv"
    if text:
        write(table, text)
    assert refusal(tmp_path / "lab", table=table) == said.format(table=table)


def test_a_manifests_names_lose_nothing_but_sessions(tmp_path):
    ids = ["sub-control_01", "sub-control_02", "siteA_sub-01", "siteB_sub-01", "sub-7_ses-1", "OASIS_OAS1_0001_MR2"]
    text = "".join(f"{number}.nii,{subject}\n" for number, subject in enumerate(ids))
    found = {scan.file: scan.subject for scan in find(write(tmp_path / "list.csv", HEADER + text)).scans}
    assert list(found.values()) == sorted([*ids[:4], "sub-7", "OAS1_0001"])
