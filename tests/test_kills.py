"""Stores have the same bytes, file by file, however often the processes that filled them died.

Each kind of death is tried a few times, or as often as the environment variable BWFLOW_KILLS says.
Moments are drawn at random, with the number of the round as the seed.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import kills
import one_node_slurm
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.once]
rounds = pytest.mark.parametrize("number", range(kills.ROUNDS))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return kills.lab(tmp_path_factory.getbasetemp())


def _cache(lab, tmp_path, number):
    """Every third round compiles anew."""
    return tmp_path / "cache" if number % 3 == 2 else lab.cache


@rounds
def test_a_sweep_killed_at_any_moments_is_the_same(lab, tmp_path, number):
    draw, store = kills.draw("driver", number), tmp_path / "store"
    cache = _cache(lab, tmp_path, number)
    for attempt in range(4):
        process = lab.sweep(store, cache=cache)
        writing = bool(attempt % 2)
        when, ended = kills.let_run(process, store, lab.duration, draw, writing=writing)
        kills.kill(process)
        outcome = "ended before" if ended else "killed"
        kills.say("sweep", number, when, len(kills.units_done(store)), outcome)
        if ended:
            break
    lab.finish(store, cache=cache)


@rounds
def test_a_sweep_killed_at_any_writes_is_the_same(lab, tmp_path, number):
    draw, store = kills.draw("writes", number), tmp_path / "store"
    for _ in range(4):
        change = draw.randrange(1, 34 * kills.UNITS)
        code, *_ = kills.end(lab.dies_at(".", change, store))
        outcome = "ended before" if code == 0 else "killed"
        kills.say("sweep", number, f"change {change}", len(kills.units_done(store)), outcome)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    lab.finish(store)


@rounds
def test_workers_of_a_killed_sweep_end_and_it_can_be_resumed(lab, tmp_path, number):
    draw, store = kills.draw("driver of workers", number), tmp_path / "store"
    process = lab.sweep(store, "--processes", 2)
    writing = bool(number % 2)
    when, ended = kills.let_run(process, store, 1.5 * lab.duration, draw, writing=writing)
    children = kills.descendants(process.pid)
    kills.kill(process)
    gone = kills.none_alive(children)
    outcome = "ended before" if ended else f"killed, {len(children)} children gone: {gone}"
    done = len(kills.units_done(store))
    kills.say("sweep of 2 processes", number, when, done, outcome)
    assert gone
    lab.finish(store, "--processes", 2 * (number % 2))


@rounds
def test_the_part_of_a_killed_worker_can_be_done_again(lab, tmp_path, number):
    draw, store = kills.draw("part", number), lab.begun(tmp_path)
    parts = [("work", store, "--part", f"{i}/2", "--no-progress") for i in (1, 2)]
    killed = draw.randrange(2)
    processes = [lab.start(*part) for part in parts]
    victim, writing = processes[killed], bool(number % 2)
    when, ended = kills.let_run(victim, store, lab.duration, draw, writing=writing)
    kills.kill(victim)
    done = len(kills.units_done(store))
    outcome = "ended before" if ended else "killed"
    kills.say(f"worker {killed + 1} of 2", number, when, done, outcome)
    code, _, err = kills.end(processes[1 - killed])
    assert code == 0, err
    lab.run(*parts[killed])
    lab.check(store)


@rounds
def test_a_sweep_goes_on_when_one_of_its_processes_is_killed(lab, tmp_path, number):
    draw, store = kills.draw("process", number), tmp_path / "store"
    process = lab.sweep(store, "--processes", 2)
    spawned = kills.wait_until(
        lambda: (len(found := kills.workers(process.pid)) == 2 and found) or process.poll()
    )
    writing = bool(number % 2)
    when, ended = kills.let_run(process, store, lab.duration, draw, writing=writing)
    victim = draw.choice(spawned)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim[0], signal.SIGKILL)
    done = len(kills.units_done(store))
    outcome = "ended before" if ended else "killed"
    kills.say("process 1 of 2", number, when, done, outcome)
    code, _, err = kills.end(process)
    assert code == 0, err
    lab.check(store)


_DASK = """\
import os, signal, sys, threading, time
from pathlib import Path

import distributed

import bwflow as bw


def kill(cluster, store, count):
    chunks = store / "done" / "c"
    while sum(path.is_file() and not path.suffix for path in chunks.rglob("*")) < count:
        time.sleep(0.002)
    nanny, *_ = cluster.workers.values()
    os.kill(nanny.pid, signal.SIGKILL)
    print("killed", flush=True)


if __name__ == "__main__":
    store, count = Path(sys.argv[1]), int(sys.argv[2])
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        killer = threading.Thread(target=kill, args=(cluster, store, count))
        killer.start()
        bw.jobs.run(store, client.get_executor(), progress=False)
        killer.join()
