"""What a finished run stands on, in short: so that hundreds of runs on the same files are checked by one look at them.

A plan's fingerprint is a function of the config, of the program's versions and of the files that some nodes look at
(:attr:`Node.looks`: weights, decoded splits, imported vectors). A run whose config is as it was written still stands if
the program is the same and the fingerprints of those nodes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from taskvec import registry
from taskvec.config import Config
from taskvec.graph.artefact import Node, fingerprint
from taskvec.graph.nodes.answer import AnswerNode
from taskvec.graph.result import SCHEMA_VERSION
from taskvec.graph.run import RunConfig

if TYPE_CHECKING:
    from taskvec.graph.plan import Plan


class Ground(Config):
    """The program, what of the config says which files are looked at, and the nodes that look, each as a checksum."""

    program: str
    given: str
    leaves: tuple[str, ...]


def ground_of(config: RunConfig, plan: Plan) -> Ground | None:
    """Return what a run stands on; None where a question looks at files of its own."""
    looks_itself = any(
        isinstance(node, AnswerNode) and node.question.looks for node in plan.cells.values()
    )
    if looks_itself:
        return None
    return Ground(program=program(), given=given_of(config), leaves=leaves_of(plan))


def leaves_of(plan: Plan) -> tuple[str, ...]:
    """Return the fingerprints of a plan's nodes that look at files."""
    return tuple(sorted(node.fingerprint for node in plan.nodes if node.looks))


def given_of(config: RunConfig) -> str:
    """Return the checksum of the settings that name files: suite and backbones."""
    told = [config.suite, config.backbone, config.source]
    return fingerprint([part and part.model_dump(mode="json") for part in told])


@cache
def program() -> str:
    """Return the checksum of all versions: of components (a user's count by their file), nodes and the result."""
    components = {}
    for entry in registry.entries():
        schema = entry.schema
        version = getattr(schema, "code", None) or getattr(schema, "version", 0)
        components[f"{entry.group}/{entry.name}"] = version
    nodes = {kind.__name__: kind.version for kind in _classes(Node)}
    return fingerprint([components, nodes, SCHEMA_VERSION])


def _classes(base: type[Node]) -> Iterator[type[Node]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _classes(kind)
