"""A journal that does not answer holds up nobody."""

import logging
import time
from queue import Queue

import pytest

from vfio_flavourd import journal


def make_log(places: int) -> tuple[logging.Logger, "Queue[logging.LogRecord]"]:
    waiting: Queue[logging.LogRecord] = Queue(places)
    log = logging.getLogger(f"of this test {places}")
    log.propagate = False
    log.handlers.clear()
    log.addHandler(journal._NeverWaiting(waiting))
    return log, waiting


def test_who_logs_while_nobody_reads_goes_on_and_keeps_what_there_is_room_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log, waiting = make_log(2)
    for number in range(5):
        log.warning("number %d", number, extra={"PCI_ADDRESS": "0000:01:00.0"})
    assert [waiting.get().getMessage() for _ in range(2)] == ["number 0", "number 1"]
    assert capsys.readouterr() == ("", "")


def test_the_fields_of_a_record_travel_with_it() -> None:
    log, waiting = make_log(1)
    log.error("%s: gone", "0000:01:00.0", extra={"PCI_ADDRESS": "0000:01:00.0", "OUTCOME": "failed"})
    record = waiting.get()
    assert vars(record)["PCI_ADDRESS"] == "0000:01:00.0"
    assert vars(record)["OUTCOME"] == "failed"


def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_LAST_WORDS", 0.05)
    log, waiting = make_log(1)
    log.warning("the last words")
    begun = time.monotonic()
    log.handlers[0].flush()
    assert time.monotonic() - begun < 5
    assert waiting.unfinished_tasks == 1
