"""The report of a real run in a real browser: rows, filter, sorting, colours, and nothing asked of the network."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.report.chromium import Browser, browser
from tests.unit.report.report_runs import Reported

SECTIONS = ("failures", "phases", "steps", "versions", "gates", "baselines", "hosts", "slowest")
VISIBLE = "[...document.querySelectorAll('table.sorts > tbody > tr')].filter(r => !r.hidden)"

# WCAG's contrast of each text with what is behind it; those below 4.5 are returned.
CONTRAST = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const seen = {};
  for (const node of document.querySelectorAll("main *")) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) seen[`${node.tagName}.${node.className}`] = ratio.toFixed(2);
  }
  return seen;
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: Browser, big_run: Reported) -> Browser:
    chromium.open(big_run.path("html"), request.param)
    return chromium


def test_the_page_is_whole_and_silent(page: Browser, big_run: Reported) -> None:
    document = big_run.document()
    rows = {
        name: page.value(f"document.querySelectorAll('#{name} table.sorts > tbody > tr').length") for name in SECTIONS
    }
    document["slowest"] = document["slowest_tasks"]
    document["phases"] = [phase for phase in document["phases"] if phase["hosts"]]
    assert rows == {name: len(document[name]) for name in SECTIONS}
    # The script has run to its end.
    assert page.value("Number(document.documentElement.dataset.ready)") == sum(rows.values())
    assert page.value("document.querySelectorAll('script').length") == 1
    assert page.value("document.querySelectorAll('#gates details[open]').length") == 2
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("data:")] == [big_run.path("html").as_uri()]


def test_text_is_readable_in_both_colour_schemes(page: Browser, request: pytest.FixtureRequest) -> None:
    page.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.value(CONTRAST) == {}
    dark = page.value("matchMedia('(prefers-color-scheme: dark)').matches")
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark


def test_the_screenshot_is_not_blank(page: Browser, tmp_path: Path) -> None:
    png = page.screenshot()
    (tmp_path / "report.png").write_bytes(png)
    assert len(different_lines(png)) > 200


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_is_wider_than_the_window(chromium: Browser, big_run: Reported, width: int) -> None:
    chromium.open(big_run.path("html"), "light", width)
    assert chromium.value("document.documentElement.scrollWidth") <= width


def test_the_filter_leaves_the_rows_that_hold_its_text(chromium: Browser, big_run: Reported) -> None:
    chromium.open(big_run.path("html"), "light")
    every = chromium.value(f"{VISIBLE}.length")
    chromium.value(
        "(f => { f.value = 'DB1'; f.dispatchEvent(new Event('input')); })(document.getElementById('filter'))"
    )
    assert 0 < chromium.value(f"{VISIBLE}.length") < every
    assert chromium.value(f"{VISIBLE}.every(r => r.textContent.includes('db1'))")


def test_a_click_on_a_heading_sorts_by_its_numbers(chromium: Browser, big_run: Reported) -> None:
    chromium.open(big_run.path("html"), "light")
    cells = "[...document.querySelectorAll('#phases tbody tr')].map(r => Number(r.cells[6].dataset.v))"
    click = "document.querySelectorAll('#phases th button')[6].click()"
    wanted = sorted(phase["seconds"] for phase in big_run.document()["phases"] if phase["hosts"])
    chromium.value(click)
    assert chromium.value(cells) == wanted
    chromium.value(click)
    assert chromium.value(cells) == wanted[::-1]


def different_lines(png: bytes) -> set[bytes]:
    """Different rows of a PNG as they are stored; a blank picture has two or three."""
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        [length] = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(data)
    step = len(raw) // height
    assert step > width
    return {raw[start : start + step] for start in range(0, len(raw), step)}
