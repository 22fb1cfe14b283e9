# The worker and the `protostar` command: docker build --tag protostar .
# The example gateway: docker build --target gateway --tag protostar-gateway .
# docs/production.md says how they are run.

FROM python:3.11-slim AS build
RUN pip install --no-cache-dir uv
WORKDIR /source
COPY requirements.txt pyproject.toml README.md LICENSE arq_settings.py ./
COPY client client
COPY models models
COPY protostar protostar
COPY rag rag
COPY tasks tasks
# requirements.txt bounds what is installed to versions and hashes that were tested, and installs nothing by itself.
ENV UV_CONSTRAINT=requirements.txt UV_BUILD_CONSTRAINT=requirements.txt UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
RUN uv venv /opt/protostar && uv pip install --python /opt/protostar ".[openrouter,otel]"

FROM build AS build-gateway
RUN uv pip install --python /opt/protostar ".[gateway]"

FROM python:3.11-slim AS base
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin protostar
ENV PATH=/opt/protostar/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001

FROM base AS gateway
COPY --from=build-gateway /opt/protostar /opt/protostar
COPY examples/gateway /srv/examples/gateway
WORKDIR /srv
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "examples.gateway", "--host", "0.0.0.0", "--port", "8000"]

FROM base
COPY --from=build /opt/protostar /opt/protostar
ENV PROTOSTAR_CORPUS_DIR=/corpus
WORKDIR /corpus
# A check starts Python and imports the worker: seconds of a core, so it is asked seldom.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["arq", "--check", "arq_settings.WorkerSettings"]
CMD ["arq", "arq_settings.WorkerSettings"]
