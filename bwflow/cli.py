"""The command `bwflow`: run a study from a spec file, and report on its store.

This module imports nothing of jax before it has set the process up: double precision and the
caches are read from the environment when jax and equinox are imported.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

try:
    import tyro
except ImportError:
    sys.exit("bwflow: the command line needs tyro: pip install 'bwflow[sweep]'")

from bwflow import _versions
from bwflow._arguments import Flag, parsed, parted
from bwflow._process import configure, end_when_told, reader_has_left
from bwflow._spec import without_rules
from bwflow._store_commands import COMMANDS, print_report
from bwflow.experiment import Experiment

Fields: TypeAlias = Annotated[Experiment, tyro.conf.arg(name="")]
RESULTS = Path("results")
_DESCRIPTION = """Gradient dynamics of matrix factorisations under the Bures-Wasserstein distance.

A study is a spec file: bwflow sweep --example > spec.toml writes one with all its fields explained;
bwflow sweep spec.toml runs it, bwflow report STORE makes its table and its figure. bwflow --version
prints what a bug report should name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when done, 1 on failure, 2 on bad input, 130 when interrupted.

    141 where its output was a pipe that was closed.
    """
    if arguments is None:
        end_when_told()
        # A folder in a store that is not the store's harms nothing.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component")
        arguments = sys.argv[1:]
    return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    try:
        run = _asked(parted(arguments))
        if run is None:
            return 0
        run()
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_has_left()
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


def _asked(arguments: Sequence[str]) -> Callable[[], None] | None:
    if arguments == ["--version"]:
        return _versions.show
    return parsed(arguments, _commands(arguments), _DESCRIPTION)


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
        run: bool = True,
        platform: Literal["here", "cpu", "gpu", "tpu"] = "here",
        processes: int = 0,
        progress: bool = True,
    ) -> Callable[[], None]:
        """Run the study of a spec file in a store, or go on with it; a finished store is kept.

        Args:
            spec: Spec file.
            experiment: Fields of the spec; what is given here goes before what the file says.
                Lists are axes of the study: --tau 0 0.1 --network.depth 1 2 3.
            store: Folder of the store; results/NAME-HASH by default.
            overwrite: Replace a store of another study.
            dry_run: Print what would run, with its estimated time and memory, and compile nothing.
            example: Print a spec with all fields explained, to start from.
            run: Compute; with --no-run the store is made, for bwflow slurm or work to fill.
            platform: What a store that is made now will be filled on.
            processes: Local processes that compute; 0 is this one, on all its devices.
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
        place = None if platform == "here" else platform
        if not run:
            return lambda: _begin(experiment, path, overwrite, place)
        return lambda: _sweep_and_say(experiment, path, overwrite, place, processes, progress)

    def demo(
        experiment: Fields = shipped,
        full: Flag = False,
        dry_run: Flag = False,
        processes: int = 0,
        progress: bool = True,
    ) -> Callable[[], None]:
        """Study how networks of depth 1, 2, 3 learn the covariance of handwritten digits.

        Args:
            experiment: Fields of the spec.
            full: Take the full 8 x 8 images instead of their 4 x 4 averages; hours, not minutes.
            dry_run: Print what would run, with its estimated time and memory, and compile nothing.
            processes: Local processes that compute; 0 is this one, on all its devices.
            progress: Show a progress bar.
        """
        del full  # it chose the spec whose fields are the defaults here
        folder = RESULTS / experiment.slug
        if dry_run:
            return lambda: _plan(experiment, folder / "store", False)
        return lambda: _demo(experiment, folder, processes, progress)

    return {
        "sweep": sweep,
        **COMMANDS,
        "demo": demo,
        "completion": _completion_command,
    }


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


def _begin(experiment: Experiment, path: Path, overwrite: bool, platform: str | None) -> None:
    configure()
    from bwflow import stored

    stored.create(experiment, path, overwrite=overwrite, platform=platform)
    print(f"store   {path}\nnext    bwflow slurm {path} --array 16, or bwflow work {path}")


def _sweep(
    experiment: Experiment,
    path: Path,
    overwrite: bool,
    platform: str | None,
    processes: int,
    progress: bool,
) -> None:
    configure()
    from bwflow import jobs, store, stored

    if _held(experiment, path, overwrite) == "complete":
        print(f"{path} holds this study already", file=sys.stderr)
        if "done" not in store.open(path):  # written whole
            return
    stored.create(experiment, path, overwrite=overwrite, platform=platform)
    jobs.run(path, processes=processes, progress=progress)


def _held(experiment: Experiment, path: Path, overwrite: bool) -> str:
    """How far the study is in its store, if it is there; another one is refused."""
    from bwflow import store, stored

    store.check_place(path)
    if overwrite or not path.exists():
        return ""
    stored.match(experiment, path)
    ds = store.open(path)
    if "done" not in ds:  # written whole
        return "complete"
    with store.damage(path, "done"):
        done = int(ds["done"].sum())
    return "complete" if done == ds["done"].size else f"{done} of {ds['done'].size} runs"


def _sweep_and_say(experiment: Experiment, path: Path, *options: Any) -> None:
    _sweep(experiment, path, *options)
    print(f"store   {path}\nnext    bwflow report {path}")


def _demo(experiment: Experiment, folder: Path, processes: int, progress: bool) -> None:
    _sweep(experiment, folder / "store", False, None, processes, progress)
    print_report(folder / "store", folder)


def _plan(experiment: Experiment, path: Path, overwrite: bool) -> None:
    from bwflow import plan

    held = _held(experiment, path, overwrite)
    n = experiment.target.dim
    if n is None:
        from bwflow import study

        n = study.target_size(experiment.target)
    there = f", which holds this study: {held}" if held else ""
    print(f"{plan.describe(experiment, n)}\nstore   {path}{there}")


def _completion(shell: str) -> None:
    script = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):  # with which it ends
        tyro.extras.subcommand_cli_from_dict(
            _commands([]), args=["--tyro-print-completion", shell], prog="bwflow"
        )
    # Names of files are completed where no option is, as they are without the script.
    print(script.getvalue().replace("complete -F", "complete -o default -F"), end="")


if __name__ == "__main__":
    sys.exit(main())
