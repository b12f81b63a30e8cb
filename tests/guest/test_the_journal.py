"""What the tests before have left in the journal; what went wrong is looked for after each file of them."""

import json
from typing import Any

from vfio_flavourd.model.message_ids import MessageId

from .conftest import Host
from .devices import ROLES


def read_records(host: Host, matches: str) -> list[dict[str, Any]]:
    said = host.run(f"journalctl --no-pager -o json -u vfio-flavourd {matches}").stdout
    return [json.loads(line) for line in said.splitlines()]


def test_journalctl_explains_what_it_shows(host: Host) -> None:
    good, journal = ROLES["good"], host.journal()
    for flavour in ("vfio", "native"):
        host.switch(good, flavour)
    journal.wait_for(f"{good.bdf}: vft-good-vfio-pci -> {good.native} in ")  # it comes after the answer
    switched = f"MESSAGE_ID={MessageId.SWITCHED}"
    explained = host.run(f"journalctl -x --no-pager -u vfio-flavourd -n 2 {switched}").stdout
    records = read_records(host, f"-n 2 {switched}")
    assert [each["FLAVOUR"] for each in records] == ["vfio", "native"]
    for each in records:
        assert f"Subject: {each['PCI_ADDRESS']} has the flavour {each['FLAVOUR']} now" in explained
        assert f"flavourctl reset {each['PCI_ADDRESS']}" in explained


def test_each_attempt_is_in_the_journal_once_and_each_kind_of_message_is_known(host: Host) -> None:
    known = host.run("journalctl --list-catalog").stdout
    records = [each for each in read_records(host, "-b") if each["SYSLOG_IDENTIFIER"] == "vfio-flavourd"]
    kinds = {each["MESSAGE_ID"] for each in records if "MESSAGE_ID" in each}
    assert {MessageId.SWITCHED, MessageId.POLICY_IN_FORCE} & kinds
    assert [kind for kind in kinds if f"{kind} vfio-flavourd: " not in known] == []
    attempts = [(each["_PID"], each["ATTEMPT"]) for each in records if "ATTEMPT" in each]
    assert len(set(attempts)) == len(attempts)
