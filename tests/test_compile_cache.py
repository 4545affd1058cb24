"""What one process compiled no other compiles again, and a damaged entry stops none."""

import json

import kills
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.once]

SPEC = """
name = "cached"
seeds = 4
batch_size = 2
dynamics = ["flow", "descent"]
[target]
n = 2
[network]
depth = [2]
[flow]
end_time = 1.0
num_saves = 5
[descent]
num_steps = 5
save_every = 1
"""
# The command, with what it found in the compile cache and what it did not, by jax's own count.
_COUNT = """\
import collections, json, sys
from bwflow import cli
from bwflow._process import configure

configure()
import jax

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
code = cli.main(sys.argv[1:])
names = ("cache_hits", "cache_misses")
print(json.dumps({name: counts[f"/jax/compilation_cache/{name}"] for name in names}))
sys.exit(code)
"""


@pytest.fixture
def lab(tmp_path):
    """The study begun, and a compile cache that is empty; there is no reference."""
    spec, template, cache = tmp_path / "spec.toml", tmp_path / "template", tmp_path / "cache"
    spec.write_text(SPEC, encoding="utf-8")
    made = kills.Lab(spec, cache, template, tmp_path / "reference", 0.0)
    made.run(spec, template, program=("-c", kills.CREATE), cache=tmp_path / "other cache")
    return made


def _work(lab, store, part):
    """Do a part in a new process: programs found in the cache, and those compiled."""
    command = ("work", store, "--part", part, "--no-progress")
    counts = json.loads(lab.run(*command, program=("-c", _COUNT)).splitlines()[-1])
    return counts["cache_hits"], counts["cache_misses"]


def test_a_second_worker_compiles_nothing(lab, tmp_path):
    store = lab.begun(tmp_path)
    first_hits, first_misses = _work(lab, store, "1/2")
    hits, misses = _work(lab, store, "2/2")
    print(f"\nhits {hits}, misses {misses}; the first: {first_hits}, {first_misses}", end="")
    assert first_misses > 2
    assert misses == 0
    assert hits >= first_misses
    assert len(kills.units_done(store)) == 4


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_entries_of_the_cache_that_are_cut_short_stop_no_worker(lab, tmp_path, kept):
    store = lab.begun(tmp_path)
    lab.run("work", store, "--part", "1/2", "--no-progress")
    entries = [path for path in lab.cache.iterdir() if path.name.endswith("-cache")]
    assert entries
    for path in entries:
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
    lab.run("work", store, "--part", "2/2", "--no-progress")
    assert len(kills.units_done(store)) == 4
    whole = tmp_path / "whole"
    lab.run("sweep", lab.spec, "--store", whole, "--no-progress", cache=tmp_path / "other cache")
    assert kills.same_tree(store, whole)
