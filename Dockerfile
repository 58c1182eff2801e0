# Three images that run from one code:
#
#   train      the `darkroom` command with CUDA torch; also MLflow's and Prefect's servers and the worker
#   serve      the prediction service on onnxruntime with its CUDA libraries; no torch, no flows
#   serve-cpu  the same without the CUDA libraries, for machines without a GPU
#
#   docker build --target serve --build-arg GIT_SHA=$(git rev-parse HEAD) --tag darkroom-serve .
#
# The NVIDIA driver comes from the host. Everything is installed from hash-locked wheels: nothing is compiled.

# By tag, since a digest names one build that gets no more fixes; `make images PYTHON_IMAGE=python@sha256:...` pins one.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE} AS base
RUN useradd --uid 1000 --user-group --home-dir /home/darkroom --create-home --shell /usr/sbin/nologin darkroom \
    && install --directory --owner darkroom --group darkroom /data /artifacts /leases /inbox
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    DARKROOM_HOME=/data
LABEL org.opencontainers.image.title=darkroom \
      org.opencontainers.image.licenses=Apache-2.0


FROM base AS wheel
COPY requirements/build.txt /build/requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
    && pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement /build/requirements/build.txt
COPY pyproject.toml README.md LICENSE /build/
COPY flows /build/flows
COPY model_code /build/model_code
COPY serving /build/serving
RUN pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels /build


FROM base AS train
COPY requirements/train.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
    && pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --quiet --no-cache-dir --no-deps --no-index /wheels/*.whl
COPY prefect.yaml /opt/darkroom/
COPY infra/k8s/job-template.json /opt/darkroom/infra/k8s/
WORKDIR /opt/darkroom
ARG GIT_SHA=unknown
ENV DARKROOM_GIT_SHA=${GIT_SHA}
LABEL org.opencontainers.image.revision=${GIT_SHA}
USER 1000:1000
VOLUME /data
# Of a command: the servers and the worker have checks of their own in infra/compose.yaml.
HEALTHCHECK --interval=1h --timeout=60s CMD ["darkroom", "--version"]
ENTRYPOINT []
CMD ["darkroom", "--help"]


FROM base AS serve-cpu
COPY requirements/serve.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
    && pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt
COPY serving /opt/darkroom/serving
WORKDIR /opt/darkroom
ENV PYTHONPATH=/opt/darkroom
ARG GIT_SHA=unknown
LABEL org.opencontainers.image.revision=${GIT_SHA}
USER 1000:1000
VOLUME /data
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/livez', timeout=4)"]
CMD ["python", "-P", "-m", "serving.launcher", "--host", "0.0.0.0", "--wait", "--supervise"]


FROM serve-cpu AS serve
USER 0:0
COPY requirements/cuda.txt /tmp/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt
USER 1000:1000
