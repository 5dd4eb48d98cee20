"""No adapter: the features of the frozen model as they are."""

from typing import ClassVar, final

from torch import Tensor

from contune.backbone.backbone import Backbone
from contune.contract.capability import Lifetime
from contune.contract.data import Batch
from contune.contract.parts import Adapter


@final
class NoAdapter(Adapter):
    """Nothing inside the model is trained.

    Memory: nothing.
    Compute: features are computed once per example and kept.
    """

    name: ClassVar[str] = "none"
    lifetime = Lifetime.NOTHING

    def merge(self) -> bool:
        return True

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return backbone.features(batch.inputs), None
