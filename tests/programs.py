"""Programs of other projects that tests start, and what is said where one is missing."""

from __future__ import annotations

import os
import shutil

import pytest

SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps nginx, which is on no ordinary user's PATH."""


def program(name: str) -> str:
    """Its path; the test fails without it, for one that is left out shows nothing."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM}")
    if found is None:
        pytest.fail(f"this needs {name}; Debian, Ubuntu: sudo apt-get install {name}")
    return found
