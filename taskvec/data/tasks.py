"""Tasks and suites as data: where the examples are, how they are split, and what a model is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from omegaconf import OmegaConf
from pydantic import Field, ValidationError, field_validator, model_validator

from taskvec.config import Component, Config
from taskvec.errors import UserError
from taskvec.registry import did_you_mean, register

if TYPE_CHECKING:
    from pyarrow import DataType

Split = Literal["train", "val", "test"]
ASSETS = Path(__file__).resolve().parent / "assets"


class Task(Config):
    """One classification task: where its examples are and how they are split.

    ``path`` is ``pkg://NAME`` (shipped with the package), a local folder with one Parquet file per split, or a data set
    name of the Hugging Face hub. ``classes`` replaces the data set's label names in the prompts. ``keep`` restricts the
    examples, not the head, to some of the classes (a sub-population). A missing ``val`` split is held out of ``train``
    by the rule of :func:`taskvec.data.splits.hold_out`.
    """

    path: str = Field(min_length=1)
    classes: tuple[str, ...] | None = None
    keep: tuple[str, ...] | None = None
    label: str = "label"
    splits: dict[Split, str | None] = {"train": "train", "val": "val", "test": "test"}

    @field_validator("classes", "keep")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        repeated = sorted({name for name in names or () if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} named more than once")
        return names

    @field_validator("splits")
    @classmethod
    def _train_and_test(cls, splits: dict[Split, str | None]) -> dict[Split, str | None]:
        for split in ("train", "test"):
            if not splits.get(split):
                raise ValueError(f"the {split} split needs a file name")
        return splits

    @property
    def folder(self) -> Path | None:
        """The local folder of the task's files; None for a data set of the hub."""
        if self.path.startswith("pkg://"):
            return ASSETS / self.path.removeprefix("pkg://")
        path = Path(os.path.expanduser(self.path))
        return path if path.is_absolute() or path.exists() or self.path.startswith((".", "~")) else None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the examples' inputs."""
        raise NotImplementedError

    @property
    def prompts(self) -> tuple[str, ...]:
        """What, besides the class names, shapes the head before fine-tuning."""
        return ()

    def takes(self, column: DataType) -> bool:
        """Return whether an Arrow type can hold the inputs."""
        raise NotImplementedError


class ImageTask(Task):
    """Images and the prompt templates of their zero-shot head."""

    templates: tuple[str, ...] = Field(min_length=1)
    image: str = "image"

    holds: ClassVar[str] = "encoded images"

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

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates."""
        return self.templates

    def takes(self, column: DataType) -> bool:
        """Return whether an Arrow type holds bytes, bare or as the ``bytes`` field of a struct."""
        from pyarrow import types

        encoded = (
            column.field("bytes").type if types.is_struct(column) and column.get_field_index("bytes") >= 0 else column
        )
        return types.is_binary(encoded) or types.is_large_binary(encoded)


class TextTask(Task):
    """Texts, one or two per example, the frame that a language model reads them in, and the words it answers with.

    ``frame`` holds ``{text}`` once, and ``{pair}`` once where ``pair`` names a second column; encoders read the texts
    without it. ``words`` replaces the class names as label words.
    """

    text: str = "text"
    pair: str | None = None
    frame: str = "{text}"
    words: tuple[str, ...] | None = None

    holds: ClassVar[str] = "text"

    @model_validator(mode="after")
    def _frame_fits(self) -> TextTask:
        for slot, wanted in (("{text}", 1), ("{pair}", int(self.pair is not None))):
            if self.frame.count(slot) != wanted:
                raise ValueError(f"frame {self.frame!r} must contain {slot} {('not at all', 'exactly once')[wanted]}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The text columns."""
        return (self.text, *([self.pair] if self.pair else []))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The label words, where they are not the class names."""
        return self.words or ()

    def takes(self, column: DataType) -> bool:
        """Return whether an Arrow type is a string."""
        from pyarrow import types

        return types.is_string(column) or types.is_large_string(column)


class Suite(Component):
    """A list of tasks, and a control task on which an edit must do no harm."""

    tasks: tuple[str, ...] = Field(min_length=1)
    control: str | None = None
    held_out: tuple[str, ...] = ()
    definitions: dict[str, Any] = Field(default_factory=dict)

    modality: ClassVar[str]
    task_schema: ClassVar[type[Task]]

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
            raise ValueError(f"definitions: {', '.join(undefined)} missing; leave it out, or define every task")
        return self


@register("suite", "images")
class ImageSuite(Suite):
    """Image-classification tasks."""

    kind: Literal["images"] = "images"
    definitions: dict[str, ImageTask] = Field(default_factory=dict)

    modality: ClassVar[str] = "images"
    task_schema: ClassVar[type[Task]] = ImageTask


@register("suite", "texts")
class TextSuite(Suite):
    """Text-classification tasks."""

    kind: Literal["texts"] = "texts"
    definitions: dict[str, TextTask] = Field(default_factory=dict)

    modality: ClassVar[str] = "texts"
    task_schema: ClassVar[type[Task]] = TextTask


def load_tasks(suite: Mapping[str, Any], schema: type[Task], folders: Sequence[Path]) -> dict[str, Task]:
    """Return the definition of every task a suite names, from ``task/NAME.yaml`` of the first folder that has it.

    A file may start from another with ``extends: NAME``.

    Raises:
        UserError: for a list of another type, a task without a file, or a file that does not fit the schema.
    """
    for key in ("tasks", "held_out"):
        if not isinstance(suite.get(key), list | None):
            raise UserError(f"suite.{key}: must be a list of names, got {suite[key]!r}; write suite.{key}=[NAME,...]")
    names = [*(suite.get("tasks") or []), *filter(None, [suite.get("control")]), *(suite.get("held_out") or [])]
    return {str(name): _task(str(name), schema, folders) for name in names}


def _task(name: str, schema: type[Task], folders: Sequence[Path]) -> Task:
    node = _read(name, folders)
    try:
        return schema.model_validate(node)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"]))
        hint = did_you_mean(key, list(schema.model_fields)) if detail["type"] == "extra_forbidden" else ""
        message = detail["msg"].removeprefix("Value error, ")
        raise UserError(f"task/{name}.yaml: {key}: {message}{hint}") from error


def _read(name: str, folders: Sequence[Path], extending: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in extending:
        raise UserError(f"task/{name}.yaml: extends itself: {' -> '.join((*extending, name))}")
    for folder in folders:
        path = folder / "task" / f"{name}.yaml"
        if path.is_file():
            try:
                node = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
            except Exception as error:
                raise UserError(f"task/{name}.yaml: not valid YAML: {' '.join(str(error).split())}") from error
            if not isinstance(node, dict):
                raise UserError(f"task/{name}.yaml: must be a mapping of keys to values")
            parent = node.pop("extends", None)
            return {**_read(str(parent), folders, (*extending, name)), **node} if parent else node
    known = sorted({p.stem for folder in folders for p in (folder / "task").glob("*.yaml")})
    raise UserError(f"suite.tasks: unknown task {name!r}{did_you_mean(name, known)}")
