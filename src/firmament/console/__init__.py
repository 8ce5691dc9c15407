"""The web console: pages over the operator API. It holds no rule of its own."""
