"""Random studies, killed at random moments and gone on with for an hour: their bytes stay right.

`python tests/soak.py --minutes 60 --seed 0` writes its figures to docs/soak.md; with `--case 0.17`
it does one study again, with the same spec and the same deaths. Moments are drawn as shares of the
time that the study takes, so a case done again is killed at about the same places.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import figures
import kills
from studies_drawn import drawn_study, growth

ENDS = ("SIGKILL", "SIGTERM", "SIGINT", "change of files")
LIBRARY_BEGAN = "bwflow/cli.py"  # in a traceback that is not of the start of Python itself


@dataclass
class Tally:
    """What was done, and what was wrong."""

    counts: Counter = field(default_factory=Counter)
    faults: list = field(default_factory=list)
    driver: list = field(default_factory=list)
    """Resident bytes and open files of this process after each study."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    def __getitem__(self, name):
        return self.counts[name]

    def add(self, name, number=1):
        with self.lock:
            self.counts[name] += number


class Fault(AssertionError):
    """Something that must not happen."""


@dataclass
class Case:
    """One study, with what is done to it."""

    number: str
    tally: Tally
    lab: kills.Lab
    draw: random.Random
    latest: Path
    """What the store has to be now."""
    turn: int = 0

    @property
    def store(self):
        """The store that is disturbed."""
        return self.lab.spec.parent / "disturbed" / "store"

    def finish(self, *command, said=("",)):
        """Let a command end without a signal; what it printed."""
        process = self.lab.start(*command)
        code, out, err = self.ended(process)
        allowed = {*said, "", f"{self.store} holds this study already\n"}
        if code != 0 or err not in allowed:
            raise Fault(f"{_shown(command)} ended with {code}: {err}")
        return out

    def ended(self, process):
        """Wait for a process and see that it leaves none behind and shows no traceback."""
        session = process.pid
        code, out, err = kills.end(process)
        self.tally.add("commands")
        if not kills.wait_until(lambda: not kills.in_session(session), kills.SOON):
            self.tally.add("stray processes")
            raise Fault(f"processes of {process.args} are left: {kills.in_session(session)}")
        if "Traceback" in out + err:
            early = code == -signal.SIGINT and LIBRARY_BEGAN not in err
            self.tally.add("tracebacks of Python's own start" if early else "tracebacks")
            if not early:
                raise Fault(f"{process.args} showed a traceback:\n{err}")
        return code, out, err

    def disturb(self, *command):
        """Start a command and end it at a random moment; whether it was done before."""
        # Draws of its own: how many the earlier ones took hangs on when they were killed.
        self.turn += 1
        draw = kills.draw("soak", f"{self.number} {self.turn}")
        how, share = draw.choice(ENDS), draw.random()
        writing, group = draw.random() < 0.7, draw.random() < 0.5
        change = 1 + int(share * share * 35 * self.units)
        if how == "change of files":
            program = (kills.__file__, self.store.parent, ".", change)
            code, _, err = self.ended(self.lab.start(*command, program=program))
            self.tally.add("ended before" if code == 0 else "by a change of files")
            if code not in (0, -signal.SIGKILL):
                raise Fault(f"{_shown(command)} ended with {code}: {err}")
            return code == 0
        process = self.lab.start(*command)
        longest = self.lab.duration
        _, ended = kills.let_run(process, self.store, longest, draw, writing=writing)
        if not ended:
            sent = getattr(signal, how)
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(process.pid, sent)
        code, _, err = self.ended(process)
        self.tally.add("ended before" if ended or code == 0 else f"by {how}")
        self.check_end(_shown(command), None if ended else how, code, err)
        return code == 0

    def check_end(self, command, how, code, err):
        """See that a command ended as one does that is sent this signal, or none."""
        held = f"{self.store} holds this study already\n"
        as_usual = code == 0 and err in ("", held)
        killed = how == "SIGKILL" and code == -signal.SIGKILL
        said = how in ("SIGINT", "SIGTERM") and code == 130
        said = said and err in ("bwflow: interrupted\n", f"{held}bwflow: interrupted\n")
        early = how in ("SIGINT", "SIGTERM") and code == -getattr(signal, how)
        if not (as_usual or killed or said or early):
            raise Fault(f"{command} met {how} and ended with {code}: {err}")

    @property
    def units(self):
        """Number of units of the study."""
        return len(kills.units_done(self.lab.reference))

    def same(self, reference):
        """See that the store is that which nothing disturbed, and that nothing is beside it."""
        if not kills.same_tree(self.store, reference):
            self.tally.add("mismatches")
            raise Fault(f"{self.store} differs from {reference}")
        found = {path.name for path in self.store.parent.iterdir()}
        if not found <= {"store", "store-log"}:
            raise Fault(f"beside the store there are {sorted(found)}")


