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
    served = {row.what: row for row in service.measure(host.guest, QUICK)}
    (lost,) = (row for what, row in served.items() if what.endswith("lost"))
    assert lost.comparisons()[0].is_met
    check([row for what, row in served.items() if "processor time" in what], service.DAEMON, service.MONITOR)
