"""The command `bwflow`: run a study from a spec file, and report on its store.

This module imports nothing of jax before it has set the process up: double precision and the
caches are read from the environment when jax and equinox are imported.
"""

import contextlib
import difflib
import io
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

try:
    import tyro
except ImportError:
    sys.exit("bwflow: the command line needs tyro: pip install 'bwflow[sweep]'")

from bwflow._spec import nearest, without_rules
from bwflow.experiment import Experiment

Flag: TypeAlias = tyro.conf.FlagCreatePairsOff[bool]
Store: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
Fields: TypeAlias = Annotated[Experiment, tyro.conf.arg(name="")]
RESULTS = Path("results")
_DESCRIPTION = """Gradient dynamics of matrix factorisations under the Bures-Wasserstein distance.

A study is a spec file: bwflow sweep --example > spec.toml writes one with all its fields explained;
bwflow sweep spec.toml runs it, bwflow report STORE makes its table and its figure. bwflow --version
prints what a bug report should name."""
# What decides the numbers, and what reads and writes them.
_PACKAGES = ("jax", "jaxlib", "diffrax", "optax", "equinox", "optimistix", "lineax", "jaxtyping")
_PACKAGES += ("numpy", "scipy", "xarray", "zarr", "tyro", "matplotlib", "scikit-learn")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when done, 1 on failure, 2 on bad input, 130 when interrupted."""
    try:
        run = _parsed(_parted(sys.argv[1:] if arguments is None else arguments))
        if run is None:
            return 0
        run()
    except (ValueError, ImportError) as error:
        return _refuse(error, 2)
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)
    except (OSError, MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)  # as XLA says
        if isinstance(error, RuntimeError) and not full:
            raise
        advice = "out of memory; a lower batch_size or memory_limit_gb may help"
        return _refuse(f"{advice}: {error}" if full else error, 1)
    return 0


def _refuse(message: object, code: int) -> int:
    print("bwflow:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _parted(arguments: Sequence[str]) -> list[str]:
    """`--key=value` as two arguments, so that a misspelt key is found in either form."""
    parts = []
    for argument in arguments:
        joined = re.fullmatch("(--[^=]+)=([^-].*|)", argument, re.DOTALL)
        parts += joined.groups() if joined else [argument]
    return parts


def _parsed(arguments: Sequence[str]) -> Callable[[], None] | None:
    """What the arguments ask for; None if help was all. Refusals are one line, not a box."""
    if arguments == ["--version"]:
        return _version
    commands = _commands(arguments)
    if not arguments or (not arguments[0].startswith("-") and arguments[0] not in commands):
        got = arguments[0] if arguments else "none"
        advice = nearest(got, commands) or "bwflow --help explains them."
        raise ValueError(f"a command is needed, of {', '.join(commands)}; got {got}; {advice}")
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            return tyro.extras.subcommand_cli_from_dict(
                commands, args=arguments, prog="bwflow", description=_DESCRIPTION
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


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., Callable[[], None]]]:
    """The subcommands; every field of a spec is an option whose default the spec gives."""
    spec_file = _spec_file(arguments)
    with without_rules():  # which what is given beside the file may satisfy
        given = Experiment() if spec_file is None else Experiment.from_toml(spec_file)
    shipped = _shipped("demo-full" if "--full" in arguments else "demo")

    def sweep(
        spec: Annotated[
            tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="SPEC.toml")
        ] = None,
        experiment: Fields = given,
        store: Path | None = None,
        overwrite: Flag = False,
        dry_run: Flag = False,
        example: Flag = False,
        progress: bool = True,
    ) -> Callable[[], None]:
        """Run the study of a spec file and write its store; a finished store of it is kept.

        Args:
            spec: Spec file.
            experiment: Fields of the spec; what is given here goes before what the file says.
                Lists are axes of the study: --tau 0 0.1 --network.depth 1 2 3.
            store: Folder of the store; results/NAME-HASH by default.
            overwrite: Replace a store of another study.
            dry_run: Print what would run, with its estimated time and memory, and compile nothing.
            example: Print a spec with all fields explained, to start from.
            progress: Show a progress bar.
        """
        if example:
            return lambda: print(_text("example"), end="")
        if spec is None:
            raise ValueError(
                "sweep needs a spec file: bwflow sweep SPEC.toml; "
                "bwflow sweep --example > SPEC.toml writes one."
            )
        if spec_file is None or Path(spec_file) != spec:
            raise ValueError(f"the spec {spec} must come first: bwflow sweep {spec} [options].")
        path = store or RESULTS / experiment.slug
        if dry_run:
            return lambda: _plan(experiment, path, overwrite)
        return lambda: _sweep_and_say(experiment, path, overwrite, progress)

    def demo(
        experiment: Fields = shipped,
        full: Flag = False,
        dry_run: Flag = False,
        progress: bool = True,
    ) -> Callable[[], None]:
        """Study how networks of depth 1, 2, 3 learn the covariance of handwritten digits.

        Args:
            experiment: Fields of the spec.
            full: Take the full 8 x 8 images instead of their 4 x 4 averages; hours, not minutes.
            dry_run: Print what would run, with its estimated time and memory, and compile nothing.
            progress: Show a progress bar.
        """
        del full  # it chose the spec whose fields are the defaults here
        folder = RESULTS / experiment.slug
        if dry_run:
            return lambda: _plan(experiment, folder / "store", False)
        return lambda: _demo(experiment, folder, progress)

    return {
        "sweep": sweep,
        "report": _report_command,
        "show": _show_command,
        "demo": demo,
        "completion": _completion_command,
    }


def _report_command(
    store: Store,
    out: Path | None = None,
) -> Callable[[], None]:
    """Print the convergence statistics of a store; write them and the figure to a folder.

    Args:
        store: Folder of the store.
        out: Folder for table.txt and figure.png; STORE-report by default.
    """
    return lambda: _report(store, out)


def _show_command(
    store: Store,
    spec: Flag = False,
) -> Callable[[], None]:
    """Print what a store holds: axes, records, how its runs ended, versions.

    Args:
        store: Folder of the store.
        spec: Print the spec of its study instead, as a spec file.
    """
    return lambda: _show(store, spec)


def _completion_command(
    shell: tyro.conf.Positional[Literal["bash", "zsh"]],
) -> Callable[[], None]:
    """Print a script that completes commands, options and choices in a shell.

    Args:
        shell: The shell. In bash: eval "$(bwflow completion bash)".
    """
    return lambda: _completion(shell)


def _spec_file(arguments: Sequence[str]) -> str | None:
    if arguments[:1] != ["sweep"] or {"--help", "-h", "--example"} & set(arguments):
        return None
    plain = [argument for argument in arguments[1:] if not argument.startswith("-")]
    files = [argument for argument in plain if argument.endswith(".toml")]
    return (files or plain[: arguments[1:2] == plain[:1]] or [None])[0]


def _text(name: str) -> str:
    return (resources.files("bwflow") / "specs" / f"{name}.toml").read_text(encoding="utf-8")


def _shipped(name: str) -> Experiment:
    with resources.as_file(resources.files("bwflow") / "specs" / f"{name}.toml") as path:
        return Experiment.from_toml(path)


def _configure(precision: str) -> None:
    """Set the process up for jax; what the user has set in the environment stays."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bwflow"
    os.environ["JAX_ENABLE_X64"] = "1" if precision == "float64" else "0"
    # Equinox's error checks are host callbacks, and programs with callbacks cannot be cached;
    # failures are read from the results instead.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # XLA may spread a batch of factorisations over the cores; threads inside each would fight it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _sweep(experiment: Experiment, path: Path, overwrite: bool, progress: bool) -> None:
    _configure(experiment.precision)
    from bwflow import store, study

    if _held(experiment, path, overwrite):
        print(f"{path} holds this study already", file=sys.stderr)
        return
    store.write(study.run(experiment, progress=progress), path, overwrite=overwrite)


