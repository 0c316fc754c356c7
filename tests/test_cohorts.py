"""`somvq cohort …` as a user meets it: tables, JSON, exit status, and what is left on disk."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from somvq.cli import app
from somvq.errors import SomvqError


@pytest.fixture
def somvq(tmp_path, monkeypatch, capsys):
    """Runs a command in tmp_path: what it printed, its status, and the line with which it was refused."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        try:
            status, refusal = app([str(word) for word in words], standalone_mode=False), ""
        except SomvqError as error:
            status, refusal = error.exit_status, str(error)
        printed = capsys.readouterr()
        return SimpleNamespace(status=status or 0, refusal=refusal, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def lab(tiny_scans, tmp_path):
    """Eight good scans, and some that are not."""
    folder = tmp_path / "lab"
    folder.mkdir()
    for path in sorted(tiny_scans.glob("*.nii.gz")):
        shutil.copy(path, folder / path.name.replace("_synthetic", ""))
    return folder


def spoil(lab):
    """Two bad scans and an odd one."""
    (lab / "sub-101_T1w.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\n")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), np.eye(4)), lab / "sub-102_T1w.nii.gz")
    image = nib.load(lab / "sub-003_T1w.nii.gz")
    torn = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    torn.set_qform(np.diag([2, 2, 2, 1]), code=1)
    nib.save(torn, lab / "sub-003_T1w.nii.gz")


def rows_of(printed):
    return {line.split()[0]: line for line in printed.splitlines() if line.startswith("sub-")}


def test_check_prints_every_scan_and_what_is_done_about_it(somvq, lab, tmp_path):
    spoil(lab)
    done = somvq("cohort", "check", "lab")
    assert done.status == 1
    rows = rows_of(done.out)
    assert len(rows) == 10
    assert rows["sub-001"].split() == ["sub-001", "sub-001_T1w.nii.gz", "35x44x35", "4.24", "RAS", "used"]
    assert rows["sub-003"].split()[5:] == [*["its", "sform", "and", "qform", "disagree", "the", "sform", "is", "used"]]
    assert "it is a pointer of git-lfs or git-annex" in rows["sub-101"]
    assert rows["sub-102"].split()[2:5] == ["8x8x8x3", "1", "RAS"]
    assert rows["sub-102"].rstrip().endswith("left out")
    assert "8 of 10 scans can be used, 1 of them with a warning" in done.out
    assert "prepared they have 48x48x48 voxels: 6 train / 1 val / 1 test" in done.out
    assert "left out sub-101_T1w.nii.gz: cannot be read (it is a pointer" in done.out
    assert not (tmp_path / "cohorts").exists(), "nothing is prepared"


def test_check_of_good_scans_ends_well(somvq, lab):
    assert somvq("cohort", "check", "lab").status == 0


def test_check_names_the_scan_that_alone_makes_all_larger(somvq, lab):
    image = nib.load(lab / "sub-004_T1w.nii.gz")
    voxels = np.pad(np.asarray(image.dataobj), ((0, 40), (0, 0), (0, 0)))
    voxels[72:74, 20:24, 20:24] = voxels.max()
    nib.save(nib.Nifti1Image(voxels, image.affine), lab / "sub-004_T1w.nii.gz")
    printed = somvq("cohort", "check", "lab").out
    assert "prepared they have 80x48x48 voxels" in printed
    assert (
        "warning  without sub-004_T1w.nii.gz they would have 48x48x48: look at it, or give --shape 48x48x48" in printed
    )


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_shows_each_scan_in_a_line_and_the_rest_below(width, somvq, lab, monkeypatch):
    spoil(lab)
    monkeypatch.setattr("somvq.cli.plain_console", lambda: Console(highlight=False, width=width))
    printed = somvq("cohort", "check", "lab").out
    rows = rows_of(printed)
    assert len(rows) == 10
    assert [subject for subject, row in rows.items() if row.rstrip().endswith("left out")] == ["sub-101", "sub-102"]
    assert "warning  sub-003_T1w.nii.gz: its sform and qform disagree: the sform is used" in printed
    assert "left out sub-102_T1w.nii.gz: its shape (8, 8, 8, 3) is not one 3-D volume" in printed
    somvq("cohort", "prepare", "lab")
    assert somvq("cohort", "list").out.splitlines()[1].split()[1:] == ["8", "6/1/1", "2"]


