"""H1: what does a barycenter of a million covariances take, when memory holds a block of them?

Blocks of factors are drawn anew whenever they are asked for. Pass by pass the mean is computed
through a store, and the time beyond that of the blocks themselves, drawn and averaged, is what the
store adds. The mean is held against the law from which the factors were drawn.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw
from bwflow import means


class Drawn:
    """Factors `D + noise`, of a law whose mean has almost the range of `D`."""

    def __init__(self, count, size, n, m):
        self.count, self.shape = count, (size, n, m)
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(n, m)))[0]
        self.centre = basis * np.geomspace(1, 0.2, m)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.centre + 0.2 * np.random.default_rng(i + 1).normal(size=self.shape)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    count, size, n, m = (4, 50, 6, 2) if smoke else (100, 10_000, 16, 2)
    blocks, inside = Drawn(count, size, n, m), []
    contribution = means._Passes._contribution

    def timed(*arguments):
        start = time.perf_counter()
        try:
            return contribution(*arguments)
        finally:
            inside.append(time.perf_counter() - start)

    means._Passes._contribution = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found = means.barycenter(blocks, f"{folder}/mean", rank=m, rtol=1e-8, progress=False)
            whole = time.perf_counter() - start
            written = sum(x.stat().st_size for x in Path(folder).rglob("*") if x.is_file())
    finally:
        means._Passes._contribution = contribution
    # The first block of a pass of each kind compiles.
    warm = sorted(inside)[: len(inside) - 2]
    share = 1 - sum(inside) / whole
    off = bw.geometry.bures_wasserstein_distance(
        bw.geometry.Factor(found.factor.astype(float)), bw.geometry.Factor(blocks.centre)
    )
    print(f"{count * size} covariances, n = {n}, rank {m}: {int(found.num_steps)} passes")
    print(f"residual {float(found.residual):.1e}, distance to the centre {float(off):.3f}")
    print(f"store and bookkeeping: {share:.1%} of the time, {written / 1e6:.1f} MB")
    print(f"slowest block over the median: {warm[-1] / np.median(warm):.1f}")
    ds = xr.Dataset(
        {
            "passes": int(found.num_steps),
            "residual": float(found.residual),
            "overhead": share,
            "bytes": written,
        },
        attrs={"covariances": count * size, "n": n, "rank": m},
    )
    save(ds, out, "H1_streaming")
    return ds


if __name__ == "__main__":
    command_line(main, __doc__)
