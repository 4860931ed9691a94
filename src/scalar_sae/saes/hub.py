"""The Hugging Face Hub: download what `hf://owner/repository[@revision][/folder]` names, publish a folder."""

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scalar_sae.errors import UserError

_ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or huggingface.co."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def local(path: str) -> Path:
    """A path on this machine: for `hf://`, that of a copy in Hugging Face's cache.

    A download that was cut off goes on where it stopped, and what is in the cache is not loaded again.

    Raises:
        UserError: no such repository, revision or folder, no access to it, or no connection.
    """
    if not path.startswith("hf:"):
        return Path(path)
    address = _ADDRESS.fullmatch(path)
    if address is None:
        raise UserError(f"{path}: expected hf://owner/repository[@revision][/folder]")
    repository, revision, inside = address.groups()
    patterns = None if inside is None else [inside, f"{inside}/*"]
    folder = Path(_download(path, repository, revision, patterns))
    if inside is not None and not (folder / inside).exists():
        raise UserError(f"{path}: {repository} holds no {inside}")
    return folder if inside is None else folder / inside


def _download(path: str, repository: str, revision: str | None, patterns: list[str] | None) -> str:
    try:
        return snapshot_download(repository, revision=revision, allow_patterns=patterns, endpoint=endpoint())
    except GatedRepoError as error:
        raise UserError(
            f"{path}: gated; accept its terms at {endpoint()}/{repository}, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{path}: {repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{path}: no such repository, or a private one; check the name, or `hf auth login`") from error
    except HFValidationError as error:
        raise UserError(f"{path}: {error}") from error
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(f"{path}: cannot be downloaded ({error}); check the connection and run it again") from error


def upload(folder: Path, repository: str, private: bool) -> str:
    """Publish a folder as a model repository, which is made if it is not there; returns its address.

    Raises:
        UserError: not logged in, no right to write there, or no connection.
    """
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="SAEs from scalar-sae")
    except HFValidationError as error:
        raise UserError(f"{repository}: {error}") from error
    except Exception as error:  # of whatever HTTP client huggingface_hub has
        raise UserError(
            f"{repository}: cannot be published ({error}); `hf auth login` with a token that writes"
        ) from error
    return f"hf://{repository}"
