"""The single definition of the package's version."""

__version__ = "0.1.0"
