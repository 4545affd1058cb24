"""A real SLURM of one node on the loopback address: fetched with apt-get, not installed."""

import contextlib
import os
import platform
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "slurm"
# The daemons and tools, then the libraries of theirs that a small system lacks.
PACKAGES = (
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "libmunge2",
    "libhwloc15",
    "libnuma1",
    "libreadline8",
)
TOOLS = ("sbatch", "squeue", "scancel", "sinfo", "srun", "scontrol")
# Seconds.
DOWNLOAD_TIME = 120
START_TIME = 30
# Between the polite signal to a cancelled job and the last one.
KILL_WAIT = 2

_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
# `config_overrides`: the node has the CPUs said here, however many the machine has. CPUs alone are
# consumed, so that memory limits nothing. The scheduler looks every second, not every minute.
_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
MaxArraySize=1001
JobRequeue=1
KillWait={kill_wait}
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname=localhost CPUs={cpus} RealMemory={memory}
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE
"""


class Unavailable(Exception):
    """SLURM cannot be started here; the message says why."""


@contextlib.contextmanager
def cluster(folder: str | os.PathLike, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Run SLURM in a folder; what is yielded belongs into the environment of its users.

    Jobs still there at the end are cancelled. Of the cluster nothing keeps running.
    """
    root = _unpacked()
    folder = Path(folder).resolve()
    # The node's sockets are in its spool folder, and the address of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as spool:
        environment = _prepare(folder, root, spool, cpus)
        daemons = {}
        try:
            daemons["slurmctld"] = _start(folder, root, "slurmctld")
            step = str(folder / "sbin" / "slurmstepd")
            daemons["slurmd"] = _start(folder, root, "slurmd", "-N", "localhost", "-d", step)
            _wait_until_idle(folder, environment, daemons)
            yield environment
        finally:
            _cancel_all(folder, environment, daemons)
            _kill(folder)
            for daemon in daemons.values():
                daemon.wait()


def processes(folder: str | os.PathLike) -> dict[int, str]:
    """The daemons of the cluster in this folder that are running, by process id.

    They are known by their program files: each cluster has its own copies.
    """
    own = Path(folder).resolve() / "sbin"
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (entry / "exe").readlink()
            if program.parent == own:
                found[int(entry.name)] = program.name
    return found


def _unpacked():
    """The folder with the packages' files, fetched by whoever comes first."""
    if CACHE.is_dir():
        return CACHE
    _check_machine()
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix="slurm-") as folder:
        archives, root = Path(folder, "archives"), Path(folder, "root")
        archives.mkdir()
        _download(archives)
        for archive in archives.glob("*.deb"):
            _run(["dpkg", "--extract", archive, root], archives)
        try:
            root.rename(CACHE)
        except OSError:
            # Somebody else may have been faster; theirs is as good.
            if not CACHE.is_dir():
                raise
    return CACHE


def _check_machine():
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Unavailable(f"SLURM is fetched for Linux on x86_64, not for {system} on {machine}")
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"SLURM is fetched with {tool}, which is not here")


def _download(folder):
    options = ["-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15"]
    # apt's own user may not write into our folder.
    download = ["apt-get", "download", *options, "-o", "APT::Sandbox::User=root", *PACKAGES]
    try:
        _run(download, folder)
    except Unavailable:
        # The lists of packages may be missing or out of date.
        with contextlib.suppress(Unavailable):
            _run(["apt-get", "update", *options], folder)
        _run(download, folder)


def _run(command, folder):
    name = " ".join(command[:2])
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIME,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} took more than {DOWNLOAD_TIME} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{name} failed: {_last_line(done.stderr)}")


def _prepare(folder, root, spool, cpus):
    for name in ("state", "bin", "sbin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("slurmctld", "slurmd", "slurmstepd"):
        shutil.copy(root / "usr" / "sbin" / f"{name}-wlm", folder / "sbin" / name)
    for name in TOOLS:
        _write_tool(folder / "bin" / name, root)
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder, root, spool, cpus), encoding="utf-8")
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    return {"SLURM_CONF": str(configuration), "PATH": path}


def _write_tool(path, root):
    # sbatch hands its environment on to the job. The loader is told of the libraries by an option,
    # because the job would find a variable there.
    command = [_LOADER, "--library-path", _library_path(root), root / "usr" / "bin" / path.name]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n', encoding="utf-8")
    path.chmod(0o755)


def _library_path(root):
    return f"{root / _LIBRARIES / 'slurm-wlm'}:{root / _LIBRARIES}"


def _configuration(folder, root, spool, cpus):
    controller_port, node_port = _free_ports(2)
    return _CONFIGURATION.format(
        folder=folder,
        spool=spool,
        plugins=root / _LIBRARIES / "slurm-wlm",
        controller_port=controller_port,
        node_port=node_port,
        user=pwd.getpwuid(os.getuid()).pw_name,
        kill_wait=KILL_WAIT,
        cpus=cpus,
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
    )


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(folder, root, name, *options):
    # Not the caller's environment: inside a job of another SLURM it would name that one.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LD_LIBRARY_PATH": _library_path(root),
    }
    command = [folder / "sbin" / name, "-D", "-f", folder / "slurm.conf", *options]
    with open(_log(folder, name), "wb") as log:
        # In a session of its own, lest an interrupt from the keyboard end it before its jobs.
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _log(folder, name):
    return folder / f"{name}.log"


def _wait_until_idle(folder, environment, daemons):
    end = time.monotonic() + START_TIME
    while _ask(folder, environment, "sinfo", "--noheader", "--format=%T") != "idle":
        for name, daemon in daemons.items():
            if daemon.poll() is not None:
                raise Unavailable(f"{name} ended at once: {_last_logged(folder, name)}")
        if time.monotonic() > end:
            said = "; ".join(f"{name}: {_last_logged(folder, name)}" for name in daemons)
            raise Unavailable(f"the node was not idle after {START_TIME} s: {said}")
        time.sleep(0.1)


def _last_logged(folder, name):
    return _last_line(_log(folder, name).read_text(encoding="utf-8", errors="replace"))


def _last_line(text):
    return (text.strip().splitlines() or ["(said nothing)"])[-1]


def _ask(folder, environment, tool, *arguments):
    """What a tool prints; nothing if it fails or waits for a controller that does not answer."""
    try:
        return subprocess.run(
            [folder / "bin" / tool, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        return ""


def _cancel_all(folder, environment, daemons):
    """Cancel the jobs, and give those that run the time in which SLURM ends them itself."""
    if len(daemons) < 2 or any(daemon.poll() is not None for daemon in daemons.values()):
        return
    _ask(folder, environment, "scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
    end = time.monotonic() + KILL_WAIT + 2
    while "slurmstepd" in processes(folder).values() and time.monotonic() < end:
        time.sleep(0.1)


def _kill(folder):
    """Kill the daemons and what they started, until nothing of it is left."""
    end = time.monotonic() + 5
    while (found := processes(folder)) and time.monotonic() < end:
        for pid in _with_descendants(found):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _with_descendants(pids):
    children = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything, further parentheses too.
            parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = list(pids)
    for pid in found:
        found += [child for child in children.get(pid, []) if child not in found]
    return found
