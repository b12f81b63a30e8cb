"""show: all about one device."""

import argparse
import sys
import time
from typing import Any

from ..doors import blocking_client
from ..model.address import parse_address
from ..model.errors import FlavourError
from ..model.printable import printable
from .group_words import find_kind, tell_driver, tell_state
from .log_lines import read_log_lines
from .output import print_json, tell_candidates, tell_policy_trouble, tell_step
from .terminal import BOLD, DIM, GREEN, RED, YELLOW, find_width, measure, paint, shorten

Answer = dict[str, Any]

# Of the labels, with the colon.
_MARGIN = 11


def show_device(arguments: argparse.Namespace) -> int:
    answer, plan = _ask(arguments.device)
    if arguments.json:
        print_json(
            {
                "device": answer["device"],
                "group": answer["group"],
                "plan": plan,
                "policy_trouble": answer["policy_trouble"],
            }
        )
        return 0
    page = _Page(color=arguments.color, width=find_width(sys.stdout))
    device = answer["device"]
    page.head(device)
    page.tell_state(device)
    page.tell_policy(device)
    page.tell_group(device, answer["group"])
    page.tell_users(device)
    page.rows("candidates", tell_candidates(device["resolution"]))
    page.tell_plan(device, plan)
    page.tell_last(device)
    page.tell_log(device)
    print("\n".join(page.lines))
    tell_policy_trouble(answer)
    return 0


def _ask(name: str) -> tuple[Answer, Answer]:
    """What it is, and what would be done to give it the flavour that it has not: the policy's, or else the
    other one."""
    asked = str(parse_address(name))
    with blocking_client.connect(writes=False) as daemon:
        answer = daemon.call("Get", device=asked, users=True)
        device = answer["device"]
        flavour = device["policy_flavour"]
        if flavour in (None, device["flavour"]):
            flavour = "vfio" if device["flavour"] == "native" else "native"
        plan: Answer = {"flavour": flavour, "steps": [], "refused": ""}
        try:
            plan |= daemon.call("Plan", device=device["device"], flavour=flavour)
        except FlavourError as error:
            plan["refused"] = str(error).removeprefix(f"{device['device']}: ")
    return answer, plan


