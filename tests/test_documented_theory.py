"""The pages on theory and symbols against what they name: labels, tests and public names."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
# Fenced statements, and what stands between one and the next, or the next heading.
STATEMENT = re.compile(r"^(`{3,})\{prf:(\w+)\}[^\n]*\n(.*?)^\1$\n", flags=re.MULTILINE | re.DOTALL)
PROVED = {"theorem", "proposition", "lemma", "corollary", "example"}
MEASURED = {"observation", "conjecture"}


def statements():
    """Label to kind, text, and what follows it."""
    found, matches = {}, list(STATEMENT.finditer(THEORY))
    for i, match in enumerate(matches):
        _, kind, text = match.groups()
        if kind == "proof":
            continue
        later = [m.start() for m in matches[i + 1 :] if m.group(2) != "proof"]
        end = min([*later, len(THEORY)])
        heading = re.search(r"^#", THEORY[match.end() : end], flags=re.MULTILINE)
        after = THEORY[match.end() : end]
        label = re.search(r"^:label: (\S+)$", text, flags=re.MULTILINE)
        assert label, text[:80]
        assert label[1] not in found, f"{label[1]} labels two statements"
        found[label[1]] = kind, text, after[: heading.start()] if heading else after
    return found


STATEMENTS = statements()
labelled = pytest.mark.parametrize("label", STATEMENTS)


@cache
def names_in(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def resolved(name):
    """The object of a dotted public name; modules are imported as they come."""
    parts = name.split(".")
    assert not any(part.startswith("_") for part in parts), f"{name} is not public"
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(parts[:i]))
    return found


def test_there_are_statements_of_every_part():
    headings = re.findall(r"^## (.*)$", THEORY, flags=re.MULTILINE)
    for part in re.split(r"^## .*$", THEORY, flags=re.MULTILINE)[2:]:
        assert ":label:" in part
    assert len(headings) >= 10
    assert len(STATEMENTS) >= 25
    assert {kind for kind, _, _ in STATEMENTS.values()} <= PROVED | MEASURED


@labelled
def test_a_statement_names_its_code_and_its_test(label):
    kind, text, after = STATEMENTS[label]
    assert [after.count(f"**{name}**") for name in ("Code", "Test")] == [1, 1], label
    code, tests = re.search(r"\*\*Code\*\* (.*)\*\*Test\*\*(.*)", after, flags=re.DOTALL).groups()
    names = re.findall(r"\{py:\w+\}`([\w.]+)`", code)
    assert names
    for name in names:
        assert callable(resolved(name)), name
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", tests)
    assert named
    assert tests.count("::") == len(named)
    for file, test in named:
        assert test.startswith("test_"), test
        assert test in names_in(file), f"{file} has no {test}"
    assert ("{prf:proof}" in after) == (kind in PROVED), label
    assert kind in PROVED or re.search(r"[Mm]easured", text), label


def test_references_lead_to_labels():
    assert set(re.findall(r"\{prf:ref\}`([^`]*)`", THEORY)) <= set(STATEMENTS)


@pytest.mark.parametrize("page", [THEORY, GLOSSARY], ids=["theory", "glossary"])
def test_dotted_names_are_public(page):
    names = set(re.findall(r"`(bwflow(?:\.\w+)+)`", page))
    assert len(names) > 40
    for name in names:
        resolved(name)


def test_terms_that_are_linked_are_defined():
    words = GLOSSARY.split("```{glossary}")[1]
    defined = {line for line in words.splitlines() if line and line[0] not in " :`"}
    assert set(re.findall(r"\{term\}`([^`]*)`", THEORY + GLOSSARY)) <= defined
    assert len(defined) > 20


def test_tables_of_symbols_have_four_columns():
    rows = [line for line in GLOSSARY.splitlines() if line.startswith("|")]
    assert len(rows) > 80
    for row in rows:
        assert len(re.split(r"(?<!\\)\|", row)) == 6, row
