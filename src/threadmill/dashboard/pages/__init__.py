"""The screens, one a module: what is asked of the store, and which template shows it."""
