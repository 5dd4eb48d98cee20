"""What a part remembers, made explicit: named tensors and plain JSON values, and nothing else."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from contune.stream.conversation import decoded
from contune.stream.task import Examples, Image, Targets


@final
@dataclass(frozen=True)
class State:
    """Named tensors and JSON values; `nested` and `inner` put one state inside another under a prefix."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def inner(self, prefix: str) -> "State":
        """The state that was nested under `prefix`; empty where there was none.

        >>> State.nested({"head": State({}, {"seen": 3})}).inner("head").values
        {'seen': 3}
        """
        start = prefix + "/"
        tensors = {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}
        return State(tensors, dict(self.values.get(prefix, {})))

    @staticmethod
    def nested(states: Mapping[str, "State"]) -> "State":
        """One state that holds several, each under its own prefix."""
        tensors = {
            f"{prefix}/{name}": tensor for prefix, state in states.items() for name, tensor in state.tensors.items()
        }
        return State(tensors, {prefix: dict(state.values) for prefix, state in states.items()})


def on_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies of a state's tensors, which may have come from a file, where the model is."""
    return {name: tensor.clone().to(device) for name, tensor in tensors.items()}


def examples_state(examples: Examples) -> State:
    """Examples as a state, targets and all."""
    inputs = inputs_state(examples)
    if examples.targets is None:
        return inputs
    targets = {
        "values": torch.from_numpy(examples.targets.values),
        "offsets": torch.from_numpy(examples.targets.offsets),
    }
    return State({**inputs.tensors, **State.nested({"targets": State(targets)}).tensors}, inputs.values)


def inputs_state(examples: Examples) -> State:
    """Inputs, labels and ids as a state: texts as JSON, images as one flat run of bytes with their heights and widths."""
    tensors = {"labels": torch.from_numpy(examples.labels), "ids": torch.from_numpy(examples.ids)}
    if examples.modality == "text":
        return State(tensors, {"modality": "text", "texts": list(examples.inputs)})
    if examples.modality == "words":
        return State(tensors, {"modality": "words", "texts": [list(words) for words in examples.inputs]})
    if examples.modality == "language":
        return State(
            tensors, {"modality": "language", "texts": [str(conversation) for conversation in examples.inputs]}
        )
    images = [np.ascontiguousarray(image) for image in examples.inputs]
    flat = np.concatenate([image.ravel() for image in images]) if images else np.empty(0, dtype=np.uint8)
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
    return State(tensors | {"pixels": torch.from_numpy(flat), "sizes": torch.from_numpy(sizes)}, {"modality": "image"})


def examples_from_state(state: State) -> Examples:
    """The examples that `examples_state` put away."""
    examples, found = inputs_from_state(state), state.inner("targets").tensors
    if not found:
        return examples
    return replace(examples, targets=Targets(found["values"].numpy(), found["offsets"].numpy()))


def inputs_from_state(state: State) -> Examples:
    """The examples that `inputs_state` put away."""
    labels, ids = state.tensors["labels"].numpy(), state.tensors["ids"].numpy()
    if state.values["modality"] in ("text", "words"):
        return Examples(list(state.values["texts"]), labels, ids, state.values["modality"])
    if state.values["modality"] == "language":
        return Examples([decoded(text) for text in state.values["texts"]], labels, ids, "language")
    sizes = state.tensors["sizes"].numpy()
    images = split_images(state.tensors["pixels"].numpy(), sizes.tolist())
    return Examples(images, labels, ids, "image")


def split_images(flat: Image, sizes: Iterable[list[int]]) -> list[Image]:
    """Cut one flat run of RGB bytes into images of the given (height, width)."""
    images, start = [], 0
    for height, width in sizes:
        stop = start + height * width * 3
        images.append(flat[start:stop].reshape(height, width, 3))
        start = stop
    return images
