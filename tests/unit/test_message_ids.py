"""The log as a source: one record for each attempt, of a kind that is known and explained."""

import asyncio
import errno
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, make_engine
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Request
from vfio_flavourd.model.message_ids import MessageId
from vfio_flavourd.model.occupancy import Use, User

ROOT = Path(__file__).parents[2]
ADDRESS = parse_address("0000:01:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
OF_ATTEMPTS = list(MessageId)[: list(MessageId).index(MessageId.CUT_OFF) + 1]
FIELDS_OF_ATTEMPTS = {
    *("MESSAGE_ID", "PCI_ADDRESS", "FLAVOUR", "REQUESTER", "OUTCOME", "ERROR_CODE", "DRIVER"),
    *("PREVIOUS_DRIVER", "DURATION_USEC", "RULE", "FALLBACK", "FORCED", "ATTEMPT"),
    *("REQUESTER_UID", "REQUESTER_UNIT", "OBJECT_PID"),
}
# doors/refusals.py
OF_REFUSALS = {"MESSAGE_ID", "REQUESTER", "REQUESTER_UID", "REQUESTER_UNIT", "OBJECT_PID", "ERROR_CODE"}
ENTRY = re.compile(
    r"^-- ([0-9a-f]{32})\n((?:[A-Z][A-Za-z-]*: .+\n)+)\n((?:.*\n)+?)(?=\n-- |\Z)", re.MULTILINE
)

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def read_catalog() -> dict[str, tuple[dict[str, str], str]]:
    """By id the headers and the text of each entry."""
    text = (ROOT / "catalog/vfio-flavourd.catalog").read_text(encoding="utf-8")
    found = ENTRY.findall(text)
    assert len(found) == text.count("\n-- ")
    return {
        number: (dict(line.split(": ", 1) for line in headers.splitlines()), body)
        for number, headers, body in found
    }


def find_uses() -> list[tuple[MessageId, set[str]]]:
    """Each log call outside of the attempts' one, with the fields that it has for sure."""
    uses = []
    call = re.compile(
        r"log_fields\(MessageId\.(\w+)(, [\w.]*address)?\)(?:, ((?:\"[A-Z_]+\": [\w.]+(?:, )?)*)\})?"
    )
    refusal = re.compile(r"MessageId\.(\w+), [\w.]*code[\w.]*(, address)?", re.IGNORECASE)
    for path in (ROOT / "vfio_flavourd").rglob("*.py"):
        for name, address, more in call.findall(path.read_text(encoding="utf-8")):
            fields = {"MESSAGE_ID", *re.findall(r"\"([A-Z_]+)\"", more)}
            uses.append((MessageId[name], fields | ({"PCI_ADDRESS"} if address else set())))
        for name, address in refusal.findall(path.read_text(encoding="utf-8")):
            uses.append((MessageId[name], OF_REFUSALS | ({"PCI_ADDRESS"} if address else set())))
    return uses


def test_each_kind_of_message_has_an_explanation_and_each_explanation_a_message() -> None:
    catalog = read_catalog()
    assert set(catalog) == set(MessageId)
    for headers, body in catalog.values():
        assert headers["Subject"]
        assert headers["Defined-By"] == "vfio-flavourd"
        assert headers["Documentation"].startswith("man:")
        assert len(body) > 10


def test_each_kind_of_message_is_one_that_is_sent() -> None:
    assert {*OF_ATTEMPTS, *(message for message, _ in find_uses())} == set(MessageId)
    assert not {message for message, _ in find_uses()} & set(OF_ATTEMPTS)


def test_each_field_that_an_explanation_names_is_in_the_message() -> None:
    sent = dict.fromkeys(OF_ATTEMPTS, FIELDS_OF_ATTEMPTS)
    for message, fields in find_uses():
        sent[message] = sent.get(message, fields) & fields
    for number, (headers, body) in read_catalog().items():
        named = set(re.findall(r"@(\w+)@", headers["Subject"] + body))
        assert named <= sent[MessageId(number)], MessageId(number).name


async def ask(engine: Engine, flavour: Flavour = Flavour.VFIO, *, force: bool = False) -> None:
    request = Request(ADDRESS, flavour, force=force, requester="uid 0 pid 1")
    try:
        await engine.set_flavour(request, lambda _: None)
    except FlavourError:
        pass  # it is what the record is for


async def give_up(engine: Engine) -> None:
    task = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])


