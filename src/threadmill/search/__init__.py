"""What assistants can look things up in: the files and vector stores that they are given."""
