import csv
import json
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from somvq.data.demo import make_demo_cohort
from somvq.data.synthetic import Factors, Grid, load_template, make_subject
from somvq.errors import DataError

COARSE = 4.24  # mm


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "cohort"
    make_demo_cohort(folder, subjects=12, voxel_mm=COARSE)
    return folder


@pytest.fixture
def copy(cohort, tmp_path):
    return Path(shutil.copytree(cohort, tmp_path / "copy"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows(folder):
    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return np.array([float(row[name]) for row in rows(folder)])


def volumes(folder):
    return [np.asarray(nib.load(folder / row["path"]).dataobj, np.float32) for row in rows(folder)]


def white_matter(volume):
    """The brightness of white matter, which is the brightest third of a brain."""
    return np.percentile(volume[volume > 0], 85)


def test_the_same_arguments_make_the_same_bytes_from_nothing(cohort, tmp_path):
    make_demo_cohort(tmp_path / "again", subjects=2, voxel_mm=COARSE)
    again, first = contents(tmp_path / "again"), contents(cohort)
    scans = [name for name in again if name.endswith(".nii.gz")]
    assert len(scans) == 2
    assert all(again[name] == first[name] for name in scans), "a subject depends on how many were asked for"
    assert rows(tmp_path / "again") == rows(cohort)[:2]


def test_another_seed_makes_other_brains(cohort, tmp_path):
    make_demo_cohort(tmp_path / "other", subjects=1, voxel_mm=COARSE, seed=1)
    correlation = np.corrcoef(volumes(cohort)[0].ravel(), volumes(tmp_path / "other")[0].ravel())[0, 1]
    assert 0.7 < correlation < 0.99


def test_a_file_says_nothing_of_when_or_where_it_was_made(cohort):
    header = (cohort / rows(cohort)[0]["path"]).read_bytes()[:10]
    assert header[3] == 0, "the gzip header holds a file name"
    assert header[4:8] == bytes(4), "the gzip header holds a date"


def test_every_scan_is_named_synthetic_and_listed_with_its_subject(cohort):
    assert [row["subject_id"] for row in rows(cohort)] == [f"sub-{number:03d}" for number in range(1, 13)]
    assert all(row["path"] == f"{row['subject_id']}_synthetic_T1w.nii.gz" for row in rows(cohort))
    assert {row["path"] for row in rows(cohort)} | {"demo.json", "manifest.csv"} == {f.name for f in cohort.iterdir()}


def test_scans_lie_where_their_header_says(cohort):
    image = nib.load(cohort / rows(cohort)[0]["path"])
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-4)
    np.testing.assert_allclose(image.affine, Grid(COARSE).affine, atol=1e-4)
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    low, high = (
        nib.affines.apply_affine(image.affine, voxels.min(0)),
        nib.affines.apply_affine(image.affine, voxels.max(0)),
    )
    np.testing.assert_allclose(low, [-72, -107, -60], atol=12)  # the brain of ICBM152, in MNI mm
    np.testing.assert_allclose(high, [72, 73, 82], atol=12)


def test_brains_at_1_06_mm_fill_the_grid_of_the_paper_within_3_cpu_seconds():
    grid, factors = Grid(1.06), Factors.draw(0, 0)
    load_template(grid)
    start = time.process_time()
    volume = make_subject(grid, factors)
    seconds = time.process_time() - start
    assert volume.shape == (137, 176, 137)
    np.testing.assert_allclose(grid.affine[:3, 3], [-72.08, -109.75, -61.48])
    assert 1.6 < np.count_nonzero(volume) * 1.06**3 / 1e6 < 2.2  # litres
    assert seconds < 3


def test_a_subject_is_the_same_brain_in_voxels_of_another_size():
    factors = Factors.draw(0, 0)
    small, large = make_subject(Grid(2.12), factors), make_subject(Grid(COARSE), factors)
    sizes = [np.count_nonzero(small) * 2.12**3, np.count_nonzero(large) * COARSE**3]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    halved = small[:68, :88, :68].reshape(34, 2, 44, 2, 34, 2).mean((1, 3, 5)).ravel()
    same, other = large[:34, :, :34].ravel(), make_subject(Grid(COARSE), Factors.draw(0, 1))[:34, :, :34].ravel()
    assert np.corrcoef(halved, same)[0, 1] > np.corrcoef(halved, other)[0, 1] + 0.02


def test_atrophy_and_age_widen_the_ventricles(cohort):
    box_mm = [[-28, -50, -5], [28, 35, 32]]  # round the lateral ventricles, in MNI space
    low, high = nib.affines.apply_affine(np.linalg.inv(Grid(COARSE).affine), box_mm).round().astype(int)
    deep = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    darker_than = column(cohort, "gain") * (column(cohort, "csf_wm") + column(cohort, "gm_wm")) / 2
    csf = [(volume[deep] < limit).mean() for volume, limit in zip(volumes(cohort), darker_than, strict=True)]
    assert np.corrcoef(csf, column(cohort, "atrophy"))[0, 1] > 0.75
    assert np.corrcoef(csf, column(cohort, "age"))[0, 1] > 0.5


def test_gain_and_size_in_the_manifest_are_those_of_the_images(cohort):
    gains = [white_matter(volume) for volume in volumes(cohort)]
    assert np.corrcoef(gains, column(cohort, "gain"))[0, 1] > 0.95
    sizes = [np.count_nonzero(volume) * COARSE**3 / 1000 for volume in volumes(cohort)]
    np.testing.assert_allclose(column(cohort, "brain_ml"), sizes, atol=0.1)


def test_an_interrupted_making_goes_on_where_it_stopped(cohort, copy):
    lost, cut, kept = (copy / row["path"] for row in rows(copy)[:3])
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-4])
    (copy / "manifest.csv").unlink()
    made = kept.stat().st_mtime_ns
    make_demo_cohort(copy, subjects=12, voxel_mm=COARSE)
    assert contents(copy) == contents(cohort)
    assert kept.stat().st_mtime_ns == made, "a whole scan was made again"


