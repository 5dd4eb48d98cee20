"""The command that begins a method of one's own: `new`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from contune.errors import ConfigError

TEMPLATE = '''"""{title}: say in one line what is new, and where it was published."""

from typing import Annotated, ClassVar, final

import contune
from contune.contract.parts import Tensors


@final
class {cls}(contune.Rule):
    """Pulls the adapter back to where the last task left it: replace this by your own rule.

    Every hook of a rule is optional; `contune.Rule` lists them in the order in which they act. What it remembers between
    steps is in `state()` and nowhere else.
    """

    name: ClassVar[str] = "{name}"

    def __init__(self, *, strength: Annotated[float, "factor on the squared distance"] = 0.01) -> None:
        self.strength = strength
        self._anchor: Tensors = {{}}

    def penalty(self, context):
        """A term of the loss that depends on weights alone."""
        trained = context.model.trained()
        terms = [(trained[name] - value).square().sum() for name, value in self._anchor.items() if name in trained]
        return self.strength * sum(terms) if terms else None

    def end_task(self, context):
        """Look at the model while the task's data is still at hand."""
        named = context.model.trained().items()
        self._anchor = {{name: value.detach().clone() for name, value in named if name.startswith("adapter.")}}

    def state(self):
        """What must survive a stop, as tensors and plain values."""
        return contune.State(dict(self._anchor))

    def load_state(self, state, context):
        """Take back what `state` gave, on the model's device."""
        device = context.model.backbone.device
        self._anchor = {{name: value.to(device) for name, value in state.tensors.items()}}


def {function}(
    *,
    strength: Annotated[float, {cls}] = 0.01,
    rank: Annotated[int, "rank of the LoRA that is trained"] = 8,
) -> contune.Method:
    """One sentence on the idea.

    Use it where ... .

    Memory: a copy of the adapter.
    Compute: that of lora.
    Defaults: ours.
    """
    rule = {cls}(strength=strength)
    return contune.Method(contune.adapters.lora(rank=rank), contune.heads.linear(), (rule,), train={{"lr": 2e-3}})
'''


def new(
    what: Annotated[Literal["method"], typer.Argument(help="What to begin: method.")],
    name: Annotated[str, typer.Argument(help="Its name, such as slow-anchor; the file is named after it.")],
    out: Annotated[Path, typer.Option(help="The folder for the new file.")] = Path(),
) -> None:
    """Write a file with a method of your own that passes the common checks, to go on from.

    Example: contune new method slow-anchor; contune check slow_anchor.py; contune run CONFIG --plugin slow_anchor.py
    --set method=slow-anchor
    """
    del what
    function = name.replace("-", "_")
    if not function.isidentifier() or not function.islower():
        raise ConfigError(f"the name is {name!r}; give small letters, digits and dashes, such as slow-anchor")
    path = out / f"{function}.py"
    if path.exists():
        raise ConfigError(f"{path} exists already and is never overwritten; give another name or --out")
    title = name.replace("-", " ").capitalize()
    cls = "".join(word.capitalize() for word in function.split("_")) + "Rule"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.format(title=title, cls=cls, name=f"{name}-rule", function=function), encoding="utf-8")
    typer.echo(path)
    typer.echo(f"try it: contune check {path}")
