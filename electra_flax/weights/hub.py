"""The hub: model folders come from it (OWNER/NAME) and go to it (--push), through huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from electra_flax import shipped
from electra_flax.errors import UserError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def download(name: str, files: list[str]) -> Path:
    """Return a repository, in the cache that Hugging Face's libraries share. Raises UserError."""
    if Path(name).exists():
        raise UserError(f"hf:{name}: no such folder; expected a model folder, or OWNER/NAME on the hub")
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"hf:{name}: no such folder, nor OWNER/NAME of a repository on the hub{shipped.offered()}")
    from huggingface_hub import snapshot_download

    return Path(_try(f"hf:{name}: no such folder", lambda: snapshot_download(name, allow_patterns=files)))


def repositories(name: str, parts: list[str]) -> dict[str, str]:
    """Return {part: its repository}: both cannot live in one, from which from_pretrained would load only the first.

    Raises UserError where `name` is no OWNER/NAME.
    """
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"--push {name}: expected OWNER/NAME, to which -discriminator and -generator are added")
    return {part: f"{name}-{part}" for part in parts}


def check_login(name: str) -> None:
    """Raise UserError where the hub does not know who this is: before long work that ends in `push`."""
    from huggingface_hub import HfApi

    _try(f"--push {name}", HfApi().whoami)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a model folder, in one commit, to a repository that is created if absent; return its address.

    Raises UserError.
    """
    from huggingface_hub import HfApi

    api = HfApi()

    def upload() -> str:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights, tokenizer and model card")
        return str(address)

    return str(_try(f"--push {repository}: {folder} stays here", upload))


def _try(what: str, action: Callable[[], Any]) -> Any:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        return action()
    except LocalTokenNotFoundError:
        problem = "not logged in: run hf auth login, or set HF_TOKEN to a token that may write"
    except (OSError, RuntimeError) as error:  # uploads end with a RuntimeError around what happened
        cause = error.__cause__ or error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        problem = {
            None: f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__}): check the network",
            401: f"{constants.ENDPOINT} does not know this account (or there is no such repository): run hf auth "
            "login, or set HF_TOKEN",
            403: f"no permission for this account at {constants.ENDPOINT}: use a token that may, or another OWNER",
            404: f"no such repository at {constants.ENDPOINT} (or a private one)",
        }.get(status, f"{constants.ENDPOINT} refused: {str(cause).splitlines()[0]}")
    raise UserError(f"{what}: {problem}")
