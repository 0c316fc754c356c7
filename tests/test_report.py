"""Reports: what the page says, in a real browser that is offline."""

import base64
import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from somvq.audit import Audit, Checkout
from somvq.cli import compare
from somvq.config import CohortSettings, RunConfig
from somvq.data.cohort import CohortIndex, ScanEntry
from somvq.definitions import Sweep
from somvq.errors import DefinitionError
from somvq.report.page import check_place, draw_page
from somvq.report.pictures import BUDGET, draw_gallery
from somvq.report.privacy import Censor
from somvq.runs import Attempt, Run, RunRecord
from somvq.settings import Settings
from somvq.study.claim import REASON as WHY
from somvq.study.record import OpenStudy, StudyRecord, create_or_resume
from somvq.study.status import read_status
from somvq.study.tables import COLUMNS
from somvq.tracking.contents import BRAIN_PICTURES

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = {  # those of a map's last epoch, as large as they are in a run's folder
    "tsne": "tsne",
    "codebook_grid": "umatrix",
    "umatrix": "umatrix",
    "planes": "planes",
    "hits": "umatrix",
    "usage": "umatrix",
    "reconstruction": "reconstruction",
    "projection": "projection",
    "decoded_nodes": "decoded_nodes",
}
EPOCHS = 300
MARKUP = "<script>document.title='broken'</script>"
PRIVATE = ("poison-host", "/srv/poison", "sub-POISON", "poison.nii.gz", "poisoned folder", "poisoner")
REASON = (
    f"{MARKUP} [Errno 5] '/srv/poison/poisoned folder/x.nii': "
    "sub-POISON01 of /srv/poison/oasis/poison.nii.gz on poison-host"
)
COMMAND = (
    "somvq sweep psom --trials 50 --cohort '/srv/poison/poisoned folder' --storage postgresql://poisoner@poison-host/db"
)
SPACE: dict[str, Any] = {
    "model": {"value": "psom"},
    "init": {"value": "random"},
    "grid": {"value": "4x4"},
    "epochs": {"value": EPOCHS},
    "gamma": {"min": 0.1, "max": 1.0},
    "topology": {"values": ["toroidal", "rectangular"]},
}
KINDS = {
    "gamma": FloatDistribution(0.1, 1.0),
    "topology": CategoricalDistribution(["toroidal", "rectangular"]),
}
MEAN_IMAGE = {"val/ssim": 0.5, "val/mse": 0.25, "val/psnr": 17.5}


