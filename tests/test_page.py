"""The report page: its data, its server, and the page itself in a real browser."""

import dataclasses
import http.client
import json
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
from records import cost, made
from test_tables import N, right, saved

from mixmim_bench.report.contents import read_contents
from mixmim_bench.report.page import data_of, embedded, to_html
from mixmim_bench.report.published import of_task
from mixmim_bench.report.serve import Server
from mixmim_bench.report.write import write_report
from mixmim_bench.specs import RunRecord, digest
from mixmim_bench.suite.records import RunStore

HOSTILE_NAME = "<img src=x onerror='window.harmed=3'><b>$\\frac{|` &amp; <a href='x.example'>"
HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed=2'>"


def data_in(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


# -- data --------------------------------------------------------------------------------------------


def test_the_page_holds_the_leaderboard_and_every_record(tmp_path):
    store = saved(tmp_path, {"a": right(0.95, 0), "b": right(0.5, 1)})
    store.save(made("b", task="dtd", error="RuntimeError: out of luck", scores={}), {})
    write_report(store)
    data = data_in((tmp_path / "report.html").read_text())
    assert [row["model"] for row in data["rows"]] == ["a", "b"]
    assert [column["name"] for column in data["columns"]] == ["digits linear"]
    (cell,) = data["rows"][0]["cells"]
    record = next(record for record in store.records() if record.model == "a")
    assert (cell["value"], cell["mark"], cell["runs"]) == (
        record.scores["top1"]["value"],
        "best",
        [record.run_id],
    )
    assert cell["x"] == {"flops": 1.0, "params": 5.0, "speed": 10.0}
    assert set(data["records"]) == {record.run_id for record in store.records()}
    (failed,) = data["failed"]
    assert data["records"][failed]["error"] == "RuntimeError: out of luck"
    difference, low, high, p, corrected = data["pairs"]["0-1-0"]
    assert low < difference < high and p == corrected < 0.001


def test_the_same_records_give_the_same_bytes(tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0), "b": right(0.5, 1)})
    first = to_html(read_contents(store))
    assert to_html(read_contents(RunStore(tmp_path))) == first
    assert str(tmp_path) not in first


def test_no_text_can_end_the_data_block():
    value = {"model": HOSTILE, "note": "]]> <!-- & \u2028"}
    assert not set("<>&\u2028") & set(embedded(value))
    assert json.loads(embedded(value)) == value


def test_scripts_are_allowed_by_hash_alone(tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0)})
    page = to_html(read_contents(store))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src &#x27;none&#x27;" in policy and "unsafe-eval" not in policy
    assert policy.count("sha256-") == 3 and "unsafe-inline" not in policy.partition("style-src")[0]
    assert not re.search(r'<(script|link|img|iframe)[^>]*(src|href)="?http', page)


def test_paired_differences_of_many_rows_are_those_already_tested(tmp_path):
    store = saved(tmp_path, {f"m{place:02d}": right(0.5 + 0.03 * place, place) for place in range(14)})
    contents = read_contents(store)
    pairs = data_of(contents)["pairs"]
    assert 13 <= len(pairs) < 14 * 13 / 2  # the best with each other, and the second


