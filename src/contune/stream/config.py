"""The `stream` section of a configuration: which data, cut into which tasks. Checked as far as no file is needed."""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from contune.errors import ConfigError
from contune.metric.answers.text import same_forms
from contune.metric.forms.words import Form
from contune.stream.conversation import Measure
from contune.stream.inputs import KEPT_MB
from contune.stream.online import Online
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

    Exactly one of `train` (with `test`), `folder` and `hub` says where. Beside `hub`, `train`, `test` and `validation` are
    names of its splits.

    >>> DataConfig(train="train.csv", test="test.csv").text is None
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Files | None = Field(
        None, description="training files: a path, a glob, a list, or a mapping from domain to them"
    )
    test: Files | None = Field(None, description="test files, in the form of train; plain text may do without")
    validation: Files | None = Field(None, description="validation files, in the form of train")
    folder: PathText | None = Field(None, description="folder of images, one folder a class, in place of files")
    hub: PathText | None = Field(None, description="id of a hub data set, whose splits train, test and validation name")
    name: str | None = Field(None, description="hub: which part of the data set, where it has several")
    text: str | None = Field(None, description="column of the texts; null: found by its usual names")
    image: str | None = Field(None, description="column of the images; null: found by its usual names")
    input: Annotated[dict[str, str | list[str]], Field(min_length=1, max_length=1)] | None = Field(
        None, description="columns of inputs of any modality, such as {points: [x, y]}, in place of text and image"
    )
    label: str | None = Field(None, description="column of the classes; null: found by its usual names")

    @property
    def input_columns(self) -> tuple[str, tuple[str, ...]] | None:
        """The modality of the inputs and the columns they are in, where they are named."""
        given = {"text": self.text, "image": self.image} if self.input is None else self.input
        named = {name: columns for name, columns in given.items() if columns is not None}
        return next(
            ((name, (found,) if isinstance(found, str) else tuple(found)) for name, found in named.items()), None
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_place()
        if self.text is not None and self.image is not None:
            raise ValueError("data.text and data.image are both given; a stream has texts or images, name one of them")
        if self.input is not None and (self.text is not None or self.image is not None):
            raise ValueError("data.input is given beside data.text or data.image; name the columns of the inputs once")
        if self.hub is not None:
            for split in ("train", "test", "validation"):
                if not isinstance(getattr(self, split), str | None):
                    raise ValueError(f"data.{split} beside data.hub must be the name of one split")
        elif self.folder is None:
            self._check_files()
        return self

    def _check_place(self) -> None:
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


def template_columns(template: str) -> tuple[str, ...]:
    """The columns named in a template; `ConfigError`, saying what to write, where it is none.

    >>> template_columns("{question} in {{braces}}: {context}")
    ('question', 'context')
    """
    try:
        parts = [(name, how, turned) for _, name, how, turned in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"stream.language.prompt {template!r} has a brace without its other half ({error}); write {{{{ or }}}} for a "
            "brace that is text"
        ) from error
    for name, how, turned in parts:
        if not name or how or turned or any(sign in name for sign in ".[]"):
            raise ConfigError(
                f"stream.language.prompt {template!r} has {{{name}}} with nothing in braces, or a point, bracket or format; "
                "name a column in them as it is (rename one whose name has such signs), and write {{ or }} for a brace that "
                "is text"
            )
    return tuple(dict.fromkeys(name for name, _, _ in parts))


class StylesConfig(BaseModel):
    """What share of each task's training exchanges is asked in another style (see `contune.stream.chat.answer_styles`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.2, ge=0.0, le=1.0, description="share of the training exchanges that are recast; ours")


class LanguageConfig(BaseModel):
    """How rows become prompts and answers, and documents pieces (`objective: write`).

    `prompt` is a template over the columns of a table, such as `"{question}\\n{context}"`; left out, the usual layouts are
    known.

    `measure`: `exact-match` (case and sentence marks aside), `rouge-l`, `number` (the last one), `options` (the
    option that a written answer names), `likelihood` (the option with the highest mean log-probability per token), and
    for documents always `tokens` (share of next tokens that are right). `auto` is likelihood where there are options,
    else exact-match. `normalise` says what answers are compared by: `plain` keeps whatever makes a difference, in every
    script; `squad` is the evaluation of SQuAD (no articles, no punctuation) and `superni` that of Super-NaturalInstructions
    (articles stay, ROUGE-L of stems), for numbers that can stand beside published ones.

    `context` is how a sliding window is scored: with none, the default, a test piece begins in the dark, which costs bits,
    the more the shorter pieces are.

    `retention_sets` are files of any of these forms: how the model answers them is measured before the first task and
    after every task (retained ability). `styles` recasts training exchanges (multiple choice, yes or no, phrase,
    sentence), never those that test.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: PathText | None = Field(None, description="template of a prompt over the columns; null: the usual layouts")
    answer: str | None = Field(None, description="column of the right answer, or of a list of which each is right")
    instructions: dict[str, str] | None = Field(
        None, description="a sentence before the prompts of each domain, by the domain's name"
    )
    name_in_prompt: bool = Field(False, description="put the domain's name before its prompts, which tells the task")
    options: Literal["answers"] | str | Annotated[list[str], Field(min_length=2)] | None = Field(
        None, description="what answers are chosen from, no two alike: a list, a column, or answers for all of a domain"
    )
    learn_turns: Literal["last", "all"] = Field(
        "last",
        description="turns of the assistant that a chat teaches: the last one, or all, each after what came before",
    )
    measure: Literal["auto"] | Measure = Field(
        "auto", description="how answers are judged; auto: by likelihood where there are options, else exact match"
    )
    normalise: Form = Field(
        "plain",
        description="what written answers are compared by: plain, or as SQuAD's or Super-NaturalInstructions' evaluation",
    )
    piece: int = Field(600, ge=50, description="characters in a piece of plain text, at most")
    boundary: PathText | None = Field(None, description="what separates documents in a file of plain text")
    context: int = Field(0, ge=0, description="characters of the text before it that a test piece is read with")
    held_out: float = Field(
        0.1, gt=0.0, lt=1.0, description="share at the end of each text file that tests, where no test file is given"
    )
    test_examples: int | None = Field(None, ge=1, description="most examples that a domain is tested on; null: all")
    retention_sets: Annotated[dict[str, Paths], Field(min_length=1)] | None = Field(
        None, description="files that no task learns, to measure what the model keeps of its abilities"
    )
    styles: StylesConfig | None = Field(
        None, description="recast a share of the training exchanges in other answer styles"
    )

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns that the prompt's template names, in order."""
        return () if self.prompt is None else template_columns(self.prompt)

    @model_validator(mode="after")
    def _check(self) -> Self:
        template_columns(self.prompt or "")
        alike = same_forms(self.options) if isinstance(self.options, list) else None
        if alike:
            raise ConfigError(
                f"stream.language.options has {alike[0]!r} and {alike[1]!r}, which cannot be told apart in an answer (case "
                "and sentence marks do not count); keep one of them"
            )
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

    Without `by` or files by domain, `tasks` cuts the ordered classes into parts whose sizes differ by at most one, the
    first ones larger. What `validation` and `per_class` choose depends on `seed` alone. `objective: write` takes `data` as
    mappings from domain to file, one task a domain, and reads them as `language` says.

    >>> StreamConfig(data="digits").kind
    'class-incremental'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[
        Annotated[PathText, Tag("name")] | Annotated[DataConfig, Tag("mapping")], Discriminator(_data_tag)
    ] = Field(description="a built-in name, a folder, a hub id, or a mapping that says where the files are")
    online: Online | None = Field(None, description="arrival in chunks without tasks, in one pass; null: task by task")
    objective: ObjectiveName = Field(
        "classify", description="what an answer is: one class, several labels, a tag for each word, numbers, or a text"
    )
    kind: Kind = Field(
        "class-incremental",
        description="what is new in a task: classes, domains, or named tasks; numbers and texts come by domain",
    )
    tasks: int | None = Field(
        None, ge=1, description="number of tasks; null: that of the built-in stream, or of the groups"
    )
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = Field(
        None, description="classes of each task, in place of tasks"
    )
    by: str | None = Field(None, description="column whose values are the tasks; folder of images: the level above")
    domains: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="order of the domains, by name; null: the data's own, else sorted"
    )
    classes: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="order of the classes, by name; null: the data's own, else sorted"
    )
    order_seed: int | None = Field(0, ge=0, description="seed that permutes the order; null: the order as declared")
    validation: float = Field(0.0, ge=0.0, lt=1.0, description="share of each class's training examples held out")
    per_class: int | None = Field(None, ge=1, description="most training examples of a class within a task; null: all")
    seed: int = Field(0, ge=0, description="seed that chooses what validation and per_class take")
    skip_bad: bool = Field(
        False, description="leave out rows that cannot be read, and say so; false: stop at the first"
    )
    decoded_mb: int = Field(
        KEPT_MB, ge=0, description="MB of decoded images kept in memory, those asked for last; others are decoded again"
    )
    language: LanguageConfig | None = Field(None, description="objective write: how rows become prompts and answers")

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
        self._check_data()
        return self

    def _check_data(self) -> None:
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
