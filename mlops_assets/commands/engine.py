"""A command in a container of this machine: how docker and podman are told to run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from uuid import uuid4

from mlops_assets.commands.ending import CommandError
from mlops_assets.commands.value import argv_of
from mlops_assets.spec import StepSpec, in_bytes

ENGINES = ("docker", "podman")
ENGINE_FAILED = 125
"""Exit code by which an engine says that it has failed itself: no daemon, no such image."""


def engine(image: str) -> str:
    """Return the path of a container engine.

    Raises
    ------
    CommandError
        There is none.
    """
    for name in ENGINES:
        if path := shutil.which(name):
            return path
    raise CommandError(
        f"the image {image} needs {' or '.join(ENGINES)}, and neither is on the PATH: install one, "
        "or remove `image` to run the command on this machine"
    )


def container_name() -> str:
    """Return a name for a container, by which it can be ended."""
    return f"mlops-{uuid4().hex[:16]}"


def container_argv(
    program: str, name: str, step: StepSpec, variables: Mapping[str, str], labels: Mapping[str, str]
) -> list[str]:
    """Return the command that runs a step's image.

    Parameters
    ----------
    program : str
        The engine.
    name : str
        Of the container.
    step : StepSpec
        With an image.
    variables : mapping of str to str
        What the command is given as environment. The values are not in the list, which everybody
        on the machine can read: the engine takes them from its own environment, unless it has
        another value there that it needs itself.
    labels : mapping of str to str
        Of the container.
    """
    assert step.image is not None
    argv = argv_of(step.command) if step.command is not None else []
    gpus = ["--gpus", str(step.compute.gpus)] if step.compute.gpus else []
    return [
        program,
        "run",
        "--rm",
        "-i",
        "--name",
        name,
        *(part for label, value in labels.items() for part in ("--label", f"{label}={value}")),
        "--cpus",
        f"{step.compute.cpu:g}",
        "--memory",
        str(in_bytes(step.compute.memory)),
        *gpus,
        "--security-opt",
        "no-new-privileges",
        *(
            part
            for variable, value in variables.items()
            for part in (
                "--env",
                f"{variable}={value}" if os.environ.get(variable, value) != value else variable,
            )
        ),
        *(["--entrypoint", argv[0]] if argv else []),
        step.image,
        *argv[1:],
    ]