def test_the_manifest_comes_last(tmp_path):
    class Interrupt(Exception):
        pass

    def interrupt(done, total):
        raise Interrupt

    with pytest.raises(Interrupt):
        make_demo_cohort(tmp_path, subjects=2, voxel_mm=COARSE, on_subject=interrupt)
    assert {file.name for file in tmp_path.iterdir()} == {"demo.json", "sub-001_synthetic_T1w.nii.gz"}


def test_progress_counts_the_subjects(copy):
    (copy / "manifest.csv").unlink()
    told = []
    make_demo_cohort(copy, subjects=12, voxel_mm=COARSE, on_subject=lambda done, total: told.append((done, total)))
    assert told == [(done, 12) for done in range(1, 13)]


def test_a_finished_cohort_is_left_alone(copy):
    before = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
    assert make_demo_cohort(copy, subjects=12, voxel_mm=COARSE) == copy / "manifest.csv"
    assert {file: file.stat().st_mtime_ns for file in copy.iterdir()} == before


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"subjects": 3}, "subjects 12, not 3"),
        ({"voxel_mm": 5}, "voxel_mm 4.24, not 5.0"),
        ({"seed": 7}, "seed 0, not 7"),
    ],
)
def test_a_folder_made_with_other_arguments_is_refused(cohort, other, words):
    with pytest.raises(DataError, match=words) as refusal:
        make_demo_cohort(cohort, **{"subjects": 12, "voxel_mm": COARSE, **other})
    assert str(cohort) in str(refusal.value)
    assert "another folder" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"holds thesis\.tex, but no demo\.json"):
        make_demo_cohort(tmp_path, subjects=1, voxel_mm=COARSE)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "cohort").write_text("")
    with pytest.raises(DataError, match="is a file"):
        make_demo_cohort(tmp_path / "cohort", subjects=1, voxel_mm=COARSE)


@pytest.mark.parametrize("text", ["", "12", "{"])
def test_a_spoilt_record_is_refused(tmp_path, text):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(DataError, match=r"demo\.json cannot be read"):
        make_demo_cohort(tmp_path, subjects=1, voxel_mm=COARSE)


def test_a_cohort_of_another_recipe_is_refused(copy):
    record = json.loads((copy / "demo.json").read_text())
    (copy / "demo.json").write_text(json.dumps({**record, "recipe": 0}))
    with pytest.raises(DataError, match="recipe 0, not 1"):
        make_demo_cohort(copy, subjects=12, voxel_mm=COARSE)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"subjects": 0}, "subjects is 0: .* 1 subject or more"),
        ({"voxel_mm": 0.9}, "voxel_mm is 0.9: .* 1 to 8 mm"),
        ({"voxel_mm": 8.1}, "voxel_mm is 8.1: .* 1 to 8 mm"),
        ({"voxel_mm": float("nan")}, "voxel_mm is nan: .* 1 to 8 mm"),
        ({"seed": -1}, "seed is -1: .* 0 or more"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, wrong, words):
    with pytest.raises(DataError, match=words):
        make_demo_cohort(tmp_path / "cohort", **wrong)
    assert not (tmp_path / "cohort").exists()
