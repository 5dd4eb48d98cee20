"""OSF: every matrix is trained, but not where its strongest singular vectors lie (arXiv 2504.07097)."""

from typing import Annotated

from contune.adapter.weights.linear_layers import linear_layers
from contune.contract.options import Layers
from contune.head.linear import Linear
from contune.method.method import Method
from contune.rule.project.singular_subspace import SingularSubspace


def osf(
    *,
    minimum: Annotated[float, SingularSubspace] = 0.1,
    target: Annotated[float, SingularSubspace] = 0.8,
    examples: Annotated[int, SingularSubspace] = 256,
    from_start: Annotated[bool, SingularSubspace] = True,
    layers: Layers = "all",
    lr_scale: Annotated[float, linear_layers] = 0.01,
) -> Method:
    """Split every weight by its singular values, keep the strongest part and train the rest, anew for each task.

    A layer keeps more the more alike its outputs are to its inputs; equal `minimum` and `target` give every layer the
    same share. Nothing is added to the model that answers.

    Use it for full fine-tuning of a language model that must keep what it was pretrained for.

    Memory: the model in place of the base, and while a task is learned at most (m^2 + n^2) / 2 values for a weight (m,
    n).
    Compute: a full backward pass, an SVD of every weight at each task's beginning, four products with thin matrices per
    weight and step.
    Defaults: the shares are the paper's as far as we know them; rates, epochs and `examples` are ours.
    Differs:
    - The weight itself is trained between two projectors and not its factors U_l, S_l, V_l. The weights that can be
      reached are the same, those that differ by (1 - U_h U_h^T) M (1 - V_h V_h^T), but the optimizer walks in other
      coordinates; it starts at the old weight to the bit and needs no more numbers than the weight has.
    - Steps are projected and not gradients, which AdamW lets escape.
    - Similarities are taken by their size, as signed ones may cancel in the mean that they are divided by.
    - Shares are of the smaller dimension (the scripts: of the larger, which can freeze a matrix whole), and one
      singular vector always learns.
    - The first task is protected as well, unless `from_start` is false.
    - Biases, norms, embeddings and the language head stay as they are. Experts kept in one tensor are split one by one and
      keep the mean share.
    - A head of classes, each learned against its own task's, stands in for a language model's.

    >>> osf().rules[0].name
    'singular-subspace'
    """
    rule = SingularSubspace(minimum=minimum, target=target, examples=examples, from_start=from_start)
    adapter = linear_layers(layers=layers, lr_scale=lr_scale)
    return Method(adapter, Linear(loss_over="own-task"), (rule,), train={"lr": 1e-2, "epochs": 5})
