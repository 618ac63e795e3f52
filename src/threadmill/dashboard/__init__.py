"""Pages for people, at /ui: what the assistants, threads and runs of a project are and did.

One process serves them beside the API, out of the same rows. Everything comes from here, nothing
from elsewhere, so they work without a network. They can be read without scripts; with them they
are quicker. Reading a page changes nothing.
"""
