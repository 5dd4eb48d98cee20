"""LoRA that starts from a decomposition of the weights, seen through data: what it trains matters little to what is to be
kept, or much to what is to be learned (CorDA, arXiv 2406.05223)."""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from contune.adapter.lora.per_task import LoraPerTask
from contune.adapter.wrapper import Around
from contune.backbone.backbone import Backbone
from contune.backbone.linear import matrix_of
from contune.backbone.reader.language import LanguageReader
from contune.backbone.reader.text import TextReader
from contune.contract.capability import InputFactors, TaskFactors
from contune.contract.context import Context
from contune.contract.data import Dataset
from contune.contract.options import Layers, Rank, Targets
from contune.contract.passes import input_moments
from contune.contract.randomness import numpy_generator
from contune.contract.state import State
from contune.errors import ConfigError
from contune.stream.chat.documents import document_exchanges, read_text
from contune.stream.chat.language import read_exchanges
from contune.stream.config import TEXT_SUFFIXES, LanguageConfig
from contune.stream.conversation import Conversation, language_examples
from contune.stream.modality import find_modality
from contune.stream.read.rows import settle_bad_rows
from contune.stream.task import Examples

Mode = Literal["keep", "preview"]
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def damped(moment: Tensor, damp: float) -> Tensor:
    """C / m + damp I in float64, where m is the mean of the diagonal of C (d, d); the identity where C is zero.

    The paper divides by the size of each batch's largest input instead; either only shares size between B and A. In
    float64 the result is well conditioned, so that its damping never needs the doubling of the released code.

    >>> damped(torch.diag(torch.tensor([6.0, 2.0])), 0.5).diagonal().tolist()
    [2.0, 1.0]
    """
    wide = moment.double()
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    mean = wide.diagonal().mean()
    return wide / mean + damp * identity if mean > 0 else identity


def decomposed(weight: Tensor, energy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (o, k), S (k,) and R (k, d) with W = U diag(S) R, for W (o, d) and a positive definite C (d, d), in float64.

    From the singular value decomposition W C = U diag(S) V^T, with R = V^T C^-1 (section 3.2). S falls. Of any triplets
    T, the sum P = U_T S_T R_T has ||P C||^2 = the sum of S_T^2.

    >>> left, sizes, right = decomposed(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.diag(torch.tensor([1.0, 9.0])))
    >>> sizes.tolist(), ((left * sizes) @ right).abs().round(decimals=6).tolist()
    ([18.0, 3.0], [[3.0, 0.0], [0.0, 2.0]])
    """
    energy = energy.double()
    left, sizes, right = torch.linalg.svd(weight.double() @ energy, full_matrices=False)
    # R^T = C^-1 V, since C is symmetric.
    return left, sizes, torch.cholesky_solve(right.T, torch.linalg.cholesky(energy)).T


def start_factors(weight: Tensor, energy: Tensor, rank: int, mode: Mode) -> tuple[Tensor, Tensor]:
    """A (rank, d) and B (o, rank): the last triplets of the decomposition to keep, the first ones to preview.

    B = U sqrt(S) and A = sqrt(S) R, rounded to float32 at the end.

    >>> weight, alike = torch.diag(torch.tensor([3.0, 2.0])), torch.eye(2)
    >>> for mode in ("keep", "preview"):
    ...     down, up = start_factors(weight, alike, 1, mode)
    ...     print((up @ down).abs().round(decimals=5).tolist())
    [[0.0, 0.0], [0.0, 2.0]]
    [[3.0, 0.0], [0.0, 0.0]]
    """
    left, sizes, right = decomposed(weight, energy)
    chosen = slice(len(sizes) - rank, None) if mode == "keep" else slice(0, rank)
    roots = sizes[chosen].sqrt()
    return (roots[:, None] * right[chosen]).float(), (left[:, chosen] * roots).float()


def joined_factors(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The factors of B1 A1 + B2 A2: A below one another and B side by side.

    >>> down, up = joined_factors((torch.ones(1, 2), torch.ones(3, 1)), (torch.ones(4, 2), torch.ones(3, 4)))
    >>> (up @ down)[0].tolist()
    [5.0, 5.0]
    """
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]], dim=1)


