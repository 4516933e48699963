"""vLLM's asynchronous engine behind the engine protocol: the only package that imports vLLM."""
