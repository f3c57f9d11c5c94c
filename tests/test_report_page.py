"""The interactive report in a browser: what a person sets and reads, offline, at two widths."""

from __future__ import annotations

import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from fake_runs import make_config, write_run
from scipy.stats import chisquare

from analysis import report
from analysis.records import load
from analysis.statistics.intervals import student_half_width
from analysis.statistics.summary import curve, summarise
from analysis.tables import summary as tables
from estimators import GumbelSoftmax
from estimators.noise import noise_source

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
NASTY = "<img src=x onerror=alert(1)></script> & \"'ü"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two tasks; estimators with learning rates, one with temperatures; a diverged run and a failed one."""
    sweep = tmp_path_factory.mktemp("runs") / "sweep"

    def train(estimator, task, bound, **settings):
        for seed in range(3):
            config = make_config(estimator, task, seed=seed, **settings)
            value = bound - 0.7 * seed**2

            def row(step, value=value, seed=seed):
                return {"valid_elbo": value - 3000 / (step + 20), "gradient_variance": 1e-3 * (1 + seed) / step}

            write_run(sweep, config, valid=value, test=value - 1, steps=10, row=row)

    for lr in (0.001, 0.01):
        for temperature in (0.5, 1.0):
            bound = -100 - 100 * lr - temperature
            train("gumbel_softmax", "vae_bernoulli", bound, optimizer__lr=lr, estimator__temperature=temperature)
        train("nvil", "vae_bernoulli", -110 + 100 * lr, optimizer__lr=lr)
    train("st_gumbel_softmax", "vae_bernoulli", -104.0)
    train("nvil", "vae_categorical", -9.5)
    train("rloo", "vae_categorical", -100.2)
    write_run(sweep, make_config("nvil", seed=8), status="diverged")
    failed = write_run(sweep, make_config("rloo", seed=9), status="failed")
    (failed / "status.json").write_text(json.dumps({"status": "failed", "error": NASTY}))
    assert report.main([str(sweep)]) == 0
    return sweep


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


def opened(browser, sweep, width=1280):
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto((sweep / "report" / "report.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    return page


@pytest.fixture
def page(browser, sweep):
    """The page, opened afresh; whatever a test does, it says nothing on the console and asks for nothing."""
    page = opened(browser, sweep)
    yield page
    assert page.said == [] and page.asked == [(sweep / "report" / "report.html").as_uri()]
    page.context.close()


def column(page, number, table="results"):
    return page.locator(f"#{table} tbody tr:not(.details) td:nth-child({number})").all_inner_texts()


def drawn(page, kind="mean"):
    """What the plot has: ``{(estimator, setting): {"x": [...], "y": [...]}}``."""
    script = """kind => byId("plot").data.filter(trace => trace.meta.kind === kind)
        .map(trace => ({ key: [trace.meta.estimator, trace.meta.setting], x: trace.x, y: trace.y }))"""
    return {tuple(trace.pop("key")): trace for trace in page.evaluate(script, kind)}


def slide(page, label, value):
    script = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }"
    page.get_by_label(label, exact=True).evaluate(script, value)


def test_the_table_has_the_numbers_that_the_command_prints(page, sweep):
    summary = summarise(load(sweep))
    printed = tables.to_text(summary, width=1000)
    for number, (_, group) in enumerate(summary.groupby(["task", "data"])):
        page.get_by_label("task", exact=True).select_option(str(number))
        expected = [line[1] for line in tables.cells(group.reset_index(drop=True), tables.TEXT)[1:]]
        assert column(page, 2) == expected and len(expected) > 1
        assert all(cell in printed for cell in expected)
        assert page.locator("#table-caption").inner_text().startswith(tables.title(group))
    assert page.locator("h1").inner_text() == "sweep"
    assert page.locator("#counts").inner_text() == "29 runs: 27 finished, 1 diverged, 1 failed."


def test_sorting_by_number_and_back(page):
    page.get_by_label("task", exact=True).select_option(
        "1"
    )  # 10.50 and 101.20: as texts they stand the other way round
    head = page.get_by_role("button", name="nats")
    orders = []
    for word in ("ascending", "descending"):
        head.click()
        assert page.locator("#results th").nth(1).get_attribute("aria-sort") == word
        orders.append([float(re.split(r" [±*]", cell)[0]) for cell in column(page, 2) if cell != "-"])
    assert orders[0] == sorted(orders[0]) and orders[1] == orders[0][::-1] and len(orders[0]) == 2
    assert column(page, 2)[-1] == "-" or len(column(page, 2)) == 2  # no number stands last either way


def expected_curve(frame, estimator, lr, temperature=None):
    runs = frame[(frame["estimator"] == estimator) & (frame["optimizer.lr"] == lr) & (frame["status"] == "finished")]
    runs = runs[runs["task"] == "vae_bernoulli"]
    if temperature is not None:
        runs = runs[runs["estimator.temperature"] == temperature]
    steps, values = curve(runs, "valid_elbo")
    return steps, -values.mean(axis=0), student_half_width(values)


def test_filters_choose_what_is_averaged(page, sweep):
    frame = load(sweep)
    assert set(drawn(page)) == {
        ("gumbel_softmax", "estimator.temperature=0.5, optimizer.lr=0.001"),
        ("nvil", "optimizer.lr=0.01"),
        ("st_gumbel_softmax", ""),
    }
    page.get_by_label("learning rate").select_option("0.01")
    page.get_by_label("temperature", exact=True).select_option("1")
    means, bands = drawn(page), drawn(page, "band")
    temperatures = {
        ("gumbel_softmax", "estimator.temperature=1, optimizer.lr=0.01"): 1.0,
        ("nvil", "optimizer.lr=0.01"): None,
    }
    assert set(means) == set(bands) == set(temperatures)
    for key, temperature in temperatures.items():
        steps, mean, half = expected_curve(frame, key[0], 0.01, temperature)
        assert means[key]["x"] == steps.tolist()
        np.testing.assert_allclose(means[key]["y"], mean, rtol=1e-5)
        np.testing.assert_allclose(bands[key]["y"], [*(mean + half), *(mean - half)[::-1]], rtol=1e-5)
    assert [cell.strip() for cell in column(page, 1)] == ["Gumbel-Softmax", "NVIL", "RLOO"]  # RLOO's only run failed
    assert "3 of 8 settings" in page.locator("#shown").inner_text()
    assert not any("*" in cell for cell in column(page, 2))  # a best of a part is none
    page.get_by_label("learning rate").select_option("")
    page.get_by_label("temperature", exact=True).select_option("")
    page.get_by_label("every one").check()
    assert len(drawn(page)) == 7 and len(column(page, 1)) == 8
    page.get_by_role("checkbox", name="NVIL", exact=True).uncheck()
    assert len(drawn(page)) == 5 and "NVIL" not in [cell.strip() for cell in column(page, 1)]


def test_axes_metrics_and_single_runs(page, sweep):
    key = ("nvil", "optimizer.lr=0.01")
    steps = drawn(page)[key]["x"]
    page.get_by_label("loss evaluations").check()
    assert drawn(page)[key]["x"] == [100 * step for step in steps]
    page.get_by_label("seconds of training").check()
    np.testing.assert_allclose(drawn(page)[key]["x"], 0.1 * np.arange(1, 11))
    assert "Seconds" in page.locator("#curve-note").inner_text()
    page.get_by_label("training steps").check()
    page.get_by_label("curve", exact=True).select_option("gradient_variance")
    geometric = 1e-3 / np.array(steps) * 6 ** (1 / 3)
    np.testing.assert_allclose(drawn(page)[key]["y"], geometric, rtol=1e-5)
    assert page.evaluate("byId('plot').layout.yaxis.type") == "log"
    page.get_by_label("each seed").check()
    assert page.evaluate("byId('plot').data.filter(trace => trace.meta.kind === 'run').length") == 9
    color = page.evaluate("byId('plot').data.find(trace => trace.meta.estimator === 'nvil').fillcolor")
    assert color == "#D55E00"


def test_lost_runs_protocols_and_links(page, sweep):
    page.get_by_label("status").select_option("all")
    links = page.locator("#run-table a").evaluate_all("links => links.map(link => link.href)")
    assert len(links) == 23 and all((sweep / link.rstrip("/").rpartition("/")[2]).is_dir() for link in links)
    page.get_by_label("status").select_option("lost")
    assert sorted(column(page, 5, "run-table")) == ["diverged", "failed"]
    assert page.locator("#runs-note").inner_text() == "2 of the task and the filters above."
    page.get_by_label("task", exact=True).select_option("1")
    assert page.locator("#runs-note").inner_text() == "0 of the task and the filters above; 2 more outside of them."
    page.get_by_label("task", exact=True).select_option("0")
    assert NASTY in column(page, 7, "run-table") and page.locator("img").count() == 0
    button = page.get_by_role("button", name="about Gumbel-Softmax")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    details = page.locator("#results .details").inner_text()
    for words in ("test samples", "1000", "kl", "analytic", "over 3 seeds, Student t", "the best of 4", "published"):
        assert words in details
    assert page.locator("#results .details a").count() == 3
    page.keyboard.press("Enter")
    assert page.locator("#results .details").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_all_has_a_name(browser, sweep, width):
    page = opened(browser, sweep, width)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#results .expand").first.click()
    page.get_by_label("status").select_option("all")
    page.get_by_label("classes", exact=True).select_option("10")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    unnamed = """[...document.querySelectorAll("input, select, button")].filter(element =>
        !element.getAttribute("aria-label") && !element.textContent && !(element.labels && element.labels.length))"""
    assert page.evaluate(f"{unnamed}.length") == 0
    assert page.said == []
    page.context.close()


@pytest.mark.parametrize("status", ["failed", "running", "finished"])
def test_a_sweep_of_one_run(browser, tmp_path, status):
    """Nothing finished, no row of metrics, no interval: the page shows what there is."""
    sweep = tmp_path / "runs"
    write_run(sweep, make_config("nvil"), status=status, steps=0 if status == "failed" else 3)
    assert report.main([str(sweep)]) == 0
    page = opened(browser, sweep)
    assert page.locator("#counts").inner_text() == f"1 runs: 1 {status}."
    page.get_by_label("status").select_option("all")
    assert column(page, 5, "run-table") == [status]
    kinds = page.evaluate("byId('plot').data.map(trace => trace.meta.kind)")
    assert kinds == {"failed": [], "running": ["run"], "finished": ["mean"]}[status]
    assert column(page, 2) == (["-"] if status != "finished" else ["105.00"])
    assert page.said == []
    page.context.close()


# --- the Gumbel-Softmax ----------------------------------------------------------------------------------------------


def shown_samples(page):
    figures = page.locator("#samples figure")
    values = figures.evaluate_all("figures => figures.map(figure => JSON.parse(figure.dataset.values))")
    return np.array(values[0]), np.array(values[1:])


def all_samples(page):
    """All 1000 samples ``[1000, classes]``, read from the page while re-sampling."""
    script = """() => {
        const all = {};
        for (let n = 0; n < 91; n++) {
            for (const figure of [...document.querySelectorAll("#samples figure")].slice(1))
                all[figure.textContent] = JSON.parse(figure.dataset.values);
            byId("resample").click();
        }
        return Array.from({ length: 1000 }, (_, n) => all[`sample ${n + 1}`]);
    }"""
    return np.array(page.evaluate(script))


def test_samples_are_the_librarys_on_the_same_noise(page):
    slide(page, "weight of class 2", 90)
    p, _ = shown_samples(page)
    weights = np.array([24, 90, 8, 16, 12])
    np.testing.assert_allclose(p, weights / weights.sum(), rtol=1e-12)
    gumbel = torch.tensor(json.loads((report.PAGE / "gumbel_noise.json").read_text())["noise"], dtype=torch.float64)
    uniform = -torch.expm1(-torch.exp(-gumbel[:, None, :5]))  # of which the library makes this noise
    for logarithm in (-1, -0.3, 0, 1):
        temperature = 10**logarithm
        slide(page, "temperature of the samples", logarithm)
        with noise_source(lambda *_: uniform):
            theirs = GumbelSoftmax(temperature).sample(torch.tensor(p).log().expand(1000, 1, 5))
        ours = all_samples(page)
        np.testing.assert_allclose(ours, theirs[:, 0].numpy(), rtol=1e-9, atol=1e-300)
        means = [float(page.locator(f"#mean-{k}").get_attribute("data-value")) for k in range(5)]
        np.testing.assert_allclose(means, ours.mean(axis=0), rtol=1e-9)
        assert page.locator("#temperature-value").inner_text() == f"{temperature:.2f}"


def test_cold_samples_follow_the_categorical_and_hot_ones_do_not(page):
    slide(page, "temperature of the samples", -1)
    p, first = shown_samples(page)
    samples = all_samples(page)
    counts = np.bincount(samples.argmax(axis=1), minlength=5)
    assert chisquare(counts, 1000 * p).pvalue > 1e-3  # the noise is fixed: this holds or it does not
    assert samples.max(axis=1).mean() > 0.9
    shares = [float(page.locator(f"#share-{k}").get_attribute("data-value")) for k in range(5)]
    assert shares == (counts / 1000).tolist()
    page.get_by_role("button", name="Re-sample").click()
    assert not np.isclose(shown_samples(page)[1], first).all()
    slide(page, "temperature of the samples", 1)
    assert chisquare(1000 * all_samples(page).mean(axis=0), 1000 * p).pvalue < 1e-3
    page.get_by_label("classes", exact=True).select_option("3")
    p, samples = shown_samples(page)
    assert p.shape == (3,) and samples.shape == (11, 3)
    np.testing.assert_allclose(samples.sum(axis=1), 1)


# --- size and time ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_runs(browser, tmp_path, monkeypatch):
    """Written in 20 s and opened in at most 2 s of processor time: other work on the machine does not count."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the records need not survive a power cut
    for number in range(300):
        name, lr = ("gumbel_softmax", "nvil", "rloo", "reinmax", "arm")[number % 5], 10 ** -(2 + number // 5 % 6)
        write_run(tmp_path / "sweep", make_config(name, seed=number // 30, optimizer__lr=lr, steps=5000), steps=500)
    start = time.process_time()
    assert report.main([str(tmp_path / "sweep")]) == 0
    assert time.process_time() - start < 20
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto((tmp_path / "sweep" / "report" / "report.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    measured = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
    assert 0.1 < measured["TaskDuration"] < 2
    assert len(drawn(page)) == 5
    page.get_by_label("every one").check()
    assert len(drawn(page)) == 30
    context.close()
