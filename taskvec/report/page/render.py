"""The page's HTML: Jinja2 templates that escape every name, Plotly and the data inlined once."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.report.leaderboard import Line
from taskvec.report.page.content import GIB, Content, distinct
from taskvec.report.units import scaled, shown
from taskvec.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment

NEEDS = "report: {} is missing; pip install 'taskvec[report]'"


@cache
def environment() -> Environment:
    """Return the templates, in which every text is escaped.

    Raises:
        UserError: if Jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError(NEEDS.format("jinja2")) from error
    loader = jinja2.PackageLoader("taskvec.report.page", "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    made.filters["printable"] = printable
    return made


@cache
def plotly() -> str:
    """Return Plotly's program for the browser.

    Raises:
        UserError: if Plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(NEEDS.format("plotly")) from error
    return get_plotlyjs()


def asset(name: str) -> str:
    """Return a file that stands beside the templates."""
    folder = resources.files("taskvec.report.page").joinpath("templates")
    return folder.joinpath(name).read_text(encoding="utf-8")


def page(content: Content, title: str, note: str, *, live: bool = False) -> str:
    """Return the page as HTML; one that is ``live`` asks the server that it came from for what is new.

    The browser runs the two programs of the page and nothing else, and asks no other place for anything: the page's own
    policy forbids both.

    Raises:
        UserError: if Jinja2 or Plotly is missing.
    """
    programs = [plotly(), asset("page.js")]
    now = datetime.now(UTC)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            title=title,
            note=note,
            live=live,
            made=now.strftime("%Y-%m-%d %H:%M UTC"),
            version=own_version(),
            style=asset("page.css"),
            programs=programs,
            policy=policy(programs, live=live),
            content=content,
            fragments=fragments(content),
        )
    )


def own_version() -> str:
    """Return this program's version; of a checkout that is not installed none is known."""
    try:
        return version("taskvec")
    except PackageNotFoundError:
        return "not installed"


def policy(programs: Sequence[str], *, live: bool) -> str:
    """Return the content security policy that allows these programs, and requests to the own server only if live."""
    hashes = " ".join(f"'sha256-{digest(program)}'" for program in programs)
    connect = "'self'" if live else "'none'"
    # Plotly writes styles into the page
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def digest(program: str) -> str:
    """Return a program's SHA-256 as a policy names it."""
    found = hashlib.sha256(program.encode()).digest()
    return base64.b64encode(found).decode()


def fragments(content: Content) -> dict[str, str]:
    """Return those parts of the page that follow from its content, as HTML."""
    macros: Any = environment().get_template("fragments.html.jinja").module
    rows = [row(line, content) for line in content.lines]
    return {
        "filters": macros.filters(content.filters),
        "leaderboard": macros.leaderboard(content.columns, rows),
        "runs": macros.runs(content.runs),
    }


def row(line: Line, content: Content) -> dict[str, Any]:
    """Return a line of the leaderboard as texts, each with the number that it is sorted by."""
    cells = []
    for column in content.columns:
        spread = line.metrics.get(column.name)
        if spread is None:
            cells.append({"text": "", "value": "", "interval": "", "over": ""})
            continue
        low, high = shown(spread.low, spread.unit), shown(spread.high, spread.unit)
        interval = f"{low} to {high}" if spread.known else ""
        cells.append(
            {
                "text": shown(spread.mean, spread.unit),
                "value": scaled(spread.mean, spread.unit),
                "interval": interval,
                "over": spread.over,
            }
        )
    return {
        "name": printable(line.name),
        "about": {key: printable(value) for key, value in line.about.items()},
        "cells": cells,
        "count": len(line.members),
        "seconds": "" if line.seconds is None else round(line.seconds, 1),
        "memory": "" if line.bytes is None else round(line.bytes / GIB, 2),
        "state": line.state,
        "runs": distinct(member.run.result.run_id for member in line.members),
    }
