"""Every bad file gives one clear error with its place, and no policy."""

import errno
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from policies import RULE, load, load_text, problem_of, problems_of, write

from vfio_flavourd.config import nodes
from vfio_flavourd.config.load import load_files
from vfio_flavourd.config.problems import PolicyError, Problem, Severity

HEAD = "version: 1\n"


@pytest.fixture(params=["libyaml", "pure"], autouse=True)
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's PyYAML has libyaml, another's may not."""
    loader = yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader
    monkeypatch.setattr(nodes, "_Loader", loader)


ALIAS_BOMB = HEAD + "defaults: &a {deny: [x]}\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(50))


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        (ALIAS_BOMB, 2, 11, "found the anchor '&a'"),
        (HEAD + "rules: *a\n", 2, 8, "found the alias '*a'"),
        (
            HEAD + "rules: !!python/object/apply:os.system [id]\n",
            2,
            8,
            "found the tag 'tag:yaml.org,2002:",
        ),
        (HEAD + "rules: !mine []\n", 2, 8, "found the tag '!mine'"),
        (HEAD + "rules: " + "[" * 5000 + "]" * 5000 + "\n", 2, 19, "nested deeper than 12 levels"),
        (HEAD + "rules: " + "{a: " * 5000 + "}" * 5000 + "\n", 2, 52, "nested deeper than 12 levels"),
        (HEAD + "- " * 5000 + "x\n", 2, 1, "not valid YAML: "),
        ("- " * 5000 + "x\n", 1, 25, "nested deeper than 12 levels"),
        ("? " * 5000 + "x\n", 1, 25, "nested deeper than 12 levels"),
        (HEAD + RULE + "---\n" + HEAD, 4, 1, "a second document begins here"),
        (HEAD + "rules:\n\t- name: x\n", 3, 1, "not valid YAML: "),
        (HEAD + "rules: [\n", 3, 1, "not valid YAML: "),
        (HEAD + "rules: 'x\n", 2, 8, "not valid YAML: "),
        (HEAD + "rules: [", 2, 9, "not valid YAML: "),
        ("---\n ", 2, 2, "the file: found nothing, expected a mapping"),
        (HEAD + "[a]: b\n", 2, 1, "found a list or mapping as a key"),
        (HEAD + "<<: {rules: []}\n", 2, 1, "'<<' is not a key of a policy"),
        (HEAD + HEAD, 2, 1, "the key 'version' is given twice, first in line 1"),
        (HEAD + "rulse: []\n", 2, 1, "'rulse' is not a key of a policy"),
        (b"version: 1\n# Gr\xfc\xdfe\n", 2, 5, "byte 0xfc is not UTF-8"),
        (b"\xff\xfev\x00e\x00r\x00", 1, 1, "byte 0xff is not UTF-8"),
        (b"version: 1\n# a\x00b\n", 2, 4, "the character U+0000 can't be in a policy"),
        (b"version: 1\r\n# \x1b[31m\n", 2, 3, "the character U+001B can't be in a policy"),
        ("version: 1\n# \u2028x\n", 2, 3, "the character U+2028 can't be in a policy"),
        ("\ufeffversion: 1\n\ufeffx: 1\n", 2, 1, "the character U+FEFF can't be in a policy"),
        ("", 1, 1, "the file is empty"),
        ("# nothing\n", 1, 1, "the file is empty"),
        ("---\n...\n", 2, 1, "the file: found nothing, expected a mapping"),
        ("rules: []\n", 1, 1, "a policy lacks the key 'version'"),
        ("version: 2\n", 1, 10, "version: '2' is not one of 1"),
        ("[]\n", 1, 1, "the file: found a list, expected a mapping"),
        ("version\n", 1, 1, "the file: found 'version', expected a mapping"),
        (HEAD + "rules:\n", 2, 7, "rules: found nothing, expected a list"),
        (HEAD + "rules: {name: x}\n", 2, 8, "rules: found a mapping, expected a list"),
        (HEAD + "rules: [x]\n", 2, 9, "rules: found 'x', expected a mapping"),
        (HEAD + "defaults: {}\n", 2, 11, "defaults is empty"),
    ],
)
def test_what_is_no_policy_is_one_error_with_its_place(
    tmp_path: Path, text: str | bytes, line: int, column: int, said: str
) -> None:
    problem = problem_of(tmp_path, text)
    assert problem.message.startswith(said)
    if "not YAML" in said:  # the two parsers differ by where they see an end
        assert line - 1 <= problem.line <= line
    else:
        assert (problem.line, problem.column) == (line, column)
    assert problem.file.endswith("etc/vfio-flavourd/policy.d/10.yaml")
    assert all(each.isprintable() for each in (problem.message, problem.hint, *problem.render()))


@pytest.mark.parametrize(
    ("line", "column", "said", "hint"),
    [
        ("match: {vendr: 0x15b3}", 13, "'vendr' is not a key of a match, which has address,", "'vendor'"),
        ("match: {vendor: 0x15b33}", 21, "vendor: '0x15b33' is not an ID", ""),
        ("match: {vendor: [0x15b3, x]}", 30, "vendor: 'x' is not an ID", ""),
        ("match: {vendor: {a: b}}", 21, "vendor: found a mapping, expected an ID", ""),
        ("match: {vendor: []}", 21, "vendor: found an empty list, expected an ID", ""),
        ("match: {vendor: ''}", 21, "vendor: found nothing, expected an ID", ""),
        ("match: {device: 0x1572}", 13, "'device' means nothing without 'vendor'", "give 'vendor' as well"),
        ("match: {subsystem_device: 1}", 13, "'subsystem_device' means nothing without", "as well"),
        ("match: {}", 12, "a match is empty", "modalias: '*'"),
        ("match: all", 12, "match: found 'all', expected a mapping", "its keys are address, "),
        ("match: {address: 0000:01:00.8}", 22, "address: '0000:01:00.8' is not an address", ""),
        ("match: {address: ../../x}", 22, "address: '../../x' is not an address", ""),
        ("match: {slot: 0000:00:1c.0/0000:01:00.0}", 19, "slot: '0000:00:1c.0/0000:01:00.0' is", ""),
        ("match: {class: 0x3}", 20, "class: '0x3' is not a class: two, four or six", ""),
        ("match: {modalias: 'vfio_pci:*'}", 23, "modalias: 'vfio_pci:*' is not a glob", ""),
        ("match: {sriov: vff}", 20, "sriov: 'vff' is not one of pf, vf", "'vf'"),
        ("match: {sriov: [vf]}", 20, "sriov: found a list, expected one of pf, vf", ""),
        ("match: {iommu_group: 0x10}", 26, "iommu_group: '0x10' is not the number", ""),
        ("match: {driver: -C/tmp/evil}", 21, "driver: '-C/tmp/evil' is not a driver's name", ""),
        ("match: {serial: 'x\ty'}", 21, "serial: 'x\\ty' is not a serial number", ""),
        ("match: {host: 'a b'}", 19, "host: 'a b' is not a glob", ""),
        ("flavour: vfoi", 14, "flavour: there is no 'vfoi', only native, vfio", "'vfio'"),
        ("flavour: [vfio]", 14, "flavour: found a list", ""),
        ("driver: [auto, x]", 14, "driver: 'auto' stands alone", "leave it out"),
        ("driver: a b", 13, "driver: 'a b' is not a driver's name", ""),
        ("{driver: x, flavour: native}", 14, "driver: none can be named for native", "leave it out"),
        ("{driver: vfio-pci, deny: vfio_pci}", 14, "driver: 'vfio-pci' is denied", ""),
        ("load_timeout: 10", 19, "load_timeout: '10' is not a duration, such as 10s", ""),
        ("load_timeout: 1h1ms", 19, "load_timeout: '1h1ms' is not between 1ms and 1h", ""),
        ("load_timeout: 0s", 19, "load_timeout: '0s' is not between 1ms and 1h", ""),
        ("bind_timeout: 9999999h", 19, "bind_timeout: '9999999h' is not between", ""),
        ("bind_timeout: -1s", 19, "bind_timeout: '-1s' is not a duration", ""),
        ("bind_timeout: inf", 19, "bind_timeout: 'inf' is not a duration", ""),
        ("group: togehter", 12, "group: 'togehter' is not one of refuse, together, ignore", "'together'"),
        ("in_use: forced", 13, "in_use: 'forced' is not one of refuse, force", "'force'"),
        ("noiommu: yes", 14, "noiommu: 'yes' is not one of refuse, allow", ""),
        ("nodes: {mode: 0866}", 19, "mode: '0866' is not an octal mode, such as 0660", ""),
        ("nodes: {mode: '0770'}", 19, "mode: '0770' allows more than reading and writing", ""),
        ("nodes: {mode: 06660}", 19, "mode: '06660' is not an octal mode", ""),
        ("nodes: {owner: 'a:b'}", 20, "owner: 'a:b' is not a user or group", ""),
        ("nodes: {}", 12, "nodes is empty", "its keys are owner, group, mode"),
        ("name: second", 5, "the key 'name' is given twice, first in line 3", ""),
    ],
)
def test_what_a_rule_cannot_say_is_one_error_with_its_place(
    tmp_path: Path, line: str, column: int, said: str, hint: str
) -> None:
    match = "" if line.startswith("match") else "    match: {vendor: 1}\n"
    if line.startswith("{"):
        line = line[1:-1].replace(", ", "\n    ")
        column -= 1
    problem = problem_of(tmp_path, f"{HEAD}rules:\n  - name: x\n{match}    {line}\n")
    assert problem.message.startswith(said)
    assert (problem.line, problem.column) == (4 if line.startswith("match") else 5, column)
    assert hint in problem.hint
    assert problem.source_line.strip() == line.partition("\n")[0]


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("flavours: {uio: {alias_prefix: none}}", 17, "a flavour lacks the key 'fallback'"),
        ("flavours: {UIO: {alias_prefix: none, fallback: x}}", 12, "flavours: 'UIO' is not a flavour's name"),
        ("flavours: {vfio: {alias_prefix: none, fallback: x}}", 12, "the flavour 'vfio' is built in"),
        ("flavours: {native: {alias_prefix: none, fallback: x}}", 12, "the flavour 'native' is built in"),
        ("flavours: {u: {alias_prefix: pci, fallback: x}}", 30, "alias_prefix: 'pci' is what the native"),
        ("flavours: {u: {alias_prefix: vfio-pci, fallback: x}}", 30, "alias_prefix: 'vfio-pci' is for the"),
        ("flavours: {u: {alias_prefix: none, fallback: vfio-pci}}", 46, "fallback: 'vfio_pci' is for the"),
        (
            "flavours: {u: {alias_prefix: none, fallback: x-y}, w: {alias_prefix: none, fallback: x_y}}",
            86,
            "fallback: 'x_y' is for the flavour 'u'",
        ),
        ("flavours: {u: {alias_prefix: 'a:b', fallback: x}}", 30, "alias_prefix: 'a:b' is not the beginning"),
        ("flavours: {u: &x {}}", 15, "found the anchor"),
        ("flavours: []", 11, "flavours: found a list, expected a mapping of names"),
        ("flavours: {u: x}", 15, "u: found 'x', expected a mapping"),
        ("personalities: [{driver: x}]", 17, "a personality lacks the key 'attribute'"),
        ("personalities: [{driver: x, attribute: /sys}]", 40, "attribute: '/sys' is not a path below"),
        (
            "personalities: [{driver: x, attribute: a/../../b}]",
            40,
            "attribute: 'a/../../b' has a part . or ..",
        ),
        ("personalities: [{driver: x, attribute: a, ready: ..}]", 50, "ready: '..' has a part . or .."),
        ("personalities: [{driver: x, attribute: a, on: 'a\\nb'}]", 0, ""),
        ("personalities: [{driver: x, attribute: a, on: 1, off: 1}]", 55, "off: '1' is what turns it on"),
        ("personalities: [{driver: x, attribute: a, off: 1}]", 48, "off: '1' is what turns it on"),
        ("rules: [{match: {vendor: 1}}]", 9, "a rule lacks the key 'name'"),
        ("rules: [{name: x}]", 9, "a rule lacks the key 'match'"),
        ("rules: [{name: ' x', match: {vendor: 1}}]", 16, "name: ' x' starts or ends with a blank"),
        ('rules: [{name: "a\\nb", match: {vendor: 1}}]', 16, "name: 'a\\nb' is not a line"),
        ('rules: [{name: "\\e[31m", match: {vendor: 1}}]', 16, "name: '\\x1b[31m' starts or ends"),
    ],
)
def test_what_flavours_and_personalities_cannot_be(tmp_path: Path, text: str, column: int, said: str) -> None:
    if not said:
        load_text(tmp_path, f"{HEAD}{text}\n")  # a backslash in single quotes is one
        return
    problem = problem_of(tmp_path, f"{HEAD}{text}\n")
    assert problem.message.startswith(said)
    assert (problem.line, problem.column) == (2, column)


def test_a_name_that_moves_the_cursor_is_told_in_one_line_that_can_be_read(tmp_path: Path) -> None:
    """YAML's own escapes make control characters of what is printable in the file."""
    text = HEAD + r'flavours: {"\e[31m\n": x, "\u202e": {alias_prefix: none, fallback: x}}' + "\n"
    text += "rules:\n  - {name: a, match: {vendor: 1}, flavour: y}\n"
    problems = problems_of(tmp_path, text)
    assert len(problems) == 4
    assert all(each.message.isprintable() for each in problems)


