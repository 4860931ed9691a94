"""Where the report's templates are found, and how they are filled in: text from files is escaped."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """The templates."""
    return Environment(loader=PackageLoader("scalar_sae.report"), autoescape=True, undefined=StrictUndefined)
