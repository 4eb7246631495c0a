"""llama.cpp's own HTTP server, as the package xllamacpp carries it, by the names of llama-server's arguments.

Copied into the environment that ``openbezoar engine install llama.cpp`` makes, and run by its Python; needs
nothing else. Ends by SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import os
import signal


def main() -> None:
    """Listen until a signal."""
    import xllamacpp  # type: ignore[import-not-found]  # of another environment

    parser = argparse.ArgumentParser(prog="llama-server")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-a", "--alias")
    parser.add_argument("-c", "--ctx-size", type=int, default=0, help="tokens in all slots together; 0: the model's")
    parser.add_argument("-np", "--parallel", type=int, default=4, help="conversations at a time")
    # threads that spin beside other work are slower than one
    stated = os.environ.get("OMP_NUM_THREADS", "")
    own = int(stated) if stated.isdigit() else -1
    parser.add_argument("-t", "--threads", type=int, default=own, help="default: $OMP_NUM_THREADS, or the library's")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, help="layers on a GPU")
    parser.add_argument("--no-cache-prompt", action="store_true", help="read each prompt anew, whatever came before")
    asked = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = asked.model
    params.hostnames = [asked.host]
    params.port = asked.port
    if asked.alias:
        params.model_alias = {asked.alias}
    params.n_ctx = asked.ctx_size
    params.n_parallel = asked.parallel
    params.cache_prompt = not asked.no_cache_prompt
    params.kv_unified = True  # each conversation may have the room of all
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    if asked.n_gpu_layers is not None:
        params.n_gpu_layers = asked.n_gpu_layers
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the server's own threads, so that this one hears them
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait(signals)


if __name__ == "__main__":
    main()
