"""From the files that a model was published in to one GGUF file, always the same bytes.

The catalogue holds the SHA-256 of the result, so nothing of the machine or of the moment
may be in it: no date, no path, no version. `FILES` says what a kind of conversion reads,
`convert` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from models.conversion import bert
from models.entry import Conversion

FILES: Final[Mapping[Conversion, tuple[str, ...]]] = {"bert": bert.FILES}
"""The files that a conversion reads, relative to the model's directory."""


def convert(kind: Conversion, directory: Path, target: Path, *, license: str) -> None:
    """Write the model in `directory` to `target` as GGUF; `license` is an SPDX id.

    Raises `ConversionFailed` for files that are not what they should be, and OSError.
    """
    match kind:
        case "bert":
            bert.convert(directory, target, license=license)
