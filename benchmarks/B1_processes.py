"""B1: how much faster are two local processes than one?

The same study is run by `bwflow.jobs.run` with one process and with two, alternating, with a warm
compile cache. Throughput is that of the log, without start-up and compilation: of each process, the
runs of all its chunks but the first over the time from the end of the first to that of the last.
"""

import dataclasses
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import xarray as xr
from _scripts import command_line, save

COUNTS = (1, 2)


def studies(smoke):
    import bwflow as bw

    chunks, steps = (6, 10) if smoke else (20, 600)
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
    """Runs per second, of each process from the end of its first chunk to that of its last."""
    lines = [json.loads(t) for f in folder.glob("*.jsonl") for t in f.read_text().splitlines()]
    ends = {}
    for line in lines:
        ended = datetime.fromisoformat(line["ended"]).timestamp()
        ends.setdefault((line["host"], line["process"]), []).append((ended, line["runs"]))
    total = 0.0
    for (first, _), *others in map(sorted, ends.values()):
        if others:  # not a process that came when little was left
            total += sum(runs for _, runs in others) / (others[-1][0] - first)
    return total


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    import bwflow as bw

    repeats, cases = 1 if smoke else 3, studies(smoke)[: 1 if smoke else None]
    table = np.zeros((len(cases), len(COUNTS), repeats))
    with tempfile.TemporaryDirectory() as folder:
        for i, experiment in enumerate(cases):
            few = dataclasses.replace(experiment, seeds=2 * experiment.batch_size)
            path = bw.stored.create(few, Path(folder) / f"{i}-few")  # fills the compile cache
            bw.jobs.run(path, processes=1, progress=False)
            for k in range(repeats):
                for j, count in enumerate(COUNTS):
                    path = bw.stored.create(experiment, Path(folder) / f"{i}-{j}-{k}")
                    bw.jobs.run(path, processes=count, progress=False)
                    table[i, j, k] = throughput(bw.progress.log_folder(path))
            ratio = table[i, 1] / table[i, 0]
            low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
            name = f"{experiment.name:12}two processes over one"
            print(f"{name}: {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)
    names = np.array([case.name for case in cases], dtype=np.dtypes.StringDType())
    ds = xr.Dataset(
        {"throughput": (("case", "processes", "repeat"), table)},
        coords={"case": names, "processes": list(COUNTS)},
        attrs={"question": __doc__.splitlines()[0], "cores": os.cpu_count() or 0},
    )
    ds["throughput"].attrs.update(units="1 / s", long_name="runs per second")
    save(ds, out, "B1_processes")
    return ds


if __name__ == "__main__":
    command_line(main, __doc__)
