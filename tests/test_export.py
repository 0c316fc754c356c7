"""`somvq export`: each voxel of a scan gets the node of what lies there, however the scan lies in its file."""

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from brains import COARSE, brain, rotated, save, stored
from numpy.typing import NDArray
from optuna.trial import create_trial
from rich.console import Console
from test_training import make_run

from somvq import cli
from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort
from somvq.data.cohort import Cohort
from somvq.definitions import read_sweep
from somvq.errors import DataError, DefinitionError, RunError
from somvq.export import Scans, export, label_voxels, name_scans, place_on_file
from somvq.figures.colours import node_colours
from somvq.models.discrete import DiscreteAE
from somvq.runs import Run
from somvq.settings import Settings
from somvq.study import foreground
from somvq.training import Training

TILTED = (60, 70, 60)


def begin(place: Path, scans: Path, **settings: object) -> tuple[Run, Scans]:
    """A run on `scans` whose checkpoint holds codes that are tokens, and where its scans are."""
    wanted = CohortSettings.model_validate({"split": "1/1/1", **settings})
    cohort = prepare_cohort(scans, wanted, place / "prepared")
    run = make_run(place / "run", cohort, init="random", epochs=2)
    training = Training(run)
    training.initialise()
    model = training.model
    assert isinstance(model, DiscreteAE)
    model.codebook.codes.data.copy_(training.training_tokens(model.body.encoder).values[5:21])
    training.save(1, {"epoch": 1})
    return run, Scans(scans, wanted)


@pytest.fixture
def las(tmp_path: Path) -> tuple[Run, Scans]:
    """Three brains, stored right to left and front to back, of a size that no scan is prepared in."""
    for number in range(3):
        path = tmp_path / "lab" / f"sub-{number}_T1w.nii.gz"
        path.parent.mkdir(exist_ok=True)
        stored(path, "LPS")
        image = nib.load(path)
        noise = np.random.default_rng(number).integers(0, 9, image.shape)
        save(path, (np.asarray(image.dataobj) + noise).astype(np.int16)[2:, :-3], moved(image.affine))
    return begin(tmp_path, tmp_path / "lab")


def moved(affine: NDArray) -> NDArray:
    """Of a volume without the first two voxels of its first axis."""
    found = affine.copy()
    found[:3, 3] += 2 * affine[:3, 0]
    return found


def units_of_file(cohort: Cohort, row: int) -> NDArray:
    """A prepared scan in the units of its file."""
    entry = cohort.index.scans[row]
    return cohort.read([row])[0, 0] * entry.deviation + entry.mean


def test_a_map_lies_on_its_scans_own_grid_where_its_anatomy_is(las: tuple[Run, Scans], tmp_path: Path) -> None:
    run, scans = las
    (path, *_) = export(run, tmp_path / "maps", scans)
    cohort = Cohort(run.record.cohort)
    row = cohort.rows["val"][0]
    entry = cohort.index.scans[row]
    original, made = nib.load(scans.folder / entry.file), nib.load(path)
    assert made.shape == original.shape
    assert nib.aff2axcodes(made.affine) == ("L", "P", "S")
    assert np.allclose(made.affine, original.affine)
    assert made.get_data_dtype() == np.int16

    training = Training(run)
    training.load()
    labels = label_voxels(training, row)
    straight = nib.as_closest_canonical(made)
    at = np.round((straight.affine[:3, 3] - np.array(entry.affine)[:3, 3]) / 4).astype(int)  # in the prepared scan
    inner = tuple(slice(*side) for side in entry.box)
    expected = np.zeros(straight.shape, int)
    own = tuple(slice(side.start - first, side.stop - first) for side, first in zip(inner, at, strict=True))
    expected[own] = labels[inner]
    assert len(np.unique(expected)) > 3
    assert np.array_equal(np.asarray(straight.dataobj), expected)


