"""Damage to texts, for tasks that read."""
