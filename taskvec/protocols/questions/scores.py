"""Scores along the coefficients: on validation over the grid, then on test at those that are reported."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from taskvec.errors import NoFeasibleCoefficientError
from taskvec.needs import Examples, Given, Needs, Scope, Signed
from taskvec.protocols.base import REPORT, SELECTION, Answer, Question
from taskvec.protocols.metrics import score
from taskvec.protocols.selection import Rule, choose
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.data.tasks import Suite
    from taskvec.vectors.composition import Composition

Outcomes = dict[float, dict[tuple[str, str], "Tensor"]]  # alpha -> (kind, task) -> outcome


@register("question", "scores")
class Scores(Question):
    """The metric of each target, and of the control, at coefficients alpha.

    Those of ``grid`` are evaluated on the validation split, where ``rule`` picks one; it and those of ``fixed`` are
    evaluated on the test split. ``on_selection`` evaluates the fixed ones on validation too (denominators and controls
    of selection rules). ``metrics`` names the metric of every task that is not judged by accuracy; a ``corpus`` among
    the tasks is judged by its perplexity. ``separately`` searches each vector's own coefficient on its own task.

    Outcomes per test example are kept: ``correct/ALPHA/TASK`` [N] bool, ``predicted/ALPHA/TASK`` [N, 2] float64 (label,
    prediction) for another metric, ``surprise/ALPHA/TASK`` [N, 2] float64 (negative log-likelihood, tokens).
    """

    kind: Literal["scores"] = "scores"
    targets: tuple[str, ...]
    control: str | None = None
    grid: tuple[float, ...] = ()
    fixed: tuple[float, ...] = ()
    on_selection: bool = False
    rule: Rule | None = None
    metrics: tuple[tuple[str, str], ...] = ()
    corpus: str | None = None
    separately: bool = False

    as_held: ClassVar[bool] = True

    def tasks(self) -> tuple[str, ...]:
        """Return every task that is measured."""
        return self.targets if self.control is None else (*self.targets, self.control)

    def examples(self, split: str) -> dict[str, Examples]:
        """Return the need of each task on a split."""
        use = "selection" if split == SELECTION else "report"
        return {
            task: Examples(task, split, use, labels=task != self.corpus) for task in self.tasks()
        }

    def needs(self, scope: Scope) -> Needs:
        """Return validation examples where there is something to select, and test examples."""
        selects = bool(self.grid) or self.on_selection
        splits = (SELECTION, REPORT) if selects else (REPORT,)
        return [need for split in splits for need in self.examples(split).values()]

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict[str, Tensor]]:
        """Search, choose, report.

        Raises:
            NoFeasibleCoefficientError: if the rule has no admissible coefficient.
        """
        to_search = set(self.grid)
        if self.on_selection:
            to_search |= set(self.fixed)
        searched, excluded = self._scores(given, composition, to_search, SELECTION)
        selection = {alpha: self._values(at) for alpha, at in searched.items()}
        to_report = set(self.fixed)
        chosen = None
        if self.rule:
            chosen = self._choose(given, selection, excluded)
            to_report.add(chosen)
        reported, failed = self._scores(given, composition, to_report, REPORT)
        report = {alpha: self._values(at) for alpha, at in reported.items()}
        kept = {}
        for alpha, at in reported.items():
            for (kind, task), outcome in at.items():
                kept[f"{kind}/{alpha}/{task}"] = outcome
        rule = self.rule.kind if self.rule else None
        answer = Answer(
            alpha=chosen,
            rule=rule,
            selection=selection,
            report=report,
            excluded=excluded | failed,
        )
        return answer, kept

    def measure(
        self, given: Given, composition: Composition, alphas: Collection[float], split: str
    ) -> tuple[dict[float, dict[str, float]], dict[float, str]]:
        """Return each task's score on a split by coefficient, and why some coefficients have none."""
        found, excluded = self._scores(given, composition, alphas, split)
        return {alpha: self._values(at) for alpha, at in found.items()}, excluded

    def _choose(self, given: Given, selection: Mapping, excluded: Mapping) -> float:
        curve = {alpha: selection[alpha] for alpha in self.grid if alpha in selection}
        if not curve:
            reasons = "; ".join(dict.fromkeys(excluded.values()))
            raise NoFeasibleCoefficientError(
                f"no coefficient of the grid gives finite scores: {reasons}"
            )
        return choose(self.rule, curve, self.targets, self.control, given.answers)

    def _scores(
        self, given: Given, composition: Composition, alphas: Collection[float], split: str
    ) -> tuple[Outcomes, dict[float, str]]:
        """Return the outcomes at each coefficient, and why some have none."""
        if not alphas:
            return {}, {}
        needs, chosen = self.examples(split), sorted(set(alphas))
        labelled = [need for task, need in needs.items() if task != self.corpus]
        predictions, excluded = given.evaluator.predictions(composition, labelled, chosen)
        found: Outcomes = {alpha: {} for alpha in chosen if alpha not in excluded}
        for alpha, at in predictions.items():
            for need, predicted in at.items():
                labels = given[need].labels().cpu()
                kind, outcome = self._judged(need.task, labels, predicted)
                found[alpha][kind, need.task] = outcome
        if self.corpus in needs:
            texts = needs[self.corpus]
            documents, failed = given.evaluator.surprise(composition, texts, sorted(found))
            excluded = excluded | failed
            for alpha, rows in documents.items():
                found[alpha]["surprise", self.corpus] = rows
        finite = {alpha: at for alpha, at in found.items() if alpha not in excluded}
        return finite, excluded

    def _judged(self, task: str, labels: Tensor, predicted: Tensor) -> tuple[str, Tensor]:
        import torch

        if dict(self.metrics).get(task, "accuracy") == "accuracy":
            return "correct", predicted == labels
        return "predicted", torch.stack([labels.double(), predicted.double()], dim=1)

    def _values(self, outcomes: Mapping[tuple[str, str], Tensor]) -> dict[str, float]:
        """Return each task's score from its outcome at one coefficient."""
        values = {}
        for (kind, task), outcome in outcomes.items():
            if kind == "correct":
                values[task] = outcome.double().mean().item()
            elif kind == "surprise":
                values[task] = perplexity(outcome)
            else:
                labels, predicted = outcome.numpy().T
                values[task] = score(dict(self.metrics)[task], labels, predicted)
        return values


def perplexity(documents: Tensor) -> float:
    """Return exp(sum of negative log-likelihoods / number of tokens) of documents [N, 2]; inf where that overflows."""
    nll, tokens = documents.sum(0)
    return (nll / tokens).exp().item()


def scores(
    suite: Suite, targets: Sequence[str], control: str | None = None, **settings: Any
) -> Scores:
    """Return the question about some targets of a suite, with what its definitions say of their metrics."""
    tasks = list(targets)
    if control:
        tasks.append(control)
    metrics = []
    for task in tasks:
        named = getattr(suite.definitions.get(task), "metric", "accuracy")
        if named != "accuracy":
            metrics.append((task, named))
    corpus = control if control and suite.control_metric == "perplexity" else None
    return Scores(
        targets=tuple(targets), control=control, metrics=tuple(metrics), corpus=corpus, **settings
    )
