# Everything on a CPU: docker build -t openbezoar . && docker run --rm -v "$PWD:/data" openbezoar run demo
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    OPENBEZOAR_CACHE=/data/.cache/openbezoar \
    HF_HOME=/data/.cache/huggingface

# Before the package's own files, so that it is fetched once; this index has builds without CUDA.
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

# The package holds links to docs and recipes.
COPY pyproject.toml README.md LICENSE /src/
COPY docs /src/docs
COPY recipes /src/recipes
COPY openbezoar /src/openbezoar
RUN pip install "/src[all,track-tensorboard]" && useradd --uid 1000 --create-home openbezoar

# Run folders and caches lie in the folder that is mounted here.
WORKDIR /data
USER 1000
ENTRYPOINT ["openbezoar"]
CMD ["--help"]
