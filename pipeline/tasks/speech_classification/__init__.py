"""Classifying spoken words."""
