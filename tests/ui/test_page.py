"""The page in a real browser: Debian's chromium, without a window.

SEED_FAST_TEST_BROWSER=required, which continuous integration sets, makes a missing browser a failure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seed_fast import SeedTokenizer
from seed_fast.data import shapes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of selenium's driver
]
WAIT = 60  # s
CAPTION = "a small red star at the top left on a white background"


class Page:
    """A page as a person uses it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def until(self, condition: Any) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, WAIT).until(lambda _: condition())

    def value(self, name: str) -> str:
        return self.find(f"#{name} textarea, #{name} input").get_attribute("value")

    def write(self, name: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        box = self.find(f"#{name} textarea, #{name} input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text + Keys.TAB)

    def tab(self, name: str) -> None:
        self.find("button[role=tab]")
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()

    def all(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def drop(self, path: Path) -> None:
        for button in self.all("#picture-file button[aria-label='Clear']"):
            button.click()
        self.find("#picture-file input[type=file]").send_keys(str(path))

    def width(self, name: str) -> int:
        """Width in px of the picture that is shown; 0: none is."""
        return self.driver.execute_script(f"return document.querySelector('#{name} img')?.naturalWidth ?? 0")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.ui.painted_codes"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = "needs chromium and chromedriver; on Debian: apt install chromium chromium-driver"
        if os.environ.get("SEED_FAST_TEST_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        chrome.get(address)
        yield Page(chrome)
    finally:
        chrome.quit()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(shapes.render(shapes.scene(0, 0, "test"), 64)).save(path)
    return path


def test_a_picture_goes_in_and_its_codes_and_what_they_draw_come_out(page: Page, scene: Path) -> None:
    page.drop(scene)
    expected = " ".join(map(str, SeedTokenizer.from_pretrained("seed-tiny").encode(scene)[0].tolist()))
    page.until(lambda: page.value("codes") == expected)
    page.until(lambda: page.width("picture") == 64)
    page.until(lambda: page.width("drawn") == 320)
    assert page.value("message") == "ready"


def test_a_prefix_is_drawn(page: Page, scene: Path) -> None:
    page.drop(scene)
    page.until(lambda: page.width("drawn") == 320)
    page.write("prefix", "8")
    page.find("#draw-codes").click()
    page.until(lambda: page.width("drawn") == 80)


def test_a_file_that_is_no_picture_gets_one_line_and_the_page_lives_on(page: Page, scene: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(np.random.default_rng(0).bytes(1000))
    page.drop(broken)
    page.until(lambda: page.value("message").startswith("error: broken.png: "))
    assert "\n" not in page.value("message")
    page.drop(scene)
    page.until(lambda: page.value("message") == "ready")


def test_a_code_is_changed_and_both_pictures_are_seen(page: Page) -> None:
    page.write("codes", "7 " * 31 + "8")
    page.tab("Change a code")
    page.write("position", "31")
    page.write("code", "9")
    page.find("#change").click()
    page.until(lambda: page.width("before") == page.width("after") == 320)
    page.tab("Picture")
    assert page.value("codes").split() == ["7"] * 31 + ["9"]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ("1 2", "error: an image has 32 codes, got 2"),
        ("<b>", "error: codes must be integers between spaces, got '<'"),
        ("13 " * 32, "error: RuntimeError: the decoder broke"),
    ],
    ids=["few", "markup", "a fault"],
)
def test_codes_that_cannot_be_drawn_get_one_line(page: Page, codes: str, message: str) -> None:
    page.tab("Picture")
    page.write("codes", codes)
    page.find("#draw-codes").click()
    page.until(lambda: page.value("message") == message)


def test_a_caption_is_drawn(page: Page) -> None:
    page.tab("Caption")
    page.write("caption", CAPTION)
    page.find("#draw-caption").click()
    page.until(lambda: page.width("caption-drawn") == 320)
    assert page.value("caption-codes").split() == [str(len(CAPTION))] * 32


def test_nothing_is_asked_of_another_machine(page: Page, address: str) -> None:
    sources = page.driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert sources
    assert [source for source in sources if not source.startswith((address, "data:", "blob:"))] == []
