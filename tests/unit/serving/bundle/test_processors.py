import os

import pytest

from serving.bundle.processors import count_memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, MACHINE),
        ({"memory.max": "max\n"}, MACHINE),
        ({"memory.max": "536870912\n"}, 2**29),
        ({"limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ({"limit_in_bytes": "1073741824\n"}, 2**30),
    ],
)
def test_memory_is_that_of_the_machine_or_of_its_container(tmp_path, limits, expected):
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    assert count_memory_bytes([tmp_path / "memory.max", tmp_path / "limit_in_bytes"]) == expected
