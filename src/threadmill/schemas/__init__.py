"""Wire shapes: what clients send (checked to the original's texts) and what they see."""
