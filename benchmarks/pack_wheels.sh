#!/usr/bin/env bash
# Packs what a machine with an accelerator lacks, which has no network: a folder of wheels, for Linux on x86-64.
#
#   pip list --format=freeze >there.txt                               # there: what it has
#   benchmarks/pack_wheels.sh FOLDER there.txt [PYTHON_VERSION]       # here; without slides: SLIDES=no
#   benchmarks/check_device.sh RESULTS FOLDER                         # there, in a checkout
#
# What is there stays as it is. SLIDES=no leaves out what reads and outlines slides: numerics, methods, encoders
# and their tests and benchmarks do without.
set -euo pipefail
folder=$1 there=$(realpath "$2") version=${3:-3.12}
cd "$(dirname "$0")/.."
mkdir -p "$folder"
target=(--only-binary :all: --python-version "$version" --implementation cp --platform linux_x86_64)
for glibc in 39 35 34 31 28 27 24 17; do target+=(--platform "manylinux_2_${glibc}_x86_64"); done
target+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

python3 - "$folder" "$there" "${target[@]}" <<'PYTHON'
import json, os, pathlib, re, subprocess, sys, tomllib

folder, there, *target = sys.argv[1:]
SLIDES = {"openslide-python", "openslide-bin", "imagecodecs", "rasterio", "shapely", "pydicom", "google-re2"}
TESTS = {"pytest", "pytest-xdist", "hypothesis", "beartype", "chex", "scikit-learn"}


def name(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
wanted = [r for r in project["dependencies"] if os.environ.get("SLIDES") != "no" or name(r) not in SLIDES]
wanted += [r for r in project["optional-dependencies"]["test"] if name(r) in TESTS]
lines = [line.strip() for line in pathlib.Path(there).read_text().splitlines()]
installed = {name(line): line for line in lines if re.match(r"[\w.-]+(==\S+)?$", line)}
constraints = pathlib.Path(folder, "constraints.txt")
constraints.write_text("\n".join(line for line in installed.values() if "==" in line) + "\n")
report = pathlib.Path(folder, "report.json")
pip = [sys.executable, "-m", "pip"]
subprocess.run([*pip, "install", "-q", "--dry-run", "--ignore-installed", "--target", folder, "--report", report,
                "-c", constraints, *target, *wanted], check=True)
found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
lacking = [f"{each['name']}=={each['version']}" for each in found if name(each["name"]) not in installed]
for file in (report, constraints):
    file.unlink()
if lacking:
    subprocess.run([*pip, "download", "-q", "--no-deps", "-d", folder, *target, *lacking], check=True)
PYTHON
du -sh "$folder"
