"""Engines that compute a store: threads, processes, executors of all kinds, arrays of SLURM."""

import contextlib
import errno
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool

import jax
import pytest
import studies
from studies import assert_same, contents, copied, small

import bwflow as bw
from bwflow import _compute, jobs
from bwflow._units import Grid

pytestmark = pytest.mark.once

UNITS = 4
SPEC = small(seeds=4, tau=(0.0, 0.1))
"""Of one program, two smoothings and two pairs of seeds."""
OTHER = {"float64": "float32", "float32": "float64"}[studies.PRECISION]
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return studies.begun(SPEC, tmp_path_factory.mktemp("template") / "store")


@pytest.fixture(scope="module")
def reference(template, tmp_path_factory):
    """The store computed in this process."""
    path = copied(template, tmp_path_factory.mktemp("reference"))
    studies.compute(path)
    return path


@pytest.fixture
def store(template, tmp_path):
    return copied(template, tmp_path)


class Scripted(Executor):
    """Does the first units at once; of the next the future raises; of the rest nothing is done."""

    def __init__(self, whole=10**6, error=None):
        self.whole, self.error, self.futures = whole, error, []

    def submit(self, fn, /, *args, **kwargs):
        future, number = Future(), len(self.futures)
        self.futures.append(future)
        if number < self.whole:
            future.set_result(fn(*args, **kwargs))
        elif number == self.whole:
            future.set_exception(self.error)
        return future


def test_an_executor_that_runs_inline_computes_a_store(store, reference):
    executor = Scripted()
    bw.jobs.run(store, executor, progress=False)
    assert_same(store, reference)
    assert len(executor.futures) == UNITS


def test_computations_of_threads_never_overlap(store, reference, monkeypatch):
    """From the call of a program until its results are there, at most one thread."""
    running, most = [], []
    make, get = _compute._Study._program, jax.device_get

    def program(self, *args, **kwargs):
        compiled = make(self, *args, **kwargs)

        def wrapped(*arguments):
            running.append(1)
            time.sleep(0.05)
            most.append(len(running))
            return compiled(*arguments)

        return wrapped

    def device_get(found):
        values = get(found)
        time.sleep(0.05)
        most.append(len(running))
        running.pop()
        return values

    monkeypatch.setattr(_compute._Study, "_program", program)
    monkeypatch.setattr(jax, "device_get", device_get)
    with ThreadPoolExecutor(1) as caller, ThreadPoolExecutor(4) as executor:
        # A deadlock would end here.
        caller.submit(bw.jobs.run, store, executor, progress=False).result(timeout=300)
    assert most == [1] * (2 * UNITS)
    assert_same(store, reference)


@pytest.mark.slow
def test_spawned_processes_of_an_executor_compute_a_store(store, reference):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        bw.jobs.run(store, executor, progress=False)
    assert_same(store, reference)


@pytest.mark.slow
def test_two_local_processes_write_the_bytes_of_this_one(store, reference):
    bw.jobs.run(store, processes=2, progress=False)
    assert_same(store, reference)
    logs = {file.name for file in bw.progress.log_folder(store).glob("*.jsonl")}
    assert not any(name.endswith(f"-{os.getpid()}.jsonl") for name in logs)


@pytest.mark.parametrize(
    ("count", "shares"),
    [(1, [{0, 1, 2, 5, 7}]), (2, [{0, 1}, {2, 5, 7}]), (5, [{0}, {1}, {2}, {5}, {7}])],
)
def test_local_processes_share_the_cores(count, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 0, 2, 1, 5}, raising=False)
    assert jobs._shares(count) == shares
    assert jobs._shares(6) == [{0, 1, 2, 5, 7}] * 6


