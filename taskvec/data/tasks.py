"""Tasks and suites as data: where the examples are, how they are split, and what a model is asked."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from taskvec.config import Component, Config, immaterial
from taskvec.data.prompt import Prompt
from taskvec.data.splits import SplitRule
from taskvec.errors import UserError
from taskvec.registry import register

if TYPE_CHECKING:
    from pyarrow import DataType

Split = Literal["train", "val", "test"]
# Of a column, a file, a branch; longer than any file's name
Name = Annotated[str, Field(min_length=1, max_length=200)]
Place = Annotated[str, Field(min_length=1, max_length=2000)]  # a path
Metric = Literal[
    "accuracy",
    "f1",
    "f1_macro",
    "matthews",
    "accuracy_f1",
    "pearson",
    "spearman",
    "pearson_spearman",
]  # :mod:`taskvec.protocols.metrics` computes them
REGRESSION = ("pearson", "spearman", "pearson_spearman")
ASSETS = Path(__file__).resolve().parent / "assets"
# Of a task of which no copy on the hub is in published use: a folder of `suite.data_dir`
BY_HAND = "mirror://"


class Facts(Config):
    """What was found in a task's data when its card was written, so that other data is noticed.

    ``rows`` by the data's own name of a split; ``revision`` is the abbreviated commit that was looked at; ``repeated``
    names classes that bear one name on purpose; ``trap`` says where published numbers on this task come to differ,
    ``source`` where data without a copy on the hub is found.
    """

    rows: dict[Name, int] = {}
    revision: Name | None = None
    licence: str | None = None
    gigabytes: float | None = Field(None, gt=0)
    repeated: tuple[str, ...] = ()
    source: str | None = None
    trap: str | None = None


class Task(Config):
    """One task: where its examples are, how they are split, and by which metric it is judged.

    ``path`` is ``pkg://NAME`` (shipped with the package), a local folder (see :func:`taskvec.data.locate.locate` for
    what it may hold; a relative one starts at the file that names it), or a data set name of the Hugging Face hub, with
    ``config`` and ``revision`` where it has several. Labels are read by :class:`taskvec.data.labels.LabelRule`;
    ``classes`` lists what they stand for where the data does not, and else replaces its names in the prompts. Rows
    labelled ``no_label`` are left out. ``keep`` restricts the examples, not the head, to some of the classes (a
    sub-population). ``splits.val`` null holds validation out of ``train`` by the rule of
    :func:`taskvec.data.splits.hold_out`; without that key so does data that has no split of a usual name. A metric of
    :data:`REGRESSION` makes the labels numbers. The folder of ``mirror://NAME`` is in the suite's ``data_dir``.
    ``split_rule`` is the suite's; ``facts`` are checked against the data.
    """

    path: Place
    config: Name | None = None
    revision: Name | None = None
    classes: tuple[str, ...] | None = None
    keep: tuple[str, ...] | None = None
    label: Name = "label"
    no_label: int | str | None = None
    metric: Metric = "accuracy"
    splits: dict[Split, Name | None] = {"train": "train", "test": "test"}
    split_rule: SplitRule = "authors"
    facts: Facts = immaterial(Facts())

    @model_validator(mode="after")
    def _classes_or_scores(self) -> Task:
        if self.regression and (self.classes or self.keep):
            raise ValueError(f"metric {self.metric} judges numbers; leave 'classes' and 'keep' out")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Task:
        for names in (self.classes, self.keep):
            twice = {name for name in names or () if names.count(name) > 1}
            repeated = sorted(twice.difference(self.facts.repeated))
            if repeated:
                raise ValueError(f"{', '.join(repeated)} named more than once")
        return self

    @field_validator("splits")
    @classmethod
    def _train_and_test(cls, splits: dict[Split, Name | None]) -> dict[Split, Name | None]:
        for split in ("train", "test"):
            if not splits.get(split):
                raise ValueError(f"the {split} split needs a file name")
        return splits

    def material(self) -> dict[str, Any]:
        """Return the fields that can change results, the rule of splitting where it is not the usual one."""
        found = super().material()
        if self.split_rule == "authors":
            del found["split_rule"]
        return found

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers."""
        return self.metric in REGRESSION

    @property
    def folder(self) -> Path | None:
        """The local folder of the task's files; None for a data set of the hub."""
        return local_folder(self.path)

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns of the examples' inputs."""

    def prompts(self, names: Sequence[str], *, learned: bool = False) -> Prompt:
        """Return what the head is made from, given the class names.

        ``learned`` says that the backbone learns its heads.
        """
        return Prompt(list(names))

    @abstractmethod
    def takes(self, column: DataType) -> bool:
        """Return whether an Arrow type can hold the inputs."""


