"""assay scores the answers of LLM applications in production."""
