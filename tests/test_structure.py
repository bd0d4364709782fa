"""The house's limits: size, density, imports that point downwards and form no circle, and the commands of pages."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command
from density import density, table

PACKAGE = ROOT / "taskvec"
SOURCES = [
    path for folder in ("taskvec", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))
]
PAGES = [ROOT / "README.md", ROOT / "docs" / "running.md"]
TEXT = "".join(path.read_text(encoding="utf-8") for path in PAGES)
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.S)
SHOWN = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
FOUND = [line for line in SHOWN if line.startswith("taskvec") and "my_" not in line]
RUNS = sorted(set(FOUND))

# From the bottom to the top; a package may import those of its own line and of lines before it.
LAYERS = [
    {"errors", "config", "registry", "needs", "text", "panel"},
    {"vectors"},
    {"data", "models", "statistics"},
    {"checkpoints"},
    {"training"},
    {"finetune", "transform", "merge"},
    {"protocols", "on_disk"},
    {"graph"},
    {"report", "runner"},
    {"exchange", "papers"},
    {"api", "cli", "__init__", "__main__"},
]
REWRITTEN = (
    "checkpoints",
    "on_disk",
    "graph",
    "finetune",
    "transform",
    "merge",
    "protocols",
    "statistics",
    "training",
    "report",
    "runner",
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, (
                f"{node.name} is {node.end_lineno - node.lineno + 1} lines long"
            )


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports anywhere, those for types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskvec"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if module_path(inner) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("taskvec"))


def module_path(module: str) -> Path | None:
    """The file of a module, None if there is none of that name."""
    path = ROOT.joinpath(*module.split("."))
    found = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file for file in found if file.is_file()), None)


def layer(module: str) -> int:
    """The number of a module's line, counted from the bottom."""
    name = module.split(".")[1] if "." in module else "__init__"
    return next(number for number, names in enumerate(LAYERS) if name in names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_imports_point_downwards():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = module_of(path)
        wrong += [
            f"{here} imports {there}" for there in imports(path) if layer(there) > layer(here)
        ]
    assert wrong == []


def test_imports_form_no_circle():
    graph = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        here = module_of(path)
        graph[here] = {there for there in imports(path) if there != here}
    done, open_ = set(), []

    def visit(module: str) -> None:
        assert module not in open_, (
            f"a circle of imports: {' -> '.join([*open_[open_.index(module) :], module])}"
        )
        if module in done:
            return
        open_.append(module)
        for child in sorted(graph.get(module, ())):
            visit(child)
        done.add(open_.pop())

    for module in graph:
        visit(module)


SCRIPTS = sorted([*ROOT.glob("tests/*/*.py"), *ROOT.glob("experiments/**/*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_that_no_test_runs_import_what_exists(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskvec"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                is_there = hasattr(module, alias.name) or module_path(f"{node.module}.{alias.name}")
                assert is_there, f"{node.module} has no {alias.name}"


def test_the_plan_names_no_method_family_or_modality():
    from taskvec import registry

    names = {
        entry.name
        for entry in registry.entries()
        if entry.group in ("finetune", "transform", "merge", "backbone")
    }
    names |= {"image", "images", "text", "texts", "clip", "causal", "encoder", "t5"}
    tree = ast.parse((PACKAGE / "graph" / "plan.py").read_text(encoding="utf-8"))
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert words.isdisjoint(names - {"none"})


FAMILIES = {
    "clip", "vit", "causal", "encoder", "text_to_text", "bert", "roberta", "deberta", "t5", "gpt2",
    "llama", "qwen", "gemma", "mistral", "image", "images",
}  # fmt: skip


def words_of(node: ast.AST) -> Iterator[str]:
    """The words of names and strings below a node; not of docstrings, papers and what others call things."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.keyword) and node.arg == "paper":
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Convention":
        return
    for _, value in ast.iter_fields(node):
        # The norm that gradients are clipped to is no family
        if isinstance(value, str) and value != "clip_norm":
            yield value.lower()
            yield from re.split(r"[^a-z0-9]+", value.lower())
    for child in ast.iter_child_nodes(node):
        yield from words_of(child)


@pytest.mark.parametrize("stage", ["finetune", "transform", "merge"])
def test_no_method_mentions_a_model_family(stage):
    for path in sorted((PACKAGE / stage).rglob("*.py")):
        found = FAMILIES.intersection(words_of(ast.parse(path.read_text(encoding="utf-8"))))
        assert not found, f"{path.name}: {found}"


def test_code_is_told_one_thought_per_line():
    print("\n" + table(PACKAGE))
    assert density([PACKAGE / name for name in REWRITTEN]) <= 9.5


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_expression_holds_two_thoughts(path: Path):
    """No comprehension inside a comprehension, no conditional among a call's arguments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, COMPREHENSIONS):
            inner = [part for part in ast.walk(node) if isinstance(part, COMPREHENSIONS)]
            assert inner == [node], f"{where}: a comprehension inside a comprehension"
        elif isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            conditional = any(isinstance(value, ast.IfExp) for value in arguments)
            assert not conditional, f"{where}: a conditional among the arguments of a call"


@pytest.mark.parametrize("line", RUNS)
def test_commands_of_pages_are_valid(line: str, tmp_path: Path):
    words = shlex.split(line)[1:]
    if words[0] == "run" or "=" in words[0] or words[0] == "-m":
        words = [
            "show",
            *(
                word
                for word in words
                if word not in ("-m", "run", "--dry-run") and not word.startswith("sweep.")
            ),
        ]
        words = [re.sub(r"^(seed|protocol|merge)=([^,]+),.*", r"\1=\2", word) for word in words]
    elif words[0] not in ("list", "show", "doctor", "completion"):
        words = [*words, "--help"]
    done = command(None, *words)
    assert done.returncode == 0, done.stderr
