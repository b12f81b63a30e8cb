"""Resolve, plan, carry out, read back, undo."""
