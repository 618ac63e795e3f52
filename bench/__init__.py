"""What the server costs beside the model it asks: one command, one table of figures with limits.

Everything runs on this machine and is started and ended here: a Postgres that writes to the disk
for real, `threadmill serve`, and an upstream that costs next to nothing. See README.md.
"""
