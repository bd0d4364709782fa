"""Which combinations of components there are: the choices of each stage from the registries, and covering sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from allpairspy import AllPairs
from matrix_world import FAMILIES
from pydantic import ValidationError

from taskvec import registry
from taskvec.errors import UserError
from taskvec.graph.plan import Plan
from taskvec.graph.run import RunConfig
from taskvec.runner import compose
from taskvec.runner.validate import backbones, capable, compatible, readable

STAGES = ("finetune", "forward", "transform", "merge", "protocol", "family")
TASKS = {  # of the two suites: the tasks, the control and the held-out one, in order
    "tiny": ("stripes", "corners", "control", "colours"),
    "tiny_texts": ("fine_or_not", "liked", "praise", "held"),
}
USUAL = {"finetune": "full", "forward": "as tuned", "transform": "none", "merge": "task_arithmetic"}
USUAL |= {"protocol": "addition", "family": "clip"}
SHORT = (
    "finetune.steps=2",
    "finetune.warmup=0",
    "finetune.batch_size=8",
    "finetune.lr=1e-3",
)


@dataclass(frozen=True)
class Choice:
    """An option of a stage: its name in the matrix, and the words that choose it."""

    name: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Combination:
    """A choice for each stage."""

    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """The names of the choices."""
        return "/".join(choice.name for choice in self.choices)

    def words(self, root: Path) -> list[str]:
        """Return the command, ``root`` being the folder of the worlds."""
        chosen = dict(zip(STAGES, self.choices, strict=True))
        family, protocol = chosen["family"].name, chosen["protocol"].name
        backbone, wide, suite = FAMILIES[family]
        words = [f"backbone={backbone}", f"suite={suite}", *SHORT]
        if any(name in chosen["transform"].name for name in moving()):
            alike = any(name in chosen["transform"].name for name in between_alike())
            words.append(f"source={backbone if alike else wide}")
        for choice in self.choices:
            words += [word.replace("ROOT", str(root)) for word in choice.words]
        words += _tasks(protocol, suite)
        if protocol in ("addition", "negation", "analogy"):
            words.append("protocol.grid=[0,1]")
        return words


def _tasks(protocol: str, suite: str) -> list[str]:
    """Return the words that name a protocol's tasks."""
    first, second, control, held = TASKS[suite]
    if protocol == "analogy":
        roles = (
            f"protocol.a={first}",
            f"protocol.b={second}",
            f"protocol.c={control}",
            f"protocol.target={held}",
        )
        return [
            f"suite.tasks=[{','.join(TASKS[suite])}]",
            "suite.control=null",
            "suite.held_out=[]",
            *roles,
        ]
    if protocol in ("few_shot", "out_of_distribution", "test_time"):
        return [f"protocol.targets=[{first}]"]
    return []


def moving() -> tuple[str, ...]:
    """Return the transforms that carry vectors to another backbone."""
    return tuple(entry.name for entry in registry.entries("transform") if entry.schema.moves)


def between_alike() -> tuple[str, ...]:
    """Return those of them that want backbones of equal shapes."""
    from taskvec.transform.alike import BetweenAlike

    return tuple(
        entry.name
        for entry in registry.entries("transform")
        if issubclass(entry.schema, BetweenAlike)
    )


def choices() -> dict[str, list[Choice]]:
    """Return the options of every stage, from the registries."""
    return {
        "finetune": list(_finetunes()),
        "forward": [
            Choice("as tuned"),
            Choice("standard", ("finetune.forward_mode=standard",)),
            Choice("tangent", ("finetune.forward_mode=tangent",)),
            Choice("post hoc", ("protocol.post_hoc=true",)),
        ],
        "transform": list(_transforms()),
        "merge": list(_merges()),
        "protocol": list(_protocols()),
        "family": [Choice(name) for name in FAMILIES],
    }


def _finetunes() -> Iterator[Choice]:
    for entry in registry.entries("finetune"):
        # imported vectors go wherever those of full fine-tuning do
        if entry.name == "stored":
            continue
        yield Choice(entry.name, (f"finetune={entry.name}",))
    yield Choice("full (LoRA)", ("finetune=full", "finetune.select=lora", "finetune.rank=2"))


def _transforms() -> Iterator[Choice]:
    yield Choice("none")
    names = [entry.name for entry in registry.entries("transform")]
    for name in names:
        yield Choice(name, (f"transform={name}",))
    for name in names:
        yield Choice(f"{name} on merged", (f"transform={name}", f"transform.{name}.on=merged"))
    chain = "transform=[pave,theseus]"
    yield Choice("pave+theseus", (chain,))
    yield Choice("theseus+pave", ("transform=[theseus,pave]",))
    yield Choice("pave+theseus on merged", (chain, "transform.theseus.on=merged"))


def _merges() -> Iterator[Choice]:
    for entry in registry.entries("merge"):
        words = [f"merge={entry.name}"]
        if "schedule" in entry.schema.model_fields:
            words += [
                "merge.schedule.epochs=null",
                "merge.schedule.steps=2",
                "merge.schedule.batch_size=8",
            ]
        yield Choice(entry.name, tuple(words))
    for entry in registry.entries("adapter"):
        yield Choice(f"none ({entry.name})", ("merge=none", f"merge.adapter={entry.name}"))


def _protocols() -> Iterator[Choice]:
    needed = {
        "harness": ("protocol.tasks=[tiny_choice]", "protocol.include_path=ROOT/harness"),
        "few_shot": ("protocol.shots=2",),
        "out_of_distribution": ("protocol.shots=2",),
        "disentanglement": ("protocol.grid=[0,1]",),
    }
    for entry in registry.entries("protocol"):
        yield Choice(entry.name, (f"protocol={entry.name}", *needed.get(entry.name, ())))


