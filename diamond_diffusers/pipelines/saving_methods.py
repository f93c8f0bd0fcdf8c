"""Methods that save a pipeline with its call defaults and its Diamond Map."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from huggingface_hub import CommitInfo

from ..families.base import Family
from .saving import save_model


class SavingMethods:
    """The methods of `DiamondMapPipeline` that write it to a folder or to the Hub."""

    family: Family
    defaults: dict[str, Any]
    _base_defaults: dict[str, Any]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the stock pipeline in diffusers' format, and beside it the call defaults and the Diamond Map.

        The weights are those of the base: LoRA adapters and wrappers are neither saved nor merged. In place of a
        `DiamondMapScheduler` its stock scheduler is saved. With a Diamond Map a model card is written, which replaces
        one that is there.

        Args:
            save_directory: target folder, which is created.
            **kwargs: options of the card (`license`, `sample_images`, `sample_prompt`) and of the stock method
                (`safe_serialization`, `variant`, `max_shard_size`, `push_to_hub`, `repo_id`, `private`, `token`, ...).

        Raises:
            TypeError, ValueError: an argument is unknown or would have no effect; raised before anything is written.
        """
        save_model(self.family, self.defaults, self._base_defaults, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Uploads the files that `save_pretrained` writes; without a Diamond Map, the card is that of stock diffusers.

        Args:
            repo_id: repository on the Hub, which is created if it does not exist.
            **kwargs: as for `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            kwargs = {**kwargs, "push_to_hub": True, "repo_id": repo_id}
            uploaded = save_model(self.family, self.defaults, self._base_defaults, folder, **kwargs)
        assert uploaded is not None, "it was told to upload"
        return uploaded
