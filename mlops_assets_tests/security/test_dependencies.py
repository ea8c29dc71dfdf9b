"""What is locked: held to the advisories that were gathered, and listed in a bill of materials."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = spec_from_file_location("audit", PROJECT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_locked_package_is_older_than_the_fix_of_a_gathered_advisory(audit: ModuleType) -> None:
    fixed_in = audit.advisories()["fixed_in"]
    assert [line for lock in audit.LOCKS for line in audit.compared(lock, fixed_in)] == []
    # an entry that is about nothing here would only look like care
    assert set(fixed_in) <= set(audit.locked("requirements.lock"))


def test_an_older_package_is_named_with_the_advisory_and_the_fix(audit: ModuleType) -> None:
    fixed_in = {"skops": {"version": "99", "ids": ["CVE-1"]}, "absent": {"version": "1", "ids": []}}
    (line,) = audit.compared("k8s/requirements.lock", fixed_in)
    assert line.startswith("k8s/requirements.lock: skops ")
    assert line.endswith("CVE-1, fixed in 99")


@pytest.mark.parametrize("fixed", [["2.0", "1.5.1"], []])
def test_what_pip_audit_finds_fails_the_audit(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fixed: list[str],
) -> None:
    found = {
        "name": "a",
        "version": "1",
        "vulns": [{"id": "CVE-1", "fix_versions": fixed}],
    }
    unknown = {"name": "b", "skip_reason": "not on PyPI"}
    monkeypatch.setattr(audit, "_audit", lambda _requirements: [found, unknown])
    assert audit.main() == 1
    said = capsys.readouterr().out
    assert f"a 1: CVE-1, fixed in {', '.join(fixed) or 'no version yet'}" in said
    assert "b was not audited: not on PyPI" in said


@pytest.mark.parametrize("answer", [[], [{"name": "pip", "skip_reason": "not found"}], None])
def test_a_service_that_knows_no_advisories_is_not_taken_for_a_good_answer(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: list[dict[str, Any]] | None,
) -> None:
    def answered(requirements: str) -> list[dict[str, Any]]:
        assert "lock" not in requirements, "the locks are not asked for"
        if answer is None:
            raise subprocess.TimeoutExpired("pip-audit", 1)
        return answer

    monkeypatch.setattr(audit, "_audit", answered)
    assert audit.main() == 0
    assert "That is not an audit" in capsys.readouterr().out


@pytest.mark.parametrize("lock", ["requirements.lock", "k8s/requirements.lock"])
def test_the_bill_of_materials_lists_what_is_locked_with_its_hashes(
    audit: ModuleType, tmp_path: Path, lock: str
) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    _, _, recipe = makefile.partition("\nsbom: ")
    command = recipe.split("\n\n")[0].partition("$(BIN)/python ")[2].replace("\\\n", " ").split()
    command[command.index("$(LOCK)")] = lock
    target = tmp_path / "sbom.cdx.json"
    command[command.index("sbom.cdx.json")] = str(target)
    command[command.index("--validate")] = "--no-validate"  # against the schema: 6 s of processor
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, capture_output=True)

    bill = json.loads(target.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "mlops-assets"
    components = bill["components"]
    assert {it["name"]: it["version"] for it in components} == audit.locked(lock)
    for component in components:
        name, version = component["name"], component["version"]
        assert component["purl"].startswith(f"pkg:pypi/{name}@{version}")
        (distribution,) = component["externalReferences"]
        assert {it["alg"] for it in distribution["hashes"]} == {"SHA-256"}
