"""Random edits of the files that others write: each is taken, or refused in one line, and none runs code.

python tests/campaigns/fuzz.py --count 2000 --report tests/campaigns/fuzz.md
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import logging
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import world
import yaml

CANARY = "fuzz-canary"
CALL = f"open('{CANARY}','w')"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**70, 1e308, "", "x" * 10_000, [], {}, [None], {"a": {"b": []}}, "${oc.env:HOME}",
    "${seed}", {"_target_": "os.system", "_args_": [f"touch {CANARY}"]}, "../../..", "/etc/passwd", "\x1b[2J", "‮x", "~",
    [[[[[[[[[[]]]]]]]]]], "nan", ".inf", "é", "\ud800", {"": 1}, ["a"] * 500, "null", "no", "pkg://mini8", "a\nb",
)  # fmt: skip
TEXTS = (
    "[" * 3000, "{a: " * 500, "&a [*a, *a]", "a: &a [x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n", "\t", "\x00",
    "- a\nb: c", "'", f"!!python/object/apply:eval [\"{CALL}\"]", "%YAML 9.9\n---\n", "<<: *x",
    "? [a]\n: b\n", '{"a": NaN}', '"\\ud800"',
)  # fmt: skip
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202e]")
MEMORY = 600 * 2**20  # that a whole campaign may add to the peak


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in a document."""
    yield path
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield from nodes(child, (*path, key))


def changed(value: Any, drawn: random.Random) -> Any:
    """Return a document with one value replaced, removed, renamed or put into itself."""
    value = json.loads(json.dumps(value))
    path = drawn.choice([path for path in nodes(value) if path] or [()])
    if not path:
        return drawn.choice(VALUES)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    what = drawn.choice(("replace", "replace", "remove", "rename", "wrap"))
    if what == "replace":
        parent[path[-1]] = drawn.choice(VALUES)
    elif what == "remove":
        del parent[path[-1]]
    elif what == "rename" and isinstance(parent, dict):
        parent[str(drawn.choice(VALUES))[:50]] = parent.pop(path[-1])
    else:
        parent[path[-1]] = [parent[path[-1]]]
    return value


def edited(content: bytes, kind: str, drawn: random.Random) -> bytes:
    """Return a file's content after one random edit of its values, its text or its bytes."""
    way = drawn.choice(("values", "values", "values", "text", "bytes", "encoding"))
    if way == "values":
        found = json.loads(content) if kind == "json" else yaml.safe_load(content)
        found = changed(found, drawn)
        text = json.dumps(found) if kind == "json" else yaml.safe_dump(found, allow_unicode=False)
        return text.encode(errors="surrogatepass")
    if way == "encoding":
        return drawn.choice(
            (
                content.decode().encode("utf-16"),
                b"\xef\xbb\xbf" + content,
                content + b"\xff\xfe",
                b"",
            )
        )
    place = drawn.randrange(len(content) + 1)
    if way == "text":
        return content[:place] + drawn.choice(TEXTS).encode() + content[place:]
    junk = bytes(drawn.randrange(256) for _ in range(drawn.randrange(1, 9)))
    return drawn.choice((content[:place], content[:place] + junk + content[place + len(junk) :]))


