"""Processes that die: a study of many small units, and commands that are killed on the way.

Run as a script this is the command `bwflow` that kills itself when it touches files: `kills.py
FOLDER PATTERN K ARGUMENTS` dies before the K-th change of something in FOLDER whose name, after the
kind of change, has the pattern in it.
"""

import contextlib
import functools
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROUNDS = int(os.environ.get("BWFLOW_KILLS", "3"))
UNITS = 60
SPEC = f"""
name = "kills"
seeds = {UNITS}
batch_size = 1
dynamics = ["descent"]
tolerance = 0.0
[target]
n = 2
[network]
depth = [2]
[descent]
num_steps = 5
save_every = 1
"""
# Seconds.
PATIENCE = 180
SOON = 10

CREATE = """\
import sys
import bwflow as bw
bw.stored.create(bw.Experiment.from_toml(sys.argv[1]), sys.argv[2])
"""


@dataclass(frozen=True)
class Lab:
    """The study as it is when nothing disturbs it."""

    spec: Path
    cache: Path
    """Compile cache that has all its programs."""
    template: Path
    """The store without results."""
    reference: Path
    """The store that was never interrupted."""
    duration: float
    """Seconds that the sweep takes with that cache."""

    def start(self, *arguments, cache=None, program=("-m", "bwflow"), prefix=(), **options):
        """Start the command, or another program of Python, in a process group of its own."""
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command = [*prefix, sys.executable, *program, *arguments]
        return subprocess.Popen(
            [*map(str, command)],
            env=environment(cache or self.cache) | options.pop("env", {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def sweep(self, store, *arguments, **options):
        """Start or resume the study in a store."""
        command = ("sweep", self.spec, "--store", store, "--no-progress", *arguments)
        return self.start(*command, **options)

    def dies_at(self, pattern, count, store, **options):
        """Start or resume the study in a process that kills itself at a change of files."""
        program = (__file__, store.parent, pattern, count)
        return self.sweep(store, program=program, **options)

    def run(self, *arguments, **options):
        """Let the command end, and see that it did so without failure; what it printed."""
        code, out, err = end(self.start(*arguments, **options))
        assert code == 0, err
        return out

    def begun(self, folder):
        """A store of the study without results."""
        return Path(shutil.copytree(self.template, folder / "store"))

    def finish(self, store, *arguments, **options):
        """Resume the study to its end; the store is the reference then, and is removed."""
        code, _, err = end(self.sweep(store, *arguments, **options))
        assert code == 0, err
        self.check(store)

    def check(self, store):
        """See that a store is the reference and nothing stands beside it; remove it."""
        assert same_tree(store, self.reference)
        beside = {path.name for path in store.parent.glob("*store*")}
        assert beside <= {store.name, f"{store.name}-log"}
        shutil.rmtree(store)
        shutil.rmtree(store.with_name(f"{store.name}-log"), ignore_errors=True)


@functools.cache
def lab(base):
    """The one of this session, in a new folder `lab` there."""
    folder = base / "lab"
    folder.mkdir()
    spec, cache, reference = folder / "spec.toml", folder / "cache", folder / "reference"
    spec.write_text(SPEC, encoding="utf-8")
    cold = Lab(spec, cache, folder / "template", folder / "cold", 0.0)
    assert end(cold.sweep(cold.reference))[0] == 0
    began = time.monotonic()
    assert end(cold.sweep(reference))[0] == 0
    made = Lab(spec, cache, cold.template, reference, time.monotonic() - began)
    assert same_tree(cold.reference, reference)
    cold.run(spec, made.template, program=("-c", CREATE))
    return made


def environment(cache):
    """The environment of a command that uses this compile cache."""
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}


def draw(kind, number):
    """Random numbers of one round, the same in every run of the tests."""
    return random.Random(f"{kind} {number}")


def say(kind, number, when, done, outcome):
    """One line of the log of a round."""
    print(f"\n{kind:22} {number:3}  {when:28} {done:3} of {UNITS} units done  {outcome}", end="")


def same_tree(a, b):
    """Whether two folders have the same files with the same bytes; false names what differs."""
    one, other = _files(a), _files(b)
    differing = sorted(name for name in one | other if one.get(name) != other.get(name))
    if differing:
        print(f"\n{len(differing)} files of {a} differ from {b}, such as {differing[:5]}")
    return not differing


def _files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def units_done(store):
    """Names of the chunks that say of a unit that it is done."""
    chunks = store / "done" / "c"
    return {str(p.relative_to(chunks)) for p in chunks.rglob("*") if p.is_file() and not p.suffix}


def end(process, timeout=PATIENCE):
    """Wait for the end of a process: its exit code, its output and its errors."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s: {process.args}\n{err}") from None
    return process.returncode, out, err


def ended_within(process, seconds):
    """Whether a process ends by itself in that time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    return process.returncode is not None


def let_run(process, store, longest, draw, *, writing):
    """Wait for a random moment: when it was, in words, and whether the process ended before.

    It is one of the first `longest` seconds or, where it should meet the writing, one of the next
    0.2 `longest` seconds after a unit was finished.
    """
    moment = draw.uniform(0, 0.2 * longest if writing else longest)
    if writing:
        before = units_done(store)
        wait_until(lambda: process.poll() is not None or units_done(store) > before)
    after = " after a unit" * writing
    return f"{moment:.2f} s{after}", ended_within(process, moment)


def kill(process):
    """Kill a process alone, not what it has started."""
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        pipe.close()


def wait_until(condition, timeout=PATIENCE):
    """What a condition returns as soon as that is true, or at last."""
    limit = time.monotonic() + timeout
    while not (found := condition()) and time.monotonic() < limit:
        time.sleep(0.02)
    return found


def descendants(pid):
    """Processes below one, each as its id and the time of its start."""
    children = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if found := _stat(int(entry.name)):
            parent, started, *_ = found
            children.setdefault(parent, []).append((int(entry.name), started))
    found = [*children.get(pid, [])]
    for child, _ in found:
        found += children.get(child, [])
    return found


def workers(pid):
    """The spawned processes below one."""
    return [found for found in descendants(pid) if "spawn_main" in command_line(found[0])]


def in_session(leader):
    """The processes of the session that this one began, itself left out if it is gone."""
    found = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [
        pid for pid in found if (told := _stat(pid)) and told[3] == leader and told[2] not in "ZX"
    ]


def alive(process):
    """Whether a process, as `descendants` returns it, is still running."""
    found = _stat(process[0])
    return found is not None and found[1] == process[1] and found[2] not in "ZX"


def none_alive(processes):
    """Whether processes are gone, or go soon."""
    return wait_until(lambda: not any(map(alive, processes)), SOON)


def command_line(pid):
    """The arguments of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _stat(pid):
    """Parent, start, state and session of a process; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, further parentheses too.
    state, parent, *rest = text.rpartition(")")[2].split()
    return int(parent), rest[17], state, int(rest[1])


_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open")


def _main(folder, pattern, count, *arguments):
    """The command, with a hook that sees each change of files beforehand."""
    met = 0

    def hook(event, details):
        nonlocal met
        if event not in _CHANGES:
            return
        if event == "open" and not (isinstance(details[2], int) and details[2] & 3):
            return
        names = [os.fspath(x) for x in details[:2] if isinstance(x, (str, os.PathLike))]
        if names and names[0].startswith(folder) and re.search(pattern, " ".join((event, *names))):
            met += 1
            if met == int(count):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.argv = ["bwflow", *arguments]
    runpy.run_module("bwflow", run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # not the folder of the tests
    _main(*sys.argv[1:])