class Maker:
    """Makes studies as a sweep leaves them, without training."""

    def __init__(self, folder: Path):
        self.settings = Settings(runs=folder / "runs", cohorts=folder / "cohorts", wandb="disabled")
        self.cohort = folder / "cohorts" / "prepared"
        self.cohort.mkdir(parents=True)
        scan = ScanEntry(subject="POISON01", file="ses/poison.nii.gz", sha256="", split="train", mean=0, deviation=1,
                         affine=((1.0,),), box=((0, 1), (0, 1), (0, 1)), lost=0)  # fmt: skip
        index = CohortIndex(format=3, name="poisoned folder", layout="folder", fingerprint="f" * 12,
                            settings=CohortSettings(), shape=(48, 48, 48), scans=(scan,))  # fmt: skip
        (self.cohort / "index.json").write_text(index.model_dump_json())
        (self.cohort / "baseline.json").write_text(json.dumps(MEAN_IMAGE))

    def begin(self, name: str = "made", **sweep: Any) -> OpenStudy:
        told = {"metric": {"name": "val/ssim", "goal": "maximize"}, "parameters": SPACE, "name": name, **sweep}
        record = StudyRecord(
            name=name,
            uid="abcdef",
            seed=0,
            sweep=Sweep.model_validate(told),
            folder=self.settings.runs.resolve() / name,
            scans=Path("/srv/poison/poisoned folder"),
            cohort_settings=CohortSettings(),
            cohort=self.cohort,
            cohort_fingerprint="f" * 12,
            cohort_summary=f"8 scans {MARKUP}",
            wandb_project="test",
        )
        return create_or_resume(self.settings, record)[0]

    def add(self, opened: OpenStudy, state: TrialState = TrialState.COMPLETE, reason: str = "", rows: int = 2) -> Run:
        """One more trial, with its run's folder."""
        number = len(opened.study.trials)
        gamma = round(0.1 + 0.9 * (number * 37 % 50) / 50, 4)
        params = {"gamma": gamma, "topology": ("toroidal", "rectangular")[number % 2]}
        run = self.make_run(opened, number, params, rows)
        goals = [goal.name for goal in opened.record.sweep.goals]
        ended = {"values": [run.last_row()[goal] for goal in goals]} if state == TrialState.COMPLETE else {}
        told = {WHY: reason} if reason else {}
        opened.study.add_trial(create_trial(state=state, params=params, distributions=KINDS, user_attrs=told, **ended))
        opened.aim_for(number + 1)
        return run

    def make_run(self, opened: OpenStudy, number: int, params: dict[str, Any], rows: int) -> Run:
        config = RunConfig(model="psom", init="random", grid="4x4", epochs=EPOCHS, seed=number, **params)
        checkout = Checkout(folder="/srv/poison", sha="0123456789abcdef", dirty=True, untracked=("poisoner",))
        audit = Audit(command=COMMAND, cwd="/srv/poison", host="poison-host", git={"source": checkout},
                      versions={"python": "3.11", "torch": "2.13"}, platform={})  # fmt: skip
        record = RunRecord(config=config, cohort=self.cohort, cohort_fingerprint="f" * 12, study=opened.record.name,
                           name=f"{opened.record.name} t{number:04d}", wandb_id=f"{number}", audit=audit)  # fmt: skip
        run = Run.create(opened.record.run(number).folder, record)
        lines = [json.dumps(row(epoch, params["gamma"], number)) for epoch in range(EPOCHS - rows + 1, EPOCHS + 1)]
        run.ledger.write_text("\n".join(lines) + "\n")
        run.set_state("complete")
        run.note_attempt(Attempt(number=1, began=1000.0, ended=1360.0, outcome="complete", host="poison-host.lab"))
        return run


def row(epoch: int, gamma: float, number: int) -> dict[str, float]:
    ssim = 0.9 - 0.3 * abs(gamma - 0.4) - 0.2 / epoch + number * 1e-5
    return {
        "epoch": epoch,
        "train/loss": 1 - ssim,
        "val/loss": 1 - ssim + 0.01,
        "val/mse": 1 - ssim,
        "val/ssim": ssim,
        "val/ssim_q": ssim - 0.05,
        "val/psnr": 20 + 5 * ssim,
        "codebook/used": float(number % 16),
        "codebook/perplexity": 1 + number / 10,
        "map/topographic_error": gamma / 3,
        "map/morans_i": float("nan"),
        "time/epoch_s": 1.0,
    }


