"""The page of results in a real browser: it asks for nothing, sorts, filters, remembers, prints; names are text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import world
from browser import Watched, chromium, opened
from conftest import command
from report_world import NASTY, SEEDS, synthetic, template
from scipy.stats import ttest_1samp

from taskvec import cli
from taskvec.errors import UserError
from taskvec.report.leaderboard import leaderboard
from taskvec.report.marks import COLOURS, MARKERS, marks
from taskvec.report.page.content import content
from taskvec.report.runs import Run, find_results
from taskvec.report.spread import over_items, over_seeds

pytestmark = pytest.mark.page
pytest.importorskip("plotly")
OLD = Path(__file__).resolve().parent / "fixtures" / "results_1"
SWEEP = ("merge=task_arithmetic,ties,dare,average,tsv", "protocol=addition,negation")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def real(tiny: Path, warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten runs of the tiny world; with those of the first schema, twenty real ones."""
    outputs = tmp_path_factory.mktemp("real") / "outputs"
    shutil.copytree(warm_outputs, outputs)
    done = command(tiny, *world.FAST, f"outputs={outputs}", "-m", *SWEEP)
    assert done.returncode == 0, done.stderr
    assert len(list((outputs / "runs").glob("*/result.json"))) == 10
    return outputs


@pytest.fixture(scope="module")
def made(real: Path, warm_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 200 synthetic and 20 real runs."""
    folder = tmp_path_factory.mktemp("page")
    synthetic(folder / "synthetic", template(warm_outputs), 200)
    target = folder / "report.html"
    places = [str(place) for place in (folder / "synthetic", real, OLD)]
    assert (
        cli.main(["report", *places, "-o", str(target), "--title", "two hundred and twenty"]) == 0
    )
    return target


@pytest.fixture(scope="module")
def page(browser, made: Path) -> Watched:
    return opened(browser, made.as_uri())


# --- what the numbers are ---------------------------------------------------------------------------------------------


def test_an_interval_over_seeds_is_students():
    values = np.random.default_rng().uniform(0, 1, 5).tolist()
    found = over_seeds(values, "fraction")
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(values))
    assert not over_seeds(values[:1], "fraction").known


def test_an_interval_over_items_is_that_of_the_answers(warm_outputs: Path):
    (run,) = find_results([warm_outputs])
    row = next(row for row in run.result.rows if row.row == "merged")
    found = over_items(run, row, "accuracy")
    count = world.COUNTS["test"]
    variances = [value * (1 - value) / count for value in row.values("accuracy").values()]
    half = 1.959964 * np.sqrt(sum(variances)) / len(variances)
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx(
        (half, half), rel=1e-4
    )


def test_runs_of_one_line_differ_in_their_seeds_only(warm_outputs: Path, tmp_path: Path):
    pattern = template(warm_outputs)
    synthetic(tmp_path, pattern, 90)
    lines = leaderboard(find_results([tmp_path]))
    assert len(lines) == 90 // SEEDS * len(pattern.rows)
    assert {len(line.members) for line in lines} == {SEEDS}
    twice = [line for line in lines if "lr=0.0002" in line.name]
    assert len(twice) == 2 * len(pattern.rows), "further learning rates are lines of their own"
    with pytest.raises(UserError, match="merge"):
        content(find_results([tmp_path]), {"merg": "ties"})


def test_marks_tell_names_apart():
    names = [f"name {number}" for number in range(len(COLOURS) * len(MARKERS))]
    assert len(set(marks(names).values())) == len(names)
    assert marks(["b", "a"]) == marks(["a", "b"])


# --- the page in a browser --------------------------------------------------------------------------------------------


def test_it_asks_for_nothing_and_complains_of_nothing(page: Watched, made: Path):
    assert "220 runs" in page.page.locator("header").inner_text()
    for name in ("bars", "curves", "tasks", "seconds", "memory"):
        chart = page.page.locator(f'[data-chart="{name}"]')
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    page.page.locator("#maps").scroll_into_view_if_needed()
    page.page.locator('[data-charts="maps"] .main-svg').first.wait_for()
    assert page.requests == [made.as_uri()] and page.problems == []


def test_it_sorts_by_mouse_and_keyboard(page: Watched):
    page.at("row=merged")
    button = page.page.locator('[data-sort="m:accuracy"]')
    button.click()
    head = page.page.locator("th", has=button)
    assert head.get_attribute("aria-sort") == "descending"
    numbers = accuracies(page)
    assert numbers == sorted(numbers, reverse=True) and len(numbers) > 30
    button.focus()
    page.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert accuracies(page) == sorted(numbers) and page.problems == []


def accuracies(page: Watched) -> list[float]:
    """The numbers of the column in their order; what is not there comes last."""
    texts = page.rows("td:nth-child(6)")
    found = [float(text.split("\n")[0]) for text in texts if text.strip()]
    assert not any(text.strip() for text in texts[len(found) :])
    return found


def test_its_address_holds_its_state(browser, page: Watched):
    page.at("")
    page.page.locator('select[data-filter="backbone"]').select_option("clip_b")
    page.page.locator('select[data-filter="row"]').select_option("merged")
    page.page.locator('[data-filter="q"]').fill("ties")
    page.page.locator('select[data-state="metric"]').select_option("normalised")
    page.page.locator('select[data-state="theme"]').select_option("dark")
    page.page.locator('[data-sort="m:accuracy"]').click()
    rows = page.rows()
    assert sorted(rows) == [f"ties lr=0.000{rate}" for rate in (1, 2, 3)]
    again = opened(browser, page.page.url)
    assert again.rows() == rows
    assert again.page.locator('select[data-state="metric"]').input_value() == "normalised"
    assert again.page.locator('[data-filter="q"]').input_value() == "ties"
    assert (
        again.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
    )
    again.page.locator("#reset").click()
    assert len(again.rows()) > len(rows) and "q=" not in again.page.url


def test_a_run_says_what_it_was(page: Watched, real: Path):
    run = next(path for path in sorted((real / "runs").iterdir()) if "negation" in path.name)
    status = json.loads((run / "status.json").read_text())
    page.at("row=merged")
    details = page.page.locator(f'details[data-run="{run.name}"]')
    details.locator("summary").click()
    said = details.inner_text()
    for part in (status["command"], "torch: ", "seed: 0", "stripes/test", "changed keys"):
        assert part in said, part
    page.until("location.hash.includes('run=')")
    assert f"run={run.name}" in page.page.url
    details.locator("summary").click()
    page.until("!location.hash.includes('run=')")
    page.at(f"run={run.name}")
    assert details.get_attribute("open") is not None


def test_it_fits_a_narrow_screen_and_prints(page: Watched):
    page.at("row=merged&backbone=clip_a")
    page.page.set_viewport_size({"width": 360, "height": 740})
    page.until("document.documentElement.scrollWidth <= 360")
    printed = page.page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    page.page.emulate_media(media="print")
    assert not page.page.locator("#controls").is_visible()
    assert page.page.locator("#table").is_visible() and page.problems == []
    page.page.emulate_media(media="screen")


def test_names_are_shown_as_text(browser, warm_outputs: Path, tmp_path: Path):
    synthetic(tmp_path / "nasty", template(warm_outputs), 2 * SEEDS * len(NASTY), names=NASTY)
    target = tmp_path / "nasty.html"
    title = "<i>title</i> & 'more'"
    assert cli.main(["report", str(tmp_path / "nasty"), "-o", str(target), "--title", title]) == 0
    page = opened(browser, target.as_uri())
    assert page.page.title() == title and page.problems == [] and page.requests == [target.as_uri()]
    shown = set(page.rows())
    for name in NASTY:
        assert name.replace("\u202e", "\\u202e") in shown
    chart = page.page.locator('[data-chart="bars"]')
    chart.scroll_into_view_if_needed()
    chart.locator(".main-svg").first.wait_for()
    drawn = chart.locator("svg text").all_text_contents()
    assert any("<b>bold</b>" in text for text in drawn), "in charts too"
    assert page.page.locator("main img, main b").count() == 0
    field = page.page.locator('select[data-filter="method"]')
    field.select_option(NASTY[1])
    assert set(page.rows()) == {NASTY[1]}
    state = page.page.url.partition("#")[2]
    page.at("")
    page.at(state)
    assert set(page.rows()) == {NASTY[1]}


def test_what_is_missing_is_one_line(tmp_path: Path, capsys, warm_outputs: Path):
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["report", str(warm_outputs), "--where", "merge=none"]) == 2
    assert "no run has merge=none" in capsys.readouterr().err


def test_a_stage_that_reports_no_picture_draws_none(warm_outputs: Path):
    (run,) = find_results([warm_outputs])
    assert [*content([Run(run.result)]).pictures.values()][0].keys() == {"merged"}
