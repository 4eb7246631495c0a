"""The language model inside an image-text wrapper: its config, and its tensors under the names that it has alone.

A wrapper such as Gemma 3's holds a text model, a vision tower and a projector. What is trained,
merged and released here is the text model by itself. For text alone the wrapper computes
nothing else; tests hold the two against each other for every kind in ``WRAPPERS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from openbezoar.errors import ModelError

WRAPPERS = ("gemma3", "llava", "mistral3")
TEXT = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Text models that are taken out of a wrapper, and transformers' name for each by itself."""
_INNER = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(?P<rest>.+)$")
_MARKS = ("text_config", "vision_config", "audio_config", "thinker_config")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a model with parts beside a text model."""
    return any(isinstance(config.get(mark), dict) for mark in _MARKS)


def check_kind(where: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for a model that is no decoder of text: it names the kind."""
    kind = config.get("model_type") or "unknown"
    classes = config.get("architectures") or []
    if not isinstance(kind, str) or not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ModelError(
            f"{where}: its config.json has a model_type that is no text, or architectures that are no list of texts;"
            " fetch it again"
        )
    called = f"'{kind}'{f' ({classes[0]})' if classes else ''}"
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{where}: a model of kind {called} has an encoder and a decoder; expected a causal language model, such as"
            " Llama, Qwen or Gemma"
        )
    if is_wrapper(config):
        inner = config.get("text_config")
        text = str(inner.get("model_type")) if isinstance(inner, dict) else None
        if kind not in WRAPPERS or text not in TEXT:
            raise ModelError(
                f"{where}: a model of kind {called} has parts beside its text model; of such kinds only"
                f" {', '.join(WRAPPERS)} with a text model of {', '.join(TEXT)} are read; name the text-only model"
            )
    elif classes and not any(re.search(r"ForCausalLM|LMHead|CausalLM", name) for name in classes):
        raise ModelError(
            f"{where}: a model of kind {called} is no causal language model; expected one, such as Llama, Qwen or Gemma"
        )


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's own config; ``config`` itself where there is no wrapper."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return dict(config)
    ids = {key: config[key] for key in _IDS if config.get(key) is not None and inner.get(key) is None}
    more = {key: config[key] for key in ("dtype", "torch_dtype") if key in config and key not in inner}
    return {**inner, **ids, **more, "architectures": [TEXT.get(str(inner.get("model_type")), "")]}


def text_names(names: Iterable[str]) -> dict[str, str]:
    """{a tensor's name in the text model: its name in the wrapper}; what belongs to other parts is left out."""
    by_name = {}
    for name in names:
        if match := _INNER.match(name):
            rest = match["rest"]
            by_name[rest if rest.startswith("lm_head.") else f"model.{rest}"] = name
        elif name.startswith("lm_head."):
            by_name[name] = name
    return by_name