def test_check_tells_scripts_the_same(somvq, lab):
    spoil(lab)
    done = somvq("cohort", "check", "lab", "--json")
    told = json.loads(done.out)
    assert done.status == 1
    assert (told["layout"], told["usable"], told["shape"]) == ("folder", 8, [48, 48, 48])
    assert [line[:18] for line in told["left_out"]] == ["sub-101_T1w.nii.gz", "sub-102_T1w.nii.gz"]
    scans = {scan["file"]: scan for scan in told["scans"]}
    assert scans["sub-003_T1w.nii.gz"]["problem"] == "its sform and qform disagree"
    assert scans["sub-102_T1w.nii.gz"]["shape"] == [8, 8, 8, 3]
    assert scans["sub-101_T1w.nii.gz"]["done"] == "left out"


def test_scans_that_are_no_cohort_are_told_why_and_shown_all_the_same(somvq, lab):
    image = nib.load(lab / "sub-001_T1w.nii.gz")
    coarse = image.affine @ np.diag([1.5, 1.5, 1.5, 1])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), coarse), lab / "sub-001_T1w.nii.gz")
    done = somvq("cohort", "check", "lab")
    assert done.status == 1
    assert len(rows_of(done.out)) == 8
    assert "no cohort: voxels of these scans are from 4.24 mm (sub-002_T1w.nii.gz) to 6.36 mm (sub-001" in done.out
    assert somvq("cohort", "check", "lab", "--voxel-mm", 4.24).status == 0