def test_a_flavour_is_given_once_in_a_file(tmp_path: Path) -> None:
    flavour = "  u: {alias_prefix: none, fallback: x}\n"
    problem = problem_of(tmp_path, f"{HEAD}flavours:\n{flavour}{flavour}")
    assert (problem.line, problem.column, problem.message) == (4, 3, "flavours: 'u' is given twice")


def test_a_caret_points_at_the_place(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, HEAD + "defaults:\n  group: togehter  # both\n")
    assert problem.render() == (
        f"{problem.file}:3:10: group: 'togehter' is not one of refuse, together, ignore",
        "    group: togehter  # both",
        "           ^",
        "  did you mean 'together'?",
    )


@pytest.mark.parametrize("before", ["", "ü", "漢字", "\t", "\u202e", "e\u0301", "x" * 5000])
def test_a_caret_points_at_the_place_whatever_stands_before_it(tmp_path: Path, before: str) -> None:
    problem = problem_of(tmp_path, f'{HEAD}rules: ["{before}", *a]\n')
    _, source, caret, _ = problem.render()
    assert source.isprintable()
    assert len(source) < 110
    column = caret.index("^") - 2
    width = sum(2 if each in "漢字" else 1 for each in source[2 : source.index("*")])
    assert column == width


def test_all_errors_of_all_files_are_told_at_once_and_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, HEAD + "rules:\n  - {name: x, match: {vendor: y}, flavour: vfoi, drivr: z}\n", "10.yaml")
    write(tmp_path, HEAD + "rules: [\n", "20.yaml")
    write(tmp_path, HEAD + "defaults: {group: all, load_timeout: 0s}\n", "30.yaml")
    problems = problems_of(tmp_path)
    assert [(Path(each.file).name, each.line, each.column) for each in problems] == [
        ("10.yaml", 3, 31),
        ("10.yaml", 3, 50),
        ("20.yaml", problems[2].line, problems[2].column),
        ("30.yaml", 2, 19),
        ("30.yaml", 2, 38),
    ]


