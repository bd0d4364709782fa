"""The page docs/merging.md, made from the registry: ``python -m taskvec.merge.catalogue > docs/merging.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from taskvec import registry
from taskvec.config import Component, Config
from taskvec.merge.base import Convention, Merge, TensorWise
from taskvec.needs import Examples, Statistics, Tuned
from taskvec.registry import Entry

HEAD = """\
# Merging methods

Made from the registry by `python -m taskvec.merge.catalogue > docs/merging.md`; a test keeps it current.

A merge is chosen by name, `merge=ties`, and its options are overrides, `merge.density=0.1`; `taskvec show merge=ties`
prints them resolved. theta_0 are the pre-trained weights, tau_t = theta_t - theta_0 the vector of task t, T their
number. alpha is the scaling coefficient that protocols search; each method brings the values that are tried.

What holds for all of them:

- A parameter that a vector lacks counts as zeros, and densities refer to all editable parameters.
- Deltas in half precision are merged in float32 and rounded once; methods that say so compute in float64.
- Weights that do not sum to one are not normalised, except where the method is a mean. `merge.weights` follow the order
  of the vectors.
- Random masks are a function of seed, parameter name and the vector's position: the same in any order, in any pieces
  and on any device.
- A vector with an entry that is not finite is refused by name.

Frameworks use one name for different formulas. Under each method the table says who means what; the options in it give
their numbers, no options are the defaults. Where random masks are drawn, numbers agree in distribution only.

Passes: how often `taskvec merge` reads the checkpoints at most, bytes read by bytes that there are, by a method's
defaults; no convention takes more than three (- : it does not stream). "1 or 3": a tensor is kept while it is looked at
if it takes up to 256 MB over base and models, and larger ones are read three times. A method that selects by magnitude
first looks at one entry in 64 or fewer, which is not counted; selecting from float64 files, or from deltas that are
distributed otherwise than that sample, takes more passes, with the same result.
"""
HIDDEN = {"kind", "seed"}
SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def page() -> str:
    """Return the page as Markdown."""
    known = registry.entries("merge")
    entries = [entry for entry in known if entry.shipped]
    parts = [HEAD, overview(entries)]
    parts += [section(entry) for entry in entries]
    return "\n".join(parts)


def overview(entries: Iterable[Entry]) -> str:
    """Return a table of what the methods are and what they can take part in."""
    rows = []
    for entry in entries:
        schema = entry.schema
        link = f"[{entry.name}](#{entry.name})"
        modes = ", ".join(sorted(schema.forward_modes))
        models = schema.models.replace("_", " ")
        rows.append([link, grid(schema.grid), models, modes, passes(schema), data(schema)])
    headers = ["method", "alpha", "models", "forward modes", "passes", "data"]
    return table(rows, headers)


def section(entry: Entry) -> str:
    """Return what there is to know of one method."""
    schema = entry.schema
    paper = f"{entry.paper}.\n\n" if entry.paper else ""
    text = inspect.cleandoc(schema.__doc__)
    parts = [f"## {entry.name}\n\n{paper}{markdown(text)}\n"]
    options = list(options_of(schema))
    if options:
        parts.append(table(options, ["option", "default", "values"]))
    if schema.conventions:
        rows = [described(convention) for convention in schema.conventions]
        parts.append(table(rows, ["who", "options", "remark"]))
    return "\n".join(parts)


def described(convention: Convention) -> list[str]:
    """Return a convention as a row."""
    if not convention.offered:
        options = "not offered"
    elif convention.overrides:
        options = f"`{convention.overrides}`"
    else:
        options = "the defaults"
    return [convention.source, options, convention.remark]


def options_of(schema: type[Merge]) -> Iterable[list[str]]:
    """Yield name, default and allowed values of each field."""
    properties = schema.model_json_schema()["properties"]
    for name, field in schema.model_fields.items():
        if name in HIDDEN:
            continue
        default = field.default
        if isinstance(default, Component):
            default = default.kind
        shown = "its own" if isinstance(default, Config) else f"`{default}`"
        yield [f"`{name}`", shown, allowed(properties[name])]


def allowed(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "record")
    if kind == "null":
        return "none"
    bounds = [f"{sign} {schema[key]}" for key, sign in SIGNS.items() if key in schema]
    return " ".join([kind, *bounds])


def grid(values: Sequence[float]) -> str:
    """Return a grid of coefficients in words."""
    if len(values) == 1:
        return f"{values[0]:g}"
    step = values[1] - values[0]
    return f"{values[0]:g} to {values[-1]:g} by {step:.2g}"


def passes(schema: type[Merge]) -> str:
    """Return how often ``taskvec merge`` reads checkpoints, by the defaults; "-" if a method does not stream."""
    merge = schema()
    streams = isinstance(merge, TensorWise) and merge.models == "one"
    if not streams or data(schema) != "none":
        return "-"
    return str(merge.passes) if merge.over_model or merge.passes == 1 else f"1 or {merge.passes}"


def data(schema: type[Merge]) -> str:
    """Return what data a method sees."""
    if schema.learned:
        return "learns on what the protocol grants"
    seen = [shown(need) for need in schema().needs(_Planned())]
    return "; ".join(seen) or "none"


def shown(need: Examples | Statistics) -> str:
    """Return a need in words."""
    if isinstance(need, Statistics):
        return f"`{need.what.kind}` of each model on {shown(need.on)}"
    count = f"{need.budget.count} " if need.budget else ""
    labels = "labelled" if need.labels else "unlabelled"
    return f"{count}{labels} {need.split} examples"


@dataclass(frozen=True)
class _Planned:
    """The scope of a merge of one task's vector."""

    tasks: tuple[str, ...] = ("task",)
    side: str = "target"

    def vector(self, task: str) -> Tuned:
        """Return the vector of a task."""
        return Tuned((Examples(task, "train", "learning", labels=True),))


def markdown(text: str) -> str:
    """Return a docstring as Markdown: marked names as code, formulas' stars as stars."""
    parts = text.split("``")
    for place in range(0, len(parts), 2):
        parts[place] = parts[place].replace("*", "\\*").replace("<-", "&lt;-")
    return "`".join(parts)


def table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    """Return a Markdown table."""
    escaped = []
    for row in rows:
        escaped.append([cell.replace("|", "\\|") for cell in row])
    return tabulate(escaped, headers=headers, tablefmt="github", disable_numparse=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
