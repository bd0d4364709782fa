"""Tasks and suites as data: where the examples are, how they are split, and what a model is asked."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from taskvec.config import Component, Config
from taskvec.data.cards import read_card
from taskvec.data.prompt import Prompt
from taskvec.errors import UserError
from taskvec.registry import did_you_mean, register

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


class Task(Config):
    """One task: where its examples are, how they are split, and by which metric it is judged.

    ``path`` is ``pkg://NAME`` (shipped with the package), a local folder (see :func:`taskvec.data.locate.locate` for
    what it may hold; a relative one starts at the file that names it), or a data set name of the Hugging Face hub, with
    ``config`` and ``revision`` where it has several. Labels are read by :class:`taskvec.data.labels.LabelRule`;
    ``classes`` lists what they stand for where the data does not, and else replaces its names in the prompts. Rows
    labelled ``no_label`` are left out. ``keep`` restricts the examples, not the head, to some of the classes (a
    sub-population). ``splits.val`` null holds validation out of ``train`` by the rule of
    :func:`taskvec.data.splits.hold_out`; without that key so does data that has no split of a usual name. A metric of
    :data:`REGRESSION` makes the labels numbers.
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

    @model_validator(mode="after")
    def _classes_or_scores(self) -> Task:
        if self.regression and (self.classes or self.keep):
            raise ValueError(f"metric {self.metric} judges numbers; leave 'classes' and 'keep' out")
        return self

    @field_validator("classes", "keep")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        repeated = sorted({name for name in names or () if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} named more than once")
        return names

    @field_validator("splits")
    @classmethod
    def _train_and_test(cls, splits: dict[Split, Name | None]) -> dict[Split, Name | None]:
        for split in ("train", "test"):
            if not splits.get(split):
                raise ValueError(f"the {split} split needs a file name")
        return splits

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
        before = re.split(r"{text}|{pair}", self.frame)[-1]
        if self.regression:
            return Prompt(list(names if learned else self.words), before=before)
        if self.words and len(self.words) != len(names):
            raise UserError(f"task {self.path}: {len(self.words)} words for {len(names)} classes")
        return Prompt(list(self.words or names), before=before)

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
    ``DATA_DIR/PATH/CONFIG/SPLIT.parquet`` where the task names a ``config``.
    """

    data_dir: str | None = None
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


def load_tasks(
    suite: Mapping[str, Any], kind: type[Suite], folders: Sequence[Path]
) -> dict[str, Config]:
    """Return the definition of every task a suite names, from ``task/NAME.yaml`` of the first folder that has it.

    A file may start from another with ``extends: NAME``.

    Raises:
        UserError: for a list of another type, a task without a file, a file that does not fit the schema, or a mirror
            that lacks a task.
    """
    for key in ("tasks", "held_out"):
        if not isinstance(suite.get(key), list | None):
            raise UserError(
                f"suite.{key}: must be a list of names, got {suite[key]!r}; write suite.{key}=[NAME,...]"
            )
    names = [
        *(suite.get("tasks") or []),
        *filter(None, [suite.get("control")]),
        *(suite.get("held_out") or []),
    ]
    mirror = suite.get("data_dir")
    return {
        str(name): _mirrored(str(name), _task(str(name), kind, folders), mirror) for name in names
    }


def _mirrored(name: str, task: Config, mirror: str | None) -> Config:
    if not mirror or not isinstance(task, Task) or task.folder is not None:
        return task
    folder = Path(os.path.expanduser(mirror), task.path, task.config or "").resolve()
    if not folder.is_dir():
        files = ", ".join(f"{file}.parquet" for file in task.splits.values() if file)
        raise UserError(f"suite.data_dir: task {name} needs the folder {folder} with {files}")
    return task.model_copy(update={"path": str(folder), "config": None, "revision": None})


def _task(name: str, kind: type[Suite], folders: Sequence[Path]) -> Config:
    node = _read(name, folders)
    schema = kind.schema(node)
    try:
        return schema.model_validate(node)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # a misspelt key tells more than the one that is missing for it
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        detail = (unknown or details)[0]
        key = ".".join(map(str, detail["loc"]))[:200]
        hint = (
            did_you_mean(key, list(schema.model_fields))
            if detail["type"] == "extra_forbidden"
            else ""
        )
        message = detail["msg"].removeprefix("Value error, ")[:500]
        if hint:
            message = "unknown key"
        raise UserError(f"task/{name}.yaml: {key}: {message}{hint}") from error


def _read(name: str, folders: Sequence[Path], extending: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in extending:
        raise UserError(f"task/{name}.yaml: extends itself: {' -> '.join((*extending, name))}")
    for folder in folders:
        path = folder / "task" / f"{name}.yaml"
        if os.path.isfile(path):  # False for a name too long, where Path raises
            node = read_card(path)
            parent = node.pop("extends", None)
            return {**_read(str(parent), folders, (*extending, name)), **node} if parent else node
    known = sorted({p.stem for folder in folders for p in (folder / "task").glob("*.yaml")})
    raise UserError(f"suite.tasks: unknown task {name[:200]!r}{did_you_mean(name, known)}")
