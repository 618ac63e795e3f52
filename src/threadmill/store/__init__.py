"""Every SQL statement. Plain functions over a connection, one module per noun."""
