"""The lock file pins every declared dependency exactly, within the declared bounds."""

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "cluster" / "requirements.txt"
# The versions that the whole was made for.
FIXED = {"torch": "2.13.0", "ray": "2.60.0"}


def read_pins() -> dict[str, str]:
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    for requirement in requirements:
        (bound,) = requirement.specifier
        assert bound.operator == "==" and "*" not in bound.version and not bound.version.count("+"), str(requirement)
    pins: dict[str, str] = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}
    assert len(pins) == len(lines)
    return pins


def read_declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]


def test_every_declared_dependency_is_pinned_within_its_bounds() -> None:
    pins, declared = read_pins(), read_declared()
    outside = [str(r) for r in declared if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert len(declared) > 15
    assert outside == []
    assert {canonicalize_name(r.name) for r in declared} <= pins.keys()


def test_torch_and_ray_are_the_ones_that_the_whole_was_made_for() -> None:
    assert {name: read_pins()[name] for name in FIXED} == FIXED
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"'torch=={FIXED['torch']}'" in makefile and f"tune]=={FIXED['ray']}'" in makefile


def test_rays_own_extras_are_pinned_too() -> None:
    """`ray[default,train,tune]` asks for more than ray, and without these `import ray.train` fails."""
    from importlib.metadata import requires

    extras = {"default", "train", "tune"}
    asked = [Requirement(text) for text in requires("ray") or []]
    needed = [r for r in asked if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    assert {canonicalize_name(r.name) for r in needed} <= read_pins().keys()


def test_what_writes_the_lock_file_writes_what_can_be_read_back() -> None:
    done = subprocess.run([sys.executable, ROOT / "cluster" / "lock.py"], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == LOCK.read_text(encoding="utf-8").splitlines()[0]
    names = [line.partition("==")[0] for line in lines[1:]]
    assert names == sorted(names) and "sftray" not in names and "pip" not in names
    assert "torch==2.13.0" in lines  # without the label of its build
