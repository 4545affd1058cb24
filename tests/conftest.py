"""The suite's settings: precision from the environment, strict dtypes, a shared compile cache."""

import gc
import os
from pathlib import Path

# Read when jax and equinox are imported, so they come before either. `nan` keeps host callbacks
# out of diffrax's programs, without which they cannot be cached; failures are read from `result`.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("EQX_ON_ERROR", "nan")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Of all workers of pytest-xdist. An entry that another one is writing is compiled again, and the
# warning that says so is no failure (pyproject.toml).
CACHE = Path(__file__).parents[1] / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Tracing makes many objects and few cycles: at Python's own thresholds, looking for them took
# nearly a tenth of the time of tests/test_transforms.py.
gc.set_threshold(100_000, 20, 20)


# A file is run by one worker, so the longest come first, lest one worker end long after the other.
LONGEST = (
    "test_kills",
    "test_documents",
    "test_drawn_input",
    "test_disk",
    "test_cli",
    "test_balanced",
    "test_covariances",
    "test_flow",
    "test_stored_studies",
    "test_statements",
    "test_transforms",
    "test_initializers",
    "test_bad_input",
)


def pytest_collection_modifyitems(items):
    """Long files come first; tests of float64 accuracy, or of no precision, are not for float32."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
    if jax.config.jax_enable_x64:
        return
    reasons = {"float64": "asserts float64 accuracy", "once": "was run in float64"}
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def few_programs_at_once():
    """Compiled programs are let go when they are many.

    Each is mapped into memory in hundreds of pieces, of which Linux allows a process 65530.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def as_installed():
    """The library without the suite's type checks, as people run it: its own refusals show."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def nothing_compiled_before():
    """What an earlier test compiled would not be compiled again, and so not be counted."""
    jax.clear_caches()


@pytest.fixture
def compilations(nothing_compiled_before):
    """The programs that are compiled from here on."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
