"""The pictures of the README, from the report of `make demo RECIPE=strong`; writes docs/pictures/.

``python tests/helpers/readme_pictures.py`` opens the page of runs/strong/demo/finetune in Chromium
and takes its head, and the first sample: its frames with their joints, and the gate over time.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "runs" / "strong" / "demo" / "finetune" / "evaluation" / "test" / "report.html"
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1180, 640  # of the window, in CSS pixels
NUM_COLOURS = 128  # a palette keeps both pictures small


def main() -> int:
    """Write both pictures; return the exit status."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or not REPORT.is_file():
        needed = f"Chromium on the PATH and {REPORT}"
        print(f"needs {needed}: run make demo RECIPE=strong", file=sys.stderr)
        return 1
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(REPORT.as_uri())
        _write("report.png", page.screenshot())
        _write("sample.png", _together(page, "Key frames", "Mean gate"))
        browser.close()
    return 0


def _together(page: Page, *captions: str) -> bytes:
    """Return one picture of the first figure of each caption, one above the other."""
    figures: list[Locator] = [
        page.locator("figure", has_text=caption).first.locator("img").first for caption in captions
    ]
    pictures = [Image.open(io.BytesIO(figure.screenshot())) for figure in figures]
    sheet = Image.new(
        "RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white"
    )
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _write(name: str, content: bytes) -> None:
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(NUM_COLOURS)
    path = PICTURES / name
    picture.save(path, "PNG", optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