class ImageTask(Task):
    """Images and the prompt templates of their zero-shot head."""

    templates: tuple[str, ...] = Field(min_length=1)
    image: Name = "image"

    holds: ClassVar[str] = "encoded images"

    @model_validator(mode="after")
    def _classifies(self) -> ImageTask:
        if self.regression:
            raise ValueError(f"metric: {self.metric} is for texts; images are classified")
        return self

    @field_validator("templates")
    @classmethod
    def _has_a_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must contain {{}} exactly once")
        return templates

    @property
    def columns(self) -> tuple[str, ...]:
        """The image column."""
        return (self.image,)

    def prompts(self, names: Sequence[str], *, learned: bool = False) -> Prompt:
        """Return class names and templates."""
        return Prompt(list(names), list(self.templates))

    def takes(self, column: DataType) -> bool:
        """Return whether an Arrow type holds bytes, bare or as the ``bytes`` field of a struct, or paths of images."""
        from pyarrow import types

        if types.is_struct(column):
            field = column.get_field_index("bytes")
            # JSON lines, where there are no bytes, have the path beside a null
            return field >= 0 and (
                _binary(column.field(field).type) or types.is_null(column.field(field).type)
            )
        return _binary(column) or types.is_string(column) or types.is_large_string(column)


def _binary(column: DataType) -> bool:
    from pyarrow import types

    return types.is_binary(column) or types.is_large_binary(column)


class TextTask(Task):
    """Texts, one or two per example, the frame that a language model reads them in, and the words it answers with.

    ``frame`` holds ``{text}`` once, and ``{pair}`` once where ``pair`` names a second column; encoders read the texts
    without it, ``text`` first. ``words`` replaces the class names as label words. They follow the frame after a space,
    but at once after a space, a line's end, an opening bracket or quote, and in scripts without spaces. In a regression
    word k stands for the score k: a model that answers in words learns the nearest one and predicts the mean score
    under its softmax, an encoder learns one output by squared error. A split's
    texts may take ``max_text_mb`` MiB.
    """

    text: Name = "text"
    pair: Name | None = None
    max_text_mb: int = Field(512, ge=1)
    frame: str = "{text}"
    words: tuple[str, ...] | None = None

    holds: ClassVar[str] = "text"

    @model_validator(mode="after")
    def _frame_fits(self) -> TextTask:
        for slot, wanted in (("{text}", 1), ("{pair}", int(self.pair is not None))):
            if self.frame.count(slot) != wanted:
                raise ValueError(
                    f"frame {self.frame!r} must contain {slot} {('not at all', 'exactly once')[wanted]}"
                )
        return self

    @model_validator(mode="after")
    def _words_for_scores(self) -> TextTask:
        if self.regression and len(self.words or ()) < 2:
            raise ValueError("words: a regression needs a word for each score 0, 1, ...")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The text columns."""
        return (self.text, *([self.pair] if self.pair else []))

    def prompts(self, names: Sequence[str], *, learned: bool = False) -> Prompt:
        """Return the label words and what stands before them; a learned head has one output for a regression.

        Raises:
            UserError: if there is not one for each class.
        """
        pieces = re.split(r"{text}|{pair}", self.frame)
        words = self.words or names
        if self.regression and learned:
            words = names
        elif not self.regression and len(words) != len(names):
            raise UserError(f"task {self.path}: {len(words)} words for {len(names)} classes")
        return Prompt(list(words), before=pieces[-1])

    def takes(self, column: DataType) -> bool:
        """Return whether an Arrow type is a string."""
        from pyarrow import types

        return types.is_string(column) or types.is_large_string(column)


class Corpus(Config):
    """A held-out text whose perplexity must survive an edit: column ``text`` of one table, a document a row.

    Coefficients are chosen on its even rows (``val``) and reported on the odd ones (``test``). ``file`` in the folder
    ``path`` is named as a task's splits are; its texts may take ``max_text_mb`` MiB.
    """

    path: Place
    file: Name
    text: Name = "text"
    max_text_mb: int = Field(512, ge=1)

    @property
    def folder(self) -> Path:
        """The folder of the corpus's files."""
        return local_folder(self.path) or Path(self.path)


