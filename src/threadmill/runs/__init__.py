"""What happens to a run: how it starts, who executes it, what it says, how it ends."""
