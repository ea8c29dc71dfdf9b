"""Known vulnerabilities of what is locked: exit code 1 when there are any.

pip-audit asks PyPI's advisories. A mirror that knows none answers that no package can be audited,
which pip-audit takes for success. So the service is first asked for an old pip, which has some; one
that does not know them is as good as none, and the locks are compared with `advisories.toml`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version

PROJECT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", *(f"k8s/requirements{it}.lock" for it in ("", "-build", "-gpu")))
KNOWN_TO_BE_VULNERABLE = "pip==21.0"
TIMEOUT = 600  # seconds, for a lock
_PINNED = re.compile(r"([a-z0-9-]+)(?:\[[^]]*\])?==([^\s;]+)")


def main() -> int:
    """Audit every lock; say what was found, and by which means."""
    if service_answers():
        found = [line for lock in LOCKS for line in asked(lock)]
        print(f"pip-audit asked for the packages of {', '.join(LOCKS)}")
    else:
        known = advisories()
        found = [line for lock in LOCKS for line in compared(lock, known["fixed_in"])]
        print(
            "no advisory service can be reached from here: the locks were compared with "
            f"{len(known['fixed_in'])} packages in .ci/advisories.toml, gathered on "
            f"{known['gathered']}. That is not an audit: run this again where pypi.org answers."
        )
    print("\n".join(found) or "no known vulnerability")
    return 1 if found else 0


def service_answers() -> bool:
    """Whether pip-audit finds what there is to be found."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(KNOWN_TO_BE_VULNERABLE)
        file.flush()
        try:
            return any(it.get("vulns") for it in _audit(file.name))
        except (subprocess.TimeoutExpired, ValueError):
            return False


def asked(lock: str) -> Iterator[str]:
    """Say what pip-audit knows of the packages of a lock, and which it does not know."""
    for package in _audit(str(PROJECT / lock)):
        if "skip_reason" in package:
            print(f"{lock}: {package['name']} was not audited: {package['skip_reason']}")
        for vulnerability in package.get("vulns", []):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            what = f"{package['name']} {package['version']}: {vulnerability['id']}"
            yield f"{lock}: {what}, fixed in {fixed}"


def compared(lock: str, fixed_in: dict[str, Any]) -> Iterator[str]:
    """Say which packages of a lock are older than they should be."""
    for name, version in locked(lock).items():
        known = fixed_in.get(name)
        if known is not None and Version(version) < Version(known["version"]):
            ids = ", ".join(known["ids"])
            yield f"{lock}: {name} {version}: {ids}, fixed in {known['version']}"


def locked(lock: str) -> dict[str, str]:
    """Return the version of every package of a lock."""
    lines = (PROJECT / lock).read_text().splitlines()
    return dict(found.groups() for line in lines if (found := _PINNED.match(line)))


def advisories() -> dict[str, Any]:
    """Return what was gathered by hand."""
    return tomllib.loads((PROJECT / ".ci/advisories.toml").read_text())


def _audit(requirements: str) -> list[dict[str, Any]]:
    options = ("--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json")
    command = [sys.executable, "-m", "pip_audit", *options, "--requirement", requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return dependencies


if __name__ == "__main__":
    sys.exit(main())
