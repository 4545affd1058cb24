"""The command `bwflow`: run a study from a spec file, and report on its store.

This module imports nothing of jax before it has set the process up: double precision and the
caches are read from the environment when jax and equinox are imported.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

try:
    import tyro
except ImportError:
    sys.exit("bwflow: the command line needs tyro: pip install 'bwflow[sweep]'")

from bwflow.experiment import Experiment

RESULTS = Path("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when done, 1 on failure, 2 on bad input, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        tyro.extras.subcommand_cli_from_dict(
            _commands(arguments),
            args=arguments,
            prog="bwflow",
            description="Gradient dynamics of matrix factorisations under the Bures-Wasserstein "
            "distance.",
        )
    except (ValueError, ImportError) as error:
        print(f"bwflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bwflow: interrupted", file=sys.stderr)
        return 130
    return 0


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The subcommands; every field of a spec is an option whose default the spec gives."""
    spec_file = _spec_file(arguments)
    given = Experiment.from_toml(spec_file) if spec_file else Experiment()
    shipped = _shipped("demo-full" if "--full" in arguments else "demo")

    def sweep(
        spec: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SPEC.toml")],
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = given,
        store: Path | None = None,
        overwrite: tyro.conf.FlagCreatePairsOff[bool] = False,
        progress: bool = True,
    ) -> None:
        """Run the study of a spec file and write its store; a finished store of it is kept.

        Args:
            spec: Spec file.
            experiment: Fields of the spec; what is given here goes before what the file says.
            store: Folder of the store; results/NAME-HASH by default.
            overwrite: Replace a store of another study.
            progress: Show a progress bar.
        """
        if spec_file is None or Path(spec_file) != spec:
            raise ValueError(f"the spec {spec} must come first: bwflow sweep {spec} [options].")
        path = store or RESULTS / experiment.slug
        _sweep(experiment, path, overwrite, progress)
        print(f"store   {path}\nnext    bwflow report {path}")

    def demo(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = shipped,
        full: tyro.conf.FlagCreatePairsOff[bool] = False,
        progress: bool = True,
    ) -> None:
        """Study how networks of depth 1, 2, 3 learn the covariance of handwritten digits.

        Args:
            experiment: Fields of the spec.
            full: Take the full 8 x 8 images instead of their 4 x 4 averages; hours, not minutes.
            progress: Show a progress bar.
        """
        del full  # it chose the spec whose fields are the defaults here
        folder = RESULTS / experiment.slug
        _sweep(experiment, folder / "store", False, progress)
        _report(folder / "store", folder)

    def report(
        store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")],
        out: Path | None = None,
    ) -> None:
        """Print the convergence statistics of a store; write them and the figure to a folder.

        Args:
            store: Folder of the store.
            out: Folder for table.txt and figure.png; STORE-report by default.
        """
        _report(store, out or store.with_name(f"{store.name}-report"))

    return {"sweep": sweep, "report": report, "demo": demo}


def _spec_file(arguments: Sequence[str]) -> str | None:
    if arguments[:1] != ["sweep"] or "--help" in arguments or "-h" in arguments:
        return None
    files = [argument for argument in arguments[1:] if argument.endswith(".toml")]
    others = [argument for argument in arguments[1:2] if not argument.startswith("-")]
    return (files or others or [None])[0]


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

    if path.exists():
        held = store.read(path).attrs.get("experiment")  # refuses what is not a store
        if held == experiment.to_json() and not overwrite:
            print(f"{path} holds this study already", file=sys.stderr)
            return
        if not overwrite:
            raise ValueError(
                f"store {path} holds another study; choose another --store or pass --overwrite."
            )
    store.write(study.run(experiment, progress=progress), path, overwrite=overwrite)


def _report(path: Path, folder: Path) -> None:
    from bwflow import report, store

    text, written = report.write(store.read(path), folder)
    print(text, end="\n\n")
    for name, where in zip(("store", "table", "figure"), (path, *written), strict=True):
        print(f"{name:7} {where}")


if __name__ == "__main__":
    sys.exit(main())
