"""Half fine-tuning: in every task a fresh random half of the model's matrices rests (HFT, arXiv 2404.18466)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, final

import numpy as np
from torch import nn

from contune.adapter.weights.freezable import FreezableParameters
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.backbone.layers import is_norm
from contune.backbone.linear import is_linear
from contune.backbone.targets import chosen_layers
from contune.backbone.targets import matrices as matrices_of
from contune.contract.capability import Freezable, Lifetime, require
from contune.contract.context import Context
from contune.contract.options import Layers, LrScale
from contune.contract.randomness import numpy_generator
from contune.numerics.masks import frozen_counts, require_share

DRAWS = "half"  # no part's name: renaming the part must not draw other matrices
Role = Literal["attention", "feed-forward", "norm"]
Groups = Mapping[Role, Sequence[Sequence[tuple[str, ...]]]]


def role_of(path: str, module: nn.Module, *, multiplies: bool) -> Role | None:
    """What a module inside a layer is, by its path there and its kind; None for what has no weights of these kinds.

    `multiplies`: whether one of its tensors is a matrix of the model.

    >>> role_of("attention.output.dense", nn.Linear(1, 1), multiplies=True)
    'attention'
    >>> role_of("mlp.experts", nn.Module(), multiplies=True), role_of("norm", nn.LayerNorm(1), multiplies=False)
    ('feed-forward', 'norm')
    """
    if is_norm(module):
        return "norm"
    if multiplies:
        return "attention" if "attn" in path.lower() or "attention" in path.lower() else "feed-forward"
    return None


def drawn_to_freeze(groups: Groups, share: float, generator: np.random.Generator) -> set[str]:
    """Names of the tensors that rest: in each layer this share of the matrices of each role, whole and with their biases.

    >>> len(drawn_to_freeze({"attention": [[("q",), ("k",), ("v",), ("o",)]]}, 0.5, np.random.default_rng(0)))
    2
    """
    names: set[str] = set()
    for role in sorted(groups):
        layers = groups[role]
        counts = frozen_counts([len(modules) for modules in layers], share, generator)
        for modules, count in zip(layers, counts, strict=True):
            for place in generator.permutation(len(modules))[:count].tolist():
                names |= set(modules[place])
    return names


@final
class Half(Around):
    """Trains all weights but those that rest in this task: of each layer a random `share` of the matrices, whole.

    Two of four attention matrices rest per layer; of an odd number, such as three of a gated MLP, one more in half of
    the layers, drawn. Norms likewise. A projection that makes queries, keys and values in one counts as one matrix, and
    so do the experts of a layer that are kept in one tensor: all of them rest, or none. A bias goes with its matrix.
    Layers are those of the encoder and of the decoder. Embeddings, the language head, the last norm and layer scales
    always train, as the paper's default is recalled to be. Half is by the number of matrices: the share of weights is near
    it, not it.

    Every task draws anew, so no tensor is safe for good: after t tasks the share 1 - 2^-t has been trained. What rests has
    no gradient and no optimizer state, so that nothing moves it. Memory: the model in place of the base; half of the
    gradients and moments of full fine-tuning.

    Compute: a backward pass without the gradients of what rests.
    """

    name: ClassVar[str] = "half-fine-tuning"
    hides: ClassVar[tuple[type, ...]] = (Freezable,)  # it is the one that lets tensors rest

    def __init__(
        self,
        *,
        share: Annotated[float, "share of each layer's matrices that rest in a task, 0 to 1", "paper"] = 0.5,
        layers: Layers = "all",
        lr_scale: Annotated[LrScale, "SLCA (2303.05118), section 3.2"] = 0.01,
    ) -> None:
        require_share("share", share)
        super().__init__(FreezableParameters("full", lambda _name, _module: True, layers, lr_scale))
        self.share, self.layers = share, layers
        self.lifetime = Lifetime.REDRAWN
        self._groups: Groups = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        self.inner.attach(backbone, seed)
        names = {id(parameter): name for name, parameter in self.inner.trained().items()}
        roles: tuple[Role, ...] = ("attention", "feed-forward", "norm")
        chosen = chosen_layers(backbone, self.layers)
        known = {id(one.weight) for one in matrices_of(backbone).values()}
        self._groups = {role: [members(layer, role, names, known) for layer in chosen] for role in roles}

    def begin_task(self, context: Context) -> None:
        if context.model.adapter_trainable:
            generator = numpy_generator(context.task.settings.seed, DRAWS, context.task.index)
            require(self.inner, Freezable).freeze(drawn_to_freeze(self._groups, self.share, generator))

    @property
    def frozen(self) -> list[str]:
        """Names of the tensors that rest in this task."""
        return require(self.inner, Freezable).frozen


def members(layer: nn.Module, role: Role, names: Mapping[int, str], known: Collection[int]) -> list[tuple[str, ...]]:
    """What of a layer has this role, each as the names of the tensors that rest together.

    `known` are the identities of the model's matrices. A module's tensors rest together, but experts one tensor at a time,
    each with the bias that is named after it.
    """
    found = []
    for path, module in layer.named_modules():
        own = {id(value): names[id(value)] for value in module.parameters(recurse=False) if id(value) in names}
        matrices = [name for key, name in own.items() if key in known]
        if own and role_of(path, module, multiplies=bool(matrices)) == role:
            apart = len(matrices) > 1 and not is_linear(module)
            together = [[name for name in own.values() if name.startswith(one)] for one in matrices]
            found += [tuple(each) for each in (together if apart else [list(own.values())])]
    return found
