"""B1: how much faster are two local processes than one?

The same study is run by `bwflow.jobs.run` with one process and with two, alternating, with a warm
compile cache. Throughput is that of the log: runs over the time from when all processes have
finished their first chunk (start-up and compilation are over) to the end.
"""

import argparse
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import xarray as xr

COUNTS = (1, 2)


def studies(smoke):
    import bwflow as bw

    chunks, steps = (6, 10) if smoke else (40, 600)
    batch = 2 if smoke else 64
    network = bw.experiment.NetworkSpec(depth=(3,))

    def study(name, n, dynamics, **fields):
        return bw.Experiment(
            name=name,
            dynamics=(dynamics,),
            network=network,
            target=bw.experiment.TargetSpec(n=n),
            seeds=chunks * batch,
            batch_size=batch,
            tolerance=0.0,
            **fields,
        )

    descent = bw.experiment.DescentSpec(num_steps=steps, save_every=max(1, steps // 50))
    wide = bw.experiment.DescentSpec(num_steps=steps // 5, save_every=max(1, steps // 50))
    flow = bw.experiment.FlowSpec(end_time=0.1 if smoke else 10.0, num_saves=50)
    return [
        study("descent-8", 8, "descent", descent=descent),
        study("descent-32", 32, "descent", descent=wide),
        study("flow-8", 8, "flow", flow=flow),
    ]


def throughput(folder):
    """Runs per second of the steady part, by the logs."""
    lines = [json.loads(t) for f in folder.glob("*.jsonl") for t in f.read_text().splitlines()]
    ends = {}
    for line in lines:
        ended = datetime.fromisoformat(line["ended"]).timestamp()
        ends.setdefault((line["host"], line["process"]), []).append((ended, line["runs"]))
    every = sorted(pair for of_one in ends.values() for pair in of_one)
    steady = max(min(of_one)[0] for of_one in ends.values())
    if steady == every[-1][0]:  # so few chunks that one process did them before the other began
        steady = every[0][0]
    return sum(runs for ended, runs in every if ended > steady) / (every[-1][0] - steady)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    import bwflow as bw

    repeats, cases = 1 if smoke else 3, studies(smoke)[: 1 if smoke else None]
    table = np.zeros((len(cases), len(COUNTS), repeats))
    with tempfile.TemporaryDirectory() as folder:
        for i, experiment in enumerate(cases):
            for k in range(-1, repeats):  # the first round fills the compile cache
                for j, count in enumerate(COUNTS):
                    path = bw.stored.create(experiment, Path(folder) / f"{i}-{j}-{k}")
                    bw.jobs.run(path, processes=count, progress=False)
                    if k >= 0:
                        table[i, j, k] = throughput(bw.progress.log_folder(path))
    names = np.array([case.name for case in cases], dtype=np.dtypes.StringDType())
    ds = xr.Dataset(
        {"throughput": (("case", "processes", "repeat"), table)},
        coords={"case": names, "processes": list(COUNTS)},
        attrs={"question": __doc__.splitlines()[0], "cores": os.cpu_count() or 0},
    )
    ds["throughput"].attrs.update(units="1 / s", long_name="runs per second")
    out.mkdir(parents=True, exist_ok=True)
    ds.to_zarr(out / "B1_processes", mode="w", zarr_format=3, consolidated=False)
    for case in ds["case"].values:
        two, one = (ds["throughput"].sel(case=case, processes=p).values for p in (2, 1))
        low, middle, high = np.quantile(two / one, (0.25, 0.5, 0.75))
        print(f"{case:12}two processes over one: {middle:.2f} [{low:.2f}, {high:.2f}]")
    return ds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    main(**vars(parser.parse_args()))
