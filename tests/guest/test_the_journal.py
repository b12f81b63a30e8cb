"""The last look: what all the tests before have left in the journal."""

from .conftest import Host


def test_nothing_went_wrong_that_nobody_expected(host: Host) -> None:
    units = "-u vfio-flavourd -u vfio-flavour-fs"
    said = host.run(f"journalctl --no-pager -o cat {units}").stdout
    for trouble in ("Traceback", "Exception", "never retrieved", "Warning:"):
        assert trouble not in said, host.run(
            f"journalctl --no-pager -o cat {units} | grep -A 30 '{trouble}'"
        ).stdout
    assert host.run("systemctl --failed --no-legend").stdout == ""
