"""YAML -> Policy."""