def test_an_unknown_flavour_is_told_along_with_other_mistakes_of_its_file(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path, HEAD + "rules:\n  - {name: x, match: {vendor: 1}, flavour: vfoi}\n  - {nam: y}\n"
    )
    assert "flavour: there is no 'vfoi', only native, vfio" in [each.message for each in problems]


def test_the_first_error_stands_for_all_of_them(tmp_path: Path) -> None:
    write(tmp_path, HEAD + "rulse: []\ndefautls: {}\n")
    with pytest.raises(PolicyError) as caught:
        load(tmp_path)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.hint == "did you mean 'rules'?"
    file = caught.value.problems[0].file
    assert str(caught.value).startswith(f"{file}:2:1: 'rulse' is not a key of a policy")
    assert str(caught.value).endswith(" (and 1 more)")
    assert "\n" not in str(caught.value)


def test_the_search_ends_after_fifty_errors(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, HEAD + "".join(f"k{number}: 1\n" for number in range(5000)))
    assert len(problems) == 51
    assert problems[-1].message == "there may be more: the check stopped here"


def test_hundreds_of_warnings_leave_the_policy_in_force(tmp_path: Path) -> None:
    rules = "".join(f"  - {{name: r{number}, match: {{vendor: 1}}}}\n" for number in range(300))
    loaded = load_text(tmp_path, HEAD + "rules:\n" + rules)
    assert len(loaded.policy.rules) == 300
    assert len(loaded.warnings) == 50
    assert {each.severity for each in loaded.warnings} == {Severity.WARNING}


