"""The report in a real browser: Debian's chromium."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_dirs import write_finished_run
from sweep_dirs import write_sweep

from sftray.platform.report import write_report

pytestmark = pytest.mark.system
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, "the packages of tests/system-packages.txt are not installed"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    store = tmp_path_factory.mktemp("store")
    folders = {
        "run": write_finished_run(store, "<img src=x onerror=alert(1)>").folder,
        "sweep": write_sweep(store, trials=12, repeats=2),
        "pbt": write_sweep(store, "pbt", trials=6, scheduler="pbt"),
        "failed": write_sweep(store, "failed", trials=2, fates={0: "failed", 1: "failed"}),
    }
    return {name: write_report(folder) for name, folder in folders.items()}


def open_page(browser: Any, path: Path, width: int, scheme: str = "light") -> None:
    """Open it; selenium comes back when the page has loaded, and its scripts have run by then."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what was before is gone
    browser.get(path.as_uri())


def list_requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "sweep", "pbt", "failed"])
def test_a_report_opens(browser: Any, reports: dict[str, Path], name: str, width: int) -> None:
    open_page(browser, reports[name], width)
    assert browser.get_log("browser") == []
    outside = [url for url in list_requests(browser) if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    for extent in ("scrollWidth", "clientWidth"):
        assert browser.execute_script(f"return document.documentElement.{extent}") == width
    undrawn = "return [...document.querySelectorAll('.plot')].filter(p => !p.querySelector('.main-svg')).length"
    assert browser.execute_script(undrawn) == 0
    assert browser.execute_script("return document.querySelectorAll('.plot').length") >= 2


@pytest.mark.parametrize("width", WIDTHS)
def test_pictures_keep_to_their_boxes(browser: Any, reports: dict[str, Path], width: int) -> None:
    open_page(browser, reports["sweep"], width)
    outside = """
        return [...document.querySelectorAll('.plot')].flatMap(plot => {
          const box = plot.getBoundingClientRect();
          return [...plot.querySelectorAll('.xtick text, .ytick text, .g-xtitle, .g-ytitle, .legendtext')]
            .map(text => text.getBoundingClientRect())
            .filter(r => r.width && (r.left < box.left - 2 || r.right > box.right + 2 || r.bottom > box.bottom + 2))
            .map(() => plot.dataset.figure);
        });
    """
    assert browser.execute_script(outside) == []


def test_figures_follow_the_page_into_the_dark(browser: Any, reports: dict[str, Path]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        open_page(browser, reports["run"], 1280, scheme)
        fill = "return getComputedStyle(document.querySelector('.g-xtitle text, .xtitle')).fill"
        colours[scheme] = browser.execute_script(fill)
    assert colours == {"light": "rgb(27, 31, 36)", "dark": "rgb(230, 233, 237)"}


def test_a_name_is_no_element(browser: Any, reports: dict[str, Path]) -> None:
    open_page(browser, reports["run"], 1280)
    assert browser.execute_script("return document.images.length") == 0
    assert browser.title == "<img src=x onerror=alert(1)> – run"
