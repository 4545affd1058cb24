"""The SLURM that other tests use: its jobs run, and it leaves nothing behind."""

import os
import subprocess
import time

import one_node_slurm
import pytest


@pytest.mark.slow
@pytest.mark.once
def test_tasks_of_an_array_run_and_no_daemon_outlives_the_cluster(tmp_path):
    slurm = tmp_path / "slurm"
    task = 'echo "$SLURM_ARRAY_TASK_ID ${LD_LIBRARY_PATH-unset}" > "$SLURM_ARRAY_TASK_ID"'
    try:
        with one_node_slurm.cluster(slurm) as environment:
            environment = {**os.environ, **environment}
            environment.pop("LD_LIBRARY_PATH", None)
            _run(["sbatch", "--array=1-3", "--wrap", task], tmp_path, environment)
            assert {"slurmctld", "slurmd"} <= set(one_node_slurm.processes(slurm).values())
            _wait_until_none_is_queued(tmp_path, environment)
    except one_node_slurm.Unavailable as reason:
        pytest.skip(str(reason))
    for number in "123":
        assert (tmp_path / number).read_text() == f"{number} unset\n"
    assert one_node_slurm.processes(slurm) == {}


def _wait_until_none_is_queued(folder, environment):
    end = time.monotonic() + 60
    while queued := _run(["squeue", "--noheader"], folder, environment):
        assert time.monotonic() < end, queued
        time.sleep(0.2)


def _run(command, folder, environment):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
