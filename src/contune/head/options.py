"""Options that many heads share, with what they mean; a source of a default is added where one head has one."""

from typing import Annotated, Literal

LossOver = Annotated[
    Literal["seen", "own-task"], "classes that compete in the loss: all seen so far, or the task's own alone"
]
HeadLrScale = Annotated[float, "learning rate of the head, as a multiple of train.lr"]
