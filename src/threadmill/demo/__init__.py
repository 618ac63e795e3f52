"""A conversation that shows the machinery at work, with a scripted stand-in for the model."""