def test_further_metrics_of_an_older_version_are_left_out(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    for model, version in (("a", 1), ("b", 2)):
        record = made(model, 0.8, more=("mean_per_class",))
        identity = record.identity
        identity["task"]["metric_versions"] = {"mean_per_class": version} if version > 1 else {}
        scores = {**record.scores, "mean_per_class": dict(record.scores["top1"])}
        store.save(dataclasses.replace(record, run_id=digest(identity), scores=scores), {})
    data = data_of(read_contents(store))
    further = [column["kind"] for column in data["columns"]].index("further")
    assert {row["model"]: row["cells"][further] is not None for row in data["rows"]} == {
        "a": False,
        "b": True,
    }


def test_notes_below_the_table_are_those_of_the_markdown(tmp_path):
    store = saved(tmp_path, {"a": right(0.95, 0), "b": right(0.5, 1)})
    next(store.runs.glob("*.npz")).unlink()
    notes = data_of(read_contents(store))["notes"]
    assert "Not decided, since predictions are missing: digits linear." in notes
    assert any(note.startswith("Speed and memory: cpu, 2 threads") for note in notes)
    record = made("b", 0.5, counts={"skipped_test": 3}, task="other")
    record.scores["top1"]["guess"] = 0.6
    store.save(record, {"ids": np.array(["0"])})
    notes = data_of(read_contents(store))["notes"]
    assert "Unreadable test images were skipped: 3 of other linear." in notes
    assert "Not significantly better than a guess: b on other linear." in notes


def test_a_page_without_results(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    data = data_in(to_html(read_contents(store)))
    assert (data["rows"], data["columns"], data["records"]) == ([], [], {})


# -- server ------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0), "b": right(0.5, 1)})
    with Server(store) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


def test_the_server_shows_the_page_as_it_is_now_and_writes_nothing(served):
    before = sorted(path.name for path in served.store.folder.rglob("*"))
    response, page = asked(served)
    assert (response.status, len(data_in(page)["rows"])) == (200, 2)
    assert response.headers["X-Frame-Options"] == "DENY"
    _, version = asked(served, "/version")
    assert asked(served, "/version")[1] == version
    assert sorted(path.name for path in served.store.folder.rglob("*")) == before
    served.store.save(made("c", 0.7), {})
    assert asked(served, "/version")[1] != version
    assert len(data_in(asked(served)[1])["records"]) == 3


def test_the_server_shows_current_intervals_and_leaves_the_records(served):
    store = served.store
    (read, _) = store.records()
    old = {**read.scores["top1"], "low": 0.0, "high": 1.0, "interval": "an older method"}
    arrays = store.arrays(read.run_id)
    store.save(dataclasses.replace(read, scores={"top1": old}), arrays)
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    shown = data_in(asked(served)[1])["records"][read.run_id]["scores"]["top1"]
    assert shown["interval"] == "wilson" and 0.0 < shown["low"] < shown["high"] < 1.0
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1", ""])
def test_the_server_answers_to_its_own_address_only(served, host):
    response, body = asked(served, Host=host)
    assert response.status == 403 and "data" not in body
    assert asked(served, Host=f"localhost:{served.server_port}")[0].status == 200


def test_the_server_takes_no_other_options(run, served):
    for options in (["--serve", "--published-only"], ["--serve", "-m", "a"], ["--port", "80"]):
        run("report", *options, "--results", served.store.folder, code=2)
    for option in ("--with-published", "--published-only"):
        said = run("report", option, "-t", "digits", "--results", served.store.folder, code=2).output
        assert f"{option} is for the whole report" in said


def test_the_server_serves_nothing_else(served):
    for path in ("/runs/", "/../setup.cfg", "/leaderboard.csv", "/?x=1"):
        assert asked(served, path)[0].status == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert asked(served, "/", method)[0].status == 501
    assert asked(served, "/", "HEAD")[1] == ""


# -- in a browser ------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)")


def boarded(folder):
    """A results folder with six models on three tasks, one with a hostile name, and a failed run."""
    names = [*(f"model{place}" for place in range(5)), HOSTILE_NAME]
    store = saved(folder, {name: right(0.5 + 0.07 * place, place) for place, name in enumerate(names)})
    ids, y = np.array([f"{row:04d}" for row in range(N)]), np.zeros(N, np.int32)
    for task in ("cifar10", "dtd"):
        for place, name in enumerate(names[:5]):
            best = np.where(right(0.6 + 0.05 * place, 50 + place), 0, 1)[:, None].repeat(5, axis=1)
            record = made(name, float((best[:, 0] == 0).mean()), task=task, suites=("extended",))
            store.save(record, {"ids": ids, "y": y, "best": best.astype(np.int32)})
    store.save(made("model0", task="pets", error=f"RuntimeError: {HOSTILE}", scores={}), {})
    for name in names:
        for place in ("own", "run"):
            store.save_cost(
                f"{name}-{place}", cost(name, 2.0 ** names.index(name), params_m=5.0 + names.index(name))
            )
    return store


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_report(boarded(folder))
    return (folder / "report.html").as_uri()


@pytest.fixture
def page(browser, report):
    """The page, opened from disk; fails the test if anything was logged or asked for over a network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    logged, asked_for = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: asked_for.append(request.url[:80]))
    page.goto(report)
    page.wait_for_selector("#board tbody tr")
    yield page
    assert page.evaluate("window.harmed") is None
    context.close()
    assert not logged
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked_for)


def models(page):
    return page.locator("#board tbody td:first-child").all_inner_texts()


def drawn(page):
    return page.evaluate("document.getElementById('plot').data[1].x.length")


@in_browser
def test_the_table_sorts_and_filters(page):
    assert len(models(page)) == 6
    header = page.locator("#board thead th", has_text="cifar10 linear")
    header.click()
    page.wait_for_selector('#board thead th[aria-sort="descending"]:has-text("cifar10 linear")')
    scores = [text.split("\n")[0] for text in page.locator("#board tbody td:nth-child(7)").all_inner_texts()]
    values = [float(text.rstrip("=")) for text in scores if text != "-"]
    assert values == sorted(values, reverse=True) and scores[-1] == "-"
    page.get_by_label("Search").fill("model3")
    assert models(page) == ["model3"] and drawn(page) == 1
    page.get_by_label("Search").fill("")
    page.locator("#most-flops").fill("2")
    assert sorted(models(page)) == ["model0", "model1"] and drawn(page) == 2
    page.locator("#most-flops").fill("")
    page.locator("#suite").select_option("extended")
    assert "digits linear" not in page.locator("#board thead").inner_text()


@in_browser
def test_averages_are_those_of_the_markdown_and_sort_by_rank(page, report):
    page.get_by_role("checkbox", name="Further metrics and averages").check()
    titles = page.locator("#board thead th").all_inner_texts()
    mean, above, rank = (f"mean extended linear top1{more}" for more in ("", " above chance", " rank"))
    page.locator("#board thead th", has_text=rank).click()
    page.wait_for_selector(f'#board thead th[aria-sort="ascending"]:has-text("{rank}")')
    shown = {}
    for row in page.locator("#board tbody tr").all():
        texts = [text.split("\n")[0] for text in row.locator("td").all_inner_texts()]
        shown[texts[0]] = tuple(texts[titles.index(title)] for title in (mean, above, rank))
    assert list(shown) == [f"model{place}" for place in (4, 3, 2, 1, 0)] + [HOSTILE_NAME]
    assert shown[HOSTILE_NAME] == ("incomplete", "-", "-")
    markdown = Path(url2pathname(urlparse(report).path)).with_name("leaderboard.md").read_text()
    lines = [
        line.split("|") for line in markdown.splitlines() if line.startswith("| extended linear top1: 2")
    ]
    table = {cells[2].strip(): tuple(cell.strip() for cell in cells[4:7]) for cells in lines}
    assert len(table) == 5 and {**shown, **table} == shown
    # a rank has no interval, and no place in the plot or the comparison
    assert rank not in page.locator("#plot-column").inner_text()
    assert rank not in page.locator("#compared").inner_text()


@in_browser
def test_of_a_calibration_error_the_lowest_is_the_best(browser, tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    for place, value in enumerate((0.10, 0.02, 0.05, None)):  # the first is the cheapest
        record = made(f"model{place}", 0.5, protocol="own-head")
        error = {"value": value, "low": 0.0, "high": 0.3, "n": N}
        scores = record.scores if value is None else {**record.scores, "ece": error}
        store.save(dataclasses.replace(record, scores=scores), {"ids": np.array(["0"])})
        store.save_cost(f"model{place}-run", cost(f"model{place}", 2.0**place))
    write_report(store)
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.get_by_role("checkbox", name="Further metrics and averages").check()
    page.locator("#board thead th", has_text="own-head ece").click()
    page.wait_for_selector('#board thead th[aria-sort="ascending"]:has-text("ece")')
    assert models(page) == ["model1", "model2", "model0", "model3"]
    page.locator("#plot-column").select_option(label="digits own-head ece")
    front = page.evaluate("document.getElementById('plot').data[0].y")
    assert front == pytest.approx([10.0, 2.0])
    page.locator("#plot-column").select_option(label="digits own-head")
    assert page.evaluate("document.getElementById('plot').data[0].y") == [50.0]
    page.close()


@in_browser
def test_hostile_names_stay_text(page):
    assert HOSTILE_NAME in models(page)
    page.locator("#first").select_option(label=f"{HOSTILE_NAME} · w")
    page.locator("#problem-list button").first.click()
    assert HOSTILE in page.locator("#record .error").inner_text()
    page.keyboard.press("Escape")
    page.locator("#plot-column").select_option(label="digits linear")
    assert HOSTILE_NAME[:30] in page.locator("#plot").text_content()


@in_browser
def test_points_show_and_open_their_record(page):
    page.locator("#plot-column").select_option(label="digits linear")
    point = page.locator("#plot .points path").first
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#plot .hoverlayer .hovertext")
    assert "top1" in page.locator("#plot .hoverlayer").text_content()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("dialog[open]")
    assert "Hyper-parameters" in page.locator("#record-body").inner_text()


@in_browser
def test_two_models_are_compared_by_the_paired_test(page):
    page.locator("#first").select_option(label="model4 · w")
    page.locator("#second").select_option(label="model0 · w")
    lines = page.locator("#compared tbody tr").all_inner_texts()
    assert any(line.startswith("digits linear") and "first is better" in line for line in lines)
    page.locator("#first").select_option(label="model0 · w")
    page.locator("#second").select_option(label="model4 · w")
    turned = page.locator("#compared tbody tr").all_inner_texts()
    assert any(line.startswith("digits linear") and "second is better" in line for line in turned)


@in_browser
def test_it_works_by_keyboard(page):
    page.locator("#board button.score").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(browser, report, scheme):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(report)
    page.wait_for_selector("#board tbody tr")
    for prepare in (lambda: None, lambda: page.locator("#board button.score").first.click()):
        prepare()
        found = Axe().run(page).response["violations"]
        assert not found, [(each["id"], each["nodes"][0]["html"][:200]) for each in found]
    context.close()


@in_browser
def test_nothing_is_wider_than_a_phone(browser, report):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(report)
    page.wait_for_selector("#board tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The page of two models on ImageNet-1K, with what others have published."""
    store = saved(tmp_path_factory.mktemp("published"), {"a": right(0.9, 0), "b": right(0.5, 1)})
    for name, share in (("a", 0.8), ("b", 0.7), ("c", 0.75)):
        store.save(made(name, share, task="imagenet1k", protocol="finetune"), {})
    write_report(store, published=True)
    return store.folder / "report.html"


def test_published_results_are_apart_from_measured_ones(published):
    data = data_in(published.read_text())
    expected = {
        (each.model, each.pretrain_data): each for each in of_task("imagenet1k", "finetune", "top1", ())
    }
    assert len(expected) > 50
    others = data.pop("published")
    assert [data["columns"][place]["name"] for place in others["columns"]] == ["imagenet1k finetune"]
    for row in others["rows"]:
        each = expected.pop((row["model"], row["pretraining"]))
        (cell,) = row["cells"]
        assert cell["value"] == pytest.approx(each.value / 100) and cell["source"] == each.source
        assert cell["link"].startswith(("https://", "http://")) and cell["link"] == each.link
    assert not expected
    # all the rest is as without them: rows, marks, means, pairs
    store = RunStore(published.parent)
    without = data_of(read_contents(store))
    assert without.pop("published") is None
    assert json.loads(json.dumps(without)) == data


def test_without_the_option_nothing_published_is_in_the_page(published):
    page = to_html(read_contents(RunStore(published.parent)))
    assert '"published":null' in page and "SimMIM" not in page and "arxiv.org" not in page.lower()


@in_browser
def test_published_results_are_grey_filtered_and_hidden(browser, published):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.goto(published.as_uri())
    page.wait_for_selector("#others-board tbody tr")
    trace = "document.getElementById('plot').data.find((trace) => trace.name === 'published')"
    grey = f"{trace}?.x.length ?? 0"
    assert page.evaluate(grey) == 0  # of digits nobody has published
    page.locator("#plot-column").select_option(label="imagenet1k finetune")
    every = page.evaluate(grey)
    assert every > 50 and drawn(page) == 2  # c has no cost
    assert page.evaluate(f"{trace}.marker.color") == "#9A9A9A"
    links = page.locator("#others-board tbody a")
    assert links.count() == 10
    assert all(link.get_attribute("href").startswith("http") for link in links.all())
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer"}
    assert sorted(models(page)) == ["a", "b", "c"]  # and none in the leaderboard
    assert "a · w" in page.locator("#first").inner_text()
    assert "MixMIM" not in page.locator("#first").inner_text()
    page.get_by_label("Search published").fill("SimMIM")
    some = page.evaluate(grey)
    assert 0 < some < every
    names = page.locator("#others-board tbody td:first-child").all_inner_texts()
    assert names and all("SimMIM" in name for name in names) and len(models(page)) == 3
    page.get_by_label("Search published").fill("")
    page.locator("#most-flops").fill("5")
    limited = [
        each for each in of_task("imagenet1k", "finetune", "top1", ()) if each.gmacs and each.gmacs <= 5
    ]
    assert page.evaluate(grey) == len(limited) > 0
    page.locator("#most-flops").fill("")
    page.locator("#protocol").select_option("linear")
    assert "imagenet1k finetune" not in page.locator("#others-board thead").inner_text()
    page.locator("#protocol").select_option("")
    page.get_by_role("checkbox", name="Published by others").uncheck()
    assert page.evaluate(grey) == 0 and drawn(page) == 2 and not page.locator("#others").is_visible()
    page.get_by_role("checkbox", name="Published by others").check()
    assert page.evaluate(grey) == every and page.locator("#others").is_visible()
    context.close()
    assert not logged


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_published_results_are_accessible(browser, published, scheme):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(published.as_uri())
    page.wait_for_selector("#others-board tbody tr")
    page.locator("#plot-column").select_option(label="imagenet1k finetune")
    click_on_one = """() => {
        const plot = document.getElementById('plot'), data = plot.data.find((t) => t.name === 'published');
        plot.emit('plotly_click', {points: [{customdata: data.customdata[0], data}]});
    }"""
    for prepare in (lambda: None, lambda: page.evaluate(click_on_one)):
        prepare()
        found = Axe().run(page).response["violations"]
        assert not found, [(each["id"], each["nodes"][0]["html"][:200]) for each in found]
    assert page.locator("dialog[open] a").get_attribute("href").startswith("http")
    context.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The page of 1,000 models on two tasks, without their predictions."""
    store = RunStore(tmp_path_factory.mktemp("many"))
    store.prepare()
    for place in range(1000):
        name = f"model{place:04d}"
        for task in ("digits", "dtd"):
            value = 0.2 + (place * (7 if task == "dtd" else 1) % 1000) / 2000
            store.save(made(name, value, task=task), {})
        for at in ("own", "run"):
            store.save_cost(f"{name}-{at}", cost(name, 1.0 + place, params_m=5.0 + place))
    path = store.folder / "report.html"
    path.write_text(to_html(read_contents(store)))
    return path


@in_browser
def test_a_thousand_rows_are_paged_sorted_and_filtered(browser, many):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.set_default_timeout(60_000)  # of each step, so that one that takes minutes fails
    page.goto(many.as_uri())
    page.wait_for_selector("#board tbody tr")
    assert len(models(page)) == 25 and drawn(page) == 1000
    assert "1,000" in page.locator(".dt-info").first.inner_text()
    page.locator("#board thead th", has_text="dtd linear").click()
    best = sorted(range(1000), key=lambda place: -(place * 7 % 1000))
    page.wait_for_selector(f"#board tbody tr:first-child td:has-text('model{best[0]:04d}')")
    assert models(page) == [f"model{place:04d}" for place in best[:25]]
    page.locator(".dt-paging-button.next").first.click()
    assert models(page) == [f"model{place:04d}" for place in best[25:50]]
    page.get_by_label("Search").fill("model099")
    assert models(page) == [f"model{place:04d}" for place in best if place // 10 == 99] and drawn(page) == 10
    page.get_by_label("Search").fill("")
    page.locator("#most-params").fill("104")
    assert drawn(page) == 100 and models(page)[0] == f"model{next(p for p in best if p < 100):04d}"
    page.locator("#intervals").uncheck()
    assert page.locator("#board .interval").first.is_hidden()
    page.locator("#board button.score").first.click()
    assert "Hyper-parameters" in page.locator("#record-body").inner_text()
    context.close()
    assert not logged


@in_browser
def test_it_refreshes_while_a_suite_runs(browser, served):
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.address)
    page.wait_for_selector("#board tbody tr")
    page.wait_for_timeout(3500)  # it has seen the first version
    ids, y = np.array(["0"]), np.zeros(1, np.int32)
    record: RunRecord = made("newcomer", 0.7)
    served.store.save(record, {"ids": ids, "y": y, "best": np.zeros((1, 5), np.int32)})
    page.wait_for_selector("#board td:has-text('newcomer')", timeout=20_000)
    context.close()
