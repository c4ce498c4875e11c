"""What data says of models before they are merged: numbers like the weights, collected one model at a time on disk.

A method that needs them has `collect(models, statistics, ctx)`, models in the order of the merge and the base last
where there is one; the merge that follows reads stretches of them beside those of the weights, so that neither models
nor statistics are ever held together (but for AdaMerging's search, which holds all models).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from palimpsest.checkpoint.files import TensorInfo, read_header
from palimpsest.merging.reading import Buffers, Files, Stored


class Statistics:
    """Tensors of each model by the name of the weight they belong to, in one file a model."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # set before anything is added
        self.notes: list[str] = []  # what a person should know of what was found
        self._models: list[dict[str, TensorInfo]] = []
        self._files = Files()

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """The statistics of the next model."""
        assert self.folder is not None
        file = self.folder / f"{len(self._models)}.safetensors"
        save_file({n: t.detach().float().cpu().contiguous() for n, t in tensors.items()}, file)
        self._models.append({t.name: t for t in read_header(file)})

    def has(self, name: str) -> bool:
        """Whether every model has them for this weight."""
        return bool(self._models) and all(name in tensors for tensors in self._models)

    def stretch(self, model: int, name: str, first: int, end: int) -> Tensor:
        """Numbers `first` to `end` of one of them, flattened: (end - first,) float32."""
        return Stored(self._models[model][name], "statistics").read(first, end, self._files, Buffers(), 0)

    def whole(self, model: int, name: str) -> Tensor:
        """One of them in its shape, float32."""
        info = self._models[model][name]
        return self.stretch(model, name, 0, info.count).view(info.shape)

    def close(self) -> None:
        """Close the files."""
        self._files.close()
