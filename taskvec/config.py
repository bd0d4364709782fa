"""Typed schemas: every component is a frozen pydantic model whose fields are its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class Config(BaseModel):
    """A frozen record of typed settings; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), defer_build=True
    )

    def material(self) -> dict[str, Any]:
        """Return the fields that can change results."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name, field in fields.items() if is_material(field)}

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change results, as JSON values; no file is looked at."""
        return {
            name: plain(value, lambda record: record.settings())
            for name, value in self.material().items()
        }

    def identity(self) -> dict[str, Any]:
        """Return all that determines results, as JSON values: settings, versions, the checksums of files."""
        return {
            name: plain(value, lambda record: record.identity())
            for name, value in self.material().items()
        }


class Component(Config):
    """A choice within a group: its fields are the config, its methods do the work.

    ``kind`` names the registered class, so a preset file may carry any name of its own. Class variables declare what
    the component can take part in; the runner refuses every other combination before work starts. ``version`` counts
    changes of what the component computes; ``code`` is the checksum of a user's own file, which has no version.
    """

    kind: str

    version: ClassVar[int] = 1
    code: ClassVar[str | None] = None
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard"})

    def identity(self) -> dict[str, Any]:
        """Return settings and version: all that determines what the component computes."""
        return super().identity() | {"code": self.code or self.version}


class Seeded(Component):
    """A component of a stage; ``seed`` is part of its identity only where the class declares that it draws numbers.

    The config fills ``seed`` from the run's, so that a sweep over one component's seed leaves the others alone.
    """

    seed: int | None = Field(None, ge=0, lt=2**31)

    draws: ClassVar[bool] = False

    def material(self) -> dict[str, Any]:
        """Return the fields that can change results, the seed where it can matter."""
        found = super().material()
        if not self.draws:
            del found["seed"]
        return found


def immaterial(default: Any, **constraints: Any) -> Any:
    """Declare a field that cannot change results: where or how fast something is computed."""
    return Field(default, json_schema_extra={"identity": False}, **constraints)


def is_material(field: FieldInfo) -> bool:
    """Return whether a field was not declared :func:`immaterial`."""
    extra = field.json_schema_extra
    return not isinstance(extra, dict) or extra.get("identity", True)


def plain(value: Any, told: Callable[[Config], dict[str, Any]]) -> Any:
    """Return a field's value as JSON values, records as they are ``told``."""
    if isinstance(value, Config):
        return told(value)
    if isinstance(value, Mapping):
        return {str(key): plain(child, told) for key, child in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(child, told) for child in value]
    return value


def immaterial_keys(config: Config, prefix: str = "") -> list[str]:
    """Return the dotted keys of a config that were declared :func:`immaterial`, those of nested records included."""
    found = []
    for name, field in type(config).model_fields.items():
        if not is_material(field):
            found.append(f"{prefix}{name}")
            continue
        for key, record in _records(name, getattr(config, name)):
            found += immaterial_keys(record, f"{prefix}{key}.")
    return found


def _records(name: str, value: Any) -> Iterator[tuple[str, Config]]:
    """Yield the records that a field holds, itself or by key, with their dotted keys."""
    named = (
        {f"{name}.{key}": child for key, child in value.items()}
        if isinstance(value, Mapping)
        else {name: value}
    )
    for key, child in named.items():
        if isinstance(child, Config):
            yield key, child
