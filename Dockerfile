# syntax=docker/dockerfile:1
# The server alone. docs/run.md has the build arguments.
#   docker build -t kv-sidecar .
ARG BASE=docker.io/library/python:3.12-slim-bookworm

FROM ${BASE} AS build
# Optional backends, such as [s3,resp]: the names are in pyproject.toml.
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY connectors connectors
COPY sidecar sidecar
RUN python3 -m venv /opt/kv-sidecar \
    && /opt/kv-sidecar/bin/python -m pip install --no-cache-dir ".${EXTRAS}" \
    && /opt/kv-sidecar/bin/python -m pip uninstall --yes pip \
    # Where workers of another image copy their client from, whatever this Python's version.
    && ln -s "$(/opt/kv-sidecar/bin/python -I -c 'import connectors; print(*connectors.__path__)')" \
         /opt/kv-sidecar/connectors

FROM ${BASE}
# Where the volumes go: the Unix socket, and L2. A volume made on them inherits their owner.
RUN install -d -o 1000 -g 1000 /run/kv-sidecar /var/lib/kv-sidecar
COPY --from=build /opt/kv-sidecar /opt/kv-sidecar
# Where GKE's device plugin and WSL put the NVIDIA driver, beside the places that the loader knows.
ENV PATH=/opt/kv-sidecar/bin:$PATH \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/lib/wsl/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that Kubernetes can see that it is not root. Workers must be the same user: shared
# memory and the socket have mode 0600.
USER 1000:1000
# The wire protocol. The admin port, 8080, listens on the loopback address alone.
EXPOSE 5555
# True health, of the server in this container: the wire loop answers and the copies go on.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["kv-sidecar", "wait", "--timeout", "4"]
ENTRYPOINT ["kv-sidecar"]
CMD ["serve", "--help"]