class _Page:
    """Its lines, one after the other. On a terminal, what is longer than a line goes on below itself."""

    def __init__(self, *, color: bool, width: int | None) -> None:
        self.lines: list[str] = []
        self._color = color
        self._width = width

    def head(self, device: Answer) -> None:
        # Each is another sign, for those who see no colours.
        sign, code = "○", ""
        if device["stuck"]:
            sign, code = "×", RED
        elif device["phase"]:
            sign, code = "↻", YELLOW
        elif device["flavour"] != "native":
            sign, code = "●", GREEN
        ids = f"[{device['ids']}]"
        # The name gives way, as in a list.
        name = self._shorten(printable(device["name"]), len(f"{sign} {device['device']}  {ids}"))
        title = (self._paint(sign, code), self._paint(device["device"], BOLD), name, ids)
        self.lines.append(" ".join(filter(None, title)))

    def row(self, label: str, text: str, code: str = "") -> None:
        """`code` paints what the first word says."""
        self.rows(label, [text], code)

    def rows(self, label: str, texts: list[str], code: str = "") -> None:
        margin = f"{label}:".rjust(_MARGIN) + " "
        lines = [line for text in texts for line in self._wrap(printable(text))]
        for number, line in enumerate(lines):
            word, space, rest = line.partition(" ")
            painted = word if number else self._paint(word, code)
            self.lines.append(margin + painted + space + rest)
            margin = " " * (_MARGIN + 1)

    def tell_state(self, device: Answer) -> None:
        flavour = device["flavour"]
        state = f"{flavour}, driver {device['driver'] or 'none'}"
        if device["phase"] and not device["stuck"]:
            state += f", {device['phase']}"
        self.row("flavour", state, "" if flavour == "native" else GREEN)
        if device["stuck"]:
            self.row("stuck", device["stuck"])
        self.row("why", _explain(device))
        if device["vfio_device"]:
            self.row("node", f"{device['group_node'] or 'no IOMMU group'} ({device['vfio_device']})")
        if device["recorded"]:
            self.row("before", device["previous_driver"] or "no driver")
        if device["personality"]:
            attribute = device["personality"]
            self.row("by itself", f"{device['driver']} becomes a VFIO driver by its attribute {attribute}")
        self.row("slot", device["slot"])
        self.rows("serial", device["serials"])

    def tell_policy(self, device: Answer) -> None:
        said = device["policy_reason"]
        if device["policy_flavour"]:
            said = f"{device['policy_flavour']}, by {said}"
        if device["wish"]:
            hint = f"until flavourctl reset {device['device']}"
            said = f"{device['wish']} by hand, {hint}; the policy: {said}"
        self.row("policy", said)
        self.rows("note", device["remarks"])

    def tell_group(self, device: Answer, group: Answer | None) -> None:
        if group is None:
            self.row("group", "none: no IOMMU for this device")
            return
        number = group["group"]
        others = [member for member in group["members"] if member["device"] != device["device"]]
        blocking = [member["device"] for member in others if member["device"] in group["in_the_way"]]
        if blocking:
            them = f"{', '.join(blocking)} {'is' if len(blocking) == 1 else 'are'} in the way"
            self.row("group", f"{number}, not viable: no guest can have it while {them}")
        elif group["state"] in ("bridges", "unprotected"):
            self.row("group", f"{number}, {tell_state(group)}")
        else:
            rest = "no other device in it is in the way" if others else "nothing else is in it"
            self.row("group", f"{number}, {tell_state(group)}; {rest}")
        for place, other in enumerate(others, start=1):
            branch = f"{' ' * _MARGIN} {'└─' if place == len(others) else '├─'}"
            mark = "in the way" if other["device"] in blocking else ""
            what = " ".join(filter(None, (other["device"], find_kind(other), tell_driver(other), mark)))
            name = self._shorten(printable(other["name"]), len(f"{branch}{what} "))
            self.lines.append(f"{branch}{what} {name}".rstrip())

    def tell_users(self, device: Answer) -> None:
        self.rows("used by", [user["what"] for user in device["users"]])

    def tell_plan(self, device: Answer, plan: Answer) -> None:
        command = f"flavourctl set {device['device']} {plan['flavour']}"
        if plan["refused"]:
            self.row("next", f"{command} would be refused: {plan['refused']}")
        else:
            self.rows("next", [f"{command} would", *(f"- {step}" for step in plan["steps"])])

    def tell_last(self, device: Answer) -> None:
        last = device["last"]
        if last is None:
            return
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["when"]))
        self.row("last", f"to {last['flavour']} at {when} by {last['requester'] or 'the policy'}")
        margin = " " * (_MARGIN + 1)
        for step in last["steps"]:
            began = self._paint(f"{step['started'] * 1000:.0f} ms:".rjust(8), DIM)
            self.lines.append(f"{margin}after {began} {tell_step(step, color=self._color)}")
        said = last["error"].removeprefix(f"{device['device']}: ") or last["reason"]
        self.row("came of it", f"{last['outcome']}: {said}", RED if last["error"] else "")

    def tell_log(self, device: Answer) -> None:
        lines = read_log_lines(device["device"], expected=device["last"] is not None)
        if lines:
            self.lines += ["", *map(printable, lines)]

    def _paint(self, text: str, code: str) -> str:
        return paint(text, code, color=self._color)

    def _shorten(self, name: str, taken: int) -> str:
        """To what is left of a line besides so many columns."""
        return name if self._width is None else shorten(name, max(self._width - taken, 0))

    def _wrap(self, text: str) -> list[str]:
        """At spaces. A word that is wider than the line stays whole: an address is to be copied."""
        room = 0 if self._width is None else self._width - _MARGIN - 1
        if room <= 0 or measure(text) <= room:
            return [text]
        lines = [""]
        for word in text.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if measure(longer) <= room or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines


def _explain(device: Answer) -> str:
    """Why it has the driver that it has."""
    last, flavour, driver = device["last"], device["flavour"], device["driver"]
    # Without steps it was found to have the flavour already, which says nothing of how it came to it.
    if last is not None and last["steps"] and not last["error"] and last["flavour"] == flavour:
        return str(last["reason"])
    if flavour == "native":
        return _explain_native(device)
    winner = device["resolution"]["winner"]
    for candidate in device["resolution"]["candidates"]:
        if driver is not None and candidate["module"] == driver.replace("-", "_"):
            better = "" if winner in (None, candidate["module"]) else f"; {winner} would be the best"
            return f"{candidate['module']}: {candidate['reason']}{better}"
    return f"{driver} had it before this daemon began"


def _explain_native(device: Answer) -> str:
    if device["wish"] == "native":
        return "asked for by hand"
    if device["policy_flavour"] == "native":
        return "the policy says so"
    if device["last"] is not None and device["last"]["error"]:
        return "the last attempt came to nothing, see below"
    if device["driver"] is None:
        return "no driver has it, and nobody asked for another flavour"
    return "its own driver, and nobody asked for another flavour"