def _shown(command):
    return " ".join(map(str, command))


def live(case):
    """A study from its start to its end."""
    sweep = ("sweep", case.lab.spec, "--store", case.store, "--no-progress")
    workers = [case.draw.choice([0, 0, 0, 1, 2]) for _ in range(case.draw.randint(2, 6))]
    looks = case.draw.randrange(2 * len(workers))
    deeds = case.draw.sample([read, damage, extend], case.draw.randint(1, 3))
    for i, processes in enumerate(workers[1:]):
        case.tally.add("resumes", case.store.exists())
        if case.disturb(*sweep, "--processes", processes):
            break
        if i == looks and case.store.exists():
            look(case)
    case.tally.add("resumes", case.store.exists())
    case.finish(*sweep, "--processes", workers[0])
    case.tally.add("sweeps")
    case.same(case.lab.reference)
    for deed in deeds:
        deed(case)


def look(case):
    """Ask how far an unfinished store is."""
    command = case.draw.choice(["status", "show", "report"])
    out = ("--out", case.lab.spec.parent / "half") if command == "report" else ()
    case.finish(command, case.store, *out)
    case.tally.add("looks at unfinished stores")


def read(case):
    """Reports and exports of both stores are the same, files beside them none."""
    made = []
    for name, store in (("one", case.store), ("other", case.latest)):
        folder = case.lab.spec.parent / name
        case.finish("report", store, "--out", folder)
        files = ("--parquet", folder / "table.parquet", "--netcdf", folder / "all.nc")
        if name == "one" and case.draw.random() < 0.5:
            case.disturb("export", store, *files)
        case.finish("export", store, *files)
        made.append(folder)
    if not kills.same_tree(*made):
        case.tally.add("mismatches")
        raise Fault(f"reports of {case.store} and {case.latest} differ")
    case.tally.add("reports and exports", 2)


def damage(case):
    """Damage one file, and let it be repaired."""
    files = sorted(path for path in case.store.rglob("*") if path.is_file())
    file = case.draw.choice(files)
    whole, kind = file.read_bytes(), case.draw.choice(["byte", "byte", "cut", "gone"])
    at = case.draw.randrange(len(whole))
    if kind == "gone":
        file.unlink()
    else:
        flipped = bytes([whole[at] ^ (1 << case.draw.randrange(8))])
        file.write_bytes(whole[:at] if kind == "cut" else whole[:at] + flipped + whole[at + 1 :])
    case.tally.add("damaged files")
    if file == case.store / "zarr.json":  # by which it is known
        code, _, err = case.ended(case.lab.start("repair", case.store, "--no-progress"))
        if code not in (0, 2) or (code == 2 and err.count("\n") != 1):
            raise Fault(f"repair of a root with a {kind} at {at} ended with {code}: {err}")
        file.write_bytes(whole)
    if case.draw.random() < 0.5:
        case.disturb("repair", case.store, "--no-progress")
    case.finish("repair", case.store, "--no-progress")
    # What a repair that was killed had marked as not done is computed by whoever comes next.
    case.finish("work", case.store, "--no-progress")
    case.tally.add("repairs")
    case.same(case.latest)


def extend(case):
    """Add runs to the store, and to the reference without a disturbance."""
    options = growth(case.lab.spec, case.draw)
    grown = case.lab.reference.with_name("grown")
    shutil.copytree(case.lab.reference, grown)
    case.finish("extend", grown, *options, "--no-progress")
    for _ in range(case.draw.randint(0, 2)):
        if case.disturb("extend", case.store, *options, "--no-progress"):
            break
    case.finish("extend", case.store, *options, "--no-progress")
    case.latest = grown
    case.tally.add("extensions")
    case.same(grown)


