FROM python:3.13-slim
COPY pyproject.toml README.md LICENSE /src/
COPY tiledblend /src/tiledblend
RUN pip install --no-cache-dir /src && rm -r /src && useradd --uid 1000 --create-home tiledblend
USER tiledblend
WORKDIR /data
CMD ["tiledblend", "--help"]
