import json
import re
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

import jsonpatch
import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.utilities.templating import apply_values
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

K8S = Path(__file__).parents[3] / "infra" / "k8s"
FOLDERS = ("base", "gpu")
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
SECRETS = re.compile("PASSWORD|USERNAME|AUTH_STRING$|TOKEN|API_KEY|WEBHOOK")


def read_base():
    files = [path for path in (K8S / "base").glob("*.yaml") if path.name != "kustomization.yaml"]
    return [manifest for path in files for manifest in yaml.safe_load_all(path.read_text())]


def render(folder):
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on PATH")
    command = ["kubectl", "kustomize", K8S / folder]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def read_template(*, gpu=False):
    template = json.loads((K8S / "job-template.json").read_text())
    return jsonpatch.apply_patch(template, (K8S / "gpu/job-template.patch.json").read_text()) if gpu else template


def fill_in(template, **values):
    fields = template["variables"]["properties"]
    defaults = {name: field["default"] for name, field in fields.items() if field.get("default") is not None}
    configuration = apply_values(template["job_configuration"], defaults | values)
    return KubernetesWorkerJobConfiguration(**configuration)


def make_job(template, **values):
    configuration = fill_in(template, **values)
    # Of the same name as a pod that is not a training.
    deployment = DeploymentResponse(id=uuid4(), flow_id=uuid4(), name="serving")
    configuration.prepare_for_flow_run(FlowRun(flow_id=deployment.flow_id, name="train"), deployment)
    job = configuration.job_manifest
    # Prefect insists on them here, a level too deep, where Kubernetes drops them.
    for misplaced in ("completions", "parallelism"):
        assert job["spec"]["template"]["spec"].pop(misplaced) == 1
    return job


def validate(manifest):
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def find_pods(manifests):
    return [manifest["spec"]["template"] for manifest in manifests if manifest["kind"] in {"Deployment", "Job"}]


def get(manifests, kind, name):
    return next(manifest for manifest in manifests if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name))


def check_hardened(pod):
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["enableServiceLinks"]
    assert len(spec["containers"]) == 1
    assert "initContainers" not in spec
    container = spec["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]} >= {"tmp"}


def test_plain_files_are_valid():
    manifests = read_base()
    assert len(manifests) == 17
    for manifest in manifests:
        validate(manifest)


@pytest.mark.parametrize("folder", FOLDERS)
def test_rendered_manifests_are_valid(folder):
    manifests = render(folder)
    assert len(manifests) == len(read_base())
    for manifest in manifests:
        validate(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "darkroom"


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "serving", ("spec", "template", "spec")),
        ("HorizontalPodAutoscaler", "serving", ("spec",)),
        ("NetworkPolicy", "default-deny", ("spec",)),
        ("Role", "worker", ("rules", 0)),
    ],
)
def test_a_misspelt_field_is_refused(kind, name, path):
    manifest = part = get(read_base(), kind, name)
    for key in path:
        part = part[key]
    part["automountServiceAcountToken"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="automountServiceAcountToken"):
        validate(manifest)


def test_every_pod_is_hardened():
    pods = find_pods(read_base())
    assert len(pods) == 2
    for pod in [*pods, make_job(read_template())["spec"]["template"]]:
        check_hardened(pod)


@pytest.mark.parametrize("folder", FOLDERS)
def test_rendered_pods_are_hardened(folder):
    for pod in find_pods(render(folder)):
        check_hardened(pod)


def test_only_the_worker_gets_a_token_of_the_cluster():
    serving, worker = (
        get(read_base(), "Deployment", name)["spec"]["template"]["spec"] for name in ("serving", "worker")
    )
    training = make_job(read_template())["spec"]["template"]["spec"]
    assert serving["automountServiceAccountToken"] is training["automountServiceAccountToken"] is False
    assert worker["serviceAccountName"] == "worker"


