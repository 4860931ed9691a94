"""MkDocs hooks: pages of the site that lie elsewhere in the repository or are generated, and links between pages.

Links are written as they work on GitHub. On the site, a link to a page leads to the page, and a link to any other file
of the repository leads to GitHub.
"""

import inspect
import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import scalar_sae

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "scoring.md": "src/scalar_sae/scoring/README.md",
}
"""Pages of the site whose text lies outside docs/."""


def api() -> dict[str, str]:
    """Where each public name of the package is defined."""
    found = {name: getattr(scalar_sae, name) for name in scalar_sae.__all__ if not name.startswith("__")}
    return {name: f"{value.__module__}.{value.__qualname__}" for name, value in found.items()}


def api_pages() -> dict[str, str]:
    """One page for each public name, and a list of them."""
    pages = {f"api/{name}.md": f"# {name}\n\n::: {where}\n" for name, where in api().items()}
    rows = [f"| [`{name}`]({name}.md) | {summary(getattr(scalar_sae, name))} |" for name in api()]
    table = "\n".join(["| name | what it is |", "|---|---|", *rows])
    pages["api/index.md"] = f"# Python API\n\nEverything here can be imported from `scalar_sae`.\n\n{table}\n"
    return pages


def summary(value: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0].replace("|", "\\|")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav.append({"Python API": ["api/index.md", *({name: f"api/{name}.md"} for name in api())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for page, text in api_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    pages = {source: name for name, source in ELSEWHERE.items()}

    def link(match: re.Match[str]) -> str:
        target, mark, anchor = match[1].partition("#")
        path = normpath(f"{Path(ELSEWHERE.get(here, f'docs/{here}')).parent}/{target}")
        if not target or ":" in target or not (ROOT / path).exists():
            return match[0]
        name = pages.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(name):
            return f"]({relpath(name, Path(here).parent)}{mark}{anchor})"
        return f"]({config.repo_url}/blob/main/{path}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between notebooks, which MkDocs itself sees only in Markdown."""

    def link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(f"notebooks/{match[1]}")
        own = page.file.src_uri == f"notebooks/{match[1]}"
        return f'href="{target.url_relative_to(page.file)}"' if target and not own else match[0]

    return re.sub(r'href="(\w+\.ipynb)"', link, html) if page.file.src_uri.endswith(".ipynb") else html
