"""A model goes to the model hub, as a folder that stands alone there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from signfuse_dist.errors import UserError
from signfuse_dist.model import saved
from signfuse_dist.model.signfuse import SignFuse


def push(
    model: SignFuse, name: str, private: bool | None, with_llm: bool, token: str | None
) -> str:
    """Upload a model and return its address; see :meth:`.SignFuse.push_to_hub`."""
    llm, language_model = model.built_from.llm, model.language_model
    named = language_model is None or with_llm or language_model.is_trained
    if not named and Path(llm).is_dir():
        raise UserError(
            f"push_to_hub({name!r}): the model's LLM is the folder {llm}, which nobody else has. "
            "with_llm=True uploads it too, where its licence lets it be passed on; or load the "
            "model with llm=OWNER/NAME, the name under which the hub has that LLM"
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="signfuse-push-") as place:
        folder = Path(place) / "pushed"
        saved.save(model, folder, {}, with_llm)
        try:
            repository = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=folder,
                commit_message="A SignFuse model",
                # What an earlier one had and this one has not, such as an LLM of its own.
                delete_patterns=["adapter/*", "merged/*", "llm/*", "usage.json"],
            )
        except (OSError, HfHubHTTPError, HFValidationError) as e:
            raise UserError(f"push_to_hub({name!r}): the hub does not take it: {e}") from e
    return str(repository)