def test_two_rules_that_tie_are_a_warning_that_names_the_first(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        HEAD
        + "rules:\n"
        + "  - {name: a, match: {vendor: [0x15b3, 0x8086], sriov: vf}, flavour: vfio}\n"
        + "  - {name: b, match: {sriov: vf, vendor: [8086, 15B3]}, flavour: native}\n"
        + "  - {name: c, match: {sriov: vf, vendor: 8086, device: 1}}\n"
        + "  - {name: d, match: {sriov: vf}}\n",
    )
    assert [(each.line, each.column) for each in loaded.warnings] == [(4, 22), (5, 22)]
    first = loaded.warnings[0]
    assert first.message.startswith("the rule 'b' never applies: 'a' in ")
    assert "10.yaml:3 matches everything it does" in first.message
    assert str(first).startswith(f"{first.file}:4:22: warning: ")


@pytest.mark.parametrize("mode", ["0666", "0606"])
def test_nodes_for_everybody_are_a_warning(tmp_path: Path, mode: str) -> None:
    rule = f"rules: [{{name: x, match: {{vendor: 1}}, nodes: {{mode: {mode}}}}}]\n"
    (warning,) = load_text(tmp_path, HEAD + rule).warnings
    assert warning.message.startswith("mode: this lets every user of this host control the device")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (RULE, "a rule 'all' is already defined in {first}:3"),
        (
            "flavours: {uio: {alias_prefix: none, fallback: x}}\n",
            "the flavour 'uio' is already defined in {first}:4",
        ),
        (
            "personalities: [{driver: x, attribute: y}]\n",
            "this personality of 'x' is already defined in {first}:5",
        ),
    ],
)
def test_a_name_is_given_once_in_all_files(tmp_path: Path, second: str, said: str) -> None:
    flavour = "flavours: {uio: {alias_prefix: none, fallback: x}}\n"
    first = write(tmp_path, HEAD + RULE + flavour + "personalities: [{driver: x, attribute: y}]\n", "10.yaml")
    write(tmp_path, HEAD + second, "20.yaml")
    problem = problem_of(tmp_path)
    assert problem.message == said.format(first=first)
    assert problem.file.endswith("20.yaml")