"""


@rounds
def test_dask_goes_on_when_one_of_its_workers_is_killed(lab, tmp_path, number):
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed")
    draw, store = kills.draw("dask", number), lab.begun(tmp_path)
    count = draw.randrange(kills.UNITS)
    script = tmp_path / "script.py"
    script.write_text(_DASK, encoding="utf-8")
    code, out, err = kills.end(lab.start(store, count, program=(script,), cwd=tmp_path))
    kills.say("worker of Dask", number, f"{count} units or more", count, out.strip())
    assert code == 0, err
    assert "killed" in out
    lab.check(store)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        try:
            folder = tmp_path_factory.mktemp("slurm")
            yield stack.enter_context(one_node_slurm.cluster(folder))
        except one_node_slurm.Unavailable as reason:
            pytest.skip(str(reason))


@rounds
def test_an_array_submitted_again_makes_up_for_a_killed_task(lab, tmp_path, number, slurm):
    draw, store = kills.draw("task", number), lab.begun(tmp_path)
    lab.run("slurm", store, "--array", 3, env=slurm)
    assert kills.wait_until(lambda: _tasks(store))
    writing = number % 3 > 0
    if writing:
        assert kills.wait_until(lambda: kills.units_done(store))
    moment = draw.uniform(0, (0.1 if writing else 0.8) * lab.duration)
    time.sleep(moment)
    running = _ask(slurm, "squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
    pids = _tasks(store)
    with contextlib.suppress(ProcessLookupError, subprocess.CalledProcessError):  # it just ended
        if number % 2 and running:
            how = f"scancel --signal=KILL {running[0]}"
            # The batch script is the task's only process.
            _ask(slurm, "scancel", "--signal=KILL", "--batch", running[0])
        elif pids:
            how = "kill -9"
            os.kill(pids[0], signal.SIGKILL)
        else:
            how = "ended before"
    done = len(kills.units_done(store))
    assert kills.wait_until(lambda: not _ask(slurm, "squeue", "--noheader"))
    left = kills.UNITS - len(kills.units_done(store))
    outcome = f"{how}, {left} left"
    when = f"{moment:.2f} s after {'a unit' if writing else 'its start'}"
    kills.say("task of SLURM", number, when, done, outcome)
    lab.run("slurm", store, "--array", 3, env=slurm)
    assert kills.wait_until(lambda: not _ask(slurm, "squeue", "--noheader"))
    logs = [path.read_text() for path in _log(store).glob("slurm-*.out")]
    assert len(kills.units_done(store)) == kills.UNITS, logs
    lab.check(store)


def _tasks(store):
    """The processes that work on a store."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in found if f"-m bwflow work {store} " in kills.command_line(pid)]


def _ask(environment, *command):
    environment = {**os.environ, **environment}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


@rounds
def test_two_workers_may_do_every_unit_at_once(lab, tmp_path, number):
    draw, store = kills.draw("both", number), lab.begun(tmp_path)
    later = draw.uniform(0, 0.3)
    first = lab.start("work", store, "--no-progress")
    time.sleep(later)
    second = lab.start("work", store, "--no-progress")
    ends = [kills.end(process) for process in (first, second)]
    kills.say("two at once", number, f"{later:.2f} s apart", kills.UNITS, "both ended")
    assert [code for code, *_ in ends] == [0, 0], ends
    lab.check(store)


@rounds
def test_a_sweep_killed_while_it_makes_the_store_leaves_nothing(lab, tmp_path, number):
    draw, store = kills.draw("template", number), tmp_path / "store"
    change = draw.randrange(1, 195)  # of about 195 that make the store
    code, *_ = kills.end(lab.dies_at(".", change, store))
    there = "there" if store.exists() else "not there"
    kills.say("sweep", number, f"change {change}", 0, f"killed, store {there}")
    assert code == -signal.SIGKILL
    lab.finish(store)


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("mkdir .*draft$", id="before it is begun"),
        pytest.param("rename .*draft/store .*/store$", id="before it has its name"),
        pytest.param("rmtree .*draft$", id="before the empty draft is removed"),
    ],
)
def test_a_sweep_killed_at_an_edge_of_making_the_store_leaves_nothing(lab, tmp_path, pattern):
    store = tmp_path / "store"
    code, *_ = kills.end(lab.dies_at(pattern, 1, store))
    assert code == -signal.SIGKILL
    lab.finish(store)


def test_a_sweep_killed_in_a_unit_and_after_the_last_one_leaves_nothing(lab, tmp_path):
    store = tmp_path / "store"
    code, *_ = kills.end(lab.dies_at("rename .*partial .*/c/", kills.UNITS, store))
    assert code == -signal.SIGKILL
    assert [*store.rglob("*.partial")]
    left = kills.UNITS - len(kills.units_done(store))
    code, *_ = kills.end(lab.dies_at("open .*jsonl", left, store))
    assert code == -signal.SIGKILL
    assert len(kills.units_done(store)) == kills.UNITS
    lab.finish(store)


@rounds
@pytest.mark.parametrize("kind", ["sweep", "work", "processes"])
def test_an_interrupted_command_says_so_and_can_be_resumed(lab, tmp_path, number, kind):
    draw, sent = kills.draw(kind, number), (signal.SIGINT, signal.SIGTERM)[number % 2]
    writing = number % 4 < 2
    store = lab.begun(tmp_path) if writing or kind == "work" else tmp_path / "store"
    if kind == "work":
        process = lab.start("work", store, "--no-progress")
    else:
        process = lab.sweep(store, "--processes", 2 if kind == "processes" else 0)
    when, ended = kills.let_run(process, store, lab.duration, draw, writing=writing)
    children, done = kills.descendants(process.pid), len(kills.units_done(store))
    if not ended:
        (os.killpg if kind == "processes" else os.kill)(process.pid, sent)
    code, _, err = kills.end(process)
    kills.say(f"{sent.name} to {kind}", number, when, done, f"exit code {code}")
    assert kills.none_alive(children)
    if code == 0:  # too late for it
        assert len(kills.units_done(store)) == kills.UNITS
        assert done >= kills.UNITS - 5, err
    elif code == -sent and "bwflow:" not in err:  # before it was ready for signals, or at its exit
        assert len(kills.units_done(store)) == kills.UNITS or not _log(store).exists(), err
    else:
        assert err == "bwflow: interrupted\n"
        # Python itself ends like this after an interrupt in code made from a string, as dataclasses
        # are when they are imported; a shell makes 130 of it.
        assert code in (130, -signal.SIGINT)
    lab.finish(store)


def _log(store):
    return store.with_name(f"{store.name}-log")
