"""A base's generation settings in a form that can be saved: transformers loads some that it refuses to write.

Settings of sampling without ``do_sample`` are meant for sampling, so that is set; what is still
refused is left out. Both are told by name.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from openbezoar.models.files.checks import sampling_without_do_sample
from openbezoar.models.files.stored import optional_json

FILE = "generation_config.json"


def generation_settings(folder: Path) -> tuple[Any, list[str]]:
    """(a ``GenerationConfig`` that can be saved, what was changed in the folder's own, in words).

    A folder without the file gives what its config says of generation.
    """
    from transformers import AutoConfig, GenerationConfig

    settings = (
        optional_json(folder / FILE)
        or GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(folder))).to_diff_dict()
    )
    changed = []
    # 0 is another word for greedy
    if (odd := sampling_without_do_sample(settings)) is not None and settings.get("temperature") != 0:
        changed.append(f"do_sample: true set, since it has {odd}")
        settings = {**settings, "do_sample": True}
    if not _can_be_saved(settings):
        accepted: dict[str, Any] = {}
        # what others depend on comes first
        for key in sorted(settings, key=lambda key: key not in ("do_sample", "num_beams")):
            if _can_be_saved({**accepted, key: settings[key]}):
                accepted[key] = settings[key]
            else:
                changed.append(f"{key}: {settings[key]} left out")
        settings = accepted
    return GenerationConfig(**settings), changed


def _can_be_saved(settings: dict[str, Any]) -> bool:
    from transformers import GenerationConfig

    log = logging.getLogger("transformers.generation.configuration_utils")
    before = log.level
    log.setLevel(logging.ERROR)  # it advises on what is asked here
    try:
        GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError):
        return False
    finally:
        log.setLevel(before)
    return True
