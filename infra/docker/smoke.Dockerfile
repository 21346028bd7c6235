# Dependencies of the smoke run (infra/docker/smoke.sh); the code is mounted. It is part of no deployment.
FROM python:3.13-slim
RUN python -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore 'uv>=0.9,<1'
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/remit
WORKDIR /build
COPY pyproject.toml uv.lock ./
RUN uv sync --quiet --frozen --no-install-project --extra cli --extra services --extra postgres --extra mcp --extra local
ENV PATH=/opt/remit/bin:$PATH PYTHONPATH=/src:/src/shared HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
USER 10001:10001
