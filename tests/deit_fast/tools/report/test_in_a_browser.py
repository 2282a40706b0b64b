"""The page in headless Chromium, from disk: no request, no error; pointer, keys, narrow, dark, print, no script."""

import dataclasses
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from deit_fast.tools.report import page as report_page
from deit_fast.tools.report.curves import Chart, Series
from deit_fast.tools.report.facts import Facts
from tests.deit_fast.tools.report.browser import CHROMIUM, MISSING, Browser
from tests.deit_fast.tools.report.conftest import NAMES

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
SIZES = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def page_file(reported: Path) -> Path:
    return reported / "report.html"


@pytest.fixture(scope="module")
def comparison_file(reported: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compared") / "comparison.html"
    report_page.compare([Facts.read(reported), Facts.read(plain)], file)
    return file


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("kind", ["page_file", "comparison_file"])
def test_it_opens_without_a_request_or_an_error_and_fits(request, browser, kind, width, height, dark, tmp_path) -> None:
    page = browser.open(request.getfixturevalue(kind), width=width, height=height, dark=dark)
    assert page.requests == [] and page.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (max(background) < 60) == dark
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_names_with_markup_emoji_and_hebrew_are_shown_as_they_are(browser, page_file: Path) -> None:
    page = browser.open(page_file)
    shown = page.evaluate("[...document.querySelectorAll('#confusions bdi.class')].map((one) => one.textContent)")
    assert set(shown) == set(NAMES)
    assert page.evaluate("document.querySelectorAll('bdi.class *').length") == 0
    assert page.errors == []  # an image named x would have been blocked, and said so


def test_a_click_on_a_count_shows_its_images(browser, page_file: Path) -> None:
    page = browser.open(page_file)
    page.click("[data-cells] .miss button")
    count = int(page.evaluate("document.querySelector('[aria-pressed=true]').textContent"))
    images = page.evaluate("[...document.querySelectorAll('#cell img')].map((one) => one.src.slice(0, 11))")
    assert len(images) == min(count, 8) and set(images) <= {"data:image/", "data:image/p"}
    assert f"{count} image" in page.evaluate("document.getElementById('cell').textContent")
    assert page.evaluate("document.querySelectorAll('#cell bdi *').length") == 0


def test_arrow_keys_walk_the_matrix_and_enter_opens(browser, page_file: Path) -> None:
    page = browser.open(page_file)
    assert page.evaluate("document.querySelectorAll('[data-cells] button[tabindex=\"0\"]').length") == 1
    page.evaluate("document.querySelector('[data-cells] button[tabindex=\"0\"]').focus()")
    before = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.press("ArrowDown")
    after = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert after != before and "taken for" in after
    page.evaluate("document.activeElement.click()")
    assert page.evaluate("document.querySelector('[aria-pressed=true]').getAttribute('aria-label')") == after


def test_pointer_and_keys_read_the_curves(browser, page_file: Path, reported: Path) -> None:
    rows = [row for row in Facts.read(reported).lines if "loss" in row]
    page = browser.open(page_file)
    svg = "[data-chart='0'] > svg"

    def value() -> float:
        return float(page.evaluate("document.querySelector(\"[data-chart='0'] [data-series='0']\").textContent"))

    assert value() == pytest.approx(rows[-1]["loss"], rel=5e-3)
    left = page.evaluate(f'document.querySelector("{svg}").getBoundingClientRect().width / 2')
    page.point(svg, right=-left * 0.75)
    assert value() == pytest.approx(rows[0]["loss"], rel=5e-3)
    assert page.evaluate("document.querySelector(\"[data-chart='0'] .where\").textContent") == "at step 1"
    page.evaluate(f'document.querySelector("{svg}").focus()')
    page.press("ArrowRight")
    assert value() == pytest.approx(rows[1]["loss"], rel=5e-3)
    page.press("End")
    assert value() == pytest.approx(rows[-1]["loss"], rel=5e-3)
    assert page.errors == []


def test_a_table_sorts_by_a_column(browser, page_file: Path) -> None:
    page = browser.open(page_file)
    page.click("[data-sort] th:nth-child(3) button")
    column = "[...document.querySelectorAll('[data-sort] tbody tr')].map((row) => parseFloat(row.cells[2].textContent))"
    recall = page.evaluate(column)
    assert recall == sorted(recall)
    page.click("[data-sort] th:nth-child(3) button")
    assert page.evaluate(column) == sorted(recall, reverse=True)
    assert page.evaluate("document.querySelector('[data-sort] th:nth-child(3)').ariaSort") == "descending"


def test_everything_has_a_name_for_a_screen_reader(browser, page_file: Path) -> None:
    page = browser.open(page_file)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "image", "img", "region", "table", "navigation", "heading"}
    named = [node for node in nodes if node["role"]["value"] in roles and not node.get("ignored")]
    assert len(named) > 60
    unnamed = [node for node in named if not node.get("name", {}).get("value") and node["role"]["value"] != "table"]
    assert unnamed == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_background(browser, page_file: Path, dark: bool) -> None:
    """WCAG 2.2 AA: contrast 4.5 to 1 for text."""
    page = browser.open(page_file, dark=dark)
    colours = ("--ink", "--quiet", "--accent", "--good", "--bad")
    found = page.evaluate(
        f"(() => {{ const style = getComputedStyle(document.documentElement); return {json.dumps(colours)}"
        ".map((name) => ['--page', '--panel'].map((back) => [name, style.getPropertyValue(name).trim(), "
        "style.getPropertyValue(back).trim()])).flat(); })()"
    )
    assert len(found) == 10
    for name, text, back in found:
        assert contrast(text, back) >= 4.5, (name, text, back)


