"""The sections of a configuration: which model holds which keys, what each key means and what may be given."""

from collections.abc import Mapping

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from contune.contract.settings import TrainSettings
from contune.method.options import Option, kind_in_words
from contune.run.config import RunConfig, model_in

BOUNDS: Mapping[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "from"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "to"),
    annotated_types.Lt: ("lt", "below"),
}


def sections() -> dict[str, type[BaseModel]]:
    """Every section by its dotted key; the whole configuration is the one without a name.

    >>> list(sections())[:4]
    ['', 'model', 'stream', 'stream.data']
    """
    return {"": RunConfig, **inner_sections(RunConfig, "")}


def inner_sections(model: type[BaseModel], prefix: str) -> dict[str, type[BaseModel]]:
    """The sections inside a section."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        inner = TrainSettings if (model, name) == (RunConfig, "train") else model_in(field.annotation)
        if inner is not None:
            found |= {prefix + name: inner, **inner_sections(inner, f"{prefix}{name}.")}
    return found


def keys_of(model: type[BaseModel]) -> dict[str, Option]:
    """The keys of a section as options: their source is empty, since nearly all defaults are ours."""
    return {
        name: Option(name, field.annotation, field.get_default(call_default_factory=True), field.description or "", "")
        for name, field in model.model_fields.items()
    }


def allowed_values(field: FieldInfo) -> str:
    """What a key may hold, with its bounds.

    >>> allowed_values(TrainSettings.model_fields["momentum"]), allowed_values(TrainSettings.model_fields["clip"])
    ('number from 0 below 1', 'number above 0 or null')
    """
    kinds = [(kind, name, word) for kind, (name, word) in BOUNDS.items()]
    bounds = [
        f" {word} {getattr(each, name):g}"
        for each in field.metadata
        for kind, name, word in kinds
        if isinstance(each, kind)
    ]
    words = kind_in_words(field.annotation)
    plain = words.removesuffix(" or null")
    return plain + "".join(bounds) + words.removeprefix(plain)
