"""The benches in the guest on a small scale, so that they can't rot.

They themselves look whether each device has the driver that it should have; no time is asserted.
"""

from bench import service, switch, virtual_functions
from bench.measure import QUICK, Row

from .conftest import Host


def check(rows: list[Row], *sides: str) -> None:
    for row in rows:
        assert set(sides) <= set(row.samples), row.what
        assert len({len(figures) for figures in row.samples.values()}) == 1, row.what


def test_the_benches_measure_each_side_and_leave_the_guest_as_it_was(host: Host) -> None:
    switched = switch.measure(host.guest, QUICK)
    assert len(switched) == 5
    check(switched, switch.RAW, switch.FILE)
    check([row for row in switched if row.what != switch.NOTHING_LOADED], switch.CTL, switch.DRIVERCTL)
    check(virtual_functions.measure(host.guest, QUICK), virtual_functions.BY_POLICY, virtual_functions.LOOP)
    ready, listed, *idle = service.measure(host.guest, QUICK)
    check([ready], service.DAEMON, service.PYTHON)
    check([listed], service.LIST, service.DRIVERCTL)
    assert [row.ours for row in idle] == [service.DAEMON, service.DOOR] * 2
    processor_time, lost = service.measure_storm(host.guest, QUICK)
    check([processor_time], service.DAEMON, service.MONITOR)
    assert lost.samples == {service.DAEMON: [0.0]}


def test_a_daemon_that_has_lost_events_is_measured_until_it_is_in_sync(host: Host) -> None:
    """It has to find a wish that was among them."""
    (row,) = service.measure_overflow(host.guest, QUICK)
    check([row], service.DAEMON)