def contrast(one: str, other: str) -> float:
    """Of two colours as #rrggbb."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(float(np.dot(linear, (0.2126, 0.7152, 0.0722))))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_it_prints_in_black_on_white_without_what_needs_a_pointer(browser, page_file: Path) -> None:
    page = browser.open(page_file, dark=True)
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]) > 50_000


def test_without_a_script_all_but_the_clicks_is_there(browser, page_file: Path) -> None:
    page = browser.open(page_file, script=False)
    text = page.evaluate("document.body.innerText")
    for words in ("Training loss", "Worst mistakes", "Near duplicates", "backward"):
        assert words in text
    assert page.evaluate("document.querySelectorAll('.chart path').length") > 10


def test_a_thousand_classes_and_fifty_thousand_images_stay_small_and_fast(browser, reported: Path, tmp_path) -> None:
    facts, looked = big(reported)
    images = report_page.content(looked, threads=1)
    assert len(images["confusions"]["pairs"]) > 5000
    facts = dataclasses.replace(facts, data={**facts.data, "classes": looked.facts.data["classes"], "val": 50_000})
    rows = [{"step": step} for step in range(20_000)]
    charts = [Chart("Training loss", "nats", [Series("loss", rows, [1 / (1 + row["step"]) for row in rows])])]
    target = tmp_path / "big.html"
    report_page.render_run(target, facts, images, charts)
    assert target.stat().st_size < 10_000_000
    began = time.monotonic()
    page = browser.open(target)
    assert page.errors == [] and page.requests == []
    assert page.evaluate("document.querySelectorAll('[data-sort] tbody tr').length") == 1000
    page.click("[data-cells] button")
    assert page.evaluate("document.querySelectorAll('#cell img').length") > 0
    assert time.monotonic() - began < 30  # a generous bound: the speed is measured elsewhere, on a quiet machine


def big(reported: Path):
    """A run of 1,000 classes with 50,000 validation images, whose answers are drawn at random."""
    from deit_fast.tools.report.gather import Looked
    from deit_fast.tools.report.look import SIDE, Seen
    from deit_fast.weights.trained import run_model

    generator = np.random.default_rng(0)
    classes = [f"class {number} <i>" for number in range(1000)]
    label = np.repeat(np.arange(1000), 50)
    seen = {}
    names = ("model/cls", "model/dist", "model/fused", "model/softmax", "teacher/cls")
    for split in ("val", "train"):
        wrong = generator.random(len(label)) < 0.2
        answer = np.where(wrong, generator.integers(0, 1000, len(label)), label)
        probability = generator.random(len(label)).astype(np.float32)
        grey = generator.integers(0, 256, (len(label), SIDE, SIDE), dtype=np.uint8) if split == "val" else None
        grey = np.full((len(label), SIDE, SIDE), 7, np.uint8) if grey is None else grey
        grey[3000:] = 7  # comparing all of them would take a minute
        seen[split] = Seen(
            np.arange(len(label)), label, 1000, dict.fromkeys(names, answer[:, None].astype(np.int32)),
            dict.fromkeys(names, -np.log1p(-probability)), dict.fromkeys(names, probability), grey, {},
        )  # fmt: skip
    facts = Facts.read(reported)
    facts = dataclasses.replace(facts, data={**facts.data, "classes": classes})

    class Photographs:
        """Decoded images of noise, the worst case for their size."""

        def __init__(self) -> None:
            self.classes, self.labels, self.name = classes, label, "noise"

        def __len__(self) -> int:
            return len(self.labels)

        def path(self, index: int) -> str:
            return f"/a/folder/of/images/class{index // 50}/ILSVRC2012_val_{index:08}.JPEG"

        def read(self, index: int) -> np.ndarray:
            return np.random.default_rng(index).integers(0, 256, (256, 320, 3), dtype=np.uint8)

    trained = run_model(reported)
    trained = dataclasses.replace(trained, preprocessing=dataclasses.replace(trained.preprocessing, image_size=224))
    trained = dataclasses.replace(trained, model=_Deit224().model)
    return facts, Looked(facts, {"val": Photographs(), "train": Photographs()}, trained, seen, None, [])


class _Deit224:
    """A model of DeiT-S's grid, 14 x 14 patches, that is fast."""

    def __init__(self) -> None:
        from deit_fast import create_model

        sizes = {"width": 32, "depth": 1, "heads": 2, "classes": 5}
        self.model = create_model("deit_tiny_distilled_patch16_224", **sizes).eval()
