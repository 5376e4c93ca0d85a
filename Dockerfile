# The sidecar's image. In a pod it shares the network namespace with the application, so the default address
# 127.0.0.1:6380 is the right one; to publish the port from a plain container, add --listen :6380.
ARG BASE=python:3.12-slim
FROM ${BASE}

WORKDIR /src
COPY pyproject.toml ./
COPY proxy proxy
RUN pip install --no-cache-dir . \
 && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin pannier

USER 10001:10001
WORKDIR /tmp
EXPOSE 6380
ENTRYPOINT ["pannier"]
