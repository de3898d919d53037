# Two images from one file: `--target operator` (small: no PyTorch) and `--target trainer`.
#
# BASE_IMAGE needs Python 3.11 or 3.12 with venv as `python3`, nothing else.
# Packages come from the index that the builder names: a pip.conf handed in as the build secret
# `pip` (hack/build-images.sh does it), or pip's own default where there is none.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# ---- what both images start from: an empty virtual environment, and the list of what goes in
FROM ${BASE_IMAGE} AS environment
ENV PATH=/opt/daybreak/bin:${PATH}
RUN python3 -m venv /opt/daybreak
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# One requirements file per image, from pyproject.toml alone: editing a source file does not
# download PyTorch again.
RUN ["python", "-c", "import pathlib, tomllib\n\
project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']\n\
for name in ('operator', 'trainer'):\n\
    lines = project['dependencies'] + project['optional-dependencies'][name]\n\
    pathlib.Path(f'{name}.txt').write_text('\\n'.join(lines))"]

FROM environment AS wheel
COPY README.md LICENSE ./
COPY cli cli
COPY devcluster/daybreak_devcluster devcluster/daybreak_devcluster
COPY operator operator
COPY trainer trainer
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip wheel --quiet --no-deps --wheel-dir /wheels .

FROM environment AS operator-environment
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --quiet --no-cache-dir --constraint constraints.txt --requirement operator.txt
COPY --from=wheel /wheels /wheels
RUN pip install --quiet --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM environment AS trainer-environment
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --quiet --no-cache-dir --constraint constraints.txt --requirement trainer.txt
COPY --from=wheel /wheels /wheels
RUN pip install --quiet --no-cache-dir --no-deps --no-index /wheels/*.whl

# ---- the images: the base, one folder, and an unprivileged user; the root is never written to
FROM ${BASE_IMAGE} AS operator
ENV PATH=/opt/daybreak/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=operator-environment /opt/daybreak /opt/daybreak
USER 65532:65532
ENTRYPOINT ["python", "-m", "daybreak_operator"]

FROM ${BASE_IMAGE} AS trainer
ENV PATH=/opt/daybreak/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=trainer-environment /opt/daybreak /opt/daybreak
USER 65532:65532
ENTRYPOINT ["python", "-m", "daybreak_trainer.launch"]
