"""The `stream` section of a configuration: which data, cut into which tasks. Checked as far as no file is needed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from contune.stream.conversation import Measure
from contune.stream.task import Kind

PathText = Annotated[str, Field(min_length=1)]
Paths = PathText | Annotated[list[PathText], Field(min_length=1)]
Files = Paths | Annotated[dict[str, Paths], Field(min_length=1)]
ObjectiveName = Literal["classify", "multi-label", "regress", "tag", "write"]
KIND_OF_OBJECTIVE: Mapping[str, Kind] = {"write": "domain-incremental", "regress": "domain-incremental"}
TEXT_SUFFIXES = (".txt", ".txt.gz", ".md")


def _refuse_repeats(key: str, names: Sequence[str] | None) -> None:
    repeated = [name for name in dict.fromkeys(names or ()) if list(names or ()).count(name) > 1]
    if repeated:
        raise ValueError(f"{key} names {repeated[0]!r} more than once; give every name once")


class DataConfig(BaseModel):
    """Where the examples are, and in which columns.

    Exactly one of `train` (with `test`), `folder` and `hub` says where. `train`, `test` and `validation` are a path, a
    glob, a list of them, or a mapping from domain to any of these; beside `hub` they are names of its splits. Columns
    left out are found by their usual names.

    >>> DataConfig(train="train.csv", test="test.csv").text is None
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Files | None = None
    test: Files | None = None
    validation: Files | None = None
    folder: PathText | None = None
    hub: PathText | None = None
    name: str | None = None
    text: str | None = None
    image: str | None = None
    label: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folder is not None and self.hub is not None:
            raise ValueError("data has both folder and hub; give one of them")
        if self.folder is not None and (self.train or self.test or self.validation):
            raise ValueError("data has both folder and train, test or validation; give the folder or the files")
        if self.folder is None and self.hub is None and self.train is None:
            raise ValueError(
                "data says nothing about where the examples are; give train and test, a folder or a hub id"
            )
        if self.name is not None and self.hub is None:
            raise ValueError(f"data.name is {self.name!r} but names a part of a hub data set; give data.hub too")
        if self.text is not None and self.image is not None:
            raise ValueError("data.text and data.image are both given; a stream has texts or images, name one of them")
        if self.hub is not None:
            for split in ("train", "test", "validation"):
                if not isinstance(getattr(self, split), str | None):
                    raise ValueError(f"data.{split} beside data.hub must be the name of one split")
        elif self.folder is None:
            self._check_files()
        return self

    def _plain_text(self) -> bool:
        """Whether every training file is plain text, whose own end can test what was learned."""
        groups = self.train.values() if isinstance(self.train, dict) else [self.train or ""]
        files = [file for group in groups for file in ([group] if isinstance(group, str) else group)]
        return all(file.lower().endswith(TEXT_SUFFIXES) for file in files)

    def _check_files(self) -> None:
        if self.test is None and not self._plain_text():
            raise ValueError(
                "data.train is given but data.test is not; a stream needs a test file, because nothing else may "
                "measure what was learned"
            )
        for split in ("test", "validation"):
            files = getattr(self, split)
            if files is not None and isinstance(self.train, dict) != isinstance(files, dict):
                raise ValueError(f"data.train and data.{split} must both be mappings from domain to file, or neither")
            if isinstance(self.train, dict) and isinstance(files, dict):
                unpaired = self.train.keys() ^ files.keys() if split == "test" else files.keys() - self.train.keys()
                if unpaired:
                    raise ValueError(
                        f"domain {min(unpaired)!r} is in only one of data.train and data.{split}; give both "
                        "files for it"
                    )


class StylesConfig(BaseModel):
    """What share of each task's training exchanges is asked in another style (see `contune.stream.answer_styles`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2


class LanguageConfig(BaseModel):
    """How rows become prompts and answers, and documents pieces (`objective: write`).

    `prompt` is a template over the columns of a table, such as `"{question}\\n{context}"`, and `answer` the column of the
    right answer (one text, or a list of which each is right); left out, the usual layouts are known. `instructions` come
    before the prompts of the domains they name, `name_in_prompt` puts the domain's name there, off because it tells the
    model which task it is in. `options` are what answers are chosen from: a list, a column of lists, or `answers` for
    every answer that the domain's training data has.

    `measure`: `exact-match` (case, punctuation and articles aside), `rouge-l`, `number` (the last one), `options` (the
    option that a written answer names), `likelihood` (the option with the highest mean log-probability per token), and
    for documents always `tokens` (share of next tokens that are right). `auto` is likelihood where there are options,
    else exact-match.

    Plain text is cut into pieces of at most `piece` characters; `boundary` separates documents in a file, and `held_out` is
    the share at each file's end that tests, where no test file is given. `test_examples` is the most a domain is tested
    on, chosen by `stream.seed`. `retention_sets` are files of any of these forms that no task learns: how the model answers
    them is measured before the first task and after every task (retained ability). `styles` recasts a share of the training
    exchanges into other answer styles (multiple choice, yes or no, phrase, sentence), never those that test.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: PathText | None = None
    answer: str | None = None
    instructions: dict[str, str] | None = None
    name_in_prompt: bool = False
    options: Literal["answers"] | str | Annotated[list[str], Field(min_length=2)] | None = None
    measure: Literal["auto"] | Measure = "auto"
    piece: Annotated[int, Field(ge=50)] = 600
    boundary: PathText | None = None
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    test_examples: Annotated[int, Field(ge=1)] | None = None
    retention_sets: Annotated[dict[str, Paths], Field(min_length=1)] | None = None
    styles: StylesConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.measure in ("options", "likelihood") and self.options is None:
            raise ValueError(
                f"language.measure is {self.measure}, but nothing says what the options are; give language.options: a list, "
                "a column, or answers"
            )
        return self


