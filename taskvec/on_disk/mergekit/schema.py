"""The form of a mergekit recipe (mergekit 0.1, ``MergeConfiguration``), as far as it is covered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import Field, ValidationError, model_validator

from taskvec.config import Config
from taskvec.errors import UserError

# A value, a gradient over layers, or a list of {filter, value}
Setting: TypeAlias = bool | float | str | list[float] | list[dict[str, Any]] | dict[str, Any]
Settings: TypeAlias = dict[str, Setting]

NOT_COVERED = {
    "modules": "several modules",
    "chat_template": "another chat template than the written tokenizer's; put it into a tokenizer folder",
}
DTYPES = ("float32", "float16", "bfloat16")


class Source(Config):
    """A model, all of it or some of its layers."""

    model: str
    layer_range: tuple[int, int] | None = None
    parameters: Settings = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _plain_model(cls, data: Any) -> Any:
        named = data.get("model") if isinstance(data, Mapping) else None
        if isinstance(named, Mapping) and set(named) <= {"path", "model"}:
            path = named.get("path") or named.get("model")
            return {**data, "model": path.get("path") if isinstance(path, Mapping) else path}
        return data


class Slice(Config):
    """Layers that follow the layers of the slices before."""

    sources: list[Source] = Field(min_length=1)
    parameters: Settings = Field(default_factory=dict)


class Tokenizer(Config):
    """Which tokenizer is written."""

    source: str


class Recipe(Config):
    """A whole recipe."""

    merge_method: str
    base_model: str | None = None
    models: list[Source] | None = None
    slices: list[Slice] | None = None
    parameters: Settings = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Recipe:
        if (self.models is None) == (self.slices is None):
            raise ValueError("either models or slices must be there")
        for dtype in (self.dtype, self.out_dtype):
            if dtype not in (None, *DTYPES):
                raise ValueError(f"dtype {dtype} (covered: {', '.join(DTYPES)})")
        return self


def recipe_of(data: Any, label: str) -> Recipe:
    """Return a recipe of plain data.

    Raises:
        UserError: for what it says that is not covered, in one line that names it, and for what is malformed.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{label}: a recipe is a mapping of settings")
    for key, what in NOT_COVERED.items():
        if data.get(key):
            raise UserError(f"{label}: {key} is not covered: {what}")
    try:
        return Recipe.model_validate({k: v for k, v in data.items() if k not in NOT_COVERED})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in detail["loc"] if part not in ("bool", "float"))
        said = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            said = "is not covered"
        where = f"{label}: {path}" if path else label
        raise UserError(f"{where}: {said}") from error
