"""CorDA: low-rank adaptation that starts from a decomposition of the weights, seen through data (arXiv 2406.05223)."""

from typing import Annotated, Literal

from contune.adapter.lora.corda import Corda
from contune.contract.options import Layers, Targets
from contune.head.linear import Linear
from contune.method.method import Method


def corda(
    *,
    rank: Annotated[int, Corda] = 8,
    mode: Annotated[Literal["keep", "preview"], Corda] = "keep",
    keep_file: Annotated[str | None, Corda] = None,
    samples: Annotated[int, Corda] = 256,
    damp: Annotated[float, Corda] = 0.01,
    targets: Targets = "all-linear",
    layers: Layers = "all",
) -> Method:
    """Train the parts of the weights that matter least to finished tasks (`keep`) or most to the new one (`preview`).

    Each task has a pair B A of its own, which starts at `rank` of the triplets of W = U S (V^T C^-1), where C is the
    second moment of the layer's inputs: the last ones, C being of finished tasks' data and, if given, of the texts in
    `keep_file`; or the first ones, C being of the task that begins. It protects the past by where it starts and by
    nothing else.

    Use it as a gentle protection that keeps no example: in mode keep with texts of what the pretrained model should not
    lose.

    Memory: 2 rank (d_in + d_out) per wrapped matrix and task, and in mode keep a d_in x d_in matrix in float32 for
    every input of linear layers, 0.5 GB for ViT-B.
    Compute: a pass over `samples` examples before or after each task, and per matrix a Cholesky and a singular value
    decomposition in float64.
    Defaults: 256 samples and damping 0.01 as in the paper, cosine with 3 percent warm-up; its rank 128, one epoch and
    2e-5 are for Llama-2-7B with 100 thousand examples, and rank 8, five epochs and 1e-3 are ours.
    Differs:
    - Made for one task after pretraining, here for a stream, with a decomposition of what the weight has become and a
      new pair in every task.
    - What is to be kept are moments of finished tasks in place of question-answering texts, so in the first task,
      without `keep_file`, mode keep is plain LoRA.
    - C is scaled as a whole to a mean diagonal of 1, and not batch by batch by the largest input, so that all tokens
      weigh the same; all sums are over tokens, all decompositions in float64, where the damping need not grow.
    - The last triplets are those of least ||B A C||, as in the paper; how much they move typical inputs, ||B A
      C^(1/2)||, is mostly but not always least too.

    >>> corda().adapter.name
    'corda'
    """
    adapter = Corda(
        rank=rank, mode=mode, keep_file=keep_file, samples=samples, damp=damp, targets=targets, layers=layers
    )
    train = {"lr": 1e-3, "epochs": 5, "schedule": "cosine", "warmup": 0.03}
    return Method(adapter, Linear(), train=train)