def _data_tag(value: Any) -> str:
    return "mapping" if isinstance(value, Mapping | DataConfig) else "name"


class StreamConfig(BaseModel):
    """Which data arrives in which tasks.

    `data` is a built-in name, a folder, a hub id, or a mapping with the keys of `DataConfig`. `tasks` cuts the ordered
    classes into parts whose sizes differ by at most one (the first ones larger), `sizes` gives the classes per task.
    `by` names the column whose values are the tasks (for an image folder: the folder level above the classes);
    `domains` and `classes` declare their order, which is sorted otherwise. `order_seed` permutes that order; null
    keeps it. `validation` is the share of each class's training examples that is held out, `per_class` the most
    training examples a class keeps within a task, both chosen by `seed` alone. `skip_bad` leaves out bad rows and
    says so in the stream's notes.

    `objective` says what an answer is: one class (`classify`), several labels (`multi-label`), a tag for each word
    (`tag`), numbers (`regress`) or a text (`write`). `objective: write` takes `data` as mappings from domain to file, one
    task a domain, and reads them as `language` says.

    >>> StreamConfig(data="digits").kind
    'class-incremental'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[Annotated[PathText, Tag("name")] | Annotated[DataConfig, Tag("mapping")], Discriminator(_data_tag)]
    objective: ObjectiveName = "classify"
    kind: Kind = "class-incremental"
    tasks: Annotated[int, Field(ge=1)] | None = None
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    by: str | None = None
    domains: Annotated[list[str], Field(min_length=1)] | None = None
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    order_seed: Annotated[int, Field(ge=0)] | None = 0
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    per_class: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    skip_bad: bool = False
    language: LanguageConfig | None = None

    @property
    def grouped_files(self) -> bool:
        """Whether the files themselves are given by domain."""
        return isinstance(self.data, DataConfig) and isinstance(self.data.train, dict)

    @property
    def grouped(self) -> bool:
        """Whether tasks are groups that the data names, and not parts of the class order."""
        return self.kind == "domain-incremental" or self.by is not None or self.grouped_files

    @model_validator(mode="before")
    @classmethod
    def _kind_of_objective(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if values.get("kind") == "language":
            raise ValueError(
                "kind: language is now objective: write, with kind: domain-incremental or no kind; set objective: write"
            )
        if values.get("kind") is None:
            return {**values, "kind": KIND_OF_OBJECTIVE.get(values.get("objective", "classify"), "class-incremental")}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_repeats("classes", self.classes)
        _refuse_repeats("domains", self.domains)
        if self.language is not None and self.objective != "write":
            raise ValueError(
                f"language says how text is learned as text, but objective is {self.objective}; set objective: write"
            )
        if self.tasks is not None and self.sizes is not None:
            raise ValueError("tasks and sizes are both given; give one of them")
        if self.by is not None and self.grouped_files:
            raise ValueError(
                "by is given, but data.train is a mapping that names the domains already; give one of them"
            )
        if self.grouped and self.sizes is not None:
            raise ValueError("sizes cuts the class order, but here every domain is one task; leave sizes out")
        if not self.grouped and self.domains is not None:
            raise ValueError("domains is given, but nothing says where they are; give by, the column with the domain")
        if isinstance(self.data, DataConfig):
            if self.validation > 0 and self.data.validation is not None:
                raise ValueError(
                    "validation (a share of training data) and data.validation are both given; give one of them"
                )
            named = self.by is not None or self.grouped_files or self.data.folder is not None
            if self.kind == "domain-incremental" and not named:
                raise ValueError(
                    "kind is domain-incremental, but nothing says which domain a row is from; give by (a column), or "
                    "data.train and data.test as mappings from domain to file"
                )
        return self
