"""The page in a real browser: a checkpoint is clicked, and its video plays."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from apprentice.config_family import SPLITS
from apprentice.family_record import Point, write_family_evaluation
from apprentice.run_status import RunStatus
from apprentice.runs import RunFolder
from apprentice.tokens import ensure_token
from tests.evalserver.family_runs import (
    NUM_SHOWN,
    NUM_TASKS,
    family_split,
    made_up_evaluation,
    make_family_run,
    task_of,
)
from tests.evalserver.serving import Server, keep_episode, make_run, needs_graphics

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1700",
)
SECONDS = 60.0
ACTOR = {
    "slot": 0,
    "host": "a-host-whose-name-is-as-long-as-those-of-some-clusters-are",
    "steps": 1_234_567,
    "steps_per_second": 123.4,
    "policy_version": 1234,
    "heartbeat_age_seconds": 12.5,
    "faults": 0,
}
INSIDE = ("about", "blob", "chrome", "data")
"""Addresses of what a browser holds itself."""

pytestmark = [
    needs_graphics,
    pytest.mark.timeout(300),  # of waits of SECONDS each
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None,
        reason="no Chromium here; to have it: apt-get install -y chromium chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    family = RunFolder(runs / make_family_run(runs, "meta"))
    split = family_split()
    points = tuple(
        Point(number=number, task_id=task.task_id, split=part, x=float(number), y=1.0)
        for number, (part, task) in enumerate(
            (part, task)
            for part in SPLITS
            for task in split.of(part)[: NUM_TASKS[part]]
            for _ in range(NUM_SHOWN)
        )
    )
    write_family_evaluation(family.evaluations, made_up_evaluation(points=points))
    folder = RunFolder(runs / make_run(runs, "reach", "reacher-easy"))
    keep_episode(folder.path, 100)
    rows = [
        {"time": 1.0, "steps": 20 * n, "metrics": {"evaluation/return_mean": 1.5 * n}}
        for n in range(1, 6)
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = RunStatus(
        run=folder.path.name,
        experiment="reach",
        task="reacher-easy",
        state="training",
        steps=100,
        max_steps=1000,
        actors=(ACTOR,),
    )
    folder.write_status(status)
    return runs


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    assert BROWSER is not None
    assert DRIVER is not None
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=ChromeService(DRIVER))
    browser.set_page_load_timeout(SECONDS)
    browser.set_script_timeout(SECONDS)
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Chrome:
    """Return the one browser as if it were new."""
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    requested(chromium)
    complaints(chromium)
    return chromium


@pytest.fixture(scope="module")
def serve(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    servers: dict[tuple[str, ...], Server] = {}

    def start(*flags: str) -> Server:
        """Return the server with such flags, started anew only where there is none that still runs."""
        if flags not in servers or servers[flags].process.poll() is not None:
            servers[flags] = Server(runs, tmp_path_factory.mktemp("server") / "log", flags=flags)
            servers[flags].wait_until_ready()
        return servers[flags]

    yield start
    for server in servers.values():
        server.end()


def wait_for(what: Callable[[], Any]) -> Any:
    """Return what comes true in time."""
    deadline = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)
    return found


def wait_until_it_shows(browser: Chrome, words: str) -> None:
    """Wait for a page that is loaded whole and holds some words (elements of the page before go stale)."""
    script = "return document.readyState === 'complete' && document.documentElement.outerHTML.includes(arguments[0])"
    wait_for(lambda: browser.execute_script(script, words))


def video_of(browser: Chrome) -> dict[str, Any]:
    script = """
        const video = document.getElementById("video");
        return {seconds: video.currentTime, width: video.videoWidth, source: video.currentSrc,
            error: video.error && video.error.message, said: document.getElementById("said").textContent};
    """
    return dict(browser.execute_script(script))


def wait_until_it_plays(browser: Chrome, source: str) -> None:
    """Wait until the video from an address is seen to move on."""

    def plays_from() -> float | None:
        video = video_of(browser)
        assert video["error"] is None, video
        moving = source in video["source"] and video["width"] > 0
        return float(video["seconds"]) if moving else None

    start = wait_for(lambda: (found := plays_from()) is not None and (found,))[0]
    wait_for(lambda: plays_from() not in (None, start))


def requested(browser: Chrome) -> list[str]:
    """Return what the browser asked for since the last call, wherever it is."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def assert_nothing_came_from_elsewhere(browser: Chrome, server: Server) -> None:
    addresses = [urlsplit(address) for address in requested(browser)]
    assert len(addresses) > 3
    elsewhere = [
        address.geturl()
        for address in addresses
        if address.scheme not in INSIDE and address.netloc != f"127.0.0.1:{server.port}"
    ]
    assert elsewhere == []


def offered(browser: Chrome) -> list[str]:
    """Return what the field for demonstrations offers."""
    script = "return [...document.querySelectorAll('#contexts option')].map(option => option.value)"
    return list(browser.execute_script(script))


