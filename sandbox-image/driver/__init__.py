"""PID 1 of the container that a model's code runs in: takes cells and files from the host, lets a
forked worker run the code, and passes on what it says. It trusts the host and nobody else; whatever
the code does to itself, this process answers."""
