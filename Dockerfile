# The server. It needs a Postgres with pgvector beside it: see docker-compose.yml.
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY src src
RUN pip install --no-cache-dir --no-deps . && useradd --system --create-home threadmill \
    && install -d -o threadmill /data
# Encodings for exact token counts, so that the server needs no internet.
ENV TIKTOKEN_CACHE_DIR=/app/tiktoken
RUN python -c "import tiktoken; [tiktoken.get_encoding(n) for n in ('o200k_base', 'cl100k_base')]"

USER threadmill
ENV THREADMILL_DATA_DIR=/data THREADMILL_HOST=0.0.0.0
EXPOSE 8000
CMD ["threadmill", "serve"]
