"""A closer look at rehearsal-free continual learning: four regularisers on the attention weights (arXiv 2203.17269)."""

from typing import Annotated, Literal

from contune.adapter.weights.attention import attention
from contune.adapter.weights.subset import full
from contune.contract.options import Layers, LrScale
from contune.contract.parts import Rule
from contune.head.linear import Linear
from contune.head.options import LossOver
from contune.method.method import Method
from contune.rule.anchor.distillation import Distillation
from contune.rule.anchor.extractor_anchor import ExtractorAnchor
from contune.rule.anchor.feature_distillation import FeatureDistillation

Regulariser = Literal["l2", "ewc", "prediction", "feature"]
STRENGTHS: dict[Regulariser, float] = {"l2": 0.01, "ewc": 100.0, "prediction": 1.0, "feature": 0.1}


def rehearsal_free(
    *,
    regulariser: Annotated[Regulariser, "what holds the model to its past", "paper"] = "l2",
    strength: Annotated[float | None, "weight of the regulariser, from 0; null: our own value of each"] = None,
    trained: Annotated[Literal["attention", "full"], "queries, keys and values, or all", "paper"] = "attention",
    loss_over: Annotated[LossOver, "the paper's FT++"] = "own-task",
    temperature: Annotated[float, Distillation] = 2.0,
    examples: Annotated[int, ExtractorAnchor] = 200,
    layers: Layers = "all",
    lr_scale: LrScale = 0.1,
) -> Method:
    """Train query, key and value weights (or all), held to the last task's weights, features or predictions.

    `l2` and `ewc` anchor the feature extractor, never the head; `l2` from the pretrained weights on. `prediction` and
    `feature` compare the model with itself before the task.

    Use it to compare regularisers on equal terms, without old examples and without an adapter beside the model.

    Memory: the trained weights once more, twice with `ewc`.
    Compute: a full backward pass; `prediction` and `feature` need one more forward pass a step.
    Defaults: strengths are our own, 0.01, 100, 1 and 0.1 in the order of the regularisers; the paper's come from a
    sweep; rates, epochs and `examples` are ours, temperature 2 is that of LwF.
    Differs:
    - Cross-entropy over the task's own classes (the paper's FT++ and CODA's baseline) in place of sigmoid losses with
      distilled old scores, which changes results more than the regulariser does.
    - Fisher information from single examples, not from batches.

    >>> rehearsal_free(regulariser="feature").rules[0].name
    'feature-distillation'
    """
    weight = STRENGTHS[regulariser] if strength is None else strength
    rule: Rule
    if regulariser == "prediction":
        rule = Distillation(weight=weight, temperature=temperature)
    elif regulariser == "feature":
        rule = FeatureDistillation(weight=weight)
    else:
        importance: Literal["none", "fisher"] = "none" if regulariser == "l2" else "fisher"
        rule = ExtractorAnchor(strength=weight, importance=importance, examples=examples)
    adapter = (attention if trained == "attention" else full)(layers=layers, lr_scale=lr_scale)
    return Method(adapter, Linear(loss_over=loss_over), (rule,), train={"lr": 1e-3, "epochs": 5})
