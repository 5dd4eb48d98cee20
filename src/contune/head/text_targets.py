"""Frozen targets: each class is the text embedding of its name (LingoCL, arXiv 2403.16124)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.source import PACKAGED
from contune.contract.context import Context
from contune.contract.parts import Head, Parameters
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.head.linear import grown, strongest
from contune.head.options import HeadLrScale, LossOver
from contune.stream.modality import find_modality


def prompts_of(names: Sequence[str], template: str) -> list[str]:
    """The template with every name in its place; underscores of data-set names become spaces.

    >>> prompts_of(["polar_bear"], "a photo of a {}")
    ['a photo of a polar bear']
    """
    if "{}" not in template:
        raise ConfigError(f"template is {template!r}; put {{}} where the name of the class belongs")
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def embedded(encoder: Backbone, texts: Sequence[str]) -> Tensor:
    """Unit embeddings (n, d) of texts, one at a time, so that none depends on its company."""
    prepared = encoder.prepare(list(texts))
    with torch.no_grad():
        rows = [encoder.features(encoder.collate([(prepared, np.array([row]))])).cpu() for row in range(len(texts))]
    return functional.normalize(torch.cat(rows), dim=1)


def cosine_scores(features: Tensor, targets: Tensor, scale: float) -> Tensor:
    """scale * cos(feature, target) (B, C) for unit targets (C, d).

    >>> cosine_scores(torch.tensor([[3.0, 4.0]]), torch.eye(2), 5.0).tolist()
    [[3.0, 4.0]]
    """
    return scale * functional.normalize(features, dim=1) @ targets.T


@final
class TextTargets(Head):
    """Scores are `scale` times the cosine of a feature and the frozen text embedding of each class name (arXiv 2403.16124).

    Where the widths of feature and embedding differ, a linear map without bias is trained between them, shared by all
    classes: it may forget, the targets cannot. Without an encoder a learner that reads text takes its own base model as
    it was before training, and CLIP's text half, saved by itself, wants feature: last-token. The encoder is loaded when
    classes arrive, on the CPU, and not kept.

    Memory: one embedding per class, and the map where widths differ.
    Compute: one pass of the encoder per class name.
    """

    name: ClassVar[str] = "text-targets"
    takes_modules: ClassVar[Literal["one", "fixed", "growing"]] = "growing"

    def __init__(
        self,
        *,
        encoder: Annotated[str | None, "text model; null: the base model, for images a packaged one"] = None,
        template: Annotated[str | None, "text around the name {}; null: 'a photo of a {}' for images"] = None,
        feature: Annotated[
            Literal["auto", "class-token", "mean", "last-token"], "how the encoder makes one vector of a text"
        ] = "auto",
        scale: Annotated[float, "factor of the cosines that are the scores"] = 20.0,
        loss_over: LossOver = "seen",
        lr_scale: HeadLrScale = 1.0,
    ) -> None:
        prompts_of([], template or "{}")
        self.encoder, self.template, self.feature, self.scale = encoder, template, feature, scale
        self.loss_over, self.lr_scale = loss_over, lr_scale
        self._targets = torch.zeros(0, 0)
        self._projection: nn.Parameter | None = None
        self._width = 0

    def begin_task(self, context: Context) -> None:
        names = context.task.class_names[len(self._targets) :]
        device = context.model.backbone.device
        if names:
            new = self._embedded(names, context.model.backbone).to(device)
            self._targets = torch.cat([self._targets, new]) if len(self._targets) else new
        self._width = context.model.adapter.feature_size(context.model.backbone)
        if self._projection is None and self._targets.shape[1] != self._width:
            generator = torch_generator(context.task.settings.seed, "head")
            self._projection = nn.Parameter(grown(None, self._targets.shape[1], self._width, generator).to(device))

    def _embedded(self, names: Sequence[str], backbone: Backbone) -> Tensor:
        own = backbone.config if backbone.reads_tokens and not backbone.answers else ModelConfig(path=PACKAGED)
        encoder = Backbone.load(own if self.encoder is None else ModelConfig(path=self.encoder, feature=self.feature))
        if not encoder.reads_tokens:
            raise ConfigError(
                f"encoder {self.encoder!r} reads {find_modality(encoder.modality).noun}, but the names of classes are "
                "texts; give a text model"
            )
        return embedded(encoder, prompts_of(names, self.template or find_modality(backbone.modality).class_prompt))

    def trained(self) -> Parameters:
        return {} if self._projection is None else {"projection": self._projection}

    def logits(self, features: Tensor) -> Tensor:
        return strongest(self._scores, features, self._width)

    def _scores(self, features: Tensor) -> Tensor:
        mapped = features if self._projection is None else functional.linear(features, self._projection)
        return cosine_scores(mapped, self._targets, self.scale)

    def state(self) -> State:
        projection = {} if self._projection is None else {"projection": self._projection.detach()}
        return State({"targets": self._targets, **projection})

    def load_state(self, state: State, context: Context) -> None:
        device = context.model.backbone.device
        self._targets = state.tensors["targets"].to(device)
        self._width = context.model.adapter.feature_size(context.model.backbone)
        if "projection" in state.tensors:
            self._projection = nn.Parameter(state.tensors["projection"].to(device))