def test_a_check_writes_a_manifest_that_makes_the_same_cohort_and_guards_it(somvq, lab, tmp_path):
    spoil(lab)
    (tmp_path / "manifests").mkdir()
    written = somvq("cohort", "check", "lab", "--manifest", "manifests/ours.csv")
    assert "manifest manifests/ours.csv: prepare or sweep it as a cohort" in written.err
    rows = list(csv.DictReader((tmp_path / "manifests" / "ours.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [f"../lab/sub-00{n}_T1w.nii.gz" for n in range(1, 9)]
    assert sorted(row["split"] for row in rows) == ["test", *["train"] * 6, "val"]
    assert somvq("cohort", "prepare", "lab").status == 1, "two were left out"
    assert somvq("cohort", "prepare", "manifests/ours.csv").status == 0
    ours, labs = (next((tmp_path / "cohorts" / "prepared").glob(f"{name}-*")) for name in ("ours", "lab"))
    assert (ours / "volumes.npy").read_bytes() == (labs / "volumes.npy").read_bytes()
    again = somvq("cohort", "check", "lab", "--manifest", "manifests/ours.csv")
    assert "manifests/ours.csv is there already, perhaps edited by you; name another file" in again.refusal
    shutil.copy(lab / "sub-001_T1w.nii.gz", lab / "sub-002_T1w.nii.gz")
    guarded = somvq("cohort", "check", "manifests/ours.csv")
    assert guarded.status == 1
    assert "its sha256 is " in rows_of(guarded.out)["sub-002"]


def test_prepare_says_what_was_left_out_and_why(somvq, lab):
    spoil(lab)
    (lab / "sub-103_T1w.img").touch()
    done = somvq("cohort", "prepare", "lab")
    assert done.status == 1
    assert "cohort   lab: 10 scans, laid out as folder" in done.out
    assert "cohort   lab: 8 scans of 48x48x48 voxels, 6 train / 1 val / 1 test" in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("left out")]
    assert [line.split()[2] for line in lines] == [f"sub-10{n}_T1w.{end}:" for n, end in
                                                   ((3, "img"), (1, "nii.gz"), (2, "nii.gz"))]  # fmt: skip
    assert "warning  sub-003_T1w.nii.gz: its sform and qform disagree: the sform is used" in done.out
    refused = somvq("cohort", "prepare", "lab", "--strict")
    assert refused.status == 2
    assert refused.refusal.startswith("3 of 11 scans cannot be used: ")


def test_prepared_cohorts_are_listed_and_shown(somvq, lab, tmp_path):
    assert "no cohort is prepared yet; begin with somvq cohort prepare FOLDER" in somvq("cohort", "list").out
    assert somvq("cohort", "list", "--json").out == "[]\n"
    spoil(lab)
    somvq("cohort", "prepare", "lab")
    somvq("cohort", "prepare", "lab", "--normalise", "brain", "--split", "1/1/0")
    [first, second] = json.loads(somvq("cohort", "list", "--json").out)
    assert (first["scans"], first["warned"], first["left_out"], first["layout"]) == (8, 1, 2, "folder")
    assert first["splits"] == {"train": 6, "val": 1, "test": 1}
    assert second["splits"] == {"train": 4, "val": 4, "test": 0}
    assert first["bytes"] > 8 * 2 * 48**3
    table = somvq("cohort", "list").out.splitlines()
    assert table[1].split() == [first["name"], "folder", "8", "8", "48x48x48", "6/1/1", "1", "2", "2"]
    ambiguous = somvq("cohort", "show", "lab")
    assert ambiguous.refusal.startswith("'lab' is the beginning of 2 names in ")
    assert "no prepared cohort is called 'else'" in somvq("cohort", "show", "else").refusal
    shown = somvq("cohort", "show", second["name"][:8]).out
    assert "settings   normalise brain, padding background, split 1/1/0, split_seed 0" in shown
    assert "left out   sub-101_T1w.nii.gz: cannot be read" in shown
    assert len(rows_of(shown)) == 8
    as_json = json.loads(somvq("cohort", "show", tmp_path / "cohorts" / "prepared" / first["name"], "--json").out)
    assert as_json["splits"] == first["splits"]
    assert len(as_json["scans"]) == 8


def test_a_montage_shows_as_many_scans_as_asked_for(somvq, lab, tmp_path):
    somvq("cohort", "prepare", "lab")
    drawn = somvq("cohort", "show", "lab", "--montage", "three.png", "--scans", 3)
    assert "montage  3 of 8 scans: three.png" in drawn.err
    somvq("cohort", "show", "lab", "--montage", "all.png")
    three, everyone = (imread(tmp_path / name) for name in ("three.png", "all.png"))
    assert three.std() > 0.05 < everyone.std()
    assert three.shape != everyone.shape


@pytest.mark.parametrize("montage", ["look.jpg", "look", "nowhere/look.png"])
def test_a_montage_that_cannot_be_written_is_refused(montage, somvq, lab):
    somvq("cohort", "prepare", "lab")
    refused = somvq("cohort", "show", "lab", "--montage", montage).refusal
    assert refused == f"--montage {montage}: give a file that ends in .png, in a folder that is there"


@pytest.mark.parametrize(("options", "told"), [
    (["--orient", "LASS"], "--orient LASS: orient 'LASS' is not three axes, one each of R or L, A or P, S or I"),
    (["--orient", "LRA"], "--orient LRA: "),
    (["--cdr", "4"], "--cdr 4: cdr '4' is not ratings of 0, 0.5, 1, 2 or 3, as in 0 or 0,0.5"),
    (["--include-blank-cdr"], "--include-blank-cdr adds those never rated to those of --cdr; give --cdr 0 as well"),
    (["--normalise", "head"], "--normalise head: input should be 'volume' or 'brain'"),
    (["--take", "all"], "--take all: input should be 'session', 'subject' or 'every'"),
    (["--layout", "xnat"], "--layout xnat: input should be 'manifest', 'neurite', 'oasis1', "),
    (["--shape", "100x100x100"], "--shape 100x100x100 has a side that is not a multiple of 16, as in 144x176x144"),
    (["--voxel-mm", "0"], "--voxel-mm 0.0: input should be greater than 0"),
    (["--shape", "144"], "--shape 144 is not three numbers of voxels, as in 144x176x144"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["check", "prepare"])
def test_a_wrong_option_is_refused_in_one_line(command, options, told, somvq, lab):
    done = somvq("cohort", command, "lab", *options)
    assert done.status == 2
    assert done.refusal.startswith(told)
    assert "\n" not in done.refusal


def test_a_covariate_that_nobody_has_is_refused_with_those_there_are(somvq, tiny_scans, lab):
    told = "no scan has the covariate height of --stratify; there are: "
    refusal = somvq("cohort", "prepare", tiny_scans, "--stratify", "height").refusal
    assert refusal.startswith(f"{told}age, atrophy, brain_ml, ")
    assert f"no cohort: {told}none" in somvq("cohort", "check", "lab", "--stratify", "height").out
    assert somvq("cohort", "prepare", tiny_scans, "--stratify", "age").status == 0


def test_a_sweep_goes_on_without_a_bad_scan_unless_told_to_be_strict(somvq, lab):
    spoil(lab)
    refused = somvq("sweep", "psom", "--cohort", "lab", "--strict", "--trials", 1)
    assert refused.refusal.startswith("2 of 10 scans cannot be used: ")
    assert not Path("runs/psom").exists()
