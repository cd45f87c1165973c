# A server of PaliGemma on a CPU: docker build -t paligemma . && docker run -p 8000:8000 paligemma
FROM python:3.11-slim AS build
# The compiled kernels need a C compiler, which the server does without.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE WEIGHTS_LICENSE.md constraints.txt ./
COPY src ./src
# What PyTorch's page says to install for a CPU; torch alone brings the libraries of CUDA along.
ARG TORCH=torch
# hadolint ignore=SC2086
RUN python -m venv /opt/paligemma \
    && /opt/paligemma/bin/pip install --no-cache-dir ${TORCH} \
    && /opt/paligemma/bin/pip install --no-cache-dir '.[serve,hub,json]'

FROM python:3.11-slim
# OpenMP, by which the kernels share their work among threads.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 paligemma \
    && mkdir /models && chown paligemma /models
COPY --from=build /opt/paligemma /opt/paligemma
ENV PATH=/opt/paligemma/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
ENTRYPOINT ["paligemma", "serve", "--host", "0.0.0.0"]
