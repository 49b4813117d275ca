"""Who gives memory back under a limit that two share: what memory.low keeps, and a soft limit does not."""

import pytest

from labkit.cgroups import cgroupfs, hierarchies
from labkit.ground import ledger, state
from labkit.lessons.figures import memory, png
from labkit.lessons.watch import reclaiming

pytestmark = pytest.mark.usefixtures("needs_root")
MIB = 1 << 20


def held(trace):
    """Return what the first held before the second came, and at the end."""
    (began, _) = trace.marks[0]
    cache = trace["first.memory_file"]
    return cache[trace.time < began].max(), cache[-1]


def test_without_a_promise_who_reads_once_gives_all_to_who_reads_on():
    before, after = held(reclaiming.rivals(low=0))
    assert before >= 39 * MIB and after < 20 * MIB


def test_memory_low_keeps_what_was_promised_and_v1s_soft_limit_keeps_nothing():
    trace = reclaiming.rivals(low=32)
    before, after = held(trace)
    assert before >= 39 * MIB
    if hierarchies.home("memory").version == 1:
        assert after < 20 * MIB
    else:
        assert 0.9 * 32 * MIB <= after <= 40 * MIB
    assert png(memory.rivals(trace, 64 * MIB, 32 * MIB))


def test_nothing_is_left_of_the_two():
    reclaiming.rivals(seconds=0.2)
    assert not [entry for entry in ledger.entries() if "rivals" in str(entry.what)]
    assert not list(state.lib_dir().glob("rivals-*"))
    assert not [path for tree in cgroupfs.trees() for path in (tree.own / state.label()).glob("rivals-*")]