def test_a_scan_placed_as_its_map_is_the_scan_itself(las: tuple[Run, Scans]) -> None:
    run, scans = las
    cohort = Cohort(run.record.cohort)
    for row, entry in enumerate(cohort.index.scans):
        original = nib.load(scans.folder / entry.file)
        placed = place_on_file(units_of_file(cohort, row), entry.affine, original.shape, original.affine)
        assert np.abs(placed - original.get_fdata()).max() < 1  # float16


def test_a_tilted_scans_map_lies_where_its_brain_is(tmp_path: Path) -> None:
    for number in range(3):
        voxels = brain(number, rotated(20), TILTED)
        save(tmp_path / "lab" / f"sub-{number}_T1w.nii.gz", voxels, rotated(20))
    run, scans = begin(tmp_path, tmp_path / "lab", voxel_mm=3.0)
    (path, *_) = export(run, tmp_path / "codes.nii.gz", scans)
    cohort = Cohort(run.record.cohort)
    row = cohort.rows["val"][0]
    entry = cohort.index.scans[row]
    original, made = nib.load(scans.folder / entry.file), nib.load(path)
    assert np.allclose(made.affine, original.affine, atol=1e-4)
    truth = original.get_fdata()
    placed = place_on_file(units_of_file(cohort, row), entry.affine, truth.shape, original.affine)
    assert np.corrcoef(placed.ravel(), truth.ravel())[0, 1] > 0.98
    inside, bright = np.asarray(made.dataobj) > 0, truth > 60
    assert 2 * (inside & bright).sum() / (inside.sum() + bright.sum()) > 0.95
    centre = np.array(np.nonzero(inside)).mean(1)
    assert np.abs(centre - np.array(np.nonzero(bright)).mean(1)).max() < 0.5  # voxels


def test_tables_name_and_colour_each_value(las: tuple[Run, Scans], tmp_path: Path) -> None:
    run, scans = las
    volume, freeview, fsleyes = export(run, tmp_path / "new" / "codes.nii.gz", scans)
    assert [path.name for path in (volume, freeview, fsleyes)] == ["codes.nii.gz", "codes_lut.txt", "codes.lut"]
    colours = node_colours(4, 4, toroidal=True)
    lines = [line.split() for line in freeview.read_text().splitlines() if not line.startswith("#")]
    assert [int(line[0]) for line in lines] == list(range(17))
    assert lines[7][1] == "node-6_row-1_column-2"
    assert np.array_equal([[int(part) for part in line[2:5]] for line in lines[1:]], colours)
    shares = [line.split() for line in fsleyes.read_text().splitlines()]
    assert [int(line[0]) for line in shares] == list(range(1, 17))
    assert np.allclose([[float(part) for part in line[1:4]] for line in shares], colours / 255, atol=1e-5)
    assert np.asarray(nib.load(volume).dataobj).max() <= 16


def test_nothing_of_a_files_header_but_its_geometry_is_in_its_map(tmp_path: Path) -> None:
    for number in range(3):
        image = nib.Nifti1Image(brain(number), COARSE)
        image.header["descrip"], image.header["db_name"] = b"POISON", b"POISON"
        image.set_sform(COARSE, code=4)
        path = tmp_path / "lab" / f"sub-{number}_T1w.nii"
        path.parent.mkdir(exist_ok=True)
        nib.save(image, path)
    run, scans = begin(tmp_path, tmp_path / "lab")
    volume, *_ = export(run, tmp_path / "codes.nii", scans)
    assert b"POISON" not in volume.read_bytes()
    assert int(nib.load(volume).header["sform_code"]) == 4
    again, *_ = export(run, tmp_path / "again" / "codes.nii", scans)
    assert again.read_bytes() == volume.read_bytes()


def test_scans_are_chosen_by_split_and_subject(las: tuple[Run, Scans], tmp_path: Path) -> None:
    run, scans = las
    subjects = {entry.split: entry.subject for entry in Cohort(run.record.cohort).index.scans}
    written = export(run, tmp_path / "maps", scans, split="train", subjects=[subjects["train"]])
    assert [path.name for path in written] == [f"{subjects['train']}_nodes.nii.gz", "nodes_lut.txt", "nodes.lut"]
    with pytest.raises(DefinitionError, match=f"{subjects['train']} is not in the val split; give --split train"):
        export(run, tmp_path / "maps", scans, subjects=[subjects["train"]])
    with pytest.raises(DefinitionError, match=f"--subject nobody is not in the val split; there are {subjects['val']}"):
        export(run, tmp_path / "maps", scans, subjects=["nobody"])
    with pytest.raises(RunError, match="at epoch 1 of 2, and only finished runs read the test split"):
        export(run, tmp_path / "maps", scans, split="test")