def complaints(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_checkpoint_and_a_kept_episode_are_clicked_and_play(
    browser: Chrome, serve: Callable[..., Server]
) -> None:
    server = serve()
    browser.get(f"http://127.0.0.1:{server.port}/")
    assert browser.find_element(By.CSS_SELECTOR, ".state.training").text == "training"
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg.curve .dot")) == 5
    browser.find_element(By.CSS_SELECTOR, "a.play").click()
    wait_until_it_plays(browser, "/evaluate?checkpoint=")
    assert video_of(browser)["said"].startswith("return ")
    browser.find_element(By.CSS_SELECTOR, "a.watch").click()
    wait_until_it_plays(browser, "/episodes?run=")
    seed = browser.find_element(By.CSS_SELECTOR, "#player input[name=seed]")
    seed.clear()
    seed.send_keys("7")
    browser.find_element(By.CSS_SELECTOR, "#player button").click()
    wait_until_it_plays(browser, "seed=7")
    browser.find_element(By.LINK_TEXT, "HTTP interface").click()
    wait_for(lambda: browser.current_url.endswith("/docs"))
    wait_until_it_shows(browser, "/evaluate")
    assert complaints(browser) == []
    assert_nothing_came_from_elsewhere(browser, server)


def test_an_unseen_task_and_one_demonstration_of_it_are_picked_and_the_policy_is_watched(
    browser: Chrome, serve: Callable[..., Server], runs: Path
) -> None:
    server = serve()
    (family,) = (path.name for path in runs.glob("meta-*"))
    browser.get(f"http://127.0.0.1:{server.port}/?run={family}")
    browser.find_element(By.CSS_SELECTOR, "a.tile").click()
    script = (
        "const [tile] = document.querySelectorAll('video.tile'); return tile ? tile.currentTime : 0"
    )
    wait_for(lambda: browser.execute_script(script))
    asked = [address for address in requested(browser) if "width=160" in address]
    assert {address.partition("task=")[2].partition("&")[0] for address in asked} == {
        task_of("test", 0)
    }
    form = browser.find_element(By.ID, "player")
    assert offered(browser) == ["1", "2", "ids:4", "ids:5"]
    Select(form.find_element(By.NAME, "task")).select_by_value(task_of("test", 1))
    assert offered(browser) == ["1", "2", "ids:6", "ids:7"]
    Select(form.find_element(By.NAME, "beside")).select_by_value("expert")
    form.find_element(By.TAG_NAME, "button").click()
    wait_until_it_plays(browser, f"beside=expert&task={task_of('test', 1)}&context=1")
    assert "shown #" in video_of(browser)["said"]
    browser.find_element(By.CSS_SELECTOR, "svg.scatter a.play:last-of-type").click()
    wait_until_it_plays(browser, "context=ids%3A7")
    assert video_of(browser)["said"].endswith("shown #7")
    assert form.find_element(By.NAME, "context").get_attribute("value") == "ids:7"
    assert complaints(browser) == []
    assert_nothing_came_from_elsewhere(browser, server)


def test_where_a_token_is_asked_for_the_browser_signs_in_and_plays(
    browser: Chrome, serve: Callable[..., Server], tmp_path: Path
) -> None:
    token_file = tmp_path / ".token"
    token = ensure_token(token_file)
    server = serve("--token-file", str(token_file))
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.find_element(By.NAME, "token").send_keys("a wrong one\n")
    wait_until_it_shows(browser, "not the token")
    complaints(browser)  # that the page came with 401 is among them
    browser.find_element(By.NAME, "token").send_keys(token + "\n")
    wait_until_it_shows(browser, 'class="play"')
    assert token not in browser.execute_script("return document.cookie + location.href")
    browser.find_element(By.CSS_SELECTOR, "a.watch").click()
    wait_until_it_plays(browser, "/episodes?run=")
    assert complaints(browser) == []
    assert_nothing_came_from_elsewhere(browser, server)


def test_the_last_click_wins_and_a_server_that_is_gone_is_told(
    browser: Chrome, serve: Callable[..., Server]
) -> None:
    server = serve()
    browser.get(f"http://127.0.0.1:{server.port}/")
    # `get` can come back before the page's script is there, without which the form leaves the page.
    wait_for(lambda: browser.execute_script("return document.readyState === 'complete'"))
    browser.execute_script("""
        const form = document.getElementById("player");
        for (const seed of ["11", "12", "13"]) {
            form.elements.seed.value = seed;
            form.requestSubmit();
        }
    """)
    wait_until_it_plays(browser, "seed=13")
    assert "seed=13" in video_of(browser)["source"]
    server.end()
    browser.find_element(By.CSS_SELECTOR, "#player button").click()
    wait_for(lambda: "does not answer" in video_of(browser)["said"])


def test_nothing_is_cut_off_and_everything_can_be_read(
    browser: Chrome, serve: Callable[..., Server], runs: Path
) -> None:
    server = serve()
    for width, scheme in itertools.product((390, 1280), ("light", "dark")):
        metrics = {"width": width, "height": 1700, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        pages = {f"/?run={folder.name}": folder.name for folder in runs.iterdir()}
        for address, words in {"/docs": "HTTP interface", **pages}.items():
            browser.get(f"http://127.0.0.1:{server.port}{address}")
            # `get` can come back before the stylesheet is there.
            wait_until_it_shows(browser, words)
            sizes = browser.execute_script(
                "return [document.documentElement.scrollWidth, window.innerWidth]"
            )
            found = f"{address} {sizes}: {what_is_wider(browser)}"
            assert sizes[0] <= sizes[1] == width, found
        colours = browser.execute_script("""
            const style = getComputedStyle(document.body);
            return [style.color, style.backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).map(Number));
        """)
        text, ground = (relative_luminance(colour) for colour in colours)
        assert (text > ground) == (scheme == "dark")
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 7.0  # WCAG 2.2, AAA


def what_is_wider(browser: Chrome) -> list[str]:
    """Return the elements beyond the window's right edge, but for what scrolls by itself, and from where to where."""
    return browser.execute_script("""
        return [...document.querySelectorAll("*")]
            .map(element => [element, element.getBoundingClientRect()])
            .filter(([element, box]) => box.right > innerWidth && !element.closest(".wide *, .runs *"))
            .map(([element, box]) => `${element.tagName}.${element.className}: ${box.left} to ${box.right}`);
    """)


def relative_luminance(colour: list[int]) -> float:
    """Return WCAG's luminance of an sRGB colour."""
    channels = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
