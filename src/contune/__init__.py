"""contune keeps pretrained models learning: parameter-efficient continual fine-tuning.

    stream = contune.Stream.of(train=frame, test=frame, tasks=5)
    results = contune.Session(contune.Learner(model, "er"), stream).run()

Parts and recipes are found by name as well: `contune.adapters.lora(rank=4)`, `contune.methods.ranpac()`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contune.backbone.config import ModelConfig as ModelConfig
    from contune.contract.context import Context as Context
    from contune.contract.objective import Objective as Objective
    from contune.contract.objective import Prediction as Prediction
    from contune.contract.parts import Adapter as Adapter
    from contune.contract.parts import Head as Head
    from contune.contract.parts import Router as Router
    from contune.contract.parts import Rule as Rule
    from contune.contract.state import State as State
    from contune.engine.learner import Learner as Learner
    from contune.engine.predictor import Predictor as Predictor
    from contune.engine.predictor import Scores as Scores
    from contune.engine.session import Results as Results
    from contune.engine.session import Session as Session
    from contune.living.model import Answer as Answer
    from contune.living.model import LivingModel as LivingModel
    from contune.method.method import Method as Method
    from contune.stream.build import load_stream as load_stream
    from contune.stream.config import StreamConfig as StreamConfig
    from contune.stream.online import Online as Online
    from contune.stream.task import Examples as Examples
    from contune.stream.task import Stream as Stream
    from contune.stream.task import Targets as Targets
    from contune.stream.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "contune.contract.parts",
    "Answer": "contune.living.model",
    "Context": "contune.contract.context",
    "Examples": "contune.stream.task",
    "Head": "contune.contract.parts",
    "Learner": "contune.engine.learner",
    "LivingModel": "contune.living.model",
    "Method": "contune.method.method",
    "ModelConfig": "contune.backbone.config",
    "Objective": "contune.contract.objective",
    "Online": "contune.stream.online",
    "Prediction": "contune.contract.objective",
    "Predictor": "contune.engine.predictor",
    "Results": "contune.engine.session",
    "Router": "contune.contract.parts",
    "Rule": "contune.contract.parts",
    "Scores": "contune.engine.predictor",
    "Session": "contune.engine.session",
    "State": "contune.contract.state",
    "Stream": "contune.stream.task",
    "StreamConfig": "contune.stream.config",
    "Targets": "contune.stream.task",
    "Task": "contune.stream.task",
    "load_stream": "contune.stream.build",
}
_NAMESPACES = {"adapters": "adapter", "heads": "head", "rules": "rule", "routers": "router", "methods": "method"}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import contune` stays instant."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _NAMESPACES:
        return import_module("contune.method.namespaces").namespace(_NAMESPACES[name])
    raise AttributeError(f"module 'contune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMESPACES, "__version__"])
