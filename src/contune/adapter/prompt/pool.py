"""A pool of prompts with keys: each input takes those whose keys are nearest to its query (L2P, arXiv 2112.08654)."""

from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from contune.backbone.backbone import Backbone
from contune.contract.context import Context
from contune.contract.data import Batch
from contune.contract.parts import Adapter, Parameters, Trait
from contune.contract.randomness import torch_generator
from contune.contract.state import State
from contune.errors import CombinationError, ConfigError
from contune.numerics.averages import row_mean
from contune.numerics.keys import nearest_keys

Start = Literal["narrow", "wide"]


@final
class PromptPool(Adapter):
    """`pool` prompts of `length` tokens; each input is given its `top` nearest, and the feature is their mean output.

    Section 4.1: query = the frozen model's own feature; the penalty -`pull` x mean of the summed cosines draws chosen
    keys to their queries (equation 5). Every input chooses for itself, in training too: the released code's vote over
    the batch would let a prediction depend on its neighbours. Keys and prompts start `narrow`, uniform in [0, 0.01), as in
    the official code, or `wide`, in [-1, 1), as in its PyTorch port and in LAMDA-PILOT.

    Memory: pool x (length + 1) x d.
    Compute: a full backward pass; the query is computed once per example and kept.
    """

    name: ClassVar[str] = "prompt-pool"
    needs_traits: ClassVar[frozenset[Trait]] = frozenset({Trait.EXAMPLE_ROWS})
    needs_queries: ClassVar[bool] = True

    def __init__(
        self,
        *,
        pool: Annotated[int, "prompts in the pool, each with a key", "paper"] = 10,
        length: Annotated[int, "tokens of each prompt", "PyTorch port"] = 5,
        top: Annotated[int, "nearest prompts that each input is given, 1 to pool", "PyTorch port"] = 5,
        pull: Annotated[float, "weight of drawing chosen keys to their inputs, from 0", "PyTorch port"] = 0.1,
        start: Annotated[
            Start, "where prompts and keys start: in [0, 0.01), or in [-1, 1)", "official code"
        ] = "narrow",
    ) -> None:
        if not 1 <= top <= pool:
            raise ConfigError(f"top is {top} and pool {pool}; choose at least 1 and at most all prompts of the pool")
        self.pool, self.length, self.top, self.pull = pool, length, top, pull
        self.start = start
        self._prompts: nn.Parameter | None = None
        self._keys: nn.Parameter | None = None

    def attach(self, backbone: Backbone, seed: int) -> None:
        if backbone.feature == "last-token":
            raise CombinationError("a prompt pool needs an encoder: this model reads its last token alone")
        width = backbone.parts.prompt_width
        prompts = self._drawn((self.pool, self.length, width), torch_generator(seed, "prompts"))
        keys = self._drawn((self.pool, backbone.feature_size), torch_generator(seed, "keys"))
        self._prompts, self._keys = nn.Parameter(prompts.to(backbone.device)), nn.Parameter(keys.to(backbone.device))

    def _drawn(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        uniform = torch.rand(shape, generator=generator)
        return uniform * 0.01 if self.start == "narrow" else uniform * 2 - 1

    def trained(self) -> Parameters:
        if self._prompts is None or self._keys is None:
            return {}
        return {"prompts": self._prompts, "keys": self._keys}

    def lowest_layer(self, backbone: Backbone) -> int:
        return 0

    def encode(self, backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert self._prompts is not None
        assert self._keys is not None
        assert batch.queries is not None
        chosen, similarity = nearest_keys(batch.queries, self._keys, self.top)
        encoded = backbone.encode(batch.inputs, prompts=self._prompts[chosen].flatten(1, 2))
        features = encoded.states[:, : encoded.prompts].mean(dim=1)
        return features, -self.pull * row_mean(similarity.sum(dim=1), batch.counts, len(batch))

    def state(self) -> State:
        return State({name: value.detach() for name, value in self.trained().items()})

    def load_state(self, state: State, context: Context) -> None:
        for name, value in self.trained().items():
            value.data.copy_(state.tensors[name])
