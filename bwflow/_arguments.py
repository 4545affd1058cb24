"""Command-line arguments: what they ask for, or one line on why they cannot be understood."""

import contextlib
import difflib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

from bwflow._spec import nearest

Flag: TypeAlias = tyro.conf.FlagCreatePairsOff[bool]
Store: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]


def parted(arguments: Sequence[str]) -> list[str]:
    """`--key=value` as two arguments, so that a misspelt key is found in either form."""
    parts = []
    for argument in arguments:
        joined = re.fullmatch("(--[^=]+)=([^-].*|)", argument, re.DOTALL)
        parts += joined.groups() if joined else [argument]
    return parts


def parsed(
    arguments: Sequence[str], commands: dict[str, Callable[..., Any]], description: str
) -> Callable[[], None] | None:
    """What the arguments ask for; None if help was all. Refusals are one line, not a box."""
    if not arguments or (not arguments[0].startswith("-") and arguments[0] not in commands):
        got = arguments[0] if arguments else "none"
        advice = nearest(got, commands) or "bwflow --help explains them."
        raise ValueError(f"a command is needed, of {', '.join(commands)}; got {got}; {advice}")
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            return tyro.extras.subcommand_cli_from_dict(
                commands, args=arguments, prog="bwflow", description=description
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(_sentence(refusal.getvalue())) from None


def _sentence(box: str) -> str:
    """The message in a box: a title, what is wrong, advice, parted by rules."""
    sections: list[str] = [""]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        words = line.strip(" │|╭╮╰╯─")
        if words.strip("-"):
            sections[-1] += f" {words}"
        if line.startswith("╭") or not words.strip("-"):
            sections.append("")
    _, wrong, *advice = [section.strip() for section in sections if section] + [box]
    wrong = re.sub(r"^Error parsing (?!-)\S+: ", "", wrong)  # a record, whose message names its key
    return wrong.rstrip(".") + _advice(wrong, " ".join(advice))


def _advice(wrong: str, shown: str) -> str:
    """How the sentence ends: with what was probably meant, from the flags that the parser shows."""
    choice = re.match(r"invalid choice '(.*)' for .*\((.*)\)", wrong)
    if choice:
        near = nearest(choice[1], re.findall("'([^']*)'", choice[2]))
        return f"; {near}" if near else "."
    if "Could not find valid parse" in wrong:
        if ".toml'" in wrong:
            return "; the spec must come first: bwflow sweep SPEC.toml [options]."
        return "; lists are written with spaces, as in --tau 0 0.1."
    if not wrong.startswith("Unrecognized options: "):
        return "."
    typed = wrong.removeprefix("Unrecognized options: ").rstrip(".").split(", ")
    if {"true", "false"} & {word.lower() for word in typed}:
        return "; flags take no value: --progress turns one on, --no-progress off."
    flags = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", shown)) - set(typed)
    near = [found for word in typed for found in difflib.get_close_matches(word, flags, n=1)]
    return f"; did you mean {', '.join(near)}?" if near else "."
