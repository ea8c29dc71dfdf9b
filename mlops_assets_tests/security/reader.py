"""Reads files that were crafted, with little memory, and says what came of each.

    python -m mlops_assets_tests.security.reader FOLDER FILE…

What is in a folder `source` is read as a user's data, all else as an object of the store.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from mlops_assets.errors import UserError
from mlops_assets.ml.read import read
from mlops_assets.spec import DataSpec
from mlops_assets.store.codecs import codec_of_extension

MEMORY = 1024**3
"""Bytes that reading may take beyond what the process has with its libraries."""


def outcome(file: Path) -> dict[str, Any]:
    """Read a file; return what came of it."""
    begun = time.monotonic()
    try:
        if file.parent.name == "source":
            value: Any = read(DataSpec(uri=str(file), target="y"), file.parent)
        else:
            value = codec_of_extension(file.suffix[1:]).read(file, None)
        said = {"refused": "", "value": repr(value)[:200]}
    except UserError as error:
        said = {"refused": type(error).__name__, "said": str(error)[:2000]}
    except BaseException as error:
        said = {"refused": "undocumented", "said": f"{error!r}"[:2000]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**said, "seconds": time.monotonic() - begun, "peak": peak}


def main() -> None:
    """Print a line of JSON for each file, as soon as it is read."""
    import skops.io  # noqa: F401 - not to be counted as the memory of a file

    codec_of_extension("parquet").read(Path(sys.argv[1], "honest.parquet"), None)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = resource.getpagesize() * pages + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in sys.argv[2:]:
        print(json.dumps(outcome(Path(sys.argv[1], name))), flush=True)


if __name__ == "__main__":
    main()
