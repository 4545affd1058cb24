"""What the tests of drawn input share: words, values, and a command called in this process."""

import contextlib
import io
import os
import time
import traceback
import warnings
from collections import Counter

import figures
from hypothesis import HealthCheck
from hypothesis import strategies as st

from bwflow import cli

EXAMPLES = int(os.environ.get("BWFLOW_EXAMPLES", "0"))
"""How many are asked for of each kind; 0 is what the suite tries."""
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
DOCUMENTED = {
    "test_much_drawn_input_runs_or_is_refused_in_one_line": "specs and options",
    "test_any_bytes_are_a_spec_or_are_refused": "bytes as a spec",
    "test_any_arguments_are_heeded_or_refused": "arguments of every command",
    "test_any_damage_of_a_store_is_told_in_one_line": "damaged stores",
}
ENDS = {
    0: "did what they do",
    1: "failed, with code 1 and a line",
    2: "were refused, with code 2 and a line",
    None: "came to where they compute, and were stopped",
}
_ends = Counter()

words = st.sampled_from(
    ["", "x", "é", "nan", "-1", "1e3", "0x1", "True", "--", "-", " ", "\t", "a b", "\u2028", "1,2"]
) | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5)
hostile = st.one_of(
    st.sampled_from(
        [0, -1, 1, 2, 3, 8, 2**31 - 1, 2**31, 2**63, 10**30, True, False, [], {}, [[]], [1, 1]]
    ),
    st.sampled_from(
        [float("nan"), float("inf"), -float("inf"), -0.0, 0.5, 1e-300, 1e300, 1e-30, 1e30, 5e-324]
    ),
    st.floats(),
    st.integers(-(10**6), 10**6),
    words,
    st.lists(st.floats() | st.integers(-5, 5), max_size=3),
)


class Large(BaseException):
    """Raised in place of a run that would take long; the command is then let off."""


def called(arguments):
    """Exit code and output of a command; None for a study that is too large for a test."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")  # as `main` has
        try:
            code = cli.main(arguments)
        except Large:
            code = None
        except Exception as error:
            # Some are too deep for pytest to show.
            shown = "".join(traceback.format_exception(error)[-12:])
            raise AssertionError(f"{arguments}: {shown}") from None
    assert not seen, [str(warning.message) for warning in seen]
    _ends[code] += 1
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def drawn_figures(test):
    """Count the commands that a test calls, for the document if a number was asked for."""
    _ends.clear()
    began = time.monotonic()
    yield
    if EXAMPLES and test in DOCUMENTED:
        found = [("commands called", sum(_ends.values()))]
        found += [(text, _ends[code]) for code, text in ENDS.items()]
        found += [("others", sum(n for code, n in _ends.items() if code not in ENDS))]
        found += [("seconds", round(time.monotonic() - began))]
        figures.keep(DOCUMENTED[test], f"{figures.versions()}\n\n{figures.table(found)}")
