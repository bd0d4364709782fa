"""``taskvec help NAME``: what a method, a component or a key is, with types, ranges, defaults and paper."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from taskvec.cli.options import Parser, write
from taskvec.errors import UserError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from taskvec.config import Config
    from taskvec.registry import Entry

OVERVIEW = """\
taskvec: task arithmetic and model merging, composable, exact, resumable.

  taskvec method=task_arithmetic suite=mini8             one run on the embedded suite, on any laptop
  taskvec protocol=negation finetune.lr=3e-4 seed=1      any key of `taskvec show` can be set
  taskvec -m seed=0,1,2 backbone=mini_clip_s             a sweep; finished runs are skipped
  taskvec -m seed=0,1,2,3 sweep.jobs=4 'sweep.devices=[0,1,2,3]'
                                                         four jobs at once, one GPU each
  taskvec experiment=demo -m                             an experiment file
  taskvec -m seed=0,1 merge=ties,dare --dry-run          what it would compute and fetch; nothing is written
  taskvec merge=ties --cfg job                           Hydra's --cfg, --resolve, --package, --info, --config-dir
  taskvec --include my_folder merge=mine                 your own configs (*.yaml) and components (*.py)
  taskvec help merge=ties                                what a component is, and its keys

verbs:
{verbs}

`taskvec VERB --help` explains a verb, `taskvec docs` lists the pages of the documentation. Exit status: 0 well, 1 a run
failed, 2 input that cannot be worked with.
"""
EXAMPLES = """\
  taskvec help                      all verbs
  taskvec help table                a verb
  taskvec help merge=ties           a component: what it computes, its keys, its paper
  taskvec help kfac                 whatever is called so
  taskvec help finetune             what can be chosen in a group
  taskvec help finetune.lr          one key
  taskvec method=theseus --help     the same of what a command chooses"""
# How a bound is written, by the attribute that pydantic keeps it under
BOUNDS = {
    "gt": "> {}",
    "ge": ">= {}",
    "lt": "< {}",
    "le": "<= {}",
    "min_length": "at least {} long",
}
WRITTEN = ("experiment", "task")  # groups of files without a component
LONGEST = 40  # characters of a default in the table


def main(arguments: list[str]) -> int:
    """Explain verbs, components and keys.

    Raises:
        UserError: for a name that nothing has.
    """
    from taskvec.cli import VERBS

    parser = Parser("help", "Explain a verb, a method, a component or a key.", EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="NAME|GROUP=NAME|KEY")
    names = parser.read(arguments).names
    if not names:
        verbs = [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
        write(OVERVIEW.format(verbs="\n".join(verbs)).rstrip("\n"))
        return 0
    first, *rest = names
    if first in VERBS and not rest:
        return importlib.import_module(f"taskvec.cli.{first}").main(["--help"])
    from taskvec.cli import list as listing
    from taskvec.runner import compose

    if first in listing.GROUPS:
        if not rest:
            return listing.main([first])
        names = [f"{first}={option}" for option in rest]
    elif first in VERBS:
        raise UserError(f"help: {first!r} is a verb; {rest[0]!r} can stand after a group's name")
    compose.register_all()
    for name in names:
        for text in explained(name):
            write(text + "\n")
    return 0


def explained(name: str) -> Iterator[str]:
    """Yield what is to be said of ``GROUP=NAME``, of a bare name in every group that has it, or of a dotted key.

    Raises:
        UserError: if nothing is called so; the message names the nearest.
    """
    from taskvec import registry
    from taskvec.runner.configs import options

    groups = ("method", *registry.PACKAGES)
    group, equals, option = name.partition("=")
    if equals and group in (*groups, "source"):
        yield from (about(group, choice) for choice in option.strip("[]").split(","))
        return
    if equals and group in WRITTEN:
        yield first_lines(group, option)
        return
    if "." in group:
        yield one_key(group)
        return
    if equals:  # a plain setting of the run, seed=1: there is nothing to say of it
        return
    found = [place for place in groups if name in options(place)]
    if not found:
        known = {choice for place in groups for choice in options(place)}
        raise UserError(
            f"help: nothing is called {name!r}{registry.did_you_mean(name, sorted(known))}"
        )
    # A method is the component of its stage: no need to say it twice
    for place in found if found[0] != "method" else found[:1]:
        yield about(place, name)


def check_option(group: str, option: str) -> None:
    """Check that a group has an option.

    Raises:
        UserError: naming the nearest where it has not.
    """
    from taskvec import registry
    from taskvec.runner.configs import options

    if option not in options(group):
        hint = registry.did_you_mean(option, options(group))
        raise UserError(f"help: {group} has no option {option!r}{hint}")


def first_lines(group: str, option: str) -> str:
    """Return the comment that an experiment's or a task's file begins with.

    Raises:
        UserError: if there is no such file.
    """
    from taskvec.cli.list import comments

    check_option(group, option)
    lines = [f"  {line}" for line in comments(group, option)]
    return "\n".join([f"{group}={option}", *lines])


def about(group: str, option: str) -> str:
    """Return what an option of a group is: where it comes from, what it computes, its keys.

    Raises:
        UserError: if the group has no such option.
    """
    from tabulate import tabulate

    from taskvec import registry

    check_option(group, option)
    place, values = settings(group, option)
    named = "backbone" if place == "source" else place
    entry = registry.lookup(named, values["kind"])
    lines = [title(group, option, place, entry)]
    if entry.paper:
        lines.append(f"  {entry.paper}")
    lines += ["", *documented(entry), ""]
    keys = list(rows(entry.schema, values, f"{prefix(place, entry)}."))
    table = tabulate(keys, headers=["key", "type", "default", "allowed"], tablefmt="plain")
    return "\n".join([*lines, *[f"  {line}" for line in table.splitlines()]])


def title(group: str, option: str, place: str, entry: Entry) -> str:
    """Return what was asked for, and which component it is where that has another name."""
    if place == group and option == entry.name:
        return f"{group}={option}"
    own = " with settings of its own" if option != entry.name else ""
    return f"{group}={option}  ({place}={entry.name}{own})"


def settings(group: str, option: str) -> tuple[str, Mapping[str, Any]]:
    """Return the stage that an option belongs to, and the values that it sets there."""
    from omegaconf import OmegaConf

    from taskvec import registry
    from taskvec.runner import compose
    from taskvec.runner.configs import defaults_of

    if group in registry.PARTS:
        entry = registry.lookup(group, option)
        return group, {"kind": entry.name} | defaults_of(entry.schema)
    place = group
    if group == "method":
        place = next(stage for stage in registry.STAGES if option in _names(stage))
    node = compose.compose([f"{place}={option}"]).node[place]
    if place == "transform":
        node = next(iter(node.values()), {"kind": option})
    values = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    return place, values


def _names(stage: str) -> list[str]:
    from taskvec import registry

    return [entry.name for entry in registry.entries(stage)]


def prefix(place: str, entry: Entry) -> str:
    """Return what stands before a component's keys on a command line."""
    return f"transform.{entry.name}" if place == "transform" else place


