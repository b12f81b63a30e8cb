"""One guest for the whole session; booting one takes half a minute."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .image import DEFAULT_RELEASE, RELEASES, Image, build_image
from .vm import Guest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("guest", "the test guest")
    group.addoption(
        "--guest-release",
        choices=sorted(RELEASES),
        default=os.environ.get("VFIO_FLAVOUR_GUEST_RELEASE", DEFAULT_RELEASE),
        help="the Debian release in the guest (default: $VFIO_FLAVOUR_GUEST_RELEASE or %(default)s)",
    )
    group.addoption(
        "--deb",
        type=Path,
        default=os.environ.get("VFIO_FLAVOUR_DEB"),
        help="the project's package, installed in the guest (default: $VFIO_FLAVOUR_DEB or none)",
    )


# A boot, and under it perhaps a build of everything, is part of the first test's time.
SLOWEST_TEST = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SLOWEST_TEST))


@pytest.fixture(scope="session")
def image(pytestconfig: pytest.Config) -> Image:
    deb = pytestconfig.getoption("--deb")
    return build_image(RELEASES[pytestconfig.getoption("--guest-release")], Path(deb) if deb else None)


@pytest.fixture(scope="session")
def guest(image: Image) -> Iterator[Guest]:
    with Guest(image) as guest:
        yield guest