def local_folder(path: str) -> Path | None:
    """Return the folder of a path that is shipped, absolute, or starts with ``.`` or ``~``; None for a hub's name."""
    if path.startswith("pkg://"):
        return ASSETS / path.removeprefix("pkg://")
    folder = Path(os.path.expanduser(path))
    return folder if folder.is_absolute() or path.startswith((".", "~")) else None


class Suite(Component):
    """A list of tasks, and a control task on which an edit must do no harm.

    ``data_dir`` is a local mirror of the hub: a task's files are then ``DATA_DIR/PATH/SPLIT.parquet``, or
    ``DATA_DIR/PATH/CONFIG/SPLIT.parquet`` where the task names a ``config``. ``cards`` are the folders below ``task/``
    in which a task's file is looked for before ``task/`` itself, so that one task can be told in several ways.
    ``split_rule`` says how validation comes about where a task has none (:func:`taskvec.data.splits.hold_out`).
    ``check_counts`` refuses data that has another number of rows than the task's card.
    """

    data_dir: str | None = None
    cards: tuple[str, ...] = immaterial(())  # the definitions are what counts, as with the next two
    split_rule: SplitRule = immaterial("authors")
    check_counts: bool = immaterial(True)
    tasks: tuple[str, ...] = Field(min_length=1)
    control: str | None = None
    held_out: tuple[str, ...] = ()
    definitions: dict[str, Any] = Field(default_factory=dict)

    modality: ClassVar[str]

    @classmethod
    @abstractmethod
    def schema(cls, node: Mapping[str, Any]) -> type[Config]:
        """Return the schema of a task's settings."""

    @property
    def control_metric(self) -> Literal["accuracy", "perplexity"]:
        """What is measured on the control."""
        return (
            "perplexity" if isinstance(self.definitions.get(self.control), Corpus) else "accuracy"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        repeated = sorted({task for task in self.tasks if self.tasks.count(task) > 1})
        if repeated:
            raise ValueError(f"tasks: {', '.join(repeated)} named more than once")
        if self.control in self.tasks:
            raise ValueError(f"control: {self.control!r} must not be one of the tasks")
        named = [*self.tasks, *([self.control] if self.control else []), *self.held_out]
        undefined = [task for task in named if self.definitions and task not in self.definitions]
        if undefined:
            raise ValueError(
                f"definitions: {', '.join(undefined)} missing; leave it out, or define every task"
            )
        return self


@register("suite", "images")
class ImageSuite(Suite):
    """Image-classification tasks."""

    kind: Literal["images"] = "images"
    definitions: dict[str, ImageTask] = Field(default_factory=dict)

    modality: ClassVar[str] = "images"

    @classmethod
    def schema(cls, node: Mapping[str, Any]) -> type[Config]:
        """Return the schema of image tasks."""
        return ImageTask


@register("suite", "texts")
class TextSuite(Suite):
    """Text-classification tasks; the control may be a corpus, on which perplexity is measured."""

    kind: Literal["texts"] = "texts"
    definitions: dict[str, Corpus | TextTask] = Field(default_factory=dict)

    modality: ClassVar[str] = "texts"

    @classmethod
    def schema(cls, node: Mapping[str, Any]) -> type[Config]:
        """Return the schema of a corpus, which names its file, or of a text task."""
        return Corpus if "file" in node else TextTask

    @model_validator(mode="after")
    def _corpora_are_controls(self) -> TextSuite:
        for name in (*self.tasks, *self.held_out):
            if isinstance(self.definitions.get(name), Corpus):
                raise ValueError(
                    f"tasks: {name!r} is a corpus without labels; it can only be the control"
                )
        return self
