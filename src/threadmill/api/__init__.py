"""HTTP: one router per resource. Nothing here knows SQL or the model endpoint."""