class Fuzz:
    """A world whose files are edited, one at a time, and looked at by the program in this process."""

    def __init__(self, folder: Path, seed: int):
        from taskvec.runner import compose

        self.folder, self.drawn = folder, random.Random(seed)
        os.chdir(folder)  # where a canary would appear
        os.environ["TASKVEC_INCLUDE"] = str(world.build(folder / "world"))
        compose.register_all()
        self.words = [*world.FAST, f"outputs={folder}/outputs"]
        self.composed = compose.compose(self.words)
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.targets = {
            "task card": (folder / "world/task/stripes.yaml", "yaml", self.planned),
            "suite": (folder / "world/suite/tiny.yaml", "yaml", self.composing),
            "backbone": (folder / "world/clip/open_clip_config.json", "json", self.planned),
            "result.json": (self.record("result.json"), "json", self.listed),
            "status.json": (self.record("status.json"), "json", self.listed),
            "config.yaml": (self.record("config.yaml"), "yaml", self.listed),
        }
        self.planned()

    def record(self, name: str) -> Path:
        """Return a file of a finished run, written here."""
        from test_results import made

        from taskvec.runner import compose

        result = made()
        run = self.folder / "outputs/runs" / "one"
        run.mkdir(parents=True, exist_ok=True)
        (run / "result.json").write_text(result.to_json())
        (run / "status.json").write_text(
            json.dumps({"state": "done", "experiments": ["a"], "artefacts": []})
        )
        config = compose.resolve(compose.compose(self.words))
        (run / "config.yaml").write_text(config.to_yaml())
        return run / name

    def composing(self) -> None:
        """Compose the run's config anew."""
        from taskvec.runner import compose

        self.planned(compose.compose(self.words))

    def planned(self, composed: Any = None) -> None:
        """Validate the run as it is validated before it starts, without its heads."""
        from taskvec.graph.plan import Plan
        from taskvec.runner import compose, validate

        config = compose.resolve(composed or self.composed)
        validate.preflight(config, Plan(config))

    def listed(self) -> None:
        """Show all runs and their table."""
        from taskvec import cli

        for verb in ("status", "table"):
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status = cli.main([verb, "--outputs", str(self.folder / "outputs")])
            if (
                status not in (0, 2)
                or "Traceback" in said.getvalue()
                or CONTROLS.search(said.getvalue())
            ):
                raise AssertionError(f"{verb} ends with {status}: {said.getvalue()[-300:]!r}")

    def trial(self) -> None:
        """Edit one file, look, and put it back."""
        from taskvec.errors import UserError

        weights = [3, 1, 3, 2, 2, 2]
        name = self.drawn.choices(list(self.targets), weights)[0]
        path, kind, look = self.targets[name]
        before = path.read_bytes()
        content = edited(before, kind, self.drawn)
        path.write_bytes(content)
        outcome = "taken"
        try:
            look()
        except UserError as error:
            outcome = "refused"
            if "\n" in str(error).strip() or len(str(error)) > 2000:
                self.problems.append(
                    f"{name}: more than a line: {str(error)[:200]!r} for {content[:200]!r}"
                )
        except BaseException as error:
            outcome = "wrong"
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            self.problems.append(
                f"{name}: {type(error).__name__} {str(error)[:160]!r} at {place} for {content[:300]!r}"
            )
        finally:
            path.write_bytes(before)
        if list(self.folder.rglob(CANARY)):
            self.problems.append(f"{name}: code ran for {content[:200]!r}")
            (self.folder / CANARY).unlink(missing_ok=True)
        self.counts[f"{name}: {outcome}"] += 1


def fuzz(count: int, seed: int, folder: Path) -> Fuzz:
    """Return what ``count`` random edits led to."""
    logging.getLogger("taskvec").setLevel("ERROR")
    found = Fuzz(folder, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        found.trial()
    found.planned()  # the unedited files are taken still
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > MEMORY:
        found.problems.append(f"memory grew by {grown / 2**20:.0f} MB")
    return found


def main() -> int:
    """Run the campaign and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    # A path that became the name of a data set of the hub is not looked for there
    os.environ["HF_HUB_OFFLINE"] = "1"
    target = options.report.resolve() if options.report else None
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    found = fuzz(options.count, options.seed, folder)
    lines = [
        "# Fuzzing",
        "",
        f"`python tests/campaigns/fuzz.py --count {options.count} --seed {options.seed}`, ",
    ]
    lines[-1] += (
        f"{time.perf_counter() - started:.0f} s. Every edit is taken, or refused in one line; none runs code."
    )
    lines += ["", "| file | outcome | edits |", "|---|---|---|"]
    for what, times in sorted(found.counts.items()):
        file, _, outcome = what.partition(": ")
        lines.append(f"| {file} | {outcome} | {times} |")
    lines += [
        "",
        f"Problems: {len(found.problems)}.",
        "",
        *(f"- `{problem[:400]}`" for problem in found.problems[:40]),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    if target:
        target.write_text(text)
    print(text)
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
