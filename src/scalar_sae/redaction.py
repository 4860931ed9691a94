"""Keep keys, tokens and local paths out of everything that is printed, stored or published.

redacted("Illegal header value b'Bearer hf_...'")       # for messages
published({"lm": "/home/me/runs/lm"})                   # {"lm": "lm"}: for files that leave this machine
"""

import os
import re
from typing import Any

_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_BEARER = re.compile(r"(Bearer )[^\s'\"]+")
_USER = re.compile(r"(\b\w+://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(\b\w+://[^\s?#'\"]+)[?#][^\s'\"]*")
_PATH = re.compile(r"(?<![\w.:/~\\-])(?:file://|~|[A-Za-z]:(?=[\\/]))?(?:[\\/][^\\/\s'\",;:=]+)+")
_WHOLE = re.compile(r"(?:file://|~?[\\/]|[A-Za-z]:[\\/]).*", re.DOTALL)


def redacted(text: str) -> str:
    """A message without the keys and tokens in this process's environment, and without passwords in addresses."""
    for name in _VARIABLES:
        value = os.environ.get(name, "").strip()
        if len(value) >= 8:  # shorter values would match ordinary words
            text = text.replace(value, f"<{name}>")
    return _USER.sub(r"\1", _BEARER.sub(r"\1<key>", text))


def published(value: Any) -> Any:
    """JSON content that is safe to publish: redacted, with absolute paths cut to their last name, and addresses to
    their path.

    Relative paths are kept, since they name nothing outside the project.
    """
    if isinstance(value, dict):
        return {published(key): published(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [published(inside) for inside in value]
    if not isinstance(value, str):
        return value
    text = _QUERY.sub(r"\1", redacted(value))
    if _WHOLE.fullmatch(text):
        return _last_name(text)
    return _PATH.sub(lambda path: _last_name(path[0]), text)


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