def test_without_affinities_nothing_is_shared(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert jobs._shares(2) == [set(), set()]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities on this platform")
def test_local_processes_stay_on_their_share():
    shares = jobs._shares(2)
    with jobs._local_processes(2) as pool:
        found = [pool.submit(os.sched_getaffinity, 0) for _ in range(2)]
        assert all(cores.result() in shares for cores in found)
    assert os.sched_getaffinity(0) == set.union(*shares)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signals on this platform")
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.slow
def test_local_processes_end_when_one_dies_with_the_lock_of_the_queue(victim, tmp_path):
    """One of two idle processes has the lock; which, cannot be seen."""
    with jobs._local_processes(2) as pool:
        for meeting in [pool.submit(_meet, tmp_path) for _ in range(2)]:
            meeting.result()
        processes = [*pool._processes.values()]
        dying, other = processes[victim], processes[1 - victim]
        os.kill(dying.pid, signal.SIGSTOP)
        os.waitpid(dying.pid, os.WUNTRACED)
        timers = [threading.Timer(1, dying.kill), threading.Timer(60, other.kill)]
        for timer in timers:
            timer.start()
    timers[1].cancel()
    assert dying.exitcode == -signal.SIGKILL
    assert other.exitcode in (0, 1)  # by itself


def _meet(folder):
    """Wait until another process is here too."""
    (folder / str(os.getpid())).touch()
    while len([*folder.iterdir()]) < 2:
        time.sleep(0.01)


# --- refusals ---


def forking():
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (forking, {}, "executor must not fork.*get_context..spawn"),
        (lambda: 2, {}, "executor must be a concurrent.futures.Executor.*got int"),
        (lambda: "dask", {}, "executor must be a concurrent.futures.Executor.*got str"),
        (lambda: Scripted, {}, "executor must be a concurrent.futures.Executor"),
        (lambda: multiprocessing, {}, "executor must be a concurrent.futures.Executor"),
        (Scripted, {"processes": 2}, "either an executor or processes; got both, processes=2"),
        (lambda: None, {"processes": -1}, "processes must be a positive integer"),
        (lambda: None, {"processes": 1.5}, "processes must be a positive integer"),
        (lambda: None, {"processes": "2"}, "processes must be a positive integer"),
        (lambda: None, {"processes": True}, "processes must be a positive integer"),
    ],
)
def test_what_cannot_compute_is_refused(store, as_installed, make, options, message):
    before = contents(store.parent)
    with pytest.raises(ValueError, match=message):
        bw.jobs.run(store, make(), **options)
    assert contents(store.parent) == before


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="processes do not fork by default here"
)
def test_processes_that_fork_by_default_are_refused(store):
    executor = ProcessPoolExecutor(1)
    with pytest.raises(ValueError, match="executor must not fork"):
        bw.jobs.run(store, executor)


@pytest.mark.parametrize(
    ("part", "parts", "message"),
    [
        (0, 2, "part must be a positive integer"),
        (-1, 2, "part must be a positive integer"),
        (1.0, 2, "part must be a positive integer"),
        ("1", 2, "part must be a positive integer"),
        (1, 0, "parts must be a positive integer"),
        (1, 2.5, "parts must be a positive integer"),
        (3, 2, "part must be i of n with i from 1 to n; got 3 of 2"),
    ],
)
def test_parts_that_do_not_exist_are_refused(store, as_installed, part, parts, message):
    before = contents(store.parent)
    with pytest.raises(ValueError, match=message):
        bw.jobs.work(store, part=part, parts=parts)
    assert contents(store.parent) == before


# --- failures ---


def test_an_error_reaches_the_caller_and_the_rest_is_cancelled(store, reference):
    executor = Scripted(1, NO_SPACE)
    with pytest.raises(OSError, match="No space left") as raised:
        bw.jobs.run(store, executor, progress=False)
    assert raised.value.errno == errno.ENOSPC
    assert sum(Grid.open(store).flags()) == 1
    assert [future.cancelled() for future in executor.futures] == [False, False, True, True]
    bw.jobs.run(store, progress=False)
    assert_same(store, reference)


@pytest.mark.parametrize("whole", [0, 2])
@pytest.mark.parametrize("kind", [BrokenExecutor, BrokenProcessPool])
def test_an_executor_that_lost_its_workers_says_how_much_is_left(store, reference, kind, whole):
    executor = Scripted(whole, kind("a worker died"))
    with pytest.raises(RuntimeError, match=f"{UNITS - whole} of {UNITS} chunks .*still to do"):
        bw.jobs.run(store, executor, progress=False)
    assert sum(Grid.open(store).flags()) == whole
    assert all(future.cancelled() for future in executor.futures[whole + 1 :])
    bw.jobs.run(store, progress=False)
    assert_same(store, reference)


class Breaking(Scripted):
    """Breaks while units are handed to it, as a pool of processes does."""

    def submit(self, fn, /, *args, **kwargs):
        if len(self.futures) == 3:
            raise BrokenProcessPool("a worker died")
        return super().submit(fn, *args, **kwargs)


def test_an_executor_that_breaks_while_it_is_given_units_says_how_much_is_left(store):
    executor = Breaking(1, BrokenProcessPool("a worker died"))
    with pytest.raises(RuntimeError, match=f"{UNITS - 1} of {UNITS} chunks .*still to do"):
        bw.jobs.run(store, executor, progress=False)
    assert executor.futures[2].cancelled()


@pytest.mark.slow
def test_processes_that_die_at_once_break_their_executor(store):
    spawn = multiprocessing.get_context("spawn")
    before = contents(store)
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=os._exit, initargs=(1,)) as executor:
        with pytest.raises(RuntimeError, match=f"{UNITS} of {UNITS} chunks .*still to do"):
            bw.jobs.run(store, executor, progress=False)
        with pytest.raises(RuntimeError, match=f"{UNITS} of {UNITS} chunks .*still to do"):
            bw.jobs.run(store, executor, progress=False)
    assert contents(store) == before