def draw(run: Run) -> None:
    for kind, name in FIGURES.items():
        shutil.copyfile(DOCS / f"{name}.png", run.figure(kind, EPOCHS))


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def somvq(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "somvq", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def page_of(*studies: OpenStudy, brain_images: bool = True) -> str:
    return draw_page(studies, brain_images=brain_images, on_step=lambda what, done, total: None)


def unpack(page: str, name: str) -> str:
    packed = re.search(rf'id="{name}">([^<]*)', page)
    assert packed
    return gzip.decompress(base64.b64decode(packed[1])).decode()


# A study in a browser


TRIALS, FAILED, PRUNED = 14, [5], [13]


def make_study(folder: Path, trials: int) -> None:
    """The study `made` in a user's folder; every eighth trial failed, the later of them were pruned."""
    maker = Maker(folder)
    opened = maker.begin()
    for number in range(trials):
        if number % 8 == 5:
            failed = number < 8
            state, reason = (TrialState.FAIL, REASON) if failed else (TrialState.PRUNED, "behind the median")
            maker.add(opened, state, reason, rows=EPOCHS)
        else:
            draw(maker.add(opened, rows=EPOCHS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the study `made`."""
    folder = tmp_path_factory.mktemp("lab")
    make_study(folder, TRIALS)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    """Its report, written over an older one."""
    path = folder / "report.html"
    path.write_text("old")
    done = somvq(folder, "compare", "made", "--html", "report.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report   report.html: {path.stat().st_size / 1e6:.1f} MB; open it in any browser\n"
    assert sorted(path.name for path in folder.iterdir()) == ["cohorts", "report.html", "runs"]
    return path


@pytest.mark.slow
def test_a_report_of_fifty_trials_is_small_and_soon_there(tmp_path: Path) -> None:
    make_study(tmp_path, 50)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = somvq(tmp_path, "compare", "made", "--html", "report.html")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size < 8e6
    text = (tmp_path / "report.html").read_text()
    assert text.count("<li data-kind=") == 44 * len(FIGURES)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 30  # of two cores: 15 s


def find_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        assert not os.environ.get("NEEDS_BROWSER"), "no Chromium or Chrome is installed"
        pytest.skip("no Chromium or Chrome is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report as it opens from a USB stick: it must say nothing on the console, and ask for nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True, reduced_motion="reduce")
    said: list[str] = []
    asked: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url.split(",")[0]))
    opened.set_default_timeout(10_000)
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith(("data:image/", "blob:"))} == {report.as_uri()}


def labels(page: Page) -> list[int]:
    """The numbers of the trials that the leaderboard shows, from above."""
    shown = page.locator("#trials tbody:not(.controls) tr:visible")
    return [int(label.split("/")[1]) for label in shown.evaluate_all("rows => rows.map(row => row.dataset.trial)")]


def test_the_leaderboard_shows_what_ledgers_say_best_first(page: Page, folder: Path) -> None:
    last = {number: Run(folder / "runs" / "made" / f"{number:04d}").last_row() for number in range(TRIALS)}
    done = [number for number in range(TRIALS) if number not in FAILED + PRUNED]
    best_first = sorted(done, key=lambda number: -last[number]["val/ssim"])
    assert labels(page)[: len(done)] == best_first
    headings = page.locator("#trials thead th").evaluate_all("all => all.map(th => th.dataset.column)")
    for tr in page.locator("#trials tbody:not(.controls) tr").all():
        cells = dict(zip(headings, tr.locator("th, td").all_inner_texts(), strict=True))
        number = int(cells["trial"].split()[0])
        for metric, (_, style) in COLUMNS.items():
            assert cells[metric] == format(last[number][metric], style)
        config = Run(folder / "runs" / "made" / f"{number:04d}").record.config
        assert cells["setting gamma"] == f"{config.gamma:.4g}"
        assert cells["setting topology"] == config.topology
        assert ("★" in cells["trial"]) == (number == best_first[0])
    ours, mean = last[best_first[0]]["val/ssim"], MEAN_IMAGE["val/ssim"]
    sentence = page.locator(".lead").inner_text()
    assert sentence.startswith(f"Trial {best_first[0]} is the best of {len(done)} finished trials")
    assert f"{ours - mean:.3f} above the mean image of the training set ({mean:.3f})" in sentence
    compared = page.locator(".comparison tbody tr").first.locator("td").all_inner_texts()
    assert compared[:3] == [f"{ours:.3f}", f"{mean:.3f}", f"+{ours - mean:.3f} better"]


def test_rows_are_sorted_by_click_and_key_and_filtered_by_words_ranges_and_chips(page: Page) -> None:
    used = {number: number % 16 for number in range(TRIALS)}
    heading = page.locator("#trials th", has=page.get_by_role("button", name="codes used"))
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert [used[number] for number in labels(page)] == sorted(used.values(), reverse=True)
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [used[number] for number in labels(page)] == sorted(used.values())
    page.get_by_role("button", name="topology").press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert all(number % 2 for number in labels(page)[: TRIALS // 2])  # rectangular

    page.reload()
    page.get_by_role("button", name="failed", exact=True).click()
    assert sorted(labels(page)) == FAILED
    assert page.locator("#count").inner_text() == "1 of 14 trials"
    page.get_by_role("button", name="failed", exact=True).click()
    page.get_by_role("searchbox").fill("median rectangular")
    assert sorted(labels(page)) == PRUNED
    page.get_by_role("searchbox").fill("")
    everything = labels(page)
    third = page.locator("#trials tbody tr").nth(2).locator("td").nth(1).get_attribute("data-value")
    assert third
    page.get_by_label("val/ssim from").fill(third)
    assert labels(page) == everything[:3]


def test_figures_are_enlarged_by_keys_and_chosen_by_kind_and_by_trial(page: Page) -> None:
    dialog = page.get_by_role("dialog")
    first = page.get_by_role("button", name="Enlarge: t-SNE of tokens and codes").first
    first.press("Enter")
    assert dialog.is_visible()
    told = page.locator("#caption").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#caption").inner_text() != told
    page.keyboard.press("ArrowLeft")
    assert page.locator("#caption").inner_text() == told
    assert page.locator("#enlarged").evaluate("image => image.naturalWidth") == 640
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert first.evaluate("button => button === document.activeElement")

    shown = page.locator(".gallery li:visible")
    assert shown.count() == TRIALS - len(FAILED + PRUNED)
    page.locator("#kind").select_option("U-matrix")
    assert set(shown.evaluate_all("all => all.map(li => li.dataset.kind)")) == {"umatrix"}
    page.locator("#trials tr.best th a").click()
    assert set(shown.evaluate_all("all => all.map(li => li.dataset.kind)")) == set(FIGURES)


def test_charts_are_drawn_as_they_come_into_view(page: Page) -> None:
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
    titles = page.locator("#charts figcaption strong").all_inner_texts()
    assert titles == ["History", "Importance", "Parallel coordinates", "Slices"]
    history = page.locator("#charts .plot").first
    assert history.evaluate("plot => plot.data[0].x") == [n for n in range(TRIALS) if n not in FAILED + PRUNED]
    curves = page.locator("#curve .scatterlayer .trace")
    assert curves.count() == TRIALS
    page.get_by_label("Metric").select_option("codebook/perplexity")
    assert page.locator("#curve").evaluate("plot => plot.layout.yaxis.title.text") == "codebook/perplexity"
    assert page.locator("#curve").evaluate("plot => plot.data.at(-1).line.width") == 3  # the best one, on top


CONTRAST = """([name, on]) => {
  const light = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(--${name})`;
    const channels = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
    probe.remove();
    const [r, g, b] = channels.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(name), light(on)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.slow
def test_it_is_readable_in_light_and_in_dark(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.locator("#charts .plot .main-svg").first.wait_for()
    ink = "document.querySelector('#charts .xtick text').style.fill"
    seen = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.wait_for_timeout(300)
        seen.append((page.evaluate(background), page.evaluate(ink)))
        for name in ("ink", "soft", "accent", "warm", "good", "bad"):
            for on in ("paper", "panel", "tint"):
                assert page.evaluate(CONTRAST, [name, on]) >= 4.5, (scheme, name, on)
    page.get_by_role("button", name="Change to the light theme").press("Enter")
    page.wait_for_timeout(300)
    assert (page.evaluate(background), page.evaluate(ink)) == seen[0] != seen[1]
    assert page.get_by_role("button", name="Change to the dark theme").is_visible()


@pytest.mark.slow
def test_it_is_no_wider_than_a_small_screen_and_prints_what_it_shows(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the leaderboard"
    page.locator("#charts .main-svg").first.wait_for()
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    plots = page.locator(".plot")
    assert plots.evaluate_all(
        "all => all.every(plot => plot.layout.template.layout.paper_bgcolor === 'rgb(255, 255, 255)')"
    )
    assert not page.locator("nav").is_visible()
    assert page.locator("#trials").is_visible()


def test_a_page_names_nobody_and_no_place_and_runs_no_markup(page: Page, report: Path) -> None:
    text = report.read_text()
    told = text + unpack(text, "drawings")
    assert [word for word in PRIVATE if word in told] == []
    assert page.title() == "made · somvq report"
    assert page.locator("#endings").get_by_text(MARKUP).count() == 1
    assert "somvq sweep psom --trials 50 --cohort COHORT --storage STORAGE" in page.locator("#origins").inner_text()
    assert "0123456789ab with uncommitted changes" in page.locator("#origins").inner_text()


# Without a browser


def test_brain_images_are_left_out_when_asked(maker: Maker) -> None:
    opened = maker.begin()
    draw(maker.add(opened))
    whole, without = page_of(opened), page_of(opened, brain_images=False)
    kinds = set(re.findall(r'<li data-kind="(\w+)"', whole))
    assert kinds == set(FIGURES)
    assert kinds - set(re.findall(r'<li data-kind="(\w+)"', without)) == BRAIN_PICTURES
    assert "contains images of brains" in whole
    assert "contains no images of brains" in without


def test_a_study_without_trials_has_a_report(maker: Maker) -> None:
    assert "No trial of made has finished yet" in page_of(maker.begin())


def test_a_study_of_one_trial_has_a_report(maker: Maker) -> None:
    opened = maker.begin()
    maker.add(opened)
    told = page_of(opened)
    assert "Trial 0 is the only finished trial" in told
    assert "Charts need two finished trials" in told


def test_a_study_of_several_goals_and_constraints_has_a_report(maker: Maker) -> None:
    goals = [{"name": "val/ssim", "goal": "maximize"}, {"name": "codebook/used", "goal": "minimize"}]
    opened = maker.begin(metric=None, objectives=goals, constraints={"val/ssim": {"min": 0.1}})
    for _ in range(6):
        maker.add(opened)
    told = page_of(opened)
    assert "Pareto front" in told
    front = [trial for trial in read_status(opened).ranked() if read_status(opened).leads(trial)]
    assert told.count('title="best">★') == len(front)
    assert f"{len(front)} of 6 finished trials" in told


def test_damaged_and_deleted_files_cost_their_own_trial_alone(maker: Maker) -> None:
    opened = maker.begin()
    runs = [maker.add(opened) for _ in range(5)]
    for run in runs:
        draw(run)
    runs[0].ledger.write_text('{"epoch": 1}\n{torn\n{torn\n')
    (runs[1].folder / "state.json").write_text("{torn")
    (runs[2].folder / "config.json").write_text("{torn")
    shutil.rmtree(runs[3].figures)
    runs[4].figure("tsne", EPOCHS).write_bytes((DOCS / "tsne.png").read_bytes()[:2000])
    told = page_of(opened)
    assert told.count("is damaged") >= 2
    assert "1 figure could not be read." in told
    assert str(maker.settings.runs.resolve()) not in told
    assert 'data-kind="usage" data-trial="made/4"' in told
    assert 'data-trial="made/3"><figure' not in told


@pytest.mark.slow
def test_of_many_trials_the_best_have_figures(maker: Maker) -> None:
    opened = maker.begin()
    small = Image.new("RGB", (80, 60))
    for _ in range(60):
        small.save(maker.add(opened).figure("tsne", EPOCHS))
    told = page_of(opened)
    best = [trial.number for trial in read_status(opened).ranked()[:50]]
    assert [int(n) for n in re.findall(r'<li data-kind="tsne" data-trial="made/(\d+)"', told)] == best
    assert "Figures of the best 50 runs of 60 are shown." in told
    assert "Only the best 50 trials are drawn." in told


@pytest.mark.slow
def test_figures_that_would_make_the_file_too_large_are_left_out_from_the_end(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = maker.begin()
    for _ in range(2):
        draw(maker.add(opened))
    monkeypatch.setattr("somvq.report.pictures.BUDGET", BUDGET // 20)
    told = page_of(opened)
    assert "figures of the last runs are left out, to keep the file small" in told
    assert 0 < told.count("<li data-kind=") < 2 * len(FIGURES)
    assert draw_gallery([], brain_images=True, on_step=lambda *_: None).pictures == ()


def test_studies_are_ranked_together_and_told_apart(maker: Maker) -> None:
    first, second = maker.begin("first"), maker.begin("second")
    for _ in range(3):
        maker.add(first)
        maker.add(second)
    maker.add(second)
    labels = re.findall(r'<tr data-trial="([\w/]+)"', page_of(first, second))
    value = {f"{name}/{n}": read_status(opened).trials[n].value or 0 for name, opened in
             (("first", first), ("second", second)) for n in range(len(opened.study.trials))}  # fmt: skip
    assert sorted(labels) == sorted(value)
    assert [value[label] for label in labels] == sorted(value.values(), reverse=True)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("val/ssim became nan in epoch 1/2", "val/ssim became nan in epoch 1/2"),
        ("codebook/used_share >= 0.1, 3 of 4", "codebook/used_share >= 0.1, 3 of 4"),
        ("[Errno 28] No space: '/data/my lab/a b.nii'", "[Errno 28] No space: [file]"),
        ("~/x/y.txt and C:\\lab\\x: gone", "[file] and [file]: gone"),
        ("scan_01.nii.gz of sub-07 on node7, not node70", "[file] of [subject] on [host], not node70"),
        ("at postgresql://me:pw@db.lab/x", "at [address]"),
    ],
)
def test_sentences_lose_what_is_private_and_nothing_else(text: str, left: str) -> None:
    assert Censor({"node7": "[host]", "3": "[subject]"}).clean(text) == left


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("somvq sweep psom --trials 50", "somvq sweep psom --trials 50"),
        (
            "somvq sweep /home/me/my.yaml --cohort=/d --set gamma=0.5",
            "somvq sweep my.yaml --cohort=COHORT --set gamma=0.5",
        ),
        ("somvq sweep psom --runs '/a b' --set 'alpha=[1, 2]'", "somvq sweep psom --runs RUNS --set 'alpha=[1, 2]'"),
    ],
)
def test_commands_keep_what_reproduces_and_lose_places(command: str, left: str) -> None:
    assert Censor({}).clean_command(command) == left


# The command


def test_a_place_where_no_report_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"--html nowhere/r.html: there is no folder nowhere; make it first"):
        check_place(Path("nowhere/r.html"))
    with pytest.raises(DefinitionError, match=rf"{tmp_path} is a folder; give a file in it: {tmp_path}/report.html"):
        check_place(tmp_path)


def test_studies_are_compared_side_by_side_and_for_scripts(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*names: str, json_: bool = False) -> str:
        capsys.readouterr()
        compare(list(names), json_=json_, runs=maker.settings.runs)
        return capsys.readouterr().out

    for name in ("first", "second"):
        opened = maker.begin(name)
        for _ in range(2):
            maker.add(opened)
    table = told("first", "second", "first")
    assert table.count("maximize val/ssim") == 2
    best = re.findall(r"^ *(first|second) +(\d) ", table.split("the best of each study")[1], re.MULTILINE)
    found = json.loads(told("first", "second", json_=True))
    assert best == [(study["study"], str(study["ranked"][0])) for study in found]
    assert [study["best"] for study in found] == [study["ranked"][0] for study in found]
    assert "the best of each study" not in told("first")
    with pytest.raises(DefinitionError, match="--html and --json: give one of them"):
        compare(["first"], html=Path("r.html"), json_=True, runs=maker.settings.runs)