def documented(entry: Entry) -> list[str]:
    """Return the docstring of a component as lines of plain text."""
    text = (entry.schema.__doc__ or "").replace("``", "")
    plain = re.sub(r":\w+:`~?([^`]+)`", r"\1", text)
    return [f"  {line.strip()}" for line in plain.strip().splitlines()]


def rows(schema: type[Config], values: Mapping[str, Any], before: str) -> Iterator[list[str]]:
    """Yield key, type, default and what is allowed of each setting, those of records inside with dots."""
    for name, field in schema.model_fields.items():
        if name in ("kind", "definitions"):
            continue
        value = values.get(name)
        inside = record(field)
        if inside is not None:
            yield from rows(inside, value or {}, f"{before}{name}.")
            continue
        yield [f"{before}{name}", kind(field.annotation), shown(value), allowed(field)]


def record(field: FieldInfo) -> type[Config] | None:
    """Return the schema of a setting that is a record of settings, None of any other."""
    from taskvec.config import Config

    annotation = field.annotation
    is_record = isinstance(annotation, type) and issubclass(annotation, Config)
    return annotation if is_record else None


def kind(annotation: Any) -> str:
    """Return a type as a person names it."""
    if get_origin(annotation) is Literal:
        return "word"
    if annotation is type(None):
        return "null"
    parts = [kind(part) for part in get_args(annotation) if part is not Ellipsis]
    origin = get_origin(annotation)
    if origin in (tuple, list):
        return f"list of {parts[0]}"
    if origin is dict:
        return f"map of {parts[-1]}"
    if parts:
        return " or ".join(dict.fromkeys(part for part in parts if part != "null"))
    return getattr(annotation, "__name__", str(annotation))


def allowed(field: FieldInfo) -> str:
    """Return the range or the words that a setting may be."""
    found = [str(word) for word in words(field.annotation)]
    for mark in field.metadata:
        for name, text in BOUNDS.items():
            bound = getattr(mark, name, None)
            if bound is not None:
                found.append(text.format(bound))
    return ", ".join(found)


def words(annotation: Any) -> Sequence[Any]:
    """Return the words of a type that has some, nothing of any other."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is bool:
        return ("true", "false")
    return [word for part in get_args(annotation) for word in words(part)]


def shown(value: Any) -> str:
    """Return a default as it is typed on a command line."""
    if isinstance(value, list):
        text = f"[{','.join(map(shown, value))}]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = "(required)" if value == "???" else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def one_key(key: str) -> str:
    """Return the line of one key, of the option that its group has by default.

    Raises:
        UserError: if there is no such key.
    """
    from taskvec import registry

    group = key.partition(".")[0]
    found = group_of(group, [])
    if found is None:
        raise UserError(f"help: no key {key!r}; `taskvec help GROUP=NAME` lists a component's")
    known = {line[0]: line for line in rows(*found, f"{group}.")}
    if key not in known:
        raise UserError(f"help: no key {key!r}{registry.did_you_mean(key, list(known))}")
    _, type_, default, bounds = known[key]
    return f"{key}: {type_}, default {default}" + (f", allowed {bounds}" if bounds else "")


def group_of(group: str, overrides: Sequence[str]) -> tuple[type[Config], Mapping[str, Any]] | None:
    """Return the schema of what some overrides choose in a group, and its values; None where it has no keys."""
    from taskvec import registry
    from taskvec.graph.run import Compute
    from taskvec.runner import compose
    from taskvec.runner.launch.processes import SweepConfig

    plain = {"compute": Compute, "sweep": SweepConfig}
    node = compose.compose(overrides).node
    if group in plain:
        return plain[group], node[group]
    if group not in (*registry.GROUPS, "source") or group == "transform" or not node.get(group):
        return None
    registered = "backbone" if group == "source" else group
    return registry.lookup(registered, node[group]["kind"]).schema, node[group]


def field_of(key: str, overrides: Sequence[str]) -> FieldInfo | None:
    """Return the field of a dotted key under some overrides, None if there is none."""
    group, *path = key.split(".")
    try:
        found = group_of(group, overrides)
    except UserError:  # they cannot be composed
        return None
    schema = found[0] if found else None
    field = None
    for name in path:
        field = schema.model_fields.get(name) if schema else None
        schema = record(field) if field else None
    return field