# --- parts and precision ---


@pytest.mark.parametrize("parts", [1, 3, UNITS + 2])
def test_all_parts_together_compute_every_unit_once(store, reference, monkeypatch, parts):
    computed = studies.counted(monkeypatch)
    for part in range(parts, 0, -1):
        bw.jobs.work(store, part=part, parts=parts, progress=False)
    assert sorted(map(str, computed)) == sorted(map(str, studies.units(store)))
    assert_same(store, reference)


_COMPUTE = """\
import sys
import jax
import bwflow as bw
from bwflow.experiment import Experiment
assert jax.config.jax_enable_x64 == (sys.argv[1] == "1")
path = bw.stored.create(Experiment.from_json(sys.argv[2]), sys.argv[3])
bw.jobs.run(path, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", [studies.PRECISION, OTHER])
def test_a_process_in_the_other_precision_writes_the_same_bytes(tmp_path, precision):
    """Studies in either precision, computed in a process of either."""
    spec = small(precision=precision)
    here = studies.finished(spec, tmp_path / "here" / "store")
    there = tmp_path / "there" / "store"
    flipped = {"float64": "0", "float32": "1"}[studies.PRECISION]
    studies.python(_COMPUTE, flipped, spec.to_json(), there, JAX_ENABLE_X64=flipped)
    assert_same(there, here)
    assert studies.arrays(here)["loss"].dtype == precision


@pytest.mark.slow
def test_threads_keep_the_precision_of_the_study(tmp_path):
    """Also where it is not that of the process."""
    spec = small(precision=OTHER)
    here = studies.finished(spec, tmp_path / "here" / "store")
    there = studies.begun(spec, tmp_path / "there" / "store")
    with ThreadPoolExecutor(2) as executor:
        bw.jobs.run(there, executor, progress=False)
    assert_same(there, here)


# --- SLURM ---

OPTIONS = ["--time=24:00:00", "--gpus=1"]


def test_a_batch_script_has_array_options_and_worker(store):
    script = bw.jobs.slurm(store, array=7, options=OPTIONS, submit=False)
    *head, last = script.splitlines()
    assert head[0] == "#!/bin/sh"
    assert "#SBATCH --array=1-7" in head
    assert [f"#SBATCH {option}" for option in OPTIONS] == head[-2:]
    assert all(line.startswith("#SBATCH --") for line in head[1:])
    assert last.endswith('--part "$SLURM_ARRAY_TASK_ID/7"')
    words = shlex.split(last)
    assert words[0] == "exec"
    assert words[1:4] == [sys.executable, "-m", "bwflow"]
    assert words[4:6] == ["work", str(store.resolve())]


@pytest.mark.parametrize("folder", ["plain", "with some spaces", "quote's"])
def test_a_shell_accepts_a_batch_script(template, tmp_path, folder):
    store = copied(template, tmp_path / folder)
    script = bw.jobs.slurm(store, array=2, options=OPTIONS, submit=False)
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(store) in shlex.split(script.splitlines()[-1])


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Puts a program of that name, which a shell runs, on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(text):
        (folder / "sbatch").write_text(f"#!/bin/sh\n{text}\n")
        (folder / "sbatch").chmod(0o755)

    return write


def test_sbatch_gets_the_script(store, tmp_path, sbatch):
    sbatch(f"cat > {shlex.quote(str(tmp_path / 'given'))}; echo Submitted batch job 42")
    answer = bw.jobs.slurm(store, array=3, options=OPTIONS)
    assert answer == "Submitted batch job 42"
    expected = bw.jobs.slurm(store, array=3, options=OPTIONS, submit=False)
    assert (tmp_path / "given").read_text() == expected
    assert bw.progress.log_folder(store).is_dir()


@pytest.mark.parametrize("reads", [True, False])
def test_what_sbatch_says_against_it_is_told(store, sbatch, reads):
    sbatch("cat > /dev/null\n" * reads + "echo 'error: Invalid qos specification' >&2; exit 1")
    with pytest.raises(OSError, match="sbatch refused: error: Invalid qos specification"):
        bw.jobs.slurm(store, array=3)


def test_without_sbatch_there_is_an_error(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="sbatch was not found"):
        bw.jobs.slurm(store, array=3)


@pytest.mark.slow
def test_a_batch_script_does_its_part_of_the_work(store, tmp_path, sbatch, reference):
    """An `sbatch` that runs every task of the array, one after the other."""
    folder = shlex.quote(str(tmp_path))
    sbatch(
        f"cat > {folder}/script\n"
        f"for i in 1 2; do SLURM_ARRAY_TASK_ID=$i sh {folder}/script >&2 || exit 1; done"
    )
    with contextlib.chdir(tmp_path):
        bw.jobs.slurm(store.name, array=2)
    assert_same(store, reference)
