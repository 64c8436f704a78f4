"""docs/how_to/kubernetes/pytorchjob.yaml against the models of the Training Operator and of Kubernetes.

The models are generated from the OpenAPI schemas: names, types and which fields are required.
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

ROOT = Path(__file__).resolve().parents[1]
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
