"""Bodies of requests: what may be in them, and one sentence about what is wrong with them."""

from typing import Annotated, TypeVar, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contune.serve.limits import Refusal

MOST_SHOWN = 60


class Body(BaseModel):
    """A JSON object in which nothing is guessed: no other keys, no text for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@final
class PredictBody(Body):
    """Texts to be answered, all by one version; `task` is the place of the task where tasks are named when asked."""

    inputs: list[str] = Field(description="texts to be answered")
    task: int | None = Field(None, ge=0, lt=2**31, description="the task, from 0; task-incremental models alone")


@final
class FeedbackBody(Body):
    """What would have been right."""

    request_id: str = Field(min_length=1, max_length=64, description="the request_id that came with the answers")
    label: str = Field(min_length=1, max_length=200, description="the right label; a new class is welcome")
    input: int = Field(0, ge=0, lt=2**31, description="which input of the request, from 0")


Reason = Annotated[str, Field(min_length=1, max_length=500, description="why; it stands in the history")]


@final
class PromoteBody(Body):
    """The version that shall answer."""

    version: str | int = Field(description="a number, a name, or the beginning of an id")
    reason: Reason


@final
class RollbackBody(Body):
    """The version to go back to; the parent of the one that answers where none is named."""

    version: str | int | None = Field(None, description="a number, a name, or the beginning of an id")
    reason: Reason


B = TypeVar("B", bound=Body)


def read_body(form: type[B], data: bytes) -> B:
    """The body that these bytes are; a Refusal says in one sentence what is wrong with the first thing that is.

    >>> read_body(PredictBody, b'{"inputs": ["a"]}').inputs
    ['a']
    >>> read_body(PredictBody, b'{"inputs": [1]}')
    Traceback (most recent call last):
    contune.serve.limits.Refusal: inputs.0 of the body: input should be a valid string
    """
    try:
        return form.model_validate_json(data)
    except ValidationError as error:
        raise Refusal(422, sentence_of(error)) from None


def sentence_of(error: ValidationError) -> str:
    """The first of what pydantic has found."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(shown(str(one)) for one in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{place} of the body: {message}" if place else f"the body: {message}"


def shown(text: str) -> str:
    """A client's own key, short and visible.

    >>> shown("a\\nb")
    'a?b'
    """
    return "".join(sign if sign.isprintable() else "?" for sign in text[:MOST_SHOWN])


def check_label(label: str) -> str:
    """A label without the white space around it; one with control characters would become a class's name."""
    clean = label.strip()
    if not clean or not clean.isprintable():
        raise Refusal(422, "label is empty or holds control characters; send the name of a class")
    return clean
