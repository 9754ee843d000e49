"""The Hugging Face hub, through `huggingface_hub`, which nothing else imports; the extra `hub`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from jaxequi.errors import Refusal


def package() -> Any:
    """Import the package.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise Refusal(
            'publishing needs huggingface_hub: pip install -e ".[hub]"; it takes the token of '
            "`hf auth login`, or of HF_TOKEN"
        ) from error
    return huggingface_hub


def upload(folder: pathlib.Path, files: Sequence[str], repository: str, private: bool) -> str:
    """Upload files of a folder in one commit, into a repository that is made if it is not there.

    Returns:
      Where it is.

    Raises:
      ValueError: no huggingface_hub, a name that the hub does not take, or what the hub answered.
    """
    hub = package()
    try:
        api = hub.HfApi(library_name="jaxequi")
        made = api.create_repo(repository, exist_ok=True, private=private)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=f"{folder.absolute().name}, by jaxequi",
        )
    except (OSError, ValueError) as error:  # what it raises of the hub, of the net and of names
        raise Refusal(f"{repository} was not published: {error}") from error
    return str(made)
