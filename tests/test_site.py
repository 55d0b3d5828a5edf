"""The documentation as a site: it builds without a warning, loads nothing, is found and read."""

import re
import subprocess
import sys
from pathlib import Path

import axe_playwright_python
import pytest

ROOT = Path(__file__).parents[1]
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_links_and_anchors_lead_somewhere_and_every_page_is_in_the_menu(site):
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not (site / page).with_suffix(".html").is_file()] == []


def test_no_page_loads_anything_from_elsewhere(site):
    loaded = r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:)?//|<link[^>]*stylesheet[^>]*//"
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert [page.name for page in pages if re.search(loaded, page.read_text("utf-8"))] == []


def test_questions_were_asked_in_public_and_each_has_a_page(site):
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "question" not in line]
    assert [row for row in rows if "](" not in row] == []
    assert len(re.findall(r"\| [\w.-]+/[\w.-]+#\d+ \|$", text, re.MULTILINE)) >= 30


@pytest.fixture
def opened(site, browser):
    """Open pages of the site from the disk with the network off, and see what they ask for."""
    contexts = []

    def opened(width, scheme):
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme
            )
        )
        page = contexts[-1].new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_axe_finds_nothing_serious_and_pages_fit(site, opened, width, scheme):
    page = opened(width, scheme)
    names = ("index", "start/index", "methods/index", "concepts/phases", "reference/keys_train")
    for name in names:
        page.goto((site / f"{name}.html").as_uri())
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {preload: false}).then(one => one.violations)")
        serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.browser
def test_the_search_finds_pages_without_a_server_or_a_network(site, opened):
    page = opened(1440, "light")
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type("gradual thawing")
    first = page.locator(".md-search-result__link").first
    first.wait_for(timeout=60_000)
    links = page.locator(".md-search-result__link").evaluate_all("all => all.map(one => one.href)")
    assert any("methods/index.html" in link for link in links)
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
