"""What the options of recipes and parts mean: read off the annotations that stand beside them in the signature.

`strength: Annotated[float, "factor of the penalty, from 0", "paper, table 2"] = 1.0` says what an option does and where
its default comes from; without a source the default is our own choice. A recipe that hands an option on to a part names
the part in place of a text, `strength: Annotated[float, EWC] = 100.0`, or `Annotated[float, of(EWC, "strength")]` where
the names differ: the meaning is the part's, and so is the source while the default is. So everything is explained once.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, final, get_args, get_origin, get_type_hints

OURS = "ours"  # the source of a default that nobody else has chosen
WORDS: Mapping[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null"}


@final
@dataclass(frozen=True)
class Of:
    """The option of a part that this one is handed on to."""

    part: Callable[..., Any]
    option: str


def of(part: Callable[..., Any], option: str) -> Of:
    """Explains an option of a recipe by the option of another name that it becomes in a part.

    >>> def penalty(*, strength: Annotated[float, "factor of the penalty"] = 1.0): ...
    >>> def recipe(*, pull: Annotated[float, of(penalty, "strength")] = 1.0): ...
    >>> options_of(recipe)["pull"].meaning
    'factor of the penalty'
    """
    return Of(part, option)


@final
@dataclass(frozen=True)
class Option:
    """One option; `kind` is the type alone, and `default` is `inspect.Parameter.empty` where it has none."""

    name: str
    kind: Any
    default: Any
    meaning: str
    source: str

    @property
    def words(self) -> str:
        """What may be given, in words."""
        return kind_in_words(self.kind)

    def sentence(self) -> str:
        """What to give, for whoever gave something else.

        >>> Option("size", int, 500, "examples kept", OURS).sentence()
        'give whole number (500 by default): examples kept'
        """
        default = "" if self.default is inspect.Parameter.empty else f" ({shown_value(self.default)} by default)"
        return f"give {self.words}{default}" + (f": {self.meaning}" if self.meaning else "")


@cache
def options_of(make: Callable[..., Any]) -> Mapping[str, Option]:
    """The options of a recipe or part in the order of its signature.

    >>> def recipe(*, size: Annotated[int, "examples kept", "paper, section 4"] = 500): ...
    >>> options_of(recipe)["size"]
    Option(name='size', kind=<class 'int'>, default=500, meaning='examples kept', source='paper, section 4')
    """
    hints = annotations_of(make)
    parameters = inspect.signature(make).parameters.values()
    return {each.name: _option(each, hints.get(each.name, Any)) for each in parameters}


def annotations_of(make: Callable[..., Any]) -> Mapping[str, Any]:
    """The annotations of a function, or of the constructor of a class, with what they say beside the types."""
    return get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)


def kind_in_words(kind: Any) -> str:
    """A type as somebody who writes YAML would say it.

    >>> kind_in_words(int | None), kind_in_words(Literal["task", "batch"]), kind_in_words(str | list[int])
    ('whole number or null', 'task or batch', 'text or list of whole numbers')
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind_in_words(inner[0])
    if origin in (Union, UnionType):
        names = [kind_in_words(each) for each in inner]
        return " or ".join(dict.fromkeys(names))
    if origin is Literal:
        *most, last = [shown_value(each) for each in inner]
        return f"{', '.join(most)} or {last}" if most else last
    if origin is list:
        return "list of " + " or ".join(f"{words}s" for words in kind_in_words(inner[0]).split(" or "))
    return WORDS.get(kind, "anything" if kind is Any else "mapping")


def shown_value(value: Any) -> str:
    """A value as it is written in YAML.

    >>> shown_value(None), shown_value(True), shown_value(1e-05), shown_value("all"), shown_value([0, 1])
    ('null', 'true', '1e-5', 'all', '[0, 1]')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    return f"[{', '.join(map(shown_value, value))}]" if isinstance(value, list | tuple) else str(value)


def _option(parameter: inspect.Parameter, annotation: Any) -> Option:
    kind, *said = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    meaning = source = ""
    for each in said:
        if isinstance(each, str):
            meaning, source = (meaning, each) if meaning else (each, source)
        elif isinstance(each, Of) or callable(each):
            target = each if isinstance(each, Of) else Of(each, parameter.name)
            known = options_of(target.part)
            if target.option not in known:
                raise LookupError(f"option {parameter.name!r} is explained by {target}, which has no such option")
            meaning = known[target.option].meaning
            source = known[target.option].source if known[target.option].default == parameter.default else ""
    return Option(parameter.name, kind, parameter.default, meaning, source or OURS)