class Assembly:
    """Makes the configs of combinations without Hydra: each choice's component is composed once.

    ``root`` is the folder of the worlds, which must be among the included ones.
    """

    def __init__(self, root: Path):
        self.root = root
        self.options = choices()
        self._composed: dict[tuple[str, str, str], Any] = {}

    def config(self, combination: Combination) -> RunConfig:
        """Return the run of a combination.

        Raises:
            UserError: for settings that a component does not take.
        """
        chosen = dict(zip(STAGES, combination.choices, strict=True))
        family = chosen["family"]
        asked = self._of("protocol", chosen["protocol"], family)
        moved = self._of("transform", chosen["transform"], family)
        method = self._of("finetune", chosen["finetune"], family).finetune
        protocol = asked.protocol
        for word in chosen["forward"].words:
            key, value = word.split("=")
            if key == "finetune.forward_mode":
                method = type(method).model_validate(dict(method) | {"forward_mode": value})
            else:
                protocol = protocol.model_copy(update={"post_hoc": True})
        parts = {
            "finetune": method,
            "protocol": protocol,
            "source": moved.source,
            "transform": moved.transform,
        }
        parts["merge"] = self._of("merge", chosen["merge"], family).merge
        return asked.model_copy(update=parts)

    def _of(self, stage: str, choice: Choice, family: Choice) -> RunConfig:
        """Return the run in which a stage's choice is the only one that is not usual."""
        key = (stage, choice.name, family.name)
        if stage in ("finetune", "merge"):  # what a family has no say in
            key, family = (stage, choice.name, ""), self.usual("family")
        if key not in self._composed:
            words = self.combination(**{stage: choice, "family": family}).words(self.root)
            self._composed[key] = compose.resolve(compose.compose(words))
        return self._composed[key]

    def usual(self, stage: str) -> Choice:
        """Return a stage's choice where nobody makes one."""
        return self.choice(stage, USUAL[stage])

    def choice(self, stage: str, name: str) -> Choice:
        """Return a stage's choice by its name."""
        return next(choice for choice in self.options[stage] if choice.name == name)

    def combination(self, **chosen: Choice) -> Combination:
        """Return a combination of some choices and the usual ones."""
        return Combination(tuple(chosen.get(stage) or self.usual(stage) for stage in STAGES))

    def reason(self, combination: Combination) -> str | None:
        """Return why a combination is refused when planning, None if it is not."""
        try:
            config = self.config(combination)
            plan = Plan(config)
            for name, backbone in backbones(config).items():
                readable(config, name, backbone)
            compatible(config)
            config.protocol.check(config.suite)
            capable(config, plan)
            plan.cells  # noqa: B018 (plans)
        except ValidationError as error:
            found = error.errors()[0]
            return f"finetune.{found['loc'][0]}: {found['msg']}"
        except UserError as error:
            return " ".join(str(error).split())
        return None


CONTEXTS = (  # what stands beside a pair whose usual company is refused
    {},
    {"merge": "atlas"},
    {"family": "causal"},
    {"forward": "standard"},
    {"merge": "atlas", "family": "causal"},
    {"forward": "standard", "family": "causal"},
    {"merge": "atlas", "forward": "standard"},
)


class Tables:
    """Which choices of two stages go together, and what covers all that do.

    Fine-tuning and forward mode are one stage here: together they say in which mode vectors are.
    """

    def __init__(self, assembly: Assembly):
        self.assembly = assembly
        self._known: dict[tuple[tuple[str, str], ...], str | None] = {}

    def refused(self, **chosen: Choice) -> str | None:
        """Return why some choices are refused in every company, None if they are not in one."""
        key = tuple((stage, choice.name) for stage, choice in chosen.items())
        if key not in self._known:
            self._known[key] = self._refused(chosen)
        return self._known[key]

    def _refused(self, chosen: Mapping[str, Choice]) -> str | None:
        """Return the reason in the first company that each of the choices alone would do with, else the first."""
        first = told = None
        for context in CONTEXTS:
            beside = {stage: self.assembly.choice(stage, name) for stage, name in context.items()}
            reason = self.assembly.reason(self.assembly.combination(**(beside | chosen)))
            if reason is None:
                return None
            first = first or reason
            if told is None and self._alone(beside, chosen):
                told = reason
        return told or first

    def _alone(self, beside: Mapping[str, Choice], chosen: Mapping[str, Choice]) -> bool:
        """Return whether each choice by itself runs in a company."""
        for stage, choice in chosen.items():
            key = tuple((name, one.name) for name, one in (beside | {stage: choice}).items())
            if key not in self._known:
                self._known[key] = self.assembly.reason(
                    self.assembly.combination(**(beside | {stage: choice}))
                )
            if self._known[key] is not None:
                return False
        return True

    def covering(self) -> list[Combination]:
        """Return combinations that hold every pair that is not refused at least once, in a fixed order."""
        options = self.assembly.options
        tunings = []
        for method, forward in product(options["finetune"], options["forward"]):
            if self.refused(finetune=method, forward=forward) is None:
                tunings.append({"finetune": method, "forward": forward})
        rest = [[{stage: choice} for choice in options[stage]] for stage in STAGES[2:]]
        rows = AllPairs([tunings, *rest], filter_func=self._compatible)
        return [self.assembly.combination(**merged_records(row)) for row in rows]

    def _compatible(self, row: Sequence[Mapping[str, Choice]]) -> bool:
        pairs = (merged_records(pair) for pair in combinations(row, 2))
        return all(self.refused(**pair) is None for pair in pairs)


def merged_records(records: Sequence[Mapping[str, Choice]]) -> dict[str, Choice]:
    """Return the entries of several records in one."""
    return {key: value for record in records for key, value in record.items()}
