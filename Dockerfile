# One image per service, in the order of the data flow; docker-compose.yml builds and starts them.
#
#   docker build --target evalserver -t apprentice/evalserver .
#
# Two chains of layers, so that each image holds what its service imports and no more:
#   base ─ reverb ─ replay
#            └ torch ─ actor
#                 └ learner
#   base ─ evaluation ─ evalserver
#
# Docker's older builder makes every stage that stands before the one it is asked for. ONLY=evaluation makes
# those of the first chain empty, which nobody will use then.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore HOME=/tmp
# Volumes take their owner from these folders when they are made.
RUN groupadd --gid 10001 apprentice && \
    useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin apprentice && \
    install -d -o 10001 -g 10001 /runs /replay-checkpoints /secrets /var/cache/apprentice
WORKDIR /app
STOPSIGNAL SIGTERM


FROM base AS reverb
ARG ONLY
COPY requirements/image requirements/installer.lock requirements/replay.lock requirements/
RUN [ -n "${ONLY}" ] || requirements/image replay


# It chooses the run too, before anything else starts: the smallest image that can.
FROM reverb AS replay
COPY experiments experiments
COPY apprentice apprentice
COPY replay replay
COPY cli cli
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8080 9100
HEALTHCHECK --interval=10s --timeout=8s --start-period=90s --retries=3 \
    CMD ["python", "-m", "apprentice.healthcheck", "http://127.0.0.1:9100/healthz"]
ENTRYPOINT ["python", "-m", "replay"]


# What an actor needs; rendering too, since an experiment may read pixels.
FROM reverb AS torch
ARG ONLY
ARG TORCH_INDEX
ARG TORCH_VERSION=2.13.0
COPY requirements/packages requirements/system.txt requirements/actor.lock requirements/
RUN [ -n "${ONLY}" ] || { \
    requirements/packages $(grep -v '^g++$' requirements/system.txt) & \
    requirements/image actor && wait $!; }


FROM torch AS actor
COPY apprentice apprentice
COPY replay replay
COPY actor actor
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=8s --start-period=90s --retries=3 \
    CMD ["python", "-m", "apprentice.healthcheck", "http://127.0.0.1:9100/healthz"]
ENTRYPOINT ["python", "-m", "actor"]


# torch.compile calls g++ and includes Python.h when the learner starts.
FROM torch AS learner
ARG ONLY
COPY requirements/learner.lock requirements/
RUN [ -n "${ONLY}" ] || { \
    requirements/packages g++ && \
    { test -e "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
      requirements/packages python3-dev; } && \
    requirements/image learner; }
COPY apprentice apprentice
COPY replay replay
COPY demonstrations demonstrations
COPY learner learner
COPY cli cli
RUN python -m compileall -q .
ENV TORCHINDUCTOR_CACHE_DIR=/var/cache/apprentice/inductor
USER 10001:10001
EXPOSE 50051 9100
HEALTHCHECK --interval=10s --timeout=8s --start-period=120s --retries=3 \
    CMD ["python", "-m", "apprentice.healthcheck", "http://127.0.0.1:9100/healthz"]
ENTRYPOINT ["python", "-m", "learner"]


# The only service that is reached from outside: no TensorFlow, no Reverb, no gRPC, no compiler.
FROM base AS evaluation
ARG TORCH_INDEX
ARG TORCH_VERSION=2.13.0
COPY requirements/image requirements/packages requirements/installer.lock requirements/system.txt \
     requirements/evalserver.lock requirements/
RUN requirements/packages $(grep -v '^g++$' requirements/system.txt) & \
    requirements/image evalserver torch/include && wait $!


FROM evaluation AS evalserver
COPY apprentice apprentice
COPY evalserver evalserver
RUN python -m compileall -q .
ENV MUJOCO_GL=egl
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=8s --start-period=60s --retries=3 \
    CMD ["python", "-m", "apprentice.healthcheck", "http://127.0.0.1:8000/readyz"]
ENTRYPOINT ["python", "-m", "evalserver"]
