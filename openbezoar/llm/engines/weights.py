"""What an engine reads: a model's folder as it came, or with its adapters merged in, or as a GGUF.

Writes into the run's folder of engines, a folder a model, tensor by tensor; a whole one is taken again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from openbezoar.models.references import Checkpoint
from openbezoar.store.digests import digest
from openbezoar.store.files import write_text

WHOLE = ".whole"  # the file that says that a folder is


def readable(checkpoint: Checkpoint, reads: Literal["folder", "gguf"], formatter: Any, folder: Path) -> Path:
    """The folder, or the .gguf file, that an engine is started on. formatter: the checkpoint's.

    Raises ModelError for a model that has no GGUF form here.
    """
    if not checkpoint.adapters:
        if reads == "folder":
            return checkpoint.folder()
        if Path(checkpoint.base).suffix == ".gguf":
            return Path(checkpoint.base).expanduser().resolve()
    place = folder / f"{checkpoint.name}-{digest([checkpoint.identity(), reads])[:16]}"
    file = place / "model.gguf" if reads == "gguf" else place
    if (place / WHOLE).is_file():
        return file
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if reads == "folder":
        _merged(checkpoint, formatter.tokenizer, place)
    else:
        _gguf(checkpoint, formatter, file)
    write_text(place / WHOLE, "")
    return file


def _gguf(checkpoint: Checkpoint, formatter: Any, file: Path) -> None:
    from openbezoar.gguf.file import write_gguf

    source, merged = checkpoint.folder(), file.with_name("merged")
    if checkpoint.adapters:
        _merged(checkpoint, formatter.tokenizer, merged)
        source = merged
    about = {"name": checkpoint.name, "license": checkpoint.licence or "", "base": checkpoint.base}
    kind: Literal["f32", "f16"] = "f32" if checkpoint.dtype == "float32" else "f16"
    write_gguf(source, formatter, kind, out=file, about=about)
    shutil.rmtree(merged, ignore_errors=True)


def _merged(checkpoint: Checkpoint, tokenizer: Any, folder: Path) -> None:
    """The base with all adapters added, the last one onto the values that it was trained on."""
    from openbezoar.models import shards
    from openbezoar.models.load import DTYPES, device, free
    from openbezoar.models.save import save_settings

    source, dtype = checkpoint.folder(), DTYPES[checkpoint.dtype]
    older, last = checkpoint.adapters[:-1], checkpoint.adapters[-1]
    model = shards.skeleton(source)
    nf4 = checkpoint.quantize == "nf4"
    weights = shards.weights_of(source, dtype, device(), older=older, last=last, dtype=dtype, nf4=nf4)
    shards.write(shards.of_model(weights, model), folder)
    save_settings(model.config, source, folder, dtype)
    tokenizer.save_pretrained(str(folder))
    free()
