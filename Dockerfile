# The server and the worker. They need a Postgres with pgvector beside them: see docker-compose.yml.
# Any base will do that has a python3 (3.11 or newer) with venv.
ARG BASE_IMAGE=python:3.13-slim


# --- what is installed; of this stage only /opt goes into the image ---
FROM ${BASE_IMAGE} AS packages

# For machines that have an index of their own. They stay in the build cache of the engine.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST

COPY requirements.lock /
RUN python3 -m venv /opt/threadmill \
 && /opt/threadmill/bin/pip install --no-cache-dir -r /requirements.lock

# Encodings for exact token counts, so that the server needs no internet: those that lie in a folder
# `encodings` here (as tiktoken's cache holds them), and the rest is fetched. Where it cannot be, give
# --build-arg ENCODINGS= and tokens are estimated.
ARG ENCODINGS="o200k_base cl100k_base"
ENV TIKTOKEN_CACHE_DIR=/opt/encodings
COPY requirements.lock encodings* /opt/encodings/
RUN rm /opt/encodings/requirements.lock \
 && /opt/threadmill/bin/python -c "import tiktoken; [tiktoken.get_encoding(n) for n in '${ENCODINGS}'.split()]"

COPY . /source
RUN /opt/threadmill/bin/pip install --no-cache-dir --no-deps /source \
 && /opt/threadmill/bin/pip uninstall --quiet --yes pip


# --- the image ---
FROM ${BASE_IMAGE}

# By hand, for not every base has useradd.
RUN echo 'threadmill:x:10001:10001::/data:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'threadmill:x:10001:' >> /etc/group \
 && install -d -o 10001 -g 10001 /data
COPY --from=packages /opt /opt

ENV PATH=/opt/threadmill/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    TIKTOKEN_CACHE_DIR=/opt/encodings \
    THREADMILL_DATA_DIR=/data \
    THREADMILL_HOST=0.0.0.0 \
    THREADMILL_LOG_FORMAT=json

USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD [ "python", "-c", \
  "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ.get('THREADMILL_PORT', '8000') + '/healthz')" ]
CMD [ "threadmill", "serve" ]