def test_visits_of_one_subject_have_names_of_their_own(las: tuple[Run, Scans]) -> None:
    entry = Cohort(las[0].record.cohort).index.scans[0].model_copy(update={"subject": "sub/1", "session": "day 2"})
    twice = [entry, entry, entry.model_copy(update={"session": entry.file})]
    assert name_scans(twice) == ["sub-1-day-2-1", "sub-1-day-2-2", "sub-1"]


def spoil(scans: Path) -> None:
    for file in scans.iterdir():
        save(file, brain(9))


def remove(scans: Path) -> None:
    for file in scans.iterdir():
        file.rename(file.with_name(f"other-{file.name}"))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (spoil, r"is not the file that was prepared: its sha256 has changed; if the scans have moved, --cohort"),
        (remove, r"has no sub-\d_T1w.nii.gz any more, whose grid is needed; if the scans have moved, --cohort"),
    ],
)
def test_scans_that_are_not_what_was_prepared_are_refused(
    las: tuple[Run, Scans], tmp_path: Path, harm: Callable[[Path], None], told: str
) -> None:
    run, scans = las
    harm(scans.folder)
    with pytest.raises(DataError, match=told):
        export(run, tmp_path / "maps", scans)
    assert not (tmp_path / "maps").exists()


def test_what_cannot_be_exported_is_refused_in_one_line(las: tuple[Run, Scans], tmp_path: Path) -> None:
    run, scans = las
    for name in ("codes.mgz", "codes.gz", "codes.img"):
        with pytest.raises(DefinitionError, match=f"{name} is neither a .nii.gz nor a folder"):
            export(run, tmp_path / name, scans)
    cohort = Cohort(run.record.cohort)
    plain = make_run(tmp_path / "ae", cohort, model="ae", epochs=2)
    Training(plain).save(1, {"epoch": 1})
    with pytest.raises(RunError, match="ae is of model ae, which has no codebook; export a run of vqvae, som or psom"):
        export(plain, tmp_path / "maps", scans)


def test_the_command_finds_the_scans_of_a_study_where_they_were_or_are_now(
    tmp_path: Path, tiny_scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        "method: random\nmetric: {name: val/ssim, goal: maximize}\n"
        "parameters: {model: {value: psom}, init: {value: random}, grid: {value: 4x4}, gamma: {min: 0.1, max: 1.0}}\n"
    )
    os.symlink(tiny_scans, tmp_path / "scans")
    settings = Settings(cohort=tmp_path / "scans")
    sweep = read_sweep(tmp_path / "tiny.yaml")
    opened = foreground.open_study(settings, sweep, "tiny", 0, CohortSettings(), Console(quiet=True))
    config = opened.record.run_config(0, {"gamma": 0.5})
    run = Run.create(opened.record.run(0).folder, opened.record.run_record(config, label="t0000", stages={}))
    training = Training(run)
    training.initialise()
    training.save(1, {"epoch": 1})
    opened.study.add_trial(create_trial(value=0.5))
    cli.export("tiny", Path("codes.nii.gz"))
    told = capsys.readouterr().out
    assert "runs/tiny/0000, the best of 1 finished trial of tiny" in told
    assert "wrote    codes.nii.gz\nwrote    codes_lut.txt\nwrote    codes.lut\n" in told
    before = (tmp_path / "codes.nii.gz").read_bytes()
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    for file in tiny_scans.iterdir():
        os.link(file, elsewhere / file.name)
    cli.export("tiny/0", Path("codes.nii.gz"), cohort=elsewhere)
    assert (tmp_path / "codes.nii.gz").read_bytes() == before