def study(number, tally, folder, cache):
    """One study, in a folder that is removed unless something is wrong."""
    draw = kills.draw("soak", number)
    spec, reference = folder / "spec.toml", folder / "reference"
    (folder / "disturbed").mkdir(parents=True)
    spec.write_text(drawn_study(draw).to_toml(), encoding="utf-8")
    lab = kills.Lab(spec, cache, folder, reference, 0.0)
    case = Case(number, tally, lab, draw, reference)
    sweep = ("sweep", spec, "--store", reference, "--no-progress")
    began = time.monotonic()
    case.finish(*sweep)
    # About half of it was compilation, whose programs are in the cache now.
    case.lab = kills.Lab(spec, cache, folder, reference, 0.5 * (time.monotonic() - began))
    live(case)
    tally.add("units computed", _logged(folder, "unit"))
    tally.add("runs computed", _logged(folder, "runs"))


def _logged(folder, what):
    """Units or runs that the logs of a study tell of."""
    total = 0
    for log in folder.rglob("*-log/*.jsonl"):
        for line in log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # cut short by a kill
                total += 1 if what == "unit" else json.loads(line)["runs"]
    return total


def soak(seed, minutes, lanes, folder):
    """Studies, some at a time, until the time is over; the tally."""
    tally, began, numbers = Tally(), time.monotonic(), itertools.count()

    def lane():
        while time.monotonic() - began < 60 * minutes:
            number = f"{seed}.{next(numbers)}"
            attempt(number, tally, folder)
            minute, deaths = (time.monotonic() - began) / 60, sum(_deaths(tally).values())
            done = f"{tally['sweeps']:4} sweeps  {tally['commands']:5} commands  {deaths:4} deaths"
            print(f"{number:8} {minute:5.1f} min {done}", flush=True)

    with ThreadPoolExecutor(lanes) as pool:
        for ended in [pool.submit(lane) for _ in range(lanes)]:
            ended.result()
    tally.add("seconds", round(time.monotonic() - began))
    return tally


def attempt(number, tally, folder):
    """One study; what is wrong with it is told, and its folder kept."""
    place = folder / number
    try:
        study(number, tally, place, folder / "cache")
        shutil.rmtree(place)
    except Exception as error:
        what = str(error) if isinstance(error, Fault) else traceback.format_exc()
        tally.faults.append(f"case {number}: {what}")
        print(f"\n{number} FAILED, kept in {place}; again: --case {number}\n{what}", flush=True)
    tally.driver.append((_resident(), len(os.listdir("/proc/self/fd"))))


def _resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _deaths(tally):
    return {
        how: tally[f"by {how}"] for how in ("SIGKILL", "SIGTERM", "SIGINT", "a change of files")
    }


def rows(tally):
    """The figures of a run."""
    wrong = ("mismatches", "tracebacks", "stray processes")
    first, last = tally.driver[min(2, len(tally.driver) - 1)], tally.driver[-1]
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    counted = ["sweeps", "commands", "resumes", "extensions", "repairs", "damaged files"]
    counted += ["looks at unfinished stores", "reports and exports", "runs computed"]
    counted += ["units computed", "mismatches", "tracebacks", "tracebacks of Python's own start"]
    counted += ["stray processes", "seconds"]
    return [
        *((name, tally[name]) for name in counted[:2]),
        *((f"killed by {how}", number) for how, number in _deaths(tally).items()),
        ("ended before they were killed", tally["ended before"]),
        *((name, tally[name]) for name in counted[2:-1]),
        ("other faults", len(tally.faults) - sum(tally[name] for name in wrong)),
        ("largest process, MB", f"{largest / 1024:.0f}"),
        ("this script at first and at last, MB", f"{first[0] / 1e6:.1f}, {last[0] / 1e6:.1f}"),
        ("its open files at first and at last", f"{first[1]}, {last[1]}"),
        ("seconds", tally["seconds"]),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=2, help="studies at a time")
    parser.add_argument("--case", help="one study alone, such as 0.17")
    parser.add_argument("--folder", type=Path, help="where the studies are made")
    parser.add_argument("--dry", action="store_true", help="leave docs/soak.md as it is")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=asked.folder))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked.case:
        attempt(asked.case, tally := Tally(), folder)
    else:
        tally = soak(asked.seed, asked.minutes, asked.lanes, folder)
    found = rows(tally)
    print(*(f"{name:40} {value}" for name, value in found), *tally.faults, sep="\n")
    if not asked.case and not asked.dry:
        how = f"`make soak MINUTES={asked.minutes:g} SEED={asked.seed}`. {figures.versions()}"
        figures.keep("studies", f"{how}\n\n{figures.table(found)}")
    if not tally.faults:
        shutil.rmtree(folder)
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
