# Both services from one set of layers:
#
#   docker build --target producer --tag people-producer:0.1.0 .
#   docker build --target consumer --tag people-consumer:0.1.0 .
#
# Without --target it is the producer; `docker run IMAGE python -m apps.consumer` runs the other one. It listens on all
# addresses, and so does not start without API_KEY, API_KEY_FILE, or ALLOW_ANONYMOUS=true.

FROM python:3.11.17-slim-bookworm@sha256:2333bd330d12de02514770b3585cad313644316047cdee24a7acfdece6de6efb AS build
COPY .ci/uv.txt uv.txt
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes --requirement uv.txt
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/people
WORKDIR /build
RUN uv venv "$VIRTUAL_ENV"
# What the services need at run time, no more, and each file of it only with a hash that the lock file gives: the first
# command says what, in the locked versions; the second refuses whatever has no hash there, or another one.
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN uv pip compile pyproject.toml --extra tracing --extra oidc --constraint requirements.lock --no-header --no-annotate --quiet --output-file run.txt \
    && uv pip sync run.txt --constraint requirements.lock --require-hashes --no-build
COPY contracts contracts
COPY apps apps
RUN uv pip install . --no-deps --build-constraint requirements.lock && uv pip check

FROM python:3.11.17-slim-bookworm@sha256:2333bd330d12de02514770b3585cad313644316047cdee24a7acfdece6de6efb AS runtime
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin people
COPY --from=build /opt/people /opt/people
ENV PATH=/opt/people/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0
WORKDIR /tmp
USER people
STOPSIGNAL SIGTERM

# Healthy here means that the process answers, whatever Kafka does: to end it would not bring Kafka back.
FROM runtime AS consumer
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8001/livez', timeout=4)"]
CMD ["python", "-m", "apps.consumer"]

FROM runtime AS producer
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["python", "-m", "apps.producer"]
