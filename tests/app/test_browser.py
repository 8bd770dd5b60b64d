"""The page as people meet it: in Chromium, on a desk and on a phone."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from omfa.app import __main__ as door
from omfa.app.studio import Studio

EXAMPLES = Path(door.__file__).parent / "examples"
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
ALONE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="it drives the browser: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=ALONE)
        yield browser
        browser.close()


def opened(browser: Any, url: str, size: str) -> tuple[Any, list[str]]:
    """A page, and the addresses that it asks for."""
    width, height = SIZES[size]
    page, asked = browser.new_page(viewport={"width": width, "height": height}), list[str]()
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(url)
    return page, asked


def tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name, exact=True).click()
    return page.locator("[role=tabpanel]:visible")


def upload(panel: Any, label: str, path: Path) -> None:
    place = panel.locator(f".block:has(label:has-text('{label}'))").first
    place.locator("input[type=file]").first.set_input_files(path)
    place.locator("img").first.wait_for()


@pytest.mark.parametrize("size", list(SIZES))
def test_from_upload_to_download_and_nothing_from_outside(browser: Any, url: str, size: str, tmp_path: Path) -> None:
    page, asked = opened(browser, url, size)
    for name in ("Turn around", "Transfer", "Take off", "Try on"):  # all in sight, none behind a menu
        panel = tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], name
    for label, photo in (("Person", "man.jpg"), ("Top", "plaid_shirt.jpg")):
        upload(panel, label, EXAMPLES / photo)
    panel.get_by_role("button", name="Try on", exact=True).click()
    with page.expect_download(timeout=WAIT) as given:
        panel.locator("[aria-label*=ownload], [title*=ownload]").first.click()
    assert given.value.suggested_filename == "try_on.png"
    given.value.save_as(tmp_path / "try_on.png")
    assert Image.open(tmp_path / "try_on.png").size[0] > 0
    (tmp_path / "script.jpg").write_text("<script>alert(1)</script>")
    panel = tab(page, "Take off")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "script.jpg")
    panel.get_by_role("button", name="Take off", exact=True).click()
    page.get_by_text("The photo: not a picture this can read").first.wait_for()
    hosts = {
        urlsplit(address).netloc for address in asked if urlsplit(address).scheme in ("http", "https", "ws", "wss")
    }
    assert hosts == {urlsplit(url).netloc}
    page.close()


def test_progress_moves_and_stop_stops(browser: Any, url: str, studio: Studio) -> None:
    """Two visitors: one is stopped on the way, and the other, who waited, gets a picture."""
    one, two = (opened(browser, url, size)[0] for size in SIZES)
    slow = threading.Event()
    make = studio.pipe.try_off

    def slowly(*args: Any, callback_on_step_end: Any, **options: Any) -> Any:
        def after(*step: Any) -> Any:
            slow.wait(0.1)
            return callback_on_step_end(*step)

        return make(*args, callback_on_step_end=after, **options)

    studio.pipe.try_off = slowly  # type: ignore[method-assign]
    try:
        panels = []
        for page in (one, two):
            panels.append(tab(page, "Take off"))
            upload(panels[-1], "Person", EXAMPLES / "man.jpg")
        panels[0].get_by_role("button", name="More options").click()
        panels[0].get_by_label("Steps (0: own)").fill("200")
        panels[0].get_by_role("button", name="Take off", exact=True).click()
        seen = [panels[0].get_by_text(re.compile(f"step [{ten}]\\d of 200")).first for ten in (1, 3)]
        for moment in seen:
            moment.wait_for()
        panels[1].get_by_role("button", name="Take off", exact=True).click()
        panels[1].get_by_text("queue: 1/1").first.wait_for()
        panels[0].get_by_role("button", name="Stop", exact=True).click()
        slow.set()
        panels[1].locator("[aria-label*=ownload], [title*=ownload]").first.wait_for()
        assert not panels[0].locator("[aria-label*=ownload], [title*=ownload]").count()
    finally:
        del studio.pipe.try_off  # type: ignore[method-assign]
        one.close()
        two.close()
