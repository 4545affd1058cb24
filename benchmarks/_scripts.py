"""What every benchmark does at its end: it writes its results, and takes its options."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr


def save(ds: xr.Dataset, out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ds.to_zarr(out / name, mode="w", zarr_format=3, consolidated=False)


def command_line(
    main: Callable[..., xr.Dataset], description: str | None, **more: dict[str, Any]
) -> None:
    """Runs `main` with the options all have, and those `more`, as `add_argument` takes them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    for name, option in more.items():
        parser.add_argument(f"--{name}", **option)
    main(**vars(parser.parse_args()))
