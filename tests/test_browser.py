"""The page of a study in a browser: what it shows, how it answers, by pointer and by keyboard.

Needs Chromium and its driver (Debian: chromium-driver). Without them the tests are skipped, or fail
where BWFLOW_BROWSER=1 says that they have to be there.
"""

import functools
import os
import re
import shlex
import shutil

import numpy as np
import pytest
from studies import begun, small
from test_page import SPEC, fill

from bwflow import _page_data, page, report, store

pytestmark = [pytest.mark.slow, pytest.mark.once]

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


def started(folder):
    """A browser of its own profile, which fetches nothing by itself."""
    found = [shutil.which(name, path="/usr/bin") for name in ("chromium", "chromedriver")]
    if not all(found):
        why = "there is no /usr/bin/chromium with /usr/bin/chromedriver"
        (pytest.fail if os.environ.get("BWFLOW_BROWSER") == "1" else pytest.skip)(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*_FLAGS.split(), f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(found[1]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = started(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study and its page."""
    folder = tmp_path_factory.mktemp("study")
    path = fill(begun(SPEC, folder / "shown"))
    return path, page.write(path, folder / "report.html").as_uri()


@pytest.fixture
def shown(browser, study):
    """The page as it opens on a desk."""
    return opened(browser, study[1])


def opened(browser, address, *, width=1280, height=900, scheme="light"):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")  # or another hash alone would not load the page again
    browser.get(address)
    return browser


def every(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    return browser.find_element("css selector", selector)


def lines(browser, picture="gap"):
    return [path.get_attribute("d") for path in every(browser, f"#{picture} path.line")]


def rows(browser):
    script = """return [...document.querySelectorAll("#table tbody tr")].map(
        (row) => [...row.cells].map((cell) => cell.textContent))"""
    return browser.execute_script(script)


def written(text):
    """The rows of a table of the report, cell by cell."""
    return [re.split(r" {2,}", line.strip()) for line in text.partition("\n\n")[0].splitlines()[2:]]


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser")]


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def tab_to(browser, selector):
    """Go on with the Tab key until an element that matches has the focus, and shows it."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(80):
        press(browser, Keys.TAB)
        reached = browser.execute_script(
            "const at = document.activeElement; return at.matches(arguments[0]) && "
            "getComputedStyle(at).outlineStyle !== 'none'",
            selector,
        )
        if reached:
            return browser.switch_to.active_element
    raise AssertionError(f"{selector} is not reached by Tab")


def choose(browser, key, value):
    """Set a choice or a number as a person does."""
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
        one(browser, f"#{key}"),
        value,
    )


def test_a_page_opens_without_complaint_and_fetches_nothing(shown):
    assert complaints(shown) == []
    assert shown.execute_script("return performance.getEntriesByType('resource')") == []
    assert len(lines(shown)) == len(lines(shown, "survival")) == 8
    assert not any("NaN" in line or "Infinity" in line for line in lines(shown))
    assert "NaN" not in one(shown, "body").text.replace("became NaN", "")
    assert one(shown, "#summary").text.startswith("Chosen: 56 of 56 runs; ")


def test_the_table_is_that_of_the_report(shown, study):
    assert rows(shown) == written(report.table(study[0]))


def test_the_table_of_some_seeds_is_made_anew(shown, study):
    """All but the waiting, which is told of whole chunks."""
    choose(shown, "seed-from", 1)
    choose(shown, "seed-to", 5)
    some = written(report.table(store.read(study[0]).isel(seed=slice(1, 6))))
    assert [row[:-1] for row in rows(shown)] == [row[:-1] for row in some]
    assert "seeds 1 to 5" in one(shown, "#table-lead").text


def test_what_a_line_says_is_the_median_of_the_runs(shown, study):
    """Read by the arrow keys, at the second record of the second panel, for both smoothings."""
    from selenium.webdriver.common.keys import Keys

    panel = every(shown, "#gap svg[role=slider]")[1]
    panel.send_keys(Keys.HOME)
    panel.send_keys(Keys.ARROW_RIGHT)
    told = panel.get_attribute("aria-valuetext")
    ds = store.read(study[0]).sel(dynamics="flow", depth=2).squeeze("bottleneck")
    share = ds["gap"] / ds["loss"].isel(save=0)
    t = float(re.match(r"time t ([0-9.]+)[.] ", told)[1])
    record = int(np.argmin(np.abs(ds["time"].values - t)))
    for tau in ds["tau"].values:
        runs = share.sel(tau=tau).isel(save=record)[ds["success"].sel(tau=tau).values]
        expected = np.quantile(runs.clip(1e-3), [0.5, 0.25, 0.75])
        said = re.search(rf"τ = {tau:g}: (\S+) \[(\S+), (\S+)\]", told).groups()
        assert np.allclose([float(x) for x in said], expected, rtol=0.007)
    assert one(shown, "#gap .panel:nth-child(2) .readout").is_displayed()


def test_a_filter_changes_pictures_map_table_and_failures(shown):
    before = [lines(shown), lines(shown, "survival"), rows(shown)]
    heat = one(shown, "#map").text
    failures = one(shown, "#failures").text
    one(shown, "#axes input[name=depth][value='2']").click()
    after = [lines(shown), lines(shown, "survival"), rows(shown)]
    assert [len(part) for part in after] == [4, 4, 4]
    assert all(new != old for new, old in zip(after, before, strict=True))
    assert {row[1] for row in rows(shown)} == {"1"}
    assert one(shown, "#map").text != heat
    assert one(shown, "#failures").text != failures
    assert one(shown, "#summary").text.startswith("Chosen: 28 of 56 runs; ")
    one(shown, "#reset").click()
    assert [lines(shown), lines(shown, "survival"), rows(shown)] == before
    for box in every(shown, "#axes input[name=tau]"):
        box.click()
    assert rows(shown) == lines(shown) == []
    assert complaints(shown) == []


def test_colours_and_panels_can_be_exchanged(shown):
    keys = one(shown, "#gap-key").text.split("\n")
    assert keys == ["τ = 0.1", "τ = 0"]
    choose(shown, "colour", "depth")
    assert one(shown, "#gap-key").text.split("\n") == ["N = 1", "N = 2"]
    assert one(shown, "#panels").get_attribute("value") == "tau"
    assert [x.text for x in every(shown, "#gap figcaption")] == 2 * keys
    choose(shown, "panels", "none")
    assert len(every(shown, "#gap .panel")) == 2
    assert "pools runs of every smoothing" in one(shown, "#gap-pooled").text


def test_the_keyboard_is_enough(shown):
    from selenium.webdriver.common.keys import Keys

    press(shown, Keys.TAB)
    assert shown.switch_to.active_element.text == "Skip to the results"
    tab_to(shown, "#axes input[name=depth]")
    before = lines(shown), rows(shown)
    press(shown, Keys.SPACE)
    assert {row[1] for row in rows(shown)} == {"2"}
    assert lines(shown) != before[0]
    panel = tab_to(shown, "#gap svg[role=slider]")
    told = panel.get_attribute("aria-valuetext")
    press(shown, Keys.ARROW_LEFT)
    assert panel.get_attribute("aria-valuetext") != told
    tab_to(shown, "button[data-sort=steps]")
    press(shown, Keys.ENTER)
    steps = [float(row[9]) for row in rows(shown)]
    assert steps == sorted(steps)
    press(shown, Keys.ENTER)
    assert [float(row[9]) for row in rows(shown)] == sorted(steps, reverse=True)
    assert one(shown, "th[aria-sort]").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_needs_no_scrolling_sideways(browser, study, width):
    opened(browser, study[1], width=width, height=740)
    drawer = one(browser, "#drawer")
    assert (drawer.get_attribute("open") is None) == (width < 800)
    browser.execute_script("document.querySelectorAll('details').forEach((x) => (x.open = true))")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for panel in every(browser, "#gap .panel"):
        assert panel.size["width"] <= width
    assert complaints(browser) == []


def test_the_address_keeps_the_view(browser, study):
    shown = opened(browser, study[1])
    one(shown, "#axes input[name=tau][value='0']").click()
    choose(shown, "seed-to", 4)
    choose(shown, "colour", "depth")
    choose(shown, "shown", "median arrival")
    one(shown, "button[data-sort=arrived]").click()
    view = [lines(shown), lines(shown, "survival"), rows(shown), one(shown, "#map").text]
    address = shown.current_url
    assert "tau=0.1" in address
    assert "seed=0-4" in address
    shown = opened(browser, address)
    assert [lines(shown), lines(shown, "survival"), rows(shown), one(shown, "#map").text] == view
    assert shown.current_url == address
    shown = opened(browser, f"{study[1]}#tau=7&seed=9-2&colour=odd&sort=%00&depth=")
    assert rows(shown) == []
    assert complaints(shown) == []


def test_the_scheme_of_the_system_is_kept(browser, study):
    brightness = []
    for scheme in ("light", "dark"):
        opened(browser, study[1], scheme=scheme)
        style = "return getComputedStyle(document.body)"
        found = [browser.execute_script(f"{style}.{key}") for key in ("backgroundColor", "color")]
        brightness.append([sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in found])
    (paper, ink), (night, light) = brightness
    assert paper > 240
    assert ink < 60
    assert night < 40
    assert light > 200


def test_commands_name_runs_that_failed(shown, study):
    ds = store.read(study[0])
    codes = [code.get_attribute("textContent") for code in every(shown, ".commands code")]
    assert len(codes) == int((ds["reason"] > 0).sum())
    for command in codes:
        program, verb, where, *words = shlex.split(command)
        assert (program, verb, where) == ("bwflow", "rerun", str(study[0]))
        point = dict(zip(words[::2], words[1::2], strict=True))
        assert list(point) == ["--seed", "--tau", "--dynamics", "--depth"]
        run = ds.sel(dynamics=point["--dynamics"], depth=int(point["--depth"]))
        run = run.sel(seed=int(point["--seed"]), tau=ds["tau"].dtype.type(point["--tau"]))
        assert run["reason"].item() > 0
    assert "nonfinite: " in one(shown, "#failures").text
    choose(shown, "seed-to", 0)
    left = [code.get_attribute("textContent") for code in every(shown, ".commands code")]
    assert left == [code for code in codes if "--seed 0 " in code]


def test_a_study_without_failures_says_so(browser, tmp_path):
    path = begun(small(), tmp_path / "mine")
    opened(browser, page.write(path, tmp_path / "report.html").as_uri())
    assert one(browser, "#failures").text == "No run failed."
    assert "Unfinished: 0 of 3 runs are done" in one(browser, ".notice").text
    assert rows(browser)[0][4:] == ["0", *6 * ["-"]]
    assert complaints(browser) == []


def test_no_name_runs_as_a_script(browser, tmp_path):
    odd = tmp_path / "</script><img src=x onerror=alert(1)><script>alert(2)<!--"
    odd.parent.mkdir(parents=True)
    path = fill(begun(small(seeds=9), odd))
    opened(browser, page.write(path, tmp_path / "report.html").as_uri())
    assert complaints(browser) == []
    assert every(browser, "img") == []
    assert str(odd) in one(browser, ".facts").text
    commands = every(browser, ".commands code")
    assert commands
    assert shlex.split(commands[0].get_attribute("textContent"))[2] == str(odd)


def test_a_sample_is_said_to_be_one(browser, study, tmp_path, monkeypatch):
    sampled = functools.partial(_page_data.gathered, runs=30)
    monkeypatch.setattr(page._page_data, "gathered", sampled)
    opened(browser, page.write(study[0], tmp_path / "report.html").as_uri())
    assert "has 7 seeds" in one(browser, "#sampling").text
    assert "of the first 3" in one(browser, "#sampling").text
    assert rows(browser) == written(report.table(study[0]))
    choose(browser, "seed-to", 1)
    some = written(report.table(store.read(study[0]).isel(seed=slice(2))))
    assert [row[:-1] for row in rows(browser)] == [row[:-1] for row in some]
