"""The files that pages are made of, and how templates are filled in: text from files is escaped and made visible."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scalar_sae.report.text import visible

POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What a page of several files may load (https://www.w3.org/TR/CSP3): files that lie beside it, and no script or style
that stands in the page or in an attribute."""


def policy_of(*scripts: str) -> str:
    """What a page in one file may run: these scripts, which stand in it, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def environment() -> Environment:
    """The templates."""
    return Environment(
        loader=PackageLoader("scalar_sae.report"), autoescape=True, undefined=StrictUndefined, finalize=_shown
    )


def asset(name: str) -> str:
    """The text of a script or style sheet."""
    return (files("scalar_sae.report") / "templates" / name).read_text(encoding="utf-8")


def viewer(name: str) -> dict[str, str]:
    """The three files of a page that shows features: `index.html`, `page.css`, `page.js`."""
    return {
        "index.html": environment().get_template(f"{name}.html.j2").render(csp=POLICY),
        "page.css": asset("viewer.css") + asset(f"{name}.css"),
        "page.js": asset(f"{name}.js"),
    }


def _shown(value: Any) -> Any:
    """What stands in a page for a value: text is made visible, HTML that we made is not touched."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