async def end_the_daemon(engine: Engine) -> None:
    task = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.1)
    await engine.settle(0.1)
    assert task.done()


def hang_in_load(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("slow", "slow_vfio", vfio=True), alias=ALIAS, hang=asyncio.Event())


def hang_in_unbind(kernel: FakeKernel) -> None:
    kernel.drivers["e1000e"].remove_blocks = asyncio.Event()


def refuse_all(kernel: FakeKernel) -> None:
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EIO


def refuse_the_better(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("better", "better_vfio", vfio=True, probe_errno=errno.ENODEV), alias=ALIAS)


def use(kernel: FakeKernel) -> None:
    kernel.users[str(ADDRESS)] = (User(Use.GUEST, "QEMU"),)


def nothing(_: FakeKernel) -> None:
    """It all goes well."""


@pytest.mark.parametrize(
    ("before", "do", "kind", "level", "fields"),
    [
        (nothing, ask, "SWITCHED", logging.INFO, {"OUTCOME": "done", "DRIVER": "vfio-pci"}),
        (refuse_the_better, ask, "FELL_BACK", logging.WARNING, {"OUTCOME": "done", "FALLBACK": "yes"}),
        (use, lambda engine: ask(engine, force=True), "FORCED", logging.WARNING, {"FORCED": "yes"}),
        (
            nothing,
            lambda engine: ask(engine, Flavour.NATIVE),
            "UNCHANGED",
            logging.INFO,
            {"OUTCOME": "unchanged", "DRIVER": "e1000e"},
        ),
        (use, ask, "REFUSED", logging.ERROR, {"OUTCOME": "refused", "DRIVER": "e1000e"}),
        (refuse_all, ask, "FAILED", logging.ERROR, {"OUTCOME": "failed", "DRIVER": "e1000e"}),
        (hang_in_unbind, ask, "STUCK", logging.ERROR, {"OUTCOME": "stuck"}),
        (hang_in_load, give_up, "GIVEN_UP", logging.INFO, {"OUTCOME": "given-up"}),
        (hang_in_unbind, end_the_daemon, "CUT_OFF", logging.WARNING, {"OUTCOME": "cut-off"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_attempt_has_one_record_with_all_of_its_fields(
    kernel: FakeKernel,
    caplog: pytest.LogCaptureFixture,
    before: Callable[[FakeKernel], None],
    do: Callable[[Engine], object],
    kind: str,
    level: int,
    fields: dict[str, str],
) -> None:
    device: FakeDevice = kernel.add_device()
    kernel.add_native(device)
    before(kernel)
    (kernel.root / "proc/1").mkdir(parents=True)
    cgroup = kernel.root / "proc/1/cgroup"
    cgroup.write_text("0::/system.slice/asks.service\n", encoding="ascii")
    caplog.set_level(logging.INFO)

    async def go() -> None:
        await asyncio.sleep(0.01)
        cgroup.unlink()

    async def run() -> None:
        engine = make_engine(kernel)
        gone = asyncio.create_task(go())  # whoever asks does not stay
        await do(engine)  # type: ignore[misc]
        await gone
        engine.attempts.log()
        engine.attempts.log()
        assert len(engine.attempts.history) == 1

    run_at_once(run())
    (record,) = [record for record in caplog.records if hasattr(record, "ATTEMPT")]
    found = vars(record)
    assert MessageId(found["MESSAGE_ID"]) is MessageId[kind]
    assert {name for name in found if name.isupper()} == FIELDS_OF_ATTEMPTS
    assert all(isinstance(found[name], str) for name in FIELDS_OF_ATTEMPTS)
    assert found["PCI_ADDRESS"] == str(ADDRESS)
    assert (found["REQUESTER"], found["ATTEMPT"]) == ("uid 0 pid 1", "1")
    assert (found["REQUESTER_UID"], found["OBJECT_PID"]) == ("0", "1")
    assert found["REQUESTER_UNIT"] == "asks.service"
    assert fields.items() <= found.items()
    assert record.levelno == level
    assert (found["ERROR_CODE"] == "") == (found["OUTCOME"] in ("done", "unchanged"))
