"""What a run writes of itself for whoever reads it: `results.json`."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from contune.contract.objective import Measure
from contune.engine.learner import Learner
from contune.engine.session import Session
from contune.run.config import RunConfig


def results_of(session: Session, config: RunConfig, notes: Sequence[str], *, finished: bool) -> dict[str, Any]:
    """Everything that `results.json` holds."""
    learner, stream = session.learner, session.stream
    measured, rows = session.measured, session.rows_done()
    done, (main, *others) = measured.main[:rows], learner.objective.measures
    further = [{**described(one), "matrix": measured.matrices[one.name][:rows]} for one in others]
    method = config.method if isinstance(config.method, dict) else {"name": config.method}
    return {
        "format": 1,
        "finished": finished,
        "method": config.label(),
        "method_config": method,
        "stream": stream_facts(session, notes),
        "accuracy_matrix": done,
        "measure": described(main),
        **({"retention": measured.retention} if measured.retention else {}),
        **({"diagnostics": measured.diagnostics} if any(measured.diagnostics) else {}),
        **({"anytime": measured.anytime} if measured.anytime else {}),
        **({"measures": further} if further else {}),
        "metrics": session.metrics(),
        "cost": costs(learner),
        "model": {
            "path": learner.backbone.config.path,
            "sha256": learner.base_hash,
            # Reads every weight, so it is asked once.
            **({"base_unchanged": learner.base_unchanged()} if finished else {}),
            "feature": learner.backbone.feature,
            "precision": learner.backbone.precision,
        },
        "seeds": {"train": learner.settings.seed, "order": stream.order_seed},
        "versions": {name: version(name) for name in ("contune", "torch", "transformers", "peft", "numpy")},
    }


def stream_facts(session: Session, notes: Sequence[str]) -> dict[str, Any]:
    """What the stream is: kind, objective, tasks, sizes."""
    stream, tasks = session.stream, session.stream.tasks
    return {
        "name": stream.name,
        "kind": stream.kind,
        "objective": stream.objective,
        "tasks": len(tasks),
        "task_names": [task.name for task in tasks],
        "classes_per_task": [len(task.class_names) for task in tasks],
        "train_examples": [len(task.train) for task in tasks],
        "test_examples": [len(task.test) for task in tasks],
        "modality": stream.modality,
        "order_seed": stream.order_seed,
        "notes": list(notes),
        "hash": stream.content_hash(),
    }


def costs(learner: Learner) -> dict[str, Any]:
    """Parameters, bytes, seconds and counts."""
    ledger = learner.ledger.values()
    seconds = ledger["seconds"]
    return {
        "trainable_parameters": learner.trainable_parameters,
        "total_parameters": sum(p.numel() for p in learner.backbone.base_parameters().values()),
        "stored_bytes": learner.stored_bytes(),
        "train_seconds": sum(seconds.get(phase, 0.0) for phase in ("begin", "train", "fit", "end")),
        "eval_seconds": seconds.get("evaluate", 0.0),
        **ledger,
    }


def described(measure: Measure) -> dict[str, Any]:
    """What a reader of results needs to know of a measure."""
    return {
        "name": measure.name,
        "title": measure.title,
        "meaning": measure.meaning,
        "higher_is_better": measure.higher_is_better,
        "share": measure.share,
    }
