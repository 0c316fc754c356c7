"""Codebooks: the codes and the rule that picks them, one kind a file."""
