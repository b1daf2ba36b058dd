# One slim image for worker, exporter and migration: the command says which.
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY src ./src
COPY rubrics ./rubrics
COPY calibration ./calibration
# The lock holds the versions; only what the extras need of it is installed.
RUN sed -e '/^ *--hash/d' -e 's/ \\$//' requirements.lock > constraints.txt \
    && python -m venv /opt/assay \
    && /opt/assay/bin/pip install --no-cache-dir --constraint constraints.txt '.[worker,postgres]'

FROM python:3.11.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --uid 10001 assay
COPY --from=build /opt/assay /opt/assay
ENV PATH=/opt/assay/bin:$PATH PYTHONUNBUFFERED=1 ASSAY_LOG_FORMAT=json ASSAY_DATA_DIR=/home/assay/data
USER assay
WORKDIR /home/assay
ENTRYPOINT ["assay"]
CMD ["worker"]