def check_only_policy_errors(path: Path) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        load_files([path])
    except PolicyError as error:
        problems = error.problems
    for problem in problems:
        assert "\n" not in str(problem)
        assert all(line.isprintable() for line in problem.render())


fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
words = [
    "version: 1",
    "rules:",
    "name: x",
    "match:",
    "vendor: 0x15b3",
    "flavour: vfio",
    "defaults:",
    "deny: x",
]
words += ["group: together", "slot:", "0000:01:00.0", "flavours:", "personalities:", "driver: auto", "nodes:"]
marks = [
    "\n",
    " ",
    "  ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "!!str ",
    "'",
    '"',
    "|",
    ">",
    "%YAML 1.1",
]
marks += ["---", "...", "#", "? ", ": ", "<<", "\t", "\r", "\x85", "\ufeff", "💾"]
snippets = st.sampled_from(words) | st.sampled_from(marks)


@given(data=st.binary(max_size=400))
@example(b"\xef\xbb\xbf")
@example(b"\xef\xbb\xbf\xff")
@example(b"%")
@example(b"|")
@example(b"!<")
@fuzz
def test_no_bytes_at_all_raise_anything_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    check_only_policy_errors(path)


@given(parts=st.lists(snippets, max_size=40))
@fuzz
def test_no_yaml_at_all_raises_anything_else(tmp_path: Path, parts: list[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("".join(parts), encoding="utf-8", newline="")
    check_only_policy_errors(path)
