"""Small tasks whose written answers have options."""

from dataclasses import replace

from language_tasks import experience

from contune.stream.conversation import language_examples
from contune.stream.task import Task


def chosen(name: str, odd: str = "yes", even: str = "no") -> Task:
    """A lesson whose training examples have options as well."""
    task = experience(name, odd, even)
    conversations = [replace(one, options=(odd, even)) for one in task.train.inputs]
    return Task(task.name, task.class_names, language_examples(conversations, range(8)), task.test)
