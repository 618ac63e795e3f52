"""The model endpoint: requests out, tolerant reading of what comes back, routing, token counts."""
