"""Typed schemas: every component is a frozen pydantic model whose fields are its hyper-parameters."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen record of typed settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


class Component(Config):
    """A choice within a group: its fields are the config, its methods do the work.

    ``kind`` names the registered class, so a preset file may carry any name of its own. Class variables declare what
    the component can take part in; the runner refuses every other combination before work starts.
    """

    kind: str

    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard"})
    unfingerprinted: ClassVar[frozenset[str]] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine the component's results, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.unfingerprinted))
