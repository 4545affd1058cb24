"""Several devices: each has chunks of its own, and the results are those of one."""

import re

import jax
import numpy as np
import pytest
import studies
from helpers import by_precision
from studies import assert_same, copied, small

import bwflow as bw
from bwflow import _compute
from bwflow._process import in_precision

pytestmark = pytest.mark.once

TWO = {"JAX_NUM_CPU_DEVICES": "2"}
SPECS = {  # by the number of units of each program
    "one": small(seeds=2),
    "two": small(seeds=4),
    "three": small(seeds=5),
    "three of each program": small(seeds=5, network={"depth": (1, 2)}),
    "two smoothings": small(seeds=3, batch_size=4, tau=(0.0, 0.1, 0.2)),
    "groups": small(seeds=7, batch_size=4, group_size=3),
}

_COMPUTE = """\
import sys
from pathlib import Path
import jax
import bwflow as bw
from bwflow.experiment import Experiment
assert jax.local_device_count() == int(sys.argv[2])
for spec in sorted(Path(sys.argv[1]).glob("*.json")):
    path = spec.with_suffix("") / "store"
    bw.stored.create(Experiment.from_json(spec.read_text()), path)
    bw.jobs.run(path, progress=False)
"""


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """A folder with a store of each spec, computed on two devices; of one, only what was left."""
    folder = tmp_path_factory.mktemp("two")
    for name, spec in SPECS.items():
        (folder / f"{name}.json").write_text(spec.to_json())
    begun = studies.begun(SPECS["three"], folder / "continued" / "store")
    bw.jobs.work(begun, part=2, parts=3, progress=False)
    (folder / "continued.json").write_text(SPECS["three"].to_json())
    studies.python(_COMPUTE, folder, 2, **TWO)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_two_devices_write_the_bytes_of_one(on_two, tmp_path, name):
    assert jax.local_device_count() == 1
    assert_same(on_two / name / "store", studies.finished(SPECS[name], tmp_path / "store"))


@pytest.mark.slow
def test_two_devices_continue_what_one_has_begun(on_two, tmp_path):
    reference = studies.finished(SPECS["three"], tmp_path / "store")
    assert_same(on_two / "continued" / "store", reference)


@pytest.mark.slow
def test_one_device_continues_what_two_have_done(on_two, tmp_path):
    store = copied(on_two / "two" / "store", tmp_path)
    bw.stored.extend(store, seeds=6)
    studies.compute(store)
    assert_same(store, studies.finished(small(seeds=6), tmp_path / "reference"))


@pytest.mark.slow
def test_devices_agree_on_products_of_small_matrices_as_users_compile_them(tmp_path):
    """Those are sums in a loop, in which without optimisation a program may round once or twice."""
    spec = small(seeds=5, tau=(0.0, 0.1), dynamics=("flow", "descent"), target={"n": 5})
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "spec.json").write_text(spec.to_json())
        variables = {"JAX_NUM_CPU_DEVICES": str(number), "XLA_FLAGS": ""}
        studies.python(_COMPUTE, folder, number, **variables)
    assert_same(tmp_path / "1" / "spec" / "store", tmp_path / "2" / "spec" / "store")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "three"])
def test_chunks_advance_two_at_once(on_two, name):
    """The units of a pair share the time at which their computation began."""
    (file,) = bw.progress.log_folder(on_two / name / "store").glob("*.jsonl")
    seconds = re.findall(r'"compute_seconds": ([0-9.]+)', file.read_text())
    assert seconds[0] == seconds[1]
    assert len(seconds) == {"two": 2, "three": 3}[name]


# --- programs ---

_PROGRAMS = """\
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import bwflow as bw
from bwflow import _compute
from bwflow._process import in_precision

assert jax.local_device_count() == 2
with in_precision(sys.argv[1]):
    dtype = np.dtype(sys.argv[1])
    target = bw.Target(jnp.diag(jnp.asarray([1.0, 0.25], dtype)))

    def run(scale):
        found = bw.gradient_flow(
            bw.losses.BuresWasserstein(target, 0.1),
            (scale * jnp.eye(2, dtype=dtype), jnp.eye(2, dtype=dtype)),
            times=jnp.asarray([0.0, 1.0], dtype),
            rtol=1e-3,
            atol=1e-6,
            until=bw.until.gap(1e-3),
            throw=False,
        )
        return found.hit, found.num_steps, found.factors

    scales = np.asarray([0.5, 1.0, 2.0, 3.0], dtype)
    mesh = jax.make_mesh((2,), ("runs",), (AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("runs"))
    programs = {
        "chunks": jax.jit(_compute.over_devices(jax.vmap(run), 2)),
        "runs": jax.jit(jax.vmap(run)),
    }
    for name, program in programs.items():
        text = program.lower(jax.device_put(scales, split)).compile().as_text()
        Path(sys.argv[2], name).write_text(text)
"""
COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter|send|recv)(-start)?\("
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Programs of a flow on two devices: with a chunk on each, and one whose runs are split."""
    folder = tmp_path_factory.mktemp("compiled")
    studies.python(_PROGRAMS, studies.PRECISION, folder, **TWO)
    return {name: (folder / name).read_text() for name in ("chunks", "runs")}


@pytest.mark.slow
def test_devices_exchange_nothing(compiled):
    """Not in the loop and not elsewhere, so no device waits for another."""
    text = compiled["chunks"]
    assert "while(" in text
    assert "num_partitions=2" in text
    assert COLLECTIVE.findall(text) == []


@pytest.mark.slow
def test_devices_that_share_a_loop_exchange_its_condition(compiled):
    """Were the runs of one loop split, they would: the test above can fail."""
    text = compiled["runs"]
    assert "num_partitions=2" in text
    assert "all-reduce" in {name for name, _ in COLLECTIVE.findall(text)}


def chunk_program(path, dynamics):
    """The program of a chunk as a store runs it, traced."""
    with in_precision(studies.PRECISION):
        ready = _compute._Study(path, _compute.root(path))
        fixed = {name: values[0] for name, values in ready.axes[0].items()}
        tau = np.full(4, 0.1, studies.PRECISION)
        return ready.program(1, **fixed | {"dynamics": dynamics}).trace(tau, np.arange(4))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    spec = small(dynamics=("flow", "descent"), seeds=4, batch_size=4, tolerance=0.01)
    return studies.begun(spec, tmp_path_factory.mktemp("programs") / "store")


def custom_calls(text):
    return set(re.findall(r"custom_call @([\w.$]+)", text))


@pytest.mark.parametrize("dynamics", ["descent", "flow"])
def test_the_program_of_a_chunk_runs_on_cuda_without_python(store, dynamics):
    with in_precision(studies.PRECISION):
        lowered = chunk_program(store, dynamics).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    calls = custom_calls(text)
    assert calls
    assert not any("callback" in name or "python" in name for name in calls), calls
    assert "callback" not in text
    assert "tensor<?" not in text
    assert "dynamic_reshape" not in text
    assert f"tensor<4x{by_precision('f64', 'f32')}>" in text


def test_a_program_that_calls_python_would_not_be_made_for_cuda():
    """Here, where there is none: that programs above are made says something."""

    def shown(x):
        jax.debug.callback(lambda _: None, x)
        return x

    traced = jax.jit(shown).trace(1.0)
    assert any("callback" in name for name in custom_calls(traced.lower().as_text()))
    with pytest.raises(ValueError, match="different from the lowering platform cuda"):
        traced.lower(lowering_platforms=("cuda",))


def test_the_runs_of_one_device_are_not_split():
    def function(x):
        return x

    assert _compute.over_devices(function, 1) is function
