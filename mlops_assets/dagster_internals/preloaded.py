"""Imported by a fork server after the code location, so that each step process finds this done.

What Dagster makes of the definitions is the same for all steps, and grows with the number of
pipelines. It is made here once; without it every step would make it anew.
"""

from __future__ import annotations

import logging
import sys

from dagster import Definitions


def make_repositories() -> None:
    """Have the repositories of all definitions made that a loaded module holds."""
    held = [one for module in tuple(sys.modules.values()) for one in vars(module).values()]
    for definitions in {id(one): one for one in held if isinstance(one, Definitions)}.values():
        try:
            definitions.get_repository_def()
        except Exception as error:  # a step that needs it fails, and says why
            logging.getLogger(__name__).warning("no repository was made: %s", error)


make_repositories()
