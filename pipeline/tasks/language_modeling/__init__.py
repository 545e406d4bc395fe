"""Saying what comes next in a text."""
