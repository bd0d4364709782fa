"""A workspace and a report of Weights & Biases over mirrored runs, as code: a section for each question.

Nothing here asks the network until :func:`save`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from taskvec.errors import UserError

NEEDS = "wandb: wandb-workspaces is missing; pip install 'taskvec[wandb-report]'"
TITLE = "Task vectors compared"
ROWS = ("merged", "individual", "zero_shot")
KEYS = ("method", "merge", "backbone", "suite", "protocol", "seed")  # columns of the run set
GROUPS = ("method", "merge", "backbone")
TABLES = ("rows", "tasks", "metrics")
ABOUT = {
    "Which method is best on what": "Means over tasks on the test split; runs that differ in seeds are one group.",
    "Curves": "Training loss by step, validation accuracy by coefficient, and what stages report by layer.",
    "Tasks": "Each row, metric and task of every run, with unit and direction of improvement.",
    "What it costs": "Accuracy against seconds and peak memory.",
    "Maps and spectra": "The pictures that protocols and stages report.",
    "Where it comes from": "What the runs differ in: settings, code, versions.",
}


class Dashboard(NamedTuple):
    """A workspace and a report of one project."""

    workspace: Any
    report: Any

    def text(self) -> str:
        """Return both as JSON, as W&B stores them."""
        models = {"workspace": self.workspace, "report": self.report}
        specs = {}
        for name, made in models.items():
            model = made._to_model()
            specs[name] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
        return json.dumps(specs, indent=1)


def dashboard(entity: str, project: str) -> Dashboard:
    """Return the workspace and the report of a project.

    Raises:
        UserError: if wandb-workspaces is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(NEEDS) from error
    sections = []
    for title, panels in questions(reports).items():
        sections.append(workspaces.Section(name=title, panels=panels, is_open=True))
    grouped = [workspaces.Config(key) for key in GROUPS]
    runset = workspaces.RunsetSettings(groupby=grouped)
    workspace = workspaces.Workspace(
        entity=entity, project=project, name=TITLE, sections=sections, runset_settings=runset
    )
    return Dashboard(workspace, report(reports, entity, project))


def report(reports: Any, entity: str, project: str) -> Any:
    """Return the report: per question a heading, what it shows, and its panels over one run set."""
    blocks: list[Any] = [reports.TableOfContents()]
    for title, panels in questions(reports).items():
        # A run set without a project is one of the report's
        runset = reports.Runset(name="runs", groupby=list(GROUPS))
        grid = reports.PanelGrid(runsets=[runset], panels=panels)
        blocks += [reports.H2(title), reports.P(ABOUT[title]), grid]
    return reports.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="Built by `taskvec wandb report`; the same command builds it again.",
        blocks=blocks,
        width="fluid",
    )


def questions(reports: Any) -> dict[str, list[Any]]:
    """Return the panels of each question, over the keys that every run has whatever its method."""
    scores = [f"{row}/accuracy" for row in ROWS]
    best = [reports.BarPlot(title="accuracy", metrics=scores)]
    best.append(reports.BarPlot(title="normalised accuracy", metrics=["merged/normalised"]))
    best.append(reports.ScalarChart(title="best merged accuracy", metric="merged/accuracy"))
    curves = [
        line(reports, "validation accuracy by coefficient", "alpha_curve/alpha", "alpha_curve/.*"),
        line(reports, "training loss", "train/step", "train/.*/loss"),
        line(reports, "by layer", "layer/index", "layer/.*"),
    ]
    tables = [reports.WeavePanelSummaryTable(table_name=f"tables/{name}") for name in TABLES]
    costs = []
    for cost in ("wall_s", "peak_memory_bytes"):
        x = reports.SummaryMetric(cost)
        costs.append(reports.ScatterPlot(x=x, y=reports.SummaryMetric("merged/accuracy")))
    columns = [reports.ParallelCoordinatesPlotColumn(f"c::{key}") for key in KEYS]
    columns.append(reports.ParallelCoordinatesPlotColumn("merged/accuracy"))
    origin = [reports.RunComparer(diff_only="split")]
    origin.append(reports.ParallelCoordinatesPlot(columns=columns))
    panels = (best, curves, tables, costs, [reports.MediaBrowser(num_columns=3)], origin)
    return dict(zip(ABOUT, panels, strict=True))


def line(reports: Any, title: str, axis: str, pattern: str) -> Any:
    """Return a panel of all curves whose names match, over their own axis."""
    return reports.LinePlot(title=title, x=axis, metric_regex=pattern)


def save(made: Dashboard) -> list[str]:
    """Send workspace and report to W&B, and return their addresses.

    Raises:
        UserError: if the server does not take them.
    """
    addresses = []
    for one in made:
        with reached():
            one.save()
            addresses.append(one.url)
    return addresses


def default_entity() -> str:
    """Return the entity that W&B takes for the configured key.

    Raises:
        UserError: if there is no key, or the server does not answer.
    """
    with reached():
        import wandb

        entity = wandb.Api().default_entity
    if not entity:
        raise UserError("wandb: the key has no default entity; give --entity")
    return entity


@contextlib.contextmanager
def reached() -> Iterator[None]:
    """Turn what W&B raises into one line.

    Raises:
        UserError: if the block fails.
    """
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"wandb: {told or type(error).__name__}") from error
