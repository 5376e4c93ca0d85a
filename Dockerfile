# Pannier's image: docs/container.md says what is in it, what it needs and how to build it for a release.

# The same release of Debian twice, so that both have the same Python. For a release, give both by digest:
#   docker build --build-arg BASE=gcr.io/distroless/python3-debian12@sha256:... .
ARG BUILDER=debian:12-slim
ARG BASE=gcr.io/distroless/python3-debian12:nonroot

FROM ${BUILDER} AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends binutils python3-venv \
 && rm -rf /var/lib/apt/lists/*
# Two environments: pip stays in the first, what is installed goes to the second.
RUN python3 -m venv /build \
 && python3 -m venv --without-pip /opt/pannier
WORKDIR /src
COPY deploy/container/requirements.txt ./
RUN /build/bin/pip --python /opt/pannier/bin/python install --no-cache-dir --no-compile --no-deps \
      --only-binary :all: --requirement requirements.txt
COPY pyproject.toml ./
COPY proxy proxy
RUN /build/bin/pip --python /opt/pannier/bin/python install --no-cache-dir --no-compile --no-deps .
# Without its debugging symbols uvloop takes 2 MB instead of 14. Compiled ahead is what nobody could write later: the
# base image's own library, too, which comes without. Whether it fits the source is told by that, not by its time.
RUN find /opt/pannier -name '*.so' -exec strip --strip-unneeded {} + \
 && python3 -X pycache_prefix=/opt/pannier/compiled -m compileall -q --invalidation-mode checked-hash \
      -x '/(curses|dbm|distutils|ensurepip|idlelib|lib2to3|pydoc_data|test|tests|tkinter|turtledemo)/' \
      /usr/lib/python3.11 /opt/pannier/lib

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pannier" \
      org.opencontainers.image.description="A sidecar cache proxy that speaks RESP" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /opt/pannier /opt/pannier
ENV PATH="/opt/pannier/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/pannier/compiled \
    PYTHONSAFEPATH=1 \
    PANNIER_LOG_FORMAT=json
USER 10001:10001
WORKDIR /
# Clients, and the administration. Both are served to the pod alone (127.0.0.1) unless PANNIER_LISTEN and
# PANNIER_ADMIN_LISTEN say otherwise.
EXPOSE 6380 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s --retries=3 CMD ["/opt/pannier/bin/pannier", "health"]
ENTRYPOINT ["/opt/pannier/bin/pannier"]
