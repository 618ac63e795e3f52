"""How text gets out of documents: one module per family, each a generator of passages.

All of it runs in a throwaway process (`search.extract`) that may be killed or run out of memory at
any line, so a reader streams, holds little, and trusts nothing that a file says about itself.
"""
