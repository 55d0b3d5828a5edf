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


BROKEN = """Promise.all([...document.images].map(one => {
    one.loading = "eager";
    return one.decode().then(() => null, () => one.src);
})).then(all => all.filter(Boolean))"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_page_fits_and_shows_its_pictures(site, opened, width, scheme):
    page = opened(width, scheme)
    for path in pages_of(site):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate(BROKEN) == [], path
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_axe_finds_nothing_serious_on_any_page(site, opened, width, scheme):
    page = opened(width, scheme)
    for path in pages_of(site):
        page.goto(path.as_uri())
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {preload: false}).then(one => one.violations)")
        serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], path


def pages_of(site):
    """Return all pages but the one for addresses that lead nowhere, whose links need a server."""
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


ASKED = {
    "ulmfit": "methods/index",
    "learning rate by depth": "howto/rates",
    "new rows embedding": "howto/rows",
    "augmentation": "howto/augmentation",
    "fingerprint": "concepts/proof",
    "resume": "concepts/resume",
    "missing values": "data",
    "early stopping": "reference/keys_train",
    "torchrun": "processes",
    "onnx": "export",
    "class weights": "config",
    "cross-validation": "data",
    "imbalanced": "questions",
}
"""What a reader types, and a page that should be among the first three that are found."""


@pytest.mark.browser
def test_the_search_finds_pages_without_a_server_or_a_network(site, opened):
    page = opened(1440, "light")
    for words, wanted in ASKED.items():
        # Anew for each: the results of the words before would be taken for those of these.
        page.goto((site / "index.html").as_uri())
        page.locator("input.md-search__input").click()
        page.keyboard.type(words)
        page.locator(".md-search-result__link").first.wait_for(timeout=60_000)
        links = page.locator(".md-search-result__link").evaluate_all(
            "all => all.map(one => one.href)"
        )
        found = dict.fromkeys(
            link.split(f"{site.name}/")[1].partition(".html")[0] for link in links
        )
        assert wanted in list(found)[:3], words
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