def kept_texts(path: Path, modality: str, tokens: int) -> Examples:
    """Examples to calibrate on from a text file, in pieces, or from a table in one of the layouts of language streams.

    A model that writes reads them as exchanges, a text encoder as their prompts with their answers. Pieces have so
    few characters that they fit in `tokens`, and at most as many as those of language streams.
    """
    if path.name.lower().endswith(TEXT_SUFFIXES):
        usual = LanguageConfig()
        how = usual.model_copy(update={"piece": min(usual.piece, max(1, 3 * tokens // 4))})
        found: list[Conversation] = document_exchanges(read_text(path), how)
    else:
        split = read_exchanges(path, path.stem, LanguageConfig())
        settle_bad_rows(split.bad, skip_bad=False)
        found = list(split.conversations)
    if find_modality(modality).conversations:
        return language_examples(found, range(len(found)))
    texts = ["\n".join(part for part in (one.prompt, one.answer) if part) for one in found]
    return Examples(texts, np.zeros(len(texts), dtype=np.int64), np.arange(len(texts)), "text")


def sampled(context: Context, dataset: Dataset, count: int) -> Dataset:
    """At most `count` of the examples, by the seed and the task."""
    if len(dataset) <= count:
        return dataset
    generator = numpy_generator(context.task.settings.seed, "calibration", context.task.index)
    rows = np.sort(generator.choice(len(dataset), size=count, replace=False))
    return Dataset.of(dataset.examples.take(rows), context.model.backbone, dataset.labels[rows], dataset.tasks[rows])


def wrapped_matrix(module: nn.Module) -> Tensor:
    """The frozen matrix (d_out, d_in) of a module that `peft` has wrapped."""
    return matrix_of(module.get_submodule("base_layer")).detach()


@final
class Corda(Around):
    """h = W x + sum over tasks of (B_t A_t - B0_t A0_t) x, where B0_t A0_t is a part of what W and earlier tasks had become.

    Every task trains a pair of its own that starts at a part of the effective weight W_t = W + what finished tasks
    changed: W_t C = U S V^T is taken apart, C being the second moment of the layer's inputs, and of the triplets of
    W_t = U S (V^T C^-1) the pair begins with the last `rank` (`keep`) or the first (`preview`), B0 = U sqrt(S) and
    A0 = sqrt(S) V^T C^-1. What the paper keeps as residual W - B0 A0 is here W, unchanged, and a frozen pair -A0, B0: the
    conversion form that the card of `peft` names, of rank 2 `rank`. So a task begins with the answers there were, in any
    precision of W, nothing derived is computed again after a stop, and without the adapter the base model is back.

    C of `preview`: the inputs of the task that begins. C of `keep`: the sum over finished tasks of each one's mean, taken
    when it ended; a layer's inputs may have moved since. Only the sums are kept, no example. The first task then has
    nothing to keep and starts as plain LoRA, B zero, unless `keep_file` names texts that count as a task before the first
    (a text file, or a table in a layout of language streams; a relative path starts at the current folder, and it is read
    when the first task begins, never again). Moments are over the tokens, without padding, of at most `samples` examples
    in the deterministic view, all tokens alike.

    Nothing holds A and B in these directions once training starts.

    Memory: 2 rank (d_in + d_out) per wrapped matrix and task, and with `keep` a d_in x d_in matrix per input.
    Compute: a pass over `samples` examples a task, and a Cholesky and a singular value decomposition per matrix.
    """

    name: ClassVar[str] = "corda"
    hides: ClassVar[tuple[type, ...]] = (TaskFactors, InputFactors)  # its factors begin at a part of the weight

    def __init__(
        self,
        *,
        rank: Rank = 8,
        mode: Annotated[Mode, "train what matters least to old tasks, or most to the new one"] = "keep",
        keep_file: Annotated[str | None, "texts to keep as a task before the first; null: none"] = None,
        samples: Annotated[int, "examples of a task that the decomposition looks at, from 1", "paper"] = 256,
        damp: Annotated[float, "share of its mean diagonal added to the second moment, above 0", "paper"] = 0.01,
        targets: Targets = "all-linear",
        layers: Layers = "all",
    ) -> None:
        if samples < 1 or not damp > 0:
            raise ConfigError(f"samples is {samples} and damp {damp}; give at least 1 example and a damping above 0")
        if keep_file is not None and mode != "keep":
            raise ConfigError(
                f"keep_file names texts to keep, but mode is {mode!r}; set mode: keep, or leave keep_file out"
            )
        self.rank, self.mode, self.keep_file, self.samples, self.damp = rank, mode, keep_file, samples, damp
        self._lora = LoraPerTask(rank=rank, alpha=rank, targets=targets, layers=layers)
        super().__init__(self._lora)
        self._moments: dict[str, Tensor] = {}
        self._leaders: dict[str, str] = {}

    def attach(self, backbone: Backbone, seed: int) -> None:
        if self.keep_file is not None and not backbone.reads_tokens:
            raise ConfigError(
                f"keep_file is {self.keep_file!r}, but the model reads images and not texts; leave it out"
            )
        self._lora.attach(backbone, seed)
        for name, module in self._lora.places().items():
            if self.rank > min(wrapped_matrix(module).shape):
                raise ConfigError(
                    f"rank is {self.rank}, but {name} is a matrix of {tuple(wrapped_matrix(module).shape)} and has no more "
                    f"triplets than {min(wrapped_matrix(module).shape)}; give at most that, or other targets"
                )

    def begin_task(self, context: Context) -> None:
        if not context.model.adapter_trainable:
            return
        if context.task.index == 0 and self.keep_file is not None:
            self._remember(context, self._kept_texts(context))
        self._lora.begin_task(context)
        if self.mode == "preview":
            moments = input_moments(context_of(context, context.task.data, self.samples), self._lora.places())
            starts = self._starts(moments.tensors, moments.leaders)
        else:
            starts = self._starts(self._moments, self._leaders)
        self._lora.load_state(started(self._lora.state(), starts), context)

    def end_task(self, context: Context) -> None:
        if context.model.adapter_trainable and self.mode == "keep":
            self._remember(context, context.task.data)

    def factors(self, *, finished: bool = False) -> Mapping[str, tuple[Tensor, Tensor]]:
        """A and B of the task by wrapped module, or all that is frozen: the finished pairs and the start of this one."""
        return self._lora.factors(finished=finished)

    def export(self, folder: Path) -> bool:
        """What this task changed, as one LoRA of twice the rank: [A; -A0] and [B, B0] on the unchanged base."""
        frozen = self.factors(finished=True)
        tensors: dict[str, Tensor] = {}
        for name, (down, up) in self.factors().items():
            start = (frozen[name][0][-self.rank :], frozen[name][1][:, -self.rank :])
            pair = joined_factors((down, up), start)
            tensors |= {
                name + end: value.detach().cpu().contiguous() for end, value in zip((DOWN, UP), pair, strict=True)
            }
        model = self._lora.wrapped
        model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
        config = copy(model.peft_config["default"])
        config.r, config.lora_alpha, config.inference_mode = 2 * self.rank, 2 * self.rank, True
        config.save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return True

    def state(self) -> State:
        moments = State(dict(self._moments), {"leaders": dict(self._leaders)})
        return State.nested({"lora": self._lora.state(), "moments": moments})

    def load_state(self, state: State, context: Context) -> None:
        self._lora.load_state(state.inner("lora"), context)
        moments, device = state.inner("moments"), context.model.backbone.device
        self._moments = {name: moment.clone().to(device) for name, moment in moments.tensors.items()}
        self._leaders = dict(moments.values["leaders"])

    def _kept_texts(self, context: Context) -> Dataset:
        assert self.keep_file is not None
        backbone, reader = context.model.backbone, context.model.backbone.parts.reader
        assert isinstance(reader, TextReader | LanguageReader)
        texts = kept_texts(Path(self.keep_file).expanduser(), backbone.modality, reader.max_length)
        return Dataset.of(texts, backbone, texts.labels, np.zeros(len(texts), dtype=np.int64))

    def _remember(self, context: Context, dataset: Dataset) -> None:
        """Add the second moments of these inputs to what is to be kept."""
        found = input_moments(context_of(context, dataset, self.samples), self._lora.places())
        self._leaders |= found.leaders
        for name, moment in found.tensors.items():
            new = moment.float()
            self._moments[name] = self._moments[name] + new if name in self._moments else new

    def _starts(self, moments: Mapping[str, Tensor], leaders: Mapping[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
        """A0 and B0 of every wrapped module; where nothing is to be kept yet, those that plain LoRA has."""
        plain, frozen = self.factors(), self.factors(finished=True)
        starts = {}
        for name, module in self._lora.places().items():
            starts[name] = (plain[name][0].detach(), plain[name][1].detach())
            leader = leaders.get(name, name)
            if leader in moments:
                weight = wrapped_matrix(module).double()
                if name in frozen:
                    down, up = frozen[name]
                    weight = weight + up.detach().double() @ down.detach().double()
                starts[name] = start_factors(weight, damped(moments[leader], self.damp), self.rank, self.mode)
        return starts


def context_of(context: Context, dataset: Dataset, count: int) -> Context:
    """The context with at most `count` of these examples in place of the task's own."""
    return context.with_data(sampled(context, dataset, count))


def started(state: State, starts: Mapping[str, tuple[Tensor, Tensor]]) -> State:
    """The state of one LoRA per task with A0 and B0 in the trained place and -A0 and B0 behind what is frozen."""
    tensors = dict(state.tensors)
    for name, (down, up) in starts.items():
        tensors[f"default/{name}{DOWN}"], tensors[f"default/{name}{UP}"] = down, up
        taken = (-down, up)
        if f"past/{name}{DOWN}" in tensors:
            taken = joined_factors((tensors[f"past/{name}{DOWN}"], tensors[f"past/{name}{UP}"]), taken)
        tensors[f"past/{name}{DOWN}"], tensors[f"past/{name}{UP}"] = taken
    return State(tensors, state.values)
