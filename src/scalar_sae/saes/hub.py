"""The Hugging Face Hub: download `hf://owner/repository[@revision][/folder]`, or publish a folder.

Only files that can belong to an SAE format are downloaded from a repository.
"""

import os
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from scalar_sae.console import in_log
from scalar_sae.errors import UserError

READ = (".json", ".yaml", ".safetensors", ".npz", ".pt")
"""Name endings of the files from which SAEs and their language model are read."""
_CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})(?:/(.+))?$")
_ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or huggingface.co."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def local(path: str) -> Path:
    """A path on this machine. For `hf://` it is the path of a copy in Hugging Face's cache.

    An interrupted download is resumed, and cached files are not downloaded again.

    Raises:
        UserError: there is no such repository, revision or folder, no access to it, or no connection.
    """
    if not path.startswith("hf:"):
        return Path(path)
    address = _ADDRESS.fullmatch(path)
    if address is None:
        raise UserError(f"{path}: expected hf://owner/repository[@revision][/folder]")
    repository, revision, inside = address.groups()
    if inside is not None and not set(PurePosixPath(inside).parts).isdisjoint(("..", "/")):
        raise UserError(
            f"{path}: {inside} leads out of the repository; expected hf://owner/repository[@revision][/folder]"
        )
    patterns = [f"*{end}" for end in READ] if inside is None else [inside, *(f"{inside}/*{end}" for end in READ)]
    folder = Path(_download(path, repository, revision, patterns))
    if inside is not None and not (folder / inside).exists():
        raise UserError(f"{path}: {repository} holds no {inside}")
    return folder if inside is None else folder / inside


def address_of(path: Path) -> str | None:
    """The Hub address, with the commit, of a file or folder in Hugging Face's cache; None for other paths."""
    found = _CACHED.search(path.as_posix())
    if found is None:
        return None
    owner, name, commit, inside = found.groups()
    return f"hf://{owner}/{name}@{commit}" + (f"/{inside}" if inside else "")


def _download(path: str, repository: str, revision: str | None, patterns: list[str] | None) -> str:
    try:
        with in_log(f"download {path}"):
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
    except Exception as error:  # errors of any HTTP client, or a listing that leads out of the cache
        raise UserError(f"{path}: cannot be downloaded ({error}); check the connection and run it again") from error


def check_repository(name: str) -> None:
    """Raise a UserError if this is not a valid name of a repository on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name}: {error}") from error


def upload(folder: Path, repository: str, private: bool) -> str:
    """Publish a folder as a model repository, which is created if necessary. Returns its address.

    Raises:
        UserError: not logged in, no permission to write there, or no connection.
    """
    check_repository(repository)
    api = HfApi(endpoint=endpoint())
    try:
        with in_log(f"upload to {repository}"):
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="SAEs from scalar-sae")
    except Exception as error:  # errors of any HTTP client
        raise UserError(
            f"{repository}: cannot be published ({error}); `hf auth login` with a token that writes"
        ) from error
    return f"hf://{repository}"
