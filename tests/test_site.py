"""The documentation as a site: it builds without a warning, loads nothing, is found and read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


def test_every_question_has_a_page(site):
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 30
    assert [row for row in rows if "](" not in row] == []
