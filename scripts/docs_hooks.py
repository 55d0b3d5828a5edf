"""Hooks of MkDocs: pages outside of docs/ become part of the site; its search box gets a name.

On GitHub and on the disk `../SECURITY.md` leads to the file itself. A site has pages only, so
these files become pages below `repository/`, and the links to them are written anew.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_TAKEN = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "README.md", "LICENSE")
_LINK = re.compile(r"(\]\()((?!https?:|mailto:|#)[^)#\s]+)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add files of the repository: those that the pages name, and all configs."""
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    pages = [*(ROOT / name for name in _TAKEN), ROOT / "benchmarks" / "README.md"]
    for path in [*pages, ROOT / "tests" / "torture" / "README.md", *configs]:
        name = f"repository/{path.relative_to(ROOT).as_posix()}"
        file = File.generated(config, name, abs_src_path=str(path))
        if name.endswith(".yaml"):
            # a browser shows a text, and would only offer to save a yaml
            file.dest_uri += ".txt"
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the links to files outside of docs/ anew, as links of the site."""
    here = page.file.src_uri
    outside = here.startswith("repository/")
    source = ROOT / here.removeprefix("repository/") if outside else Path(config.docs_dir) / here
    parts = _FENCE.split(markdown)
    # every second part is a block of code, which stays as it is
    parts[::2] = [_with_links_of_the_site(part, source, here) for part in parts[::2]]
    return "".join(parts)


def _with_links_of_the_site(text: str, source: Path, here: str) -> str:
    """Return a part of a page with its links as they are in the site."""

    def anew(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / found[2])).relative_to(ROOT).as_posix()
        inside = target.startswith("docs/")
        place = target.removeprefix("docs/") if inside else f"repository/{target}"
        return found[1] + os.path.relpath(place, os.path.dirname(here) or ".")  # noqa: PTH120

    return _LINK.sub(anew, text)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Give the dialog of the search a name for readers of screens; the theme gives it none."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)
