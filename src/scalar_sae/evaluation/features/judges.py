"""Judges of features: a server with OpenAI's protocol, or a model in this process."""

import json
import os
import re
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import HTTPException, HTTPResponse, responses
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit

from scalar_sae import distributed
from scalar_sae.errors import UserError, quoted
from scalar_sae.lm.loading import check_name, precision
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import shipped
from scalar_sae.tokenizer import Pretrained

Ask = Callable[[str], str]
"""From a question to the judge's answer."""


class Judge(NamedTuple):
    """A judge that can be asked questions."""

    ask: Ask
    model: str
    url: str | None = None
    """The server's address; None for a model in this process."""


SECONDS = 120.0
"""Maximum time for an answer, and maximum wait that a busy server may ask for."""
BUSY = (429, 503)
TRIES = 6
ANSWER_BYTES = 2**20
"""Longer replies are refused."""
NEW_TOKENS = 100
"""Maximum number of tokens in the answer of a judge in this process."""


def endpoint(url: str, model: str, *, option: str = "--model") -> Judge:
    """A judge at an OpenAI-compatible address (`.../v1`). The key is taken from OPENAI_API_KEY if that is set.

    A server that is too busy (429, 503) is asked up to TRIES times. The key is sent to this address only, so redirects
    are refused.

    Args:
        url: the address.
        model: the server's model.
        option: what the user calls the model, for messages.

    Raises:
        UserError: this is not such an address, the address contains a secret, the key cannot be put in a header, or the
            model's name is not a text.
    """
    url = _address(url)
    try:
        model.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option} {quoted(model)}: holds bytes that are no text, so it is no model's name") from error
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY", "").strip():
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError("OPENAI_API_KEY: holds a blank or a character outside ASCII; set it again, the key alone")
        headers["Authorization"] = f"Bearer {key}"

    def ask(question: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            said = _reply(request)["choices"][0]["message"]["content"]
            if not isinstance(said, str):
                raise ValueError("an empty message")
            return said
        except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{url}: no answer from {model} ({error}); the same command goes on from here") from error

    return Judge(ask, model, url)


def _address(url: str) -> str:
    """Validate an address. One that contains a secret is refused, because records keep the address."""
    if set(url) & set("@?#"):
        raise UserError("--url: holds a user name, password or query, which records would keep; use OPENAI_API_KEY")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", url):
        raise UserError(f"--url {url!r}: expected an address such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because urllib would send the key to any host that a reply names."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Refuse, naming the address to which the server redirects."""
        fp.close()
        there = urlunsplit(urlsplit(newurl)._replace(query="", fragment="")).removesuffix("/chat/completions")
        raise OSError(f"it redirects to {there}; give that as --url if you trust it with the key")


_OPENER = urllib.request.build_opener(_NoRedirect)


def _reply(request: urllib.request.Request) -> Any:
    """The server's JSON reply, after as many waits as necessary."""
    attempt = 0
    while True:
        try:
            with _OPENER.open(request, timeout=SECONDS) as reply:
                return json.loads(_body(reply))
        except HTTPError as error:
            attempt += 1
            with error:
                if error.code not in BUSY or attempt == TRIES:
                    raise OSError(_status(error)) from None  # the error's text could repeat the request
                wait = _wait(error.headers["Retry-After"], 2.0 ** (attempt - 1))
            if wait > SECONDS:
                raise OSError(f"{_status(error)}; it asks to wait {wait:,.0f} s") from None
            time.sleep(wait)


def _status(error: HTTPError) -> str:
    return f"HTTP status {error.code} {responses.get(error.code, '')}".rstrip()


def _body(reply: HTTPResponse) -> bytes:
    """The whole reply, unless it is too long or too slow."""
    end = time.monotonic() + SECONDS
    parts: list[bytes] = []
    while part := reply.read1(2**16):
        parts.append(part)
        if sum(map(len, parts)) > ANSWER_BYTES:
            raise OSError(f"more than {ANSWER_BYTES:,} bytes")
        if time.monotonic() > end:
            raise OSError(f"not complete after {SECONDS:g} s")
    return b"".join(parts)


def _wait(asked: str | None, otherwise: float) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, section 10.2.3)."""
    if asked is None:
        return otherwise
    if asked.strip().isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return otherwise


def local(source: str, dtype: str = "auto", device: str | None = None, *, option: str = "--model") -> Judge:
    """A `transformers` model in this process as judge. It is loaded when first asked.

    Args:
        source: a folder or an id on the Hub.
        dtype: its precision.
        device: where it computes; None takes a GPU, if there is one.
        option: what the user calls the model, for messages.

    Raises:
        UserError: the name, precision or device is not valid. When first asked: there is no such model, or its tokens
            are not words. Whenever asked: the question has more tokens than the model reads.
    """
    precision(dtype)
    try:
        check_name(source)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    place = distributed.device(device)
    characters = UserError(f"{option} {source}: a model of characters cannot judge")
    if source in shipped():
        raise characters

    @cache
    def loaded() -> tuple[LanguageModel, Any]:
        lm = LanguageModel.load(source, dtype=dtype, device=place)
        if not isinstance(lm.tokenizer, Pretrained):
            raise characters
        return lm, lm.tokenizer.inner

    def ask(question: str) -> str:
        lm, inner = loaded()
        if inner.chat_template:
            turns = [{"role": "user", "content": question}]
            question = inner.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        given = inner(question, return_tensors="pt", add_special_tokens=not inner.chat_template)
        length = given.input_ids.shape[1]
        if length + NEW_TOKENS > lm.context:
            raise UserError(
                f"{source}: reads {lm.context} tokens, a question has {length} and the answer up to {NEW_TOKENS}; "
                "take a model that reads more"
            )
        said = lm.hf.generate(**given.to(lm.device), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        return inner.decode(said[0, length:], skip_special_tokens=True)

    return Judge(ask, source)
