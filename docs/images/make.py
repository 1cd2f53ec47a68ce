"""Makes the README's pictures from the system itself.

python docs/images/make.py terminal --seconds 150      # starts what `make run` does and keeps its view
python docs/images/make.py rollout --url http://127.0.0.1:8000   # asks a running evaluation server
python docs/images/make.py page --url http://127.0.0.1:8000      # and Chromium for its page (needs selenium)
python docs/images/make.py family --checkpoint RUN               # and for what it shows of a family's unseen tasks
python docs/images/make.py imitation --checkpoint RUN            # and for its discriminator's plots
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
COLUMNS, ROWS = 100, 32
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def draw_terminal(seconds: float, runs: Path) -> None:
    """Train for some seconds under the live view, and write the last picture that it drew as SVG."""
    from rich.console import Console
    from rich.text import Text

    child, terminal = pty.fork()
    if child == 0:
        environment = {
            **os.environ,
            "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS),
            "TERM": "xterm-256color",
        }
        command = [sys.executable, "-m", "cli", "up", "dac-reacher-easy", "--runs", str(runs)]
        os.chdir(ROOT)
        os.execve(sys.executable, command, environment)  # noqa: S606 - it takes the child's place
    drawn, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline and select.select([terminal], [], [], 5.0)[0]:
        drawn += os.read(terminal, 65_536)
    os.kill(child, signal.SIGINT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG)[0] == 0:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                os.read(terminal, 65_536)
            except OSError:  # the terminal is closed with its last writer
                break
    # The view goes up to its first line and draws over itself; pictures lie between these movements.
    pictures = re.split(rb"(?:\r?\x1b\[\d*A|\r?\x1b\[2K|\x1b\[\?25[lh])+", drawn)
    whole = [picture for picture in pictures if "╭".encode() in picture and "╰".encode() in picture]
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(whole[-1].decode("utf-8", "replace").replace("\r", "")))
    # Its fonts lie elsewhere; the viewer's own will do.
    svg = re.sub(
        r"@font-face \{.*?\}\s*", "", console.export_svg(title="make run"), flags=re.DOTALL
    )
    (FOLDER / "terminal.svg").write_text(svg)


def fetch_rollout(url: str, checkpoint: str) -> None:
    """Write one rollout of a checkpoint as WebP, small enough for a README."""
    query = f"checkpoint={checkpoint}&format=webp&width=240&height=240&fps=12&max_steps=120&seed=3"
    with urllib.request.urlopen(f"{url}/evaluate?{query}", timeout=120) as reply:  # noqa: S310
        (FOLDER / "rollout.webp").write_bytes(reply.read())


@contextmanager
def _page(url: str, checkpoint: str, size: str) -> Iterator[Any]:
    """Open a run's page in Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*CHROMIUM_FLAGS, f"--window-size={size}", "--force-device-scale-factor=1"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(f"{url}/?run={checkpoint}")
        yield driver
    finally:
        driver.quit()


def photograph_page(url: str, checkpoint: str) -> None:
    """Write the page as PNG while the policy plays on it, beside the expert where there is one."""
    from selenium.webdriver.common.by import By

    with _page(url, checkpoint, "1200,1500") as driver:
        beside = driver.find_elements(By.CSS_SELECTOR, "a.play[data-beside]")
        (beside or driver.find_elements(By.CSS_SELECTOR, "a.play"))[0].click()
        script = "return document.getElementById('video').currentTime"
        deadline = time.monotonic() + 60
        while driver.execute_script(script) < 1.0 and time.monotonic() < deadline:
            time.sleep(0.1)
        driver.save_screenshot(str(FOLDER / "page.png"))


def photograph_family(url: str, run: str) -> None:
    """Write what the page shows of a family's unseen tasks as PNG, with the end of a rollout in each."""
    from selenium.webdriver.common.by import By

    with _page(url, run, "1240,1900") as driver:
        section = driver.find_element(By.ID, "family")
        driver.find_element(By.ID, "play-all").click()
        num_tiles = len(section.find_elements(By.CSS_SELECTOR, "ol.tasks > li"))
        driver.execute_script("arguments[0].scrollIntoView()", section)  # what is not seen is still
        script = (
            "const videos = [...document.querySelectorAll('video.tile')];"
            "const played = ({played}) => played.length > 0 && played.end(played.length - 1) > 0.4;"
            "return videos.filter(played).length"
        )
        deadline = time.monotonic() + 300
        while driver.execute_script(script) < num_tiles:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{run}: expected {num_tiles} tiles to play within 300 s; is its server busy?"
                )
            time.sleep(0.1)
        failure = driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "const ends = [...document.querySelectorAll('video.tile')].map(video => {"
            "  video.pause(); video.controls = false;"
            "  return new Promise((seen, failed) => {"
            "    video.addEventListener('error', () => failed(video.error), {once: true});"
            "    video.addEventListener('seeked', seen, {once: true});"
            "    video.currentTime = 0.95 * video.duration;"
            "  });"
            "});"
            "Promise.all(ends).then(() => done(null), error => done(String(error)))"
        )
        if failure is not None:
            raise RuntimeError(f"{run}: a tile could not be shown at its end: {failure}")
        section.screenshot(str(FOLDER / "family.png"))


def photograph_imitation(url: str, run: str) -> None:
    """Write what the page shows of a run's discriminator and learned reward as PNG."""
    from selenium.webdriver.common.by import By

    with _page(url, run, "1240,2400") as driver:
        section = driver.find_element(By.ID, "imitation")
        driver.execute_script("arguments[0].scrollIntoView()", section)
        section.screenshot(str(FOLDER / "imitation.png"))


def main() -> None:
    """Make one picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("picture", choices=["terminal", "rollout", "page", "family", "imitation"])
    parser.add_argument("--seconds", type=float, default=150.0, help="how long to train")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--checkpoint", default="latest", help="a run's name for pages")
    arguments = parser.parse_args()
    if arguments.picture == "terminal":
        draw_terminal(arguments.seconds, arguments.runs.absolute())
    elif arguments.picture == "rollout":
        fetch_rollout(arguments.url, arguments.checkpoint)
    elif arguments.picture == "page":
        photograph_page(arguments.url, arguments.checkpoint)
    elif arguments.picture == "family":
        photograph_family(arguments.url, arguments.checkpoint)
    else:
        photograph_imitation(arguments.url, arguments.checkpoint)


if __name__ == "__main__":
    main()
