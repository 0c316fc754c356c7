"""Imports point one way, and documents speak of what there is."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from somvq.runs import METRICS, metrics_table

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "somvq"
GROUND = {"errors", "audit", "files", "processes", "readings", "config", "definitions", "runs"}
BELOW = {  # what each part may import of ours, beside the ground
    "errors": set(),
    "audit": {"settings"},  # to mask passwords
    "files": set(),
    "processes": set(),
    "readings": set(),
    "config": set(),
    "runs": set(),
    "definitions": set(),
    "settings": set(),
    "health": set(),
    "options": set(),
    "executors": set(),
    "figures": set(),
    "codebooks": set(),
    "checkpoints": set(),
    "metrics": {"codebooks"},
    "models": {"codebooks"},
    "sources": set(),
    "data": {"sources"},
    "initialisers": {"codebooks", "models", "data"},
    "tracking": set(),
    "validation": {"models", "codebooks", "data", "metrics"},
    "gallery": {"models", "codebooks", "figures", "validation"},
    "training": {"models", "initialisers", "data", "checkpoints", "figures", "gallery", "validation", "health"},
    "evaluation": {"training", "validation", "data", "health"},
    "export": {"evaluation", "training", "models", "figures", "data", "sources"},
    "published": {"models", "codebooks", "initialisers", "data"},
    "storages": {"settings"},
    "report": {"study", "tracking", "data"},
    "study": {"training", "health", "tracking", "executors", "settings", "storages", "data", "sources"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The parts of somvq that `file` imports."""
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "somvq":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("part", BELOW)
def test_imports_point_one_way(part: str) -> None:
    files = [file for file in modules() if file.relative_to(PACKAGE).parts[0] in (part, f"{part}.py")]
    assert files
    for file in files:
        assert imported(file) <= BELOW[part] | GROUND | {part}, file


def test_every_part_has_its_place() -> None:
    parts = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in modules()}
    assert parts - {"__init__", "__main__", "cli"} == set(BELOW)


def test_definitions_are_no_python_packages() -> None:
    """A package called sweeps would shadow one that wandb imports."""
    assert not [*(ROOT / "sweeps").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]


def commands() -> set[str]:
    from typer.main import get_command

    from somvq.cli import app

    found = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        found |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    return found


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_commands_and_files_that_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    known = commands()
    code = "\n".join(re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text))
    for words in re.findall(r"somvq ([a-z]+(?: [a-z]+)?)", code):
        assert words in known or words.split()[0] in known, words
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", code):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_page_of_readings_is_made_from_the_code() -> None:
    from somvq.published import table

    assert (ROOT / "docs" / "readings.md").read_text().endswith("\n\n" + table())


def test_every_difference_between_the_readings_is_listed_and_used() -> None:
    from somvq.published import DIFFERENCES
    from somvq.readings import Difference

    found: dict[int, str] = {}
    for file in modules():
        name = "somvq." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("somvq.__main__", "somvq.__init__"):
            for variable, value in vars(importlib.import_module(name)).items():
                if isinstance(value, Difference):
                    found[id(value)] = variable
    assert sorted(found) == sorted(map(id, DIFFERENCES))
    code = "\n".join(file.read_text() for file in modules())
    unused = [name for name in found.values() if f"{name}.of(" not in code and name not in CHOSEN_ELSEWHERE]
    assert unused == []


CHOSEN_ELSEWHERE = {  # by the user, for a cohort; by a table of initialisers
    "PADDING_OF": "padding",
    "CENTRES": "INITIALISERS",
    "MAP": "INITIALISERS",
}


def test_the_page_of_metrics_defines_every_metric_as_the_code_does() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text().endswith("\n\n" + metrics_table())
    for key in METRICS:
        assert f"| `{key}` |" in metrics_table()