def test_selectors_find_their_pods():
    manifests = read_base()
    pods = [*find_pods(manifests), make_job(read_template())["spec"]["template"]]

    def count(selector):
        return sum(selector.items() <= pod["metadata"]["labels"].items() for pod in pods)

    assert count(get(manifests, "Service", "serving")["spec"]["selector"]) == 1
    assert count(get(manifests, "PodDisruptionBudget", "serving")["spec"]["selector"]["matchLabels"]) == 1
    policies = {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"}
    found = {name: count(spec["podSelector"].get("matchLabels", {})) for name, spec in policies.items()}
    assert found == {"default-deny": 3, "dns": 3, "serving": 1, "worker": 1, "training": 1}


def test_the_service_may_only_ask_for_names():
    egress = [m for m in read_base() if m["kind"] == "NetworkPolicy" and "egress" in m["spec"]]
    selected = {m["metadata"]["name"]: m["spec"]["podSelector"] for m in egress}
    assert selected.pop("dns") == {}
    assert {"matchLabels": {"app.kubernetes.io/component": "serving"}} not in selected.values()
    assert {} not in selected.values()


def test_servers_can_be_reached_at_the_ports_of_their_addresses():
    manifests = read_base()
    addresses = get(manifests, "ConfigMap", "darkroom-settings")["data"]
    needed = {
        name: int(re.search(r":(\d+)", addresses[name])[1]) for name in addresses if name.endswith(("_URI", "_URL"))
    }
    opened = {
        name: {
            port["port"] for rule in get(manifests, "NetworkPolicy", name)["spec"]["egress"] for port in rule["ports"]
        }
        for name in ("worker", "training")
    }
    assert needed["PREFECT_API_URL"] in opened["worker"]
    assert set(needed.values()) <= opened["training"]


def test_a_gpu_is_asked_for_by_the_overlay_only():
    def read_limits(folder):
        pod = get(render(folder), "Deployment", "serving")["spec"]["template"]["spec"]
        return pod["containers"][0]["image"], pod["containers"][0]["resources"]["limits"]

    assert read_limits("base") == ("darkroom-serve-cpu:latest", {"cpu": "4", "memory": "4Gi"})
    assert read_limits("gpu") == ("darkroom-serve:latest", {"cpu": "4", "memory": "4Gi", "nvidia.com/gpu": 1})


@pytest.mark.parametrize(("gpu", "gpus"), [(False, 0), (True, 1)])
def test_the_job_template_renders_to_a_valid_job(gpu, gpus):
    job = make_job(read_template(gpu=gpu))
    validate(job)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    assert job["metadata"]["namespace"] == "darkroom"
    pod = job["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi", "nvidia.com/gpu": gpus}
    assert ("tolerations" in pod) is gpu
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/data": "home", "/inbox": "inbox", "/tmp": "tmp", "/dev/shm": "shm"}
    assert {mount["name"]: mount.get("readOnly") for mount in pod["containers"][0]["volumeMounts"]}["inbox"] is True


def test_the_form_of_the_job_template_changes_the_job():
    job = make_job(read_template(), gpus=2, cpu_limit="8", image="darkroom-train:1", env={"SEED": "1"})
    validate(job)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "darkroom-train:1"
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": 2}
    assert {"name": "SEED", "value": "1"} in container["env"]


def test_a_misspelt_field_of_the_job_template_is_refused():
    template = read_template()
    template["job_configuration"]["job_manifest"]["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        validate(make_job(template))


def test_the_form_has_every_variable_of_prefect():
    template = read_template(gpu=True)
    WorkPoolCreate(name="darkroom-kubernetes", type="kubernetes", base_job_template=template)
    theirs = KubernetesWorker.get_default_base_job_template()["variables"]["properties"]
    fields = template["variables"]["properties"]
    assert fields.keys() - theirs.keys() == {"gpus", "shared_memory"}
    assert not theirs.keys() - fields.keys()
    assert all("title" in field or "anyOf" in field for field in fields.values())


def test_pods_refer_to_what_there_is():
    manifests = read_base()
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for pod in [*find_pods(manifests), make_job(read_template())["spec"]["template"]]:
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {"claimName": "darkroom-home"})
            assert ("PersistentVolumeClaim", claim["claimName"]) in names
        for source in pod["spec"]["containers"][0].get("envFrom", []):
            assert source == {"secretRef": {"name": "darkroom-secrets"}} or (
                ("ConfigMap", source["configMapRef"]["name"]) in names
            )


def test_the_service_writes_the_inbox_only():
    (pod,) = [pod for pod in find_pods(read_base()) if pod["spec"]["containers"][0]["name"] == "serving"]
    modes = {mount["name"]: mount.get("readOnly", False) for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert modes == {"home": True, "inbox": False, "tmp": False}


def test_a_training_on_several_nodes_is_a_valid_hardened_job_whose_pods_reach_each_other():
    manifests = list(yaml.safe_load_all((K8S / "several-nodes.yaml").read_text()))
    for manifest in manifests:
        validate(manifest)
    job, service, policy = manifests
    pod = job["spec"]["template"]
    check_hardened(pod)
    spec, name = pod["spec"], job["metadata"]["name"]
    assert (job["spec"]["completionMode"], spec["subdomain"]) == ("Indexed", service["metadata"]["name"])
    (container,) = spec["containers"]
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:29500" in container["command"]
    nodes = next(word for word in container["command"] if word.startswith("--nnodes="))
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(nodes.removeprefix("--nnodes="))
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    rules = [policy["spec"]["ingress"][0]["from"], policy["spec"]["egress"][0]["to"]]
    assert rules == [[{"podSelector": policy["spec"]["podSelector"]}]] * 2
    training = get(read_base(), "NetworkPolicy", "training")["spec"]["podSelector"]["matchLabels"]
    assert training.items() <= labels.items(), "MLflow is reached as from other trainings"
    claims = {one["metadata"]["name"] for one in read_base() if one["kind"] == "PersistentVolumeClaim"}
    used = {one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "persistentVolumeClaim" in one}
    assert used <= claims


def test_no_secret_has_a_value_here():
    manifests = [*read_base(), make_job(read_template())]
    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    for pod in find_pods(manifests):
        for variable in pod["spec"]["containers"][0].get("env", []):
            assert "valueFrom" in variable or not SECRETS.search(variable["name"])
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            assert not [name for name in manifest["data"] if SECRETS.search(name)]
