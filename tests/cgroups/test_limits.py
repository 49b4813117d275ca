"""Docker's words become the kernel's numbers, or a BadValue; nothing on the machine is touched by either."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.cgroups import quantities
from labkit.cgroups.limits import (
    DEFAULT_PERIOD,
    MAX_BYTES,
    UNLIMITED,
    IoLimit,
    Limits,
    parse_list,
    parse_size,
)
from labkit.ground.errors import BadValue

CPUS = os.cpu_count()


@pytest.mark.parametrize(
    "text, size",
    [("32m", 32 << 20), ("32M", 32 << 20), ("32mb", 32 << 20), ("32 MiB", 32 << 20), ("1.5g", 3 << 29), ("6291456", 6 << 20),
     (6 << 20, 6 << 20), ("-1", UNLIMITED), ("6144k", 6 << 20)],
)  # fmt: skip
def test_a_size_is_read_as_docker_reads_it(text, size):
    assert Limits.parse(memory=text).memory == size


@pytest.mark.parametrize(
    "words, said",
    [
        ({"memory": "1"}, "6m"),
        ({"memory": "6291455"}, "6m"),
        ({"memory": "banana"}, "banana"),
        ({"memory": "-5"}, "-5"),
        ({"memory": ""}, "size"),
        ({"memory": "32x"}, "32x"),
        ({"memory": "٣٢m"}, "size"),
        ({"memory": "32m\n/etc"}, "size"),
        ({"memory": "9" * 50 + "t"}, "size"),
        ({"memory": "9" * 25}, "more than the kernel can count"),
        ({"memory": True}, "True"),
        ({"memory": float("nan")}, "nan"),
        ({"memory_swap": "64m"}, "without memory"),
        ({"memory": "64m", "memory_swap": "32m"}, "less than memory"),
        ({"cpus": "0.001"}, "0.01"),
        ({"cpus": "-1"}, "0.01"),
        ({"cpus": str(CPUS + 1)}, f"{CPUS}.00"),
        ({"cpus": "nan"}, "range of CPUs"),
        ({"cpus": "inf"}, "range of CPUs"),
        ({"cpus": "1e0"}, "range of CPUs"),
        ({"cpus": "0.01", "cpu_period": 10_000}, "1000"),
        ({"cpus": "0.5", "cpu_quota": 50_000}, "one limit"),
        ({"cpu_period": 100_000}, "without a quota"),
        ({"cpu_quota": 999}, "1000"),
        ({"cpu_quota": 50_000, "cpu_period": 999}, "cpu_period"),
        ({"cpu_quota": 50_000, "cpu_period": 1_000_001}, "cpu_period"),
        ({"cpu_quota": 50_000, "cpu_burst": 50_001}, "burst"),
        ({"cpu_weight": 0}, "cpu_weight"),
        ({"cpu_weight": 10_001}, "cpu_weight"),
        ({"cpu_shares": 1}, "cpu_shares"),
        ({"cpuset_cpus": "banana"}, "list of CPUs"),
        ({"cpuset_cpus": "1-0"}, "backwards"),
        ({"cpuset_cpus": "99999"}, "no CPU 99999"),
        ({"cpuset_cpus": "0,"}, "list of CPUs"),
        ({"pids_limit": "-7"}, "-7"),
        ({"pids_limit": "many"}, "many"),
        ({"pids_limit": 10**17}, "pids"),
        ({"blkio_weight": 5}, "blkio_weight"),
        ({"device_read_bps": "/dev/vda"}, "DEVICE:RATE"),
        ({"device_read_bps": "/dev/no-such-disk:1m"}, "/dev/no-such-disk"),
        ({"device_read_bps": "/dev/null:1m"}, "not a block device"),
        ({"device_write_iops": "8:0:-3"}, "device_write_iops"),
        ({"device_write_iops": "8:0:0"}, "device_write_iops"),
        ({"device_read_bps": 7}, "DEVICE:RATE"),
        ({"memroy": "32m"}, "memroy"),
    ],
)
def test_what_can_not_be_meant_is_refused_by_name(words, said):
    with pytest.raises(BadValue) as caught:
        Limits.parse(**words)
    assert said in str(caught.value)


@given(st.text(max_size=12) | st.integers() | st.floats() | st.none() | st.booleans() | st.binary(max_size=5))
def test_whatever_is_written_is_a_limit_or_a_bad_value(value):
    for word in (
        "memory",
        "memory_swap",
        "cpus",
        "cpu_period",
        "cpu_shares",
        "cpuset_cpus",
        "pids_limit",
        "device_read_bps",
    ):
        try:
            limits = Limits.parse(**{word: value})
        except BadValue:
            continue
        assert isinstance(limits, Limits)


@given(st.integers(1, CPUS * 100), st.integers(10_000, 1_000_000))
def test_cpus_times_period_is_the_quota(hundredths, period):
    limits = None
    try:
        limits = Limits.parse(cpus=f"{hundredths / 100:.2f}", cpu_period=period)
    except BadValue:
        assert hundredths * period < 100 * 1000
    if limits:
        assert limits.cpu_quota == hundredths * period // 100 and limits.period == period


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_cpu_list_is_read_back_as_the_set_it_was_made_of(numbers):
    assert parse_list("cpus", ",".join(map(str, sorted(numbers)))) == numbers


@given(st.integers(0, MAX_BYTES))
def test_a_number_of_bytes_is_itself(size):
    assert parse_size("memory", size) == parse_size("memory", str(size)) == size


def test_ranges_and_single_numbers_go_together():
    assert parse_list("cpus", "0-2,5") == {0, 1, 2, 5}


def test_words_not_said_leave_the_kernel_its_defaults():
    assert Limits.parse() == Limits() == Limits.parse(memory=None, cpus=None)
    assert Limits().describe() == []


def test_zero_is_no_limit_where_docker_says_so():
    assert Limits.parse(memory=0, pids_limit=0, cpu_shares=0, blkio_weight=0) == Limits()


def test_memory_swap_is_the_total_in_dockers_word_and_the_rest_in_ours():
    assert Limits.parse(memory="32m", memory_swap="48m").memory_swap == 16 << 20
    assert Limits.parse(memory="32m", memory_swap="32m").memory_swap == 0
    assert Limits.parse(memory="32m", memory_swap="-1").memory_swap == UNLIMITED


def test_shares_of_1024_are_weight_100():
    assert [Limits.parse(cpu_shares=shares).cpu_weight for shares in (2, 512, 1024, 2048, 262144)] == [
        1,
        50,
        100,
        200,
        10000,
    ]


def test_more_than_the_machine_has_is_allowed_for_memory():
    assert Limits.parse(memory="100t").memory == 100 << 40


def test_the_four_device_words_make_one_limit_a_device():
    limits = Limits.parse(device_read_bps=["8:0:1m", "8:16:2m"], device_write_iops="8:0:100")
    assert limits.io == (IoLimit("8:0", rbps=1 << 20, wiops=100), IoLimit("8:16", rbps=2 << 20))


@pytest.mark.parametrize("rate", ["0", "-1", "-5", "fast", ""])
def test_what_is_no_rate_is_refused_though_a_limit_can_be_lifted(rate):
    with pytest.raises(BadValue, match="device_read_bps"):
        Limits.parse(device_read_bps=f"8:0:{rate}")
    (line,) = Limits(io=(IoLimit("8:0", rbps=5, wbps=UNLIMITED),)).describe()
    assert "rbps 5 a second at most, wbps without a limit" in line


@pytest.mark.parametrize("device", ["vda", "8:", "8:0 rbps=1", "8:0\n", 8])
def test_a_device_that_is_not_two_numbers_is_refused(device):
    with pytest.raises(BadValue, match="major:minor"):
        IoLimit(device, rbps=1)


def test_describe_names_value_and_both_files():
    lines = Limits.parse(memory="32m", cpus="0.5", pids_limit=20).describe()
    assert lines == [
        "memory at most 33554432 bytes: memory.limit_in_bytes (v1) / memory.max (v2)",
        f"50000 µs of CPU in every {DEFAULT_PERIOD} µs: cpu.cfs_quota_us, cpu.cfs_period_us (v1) / cpu.max (v2)",
        "at most 20 processes and threads: pids.max (v1) / pids.max (v2)",
    ]


def test_a_partitions_limit_belongs_on_the_disk_that_it_is_a_part_of(monkeypatch, tmp_path):
    part = tmp_path / "sda" / "sda1"
    part.mkdir(parents=True)
    for folder, number in ((part, "8:1"), (part.parent, "8:0")):
        (folder / "dev").write_text(f"{number}\n")
    monkeypatch.setattr(quantities, "Path", lambda _: part)
    assert quantities.disk_of("/") == "8:1"  # a whole disk, as far as anybody says
    (part / "partition").write_text("1\n")
    assert quantities.disk_of("/") == "8:0"