def _held(experiment: Experiment, path: Path, overwrite: bool) -> bool:
    """Whether the study is there and is to stay; refused if another one is, or none can be."""
    from bwflow import store

    store.check_place(path)
    if not path.exists():
        return False
    held = store.read(path).attrs.get("experiment")  # refuses what is no store
    if overwrite or held == experiment.to_json():
        return not overwrite
    raise ValueError(
        f"store {path} holds another study; choose another --store or pass --overwrite."
    )


def _sweep_and_say(experiment: Experiment, path: Path, overwrite: bool, progress: bool) -> None:
    _sweep(experiment, path, overwrite, progress)
    print(f"store   {path}\nnext    bwflow report {path}")


def _demo(experiment: Experiment, folder: Path, progress: bool) -> None:
    _sweep(experiment, folder / "store", False, progress)
    _report(folder / "store", folder)


def _plan(experiment: Experiment, path: Path, overwrite: bool) -> None:
    from bwflow import plan

    held = _held(experiment, path, overwrite)
    n = experiment.target.dim
    if n is None:
        from bwflow import study

        n = study.target_size(experiment.target)
    print(f"{plan.describe(experiment, n)}\nstore   {path}{', which holds this study' * held}")


def _report(path: Path, folder: Path | None) -> None:
    from bwflow import report, store

    ds = store.read(path)
    if folder is None:
        named = path if path.name.strip(".") else path.resolve()  # the working directory, or above
        folder = named.with_name(f"{named.name}-report")
    text, written = report.write(ds, folder)
    print(text, end="\n\n")
    for name, where in zip(("store", "table", "figure"), (path, *written), strict=True):
        print(f"{name:7} {where}")


def _show(path: Path, spec: bool) -> None:
    from bwflow import report, store

    ds = store.read(path)
    print(report.experiment_of(ds).to_toml() if spec else report.describe(ds))


def _completion(shell: str) -> None:
    script = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):  # with which it ends
        tyro.extras.subcommand_cli_from_dict(
            _commands([]), args=["--tyro-print-completion", shell], prog="bwflow"
        )
    # Names of files are completed where no option is, as they are without the script.
    print(script.getvalue().replace("complete -F", "complete -o default -F"), end="")


def _version() -> None:
    print(f"bwflow {metadata.version('bwflow')}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            print(name, metadata.version(name))


if __name__ == "__main__":
    sys.exit(main())
