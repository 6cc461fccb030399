"""What lmms-eval finds under the entry point ``lmms_eval.models``: where Pumice's model is. It imports nothing else."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """lmms-eval's manifest of ``--model pumice``."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return [ModelManifest(model_id="pumice", chat_class_path="pumice.eval.public.lmms.PumiceModel")]
