"""The files that pages are made of, and how templates are filled in: text from files is escaped and made visible."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scalar_sae.loopback import POLICY
from scalar_sae.report.text import visible

ONE_FILE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What a page in one file may load: nothing. It has no script, and its styles stand in it."""


def environment() -> Environment:
    """The templates."""
    return Environment(
        loader=PackageLoader("scalar_sae.report"), autoescape=True, undefined=StrictUndefined, finalize=_shown
    )


def asset(name: str) -> str:
    """The text of a script or style sheet. Those of the page of features are built from web/ (`make web`)."""
    return (files("scalar_sae.report") / "templates" / name).read_text(encoding="utf-8")


def viewer(name: str) -> dict[str, str]:
    """The three files of a page that shows features: `index.html`, `page.css`, `page.js`."""
    return {
        "index.html": environment().get_template(f"{name}.html.j2").render(csp=POLICY),
        "page.css": asset("colours.css") + asset("viewer.css") + asset(f"{name}.css"),
        "page.js": asset(f"{name}.js"),
    }


def _shown(value: Any) -> Any:
    """What stands in a page for a value: text is made visible, HTML that we made is not touched."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
