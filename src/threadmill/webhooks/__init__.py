"""What clients' own servers are told: taken from the outbox, signed, sent, tried again."""
