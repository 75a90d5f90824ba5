"""The report in a real browser: nothing is asked of the network, and everybody can read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers.project import Project
from signfuse_dist.data.split import open_split
from signfuse_dist.evaluation.controls import score_control
from signfuse_dist.evaluation.scores import SplitScores, score_with_intervals, write_split_scores
from signfuse_dist.evaluation.translations import write_arrays, write_hypotheses
from signfuse_dist.experiment import load_run
from signfuse_dist.report.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open reports in")

# The contrast of every element's own text with what is behind it (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const channels = text => text.match(/[0-9.]+/g).map(Number);
  const light = colour => { const [r, g, b] = channels(colour).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = element => { for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour; } return "rgb(255, 255, 255)"; };
  return [...document.body.querySelectorAll("*")].filter(e => [...e.childNodes].some(
    n => n.nodeType === 3 && n.textContent.trim())).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    return [e.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; });
}"""
FOCUSED = """() => { const e = document.activeElement, style = getComputedStyle(e);
  const box = e.getBoundingClientRect();
  return {tag: e.tagName, text: e.textContent.trim().slice(0, 60), outline: style.outlineStyle,
          shown: box.width > 0 && box.right > 0 && box.bottom > 0 && box.top < innerHeight}; }"""


@pytest.fixture(scope="module")
def report(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that was laid out by hand on real shards, with two samples in it."""
    words = [f"train.output={tmp_path_factory.mktemp('runs')}", "evaluation.num_samples=2"]
    run = load_run(project.experiment, "finetune", words)
    results = run.folder / "evaluation" / "test"
    results.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(run.to_dict()), encoding="utf-8")
    (run.folder / "versions.json").write_text(json.dumps({"torch": "2.13"}), encoding="utf-8")
    rows = [
        {"step": s, "total": 4 / s, "learning_rate": 1e-4, "clips_per_second": 2} for s in (1, 2, 3)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    split = open_split(run.shards("test"), run.data)
    references = {entry.id: entry.text for entry in split.entries()}
    first = next(iter(references.values()))
    hypotheses = {n: text if i % 2 else first for i, (n, text) in enumerate(references.items())}
    write_hypotheses(results / "hypotheses.jsonl", hypotheses, references)
    control = score_control(hypotheses, references, "sacrebleu", 0)
    assert control is not None
    scores = score_with_intervals(hypotheses, references, "sacrebleu")
    controls = dict.fromkeys(("shuffled", "blank", "masked_joints"), control)
    write_split_scores(results / "scores.json", SplitScores(scores, controls, {}, {"num_beams": 4}))
    write_arrays(results / "gates.npz", {n: np.linspace(0.2, 0.8, 9) for n in references})
    ways = ("visual_from_skeletal", "skeletal_from_visual")
    maps = {f"{way}/{n}": np.eye(9, dtype=np.float32) for way in ways for n in references}
    write_arrays(results / "attention.npz", maps)
    return write_report(run.folder, "test")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, report: Path, scheme: str) -> tuple[Any, list[str]]:
    """Return the open page, and what it said or asked for besides itself."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda asked: noise.append(asked.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    own = (report.as_uri(), "data:image/")
    return page, [text[:200] for text in noise if not text.startswith(own)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_errors_or_requests_and_is_legible(
    report: Path, browser: Any, scheme: str
) -> None:
    page, noise = open_page(browser, report, scheme)
    assert noise == []
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate("document.images.length") >= 8
    assert page.evaluate(broken) == 0
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) > 100
    # The links that are hidden until they have the focus count as well.
    assert [found for found in contrasts if found[1] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 23, 27)"}[scheme]
    # Plots are those of the scheme: their corner is the page's own colour.
    corner = page.evaluate(
        """() => { const image = document.querySelector('#training ~ figure img');
        const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
        const draw = canvas.getContext('2d'); draw.drawImage(image, 0, 0);
        return [...draw.getImageData(0, 0, 1, 1).data].slice(0, 3); }"""
    )
    assert f"rgb({', '.join(map(str, corner))})" == background
    page.close()


def test_the_report_is_walked_by_keyboard_alone(report: Path, browser: Any) -> None:
    page, _ = open_page(browser, report, "light")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at["tag"] == "BODY":
            break
        assert at["shown"], at
        assert at["outline"] not in ("none", "hidden"), at
        seen.append((at["tag"], at["text"]))
    assert seen[0] == ("A", "Skip to the scores")
    assert ("A", "What is missing") in seen
    closed = page.evaluate("document.querySelectorAll('details').length")
    assert sum(tag == "SUMMARY" for tag, _ in seen) == closed > 4
    # The skip link goes to the main part, and Enter opens what a plot draws as a table.
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    assert page.locator("details[open] table").first.is_visible()
    page.close()


def test_a_screen_reader_finds_landmarks_headings_and_names(report: Path, browser: Any) -> None:
    page, _ = open_page(browser, report, "light")
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    for name in ("Scores", "Scores of parts of the split", "Training", "Data", "Run"):
        assert page.get_by_role("region", name=name, exact=True).count() == 1, name
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("table", name="Scores under the preset").count() == 1
    nameless = "[...document.images].filter(i => i.alt.length < 20).length"
    assert page.evaluate(nameless) == 0
    page.close()


def test_the_report_fits_a_narrow_screen(report: Path, browser: Any) -> None:
    page, _ = open_page(browser, report, "light")
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
