"""The recipes for clusters: parsed, held against schemas that can be had, and against what all of them promise."""

import importlib.metadata
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "cluster"
VERSION = importlib.metadata.version("sftray")
IMAGE = f"REGISTRY/sftray:{VERSION}"


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((RECIPES / name).read_text(encoding="utf-8")))


def find(name: str, kind: str) -> dict[str, Any]:
    return next(each for each in load(name) if each["kind"] == kind)


CLUSTERS = {
    "kuberay-cluster.yaml": find("kuberay-cluster.yaml", "RayCluster")["spec"],
    "kuberay-job.yaml": find("kuberay-job.yaml", "RayJob")["spec"]["rayClusterSpec"],
}


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    spec: dict[str, Any] = CLUSTERS[request.param]
    return spec


def list_pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_a_cluster_on_kubernetes_has_tokens_and_this_version_of_ray(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "nobody trains on the head"


def test_its_pods_are_nobodys_root_and_share_the_store(cluster: dict[str, Any]) -> None:
    for pod in list_pods(cluster):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        volumes, mounts = (
            {v["name"]: v for v in pod["volumes"]},
            {m["mountPath"]: m["name"] for m in container["volumeMounts"]},
        )
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == "sftray-shared"
        assert set(mounts.values()) == set(volumes), "each volume is mounted, and each mount has one"
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_its_workers_have_a_gpu_and_room_for_nccl(cluster: dict[str, Any]) -> None:
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert (
            container["resources"]["requests"]["nvidia.com/gpu"] == container["resources"]["limits"]["nvidia.com/gpu"]
        )
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_head_on_kubernetes_may_be_restarted() -> None:
    options = CLUSTERS["kuberay-cluster.yaml"]["gcsFaultToleranceOptions"]
    host, port = options["redisAddress"].split(":")
    service = next(
        e for e in load("kuberay-cluster.yaml") if e["kind"] == "Service" and e["metadata"]["name"] == host
    )
    assert service["spec"]["ports"] == [{"port": int(port)}]
    redis = find("kuberay-cluster.yaml", "StatefulSet")
    assert redis["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    assert [env["valueFrom"]["secretKeyRef"] for env in container["env"]] == [secret]
    assert find("kuberay-cluster.yaml", "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_job_on_kubernetes_is_not_started_twice_and_has_time_to_save() -> None:
    job = find("kuberay-job.yaml", "RayJob")["spec"]
    assert job["backoffLimit"] == 0 and job["shutdownAfterJobFinishes"]
    waits = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(waits) >= 600
    assert job["entrypoint"].startswith("sftray train /config/") and "store.path=/shared/" in job["entrypoint"]


def test_rays_own_schema_takes_the_recipe_for_aws() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    (recipe,) = load("aws.yaml")
    jsonschema.validate(recipe, schema)
    assert recipe["head_node_type"] in recipe["available_node_types"] and recipe["docker"]["image"] == IMAGE
    broken = {**recipe, "max_worker": 4}
    with pytest.raises(jsonschema.ValidationError):  # the schema does look
        jsonschema.validate(broken, schema)


def read_steps() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (RECIPES / "Dockerfile").read_text(encoding="utf-8"))
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_is_of_the_lock_file_and_nobodys_root() -> None:
    steps = read_steps()
    words = [" ".join(step) for step in steps]
    lock = next(i for i, line in enumerate(words) if line.startswith("COPY cluster/requirements.txt"))
    install = next(i for i, line in enumerate(words) if "-r cluster/requirements.txt" in line)
    code = min(i for i, line in enumerate(words) if line.startswith("COPY train_fn"))
    assert lock < install < code, "a change of the code does not install everything anew"
    assert [step[1] for step in steps if step[0] == "USER"][-1] == "ray"
    assert any(step[0] == "HEALTHCHECK" and '"health-check"]' in step for step in steps)
    environment = next(line for line in words if line.startswith("ENV"))
    assert "RAY_AUTH_MODE=token" in environment and "TOKEN=" not in environment.replace("MODE=token", "")


def test_everything_that_the_image_copies_travels_to_its_builder() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {path.split("/")[0] for step in read_steps() if step[0] == "COPY" for path in step[1:-1]}
    assert copied == let_in and all((ROOT / name).exists() for name in copied)


def test_the_slurm_script_is_bash_and_puts_no_token_on_a_command_line() -> None:
    script = RECIPES / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --signal=B:TERM@" in text and "trap" in text
    commands = [line for line in text.splitlines() if "srun" in line or "ray start" in line]
    assert commands and not any("TOKEN" in line for line in commands)


def test_nodes_on_slurm_keep_rays_files_from_other_users() -> None:
    text = (RECIPES / "slurm.sh").read_text(encoding="utf-8")
    made = text.index('mkdir -m 700 "$RAY_TMPDIR"')
    assert text.index("export RAY_TMPDIR=") < made < text.index('"${ray[@]}"') and "mkdir -p" not in text


@pytest.mark.parametrize("name", ["aws.yaml", "slurm.sh"])
def test_what_starts_ray_without_kuberay_says_that_it_wants_a_token(name: str) -> None:
    text = (RECIPES / name).read_text(encoding="utf-8")
    starts = [line for line in text.splitlines() if "ray start" in line]
    told = "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token" in text
    assert starts and (told or all("RAY_AUTH_MODE=token ray start" in line for line in starts))


@pytest.mark.slow
def test_rays_own_command_makes_a_token_for_its_owner_alone_as_the_recipe_has_it(tmp_path: Path) -> None:
    (command,) = re.findall(r"\(umask .*?\)", (RECIPES / "aws.yaml").read_text(encoding="utf-8"))
    ray_there = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    subprocess.run(
        ["bash", "-c", command], env={**kept, "HOME": str(tmp_path), "PATH": ray_there}, check=True, timeout=60
    )
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) >= 32
