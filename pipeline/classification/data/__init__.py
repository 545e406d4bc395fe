"""Labelled examples: their labels, what a person sees of them, and the report on them."""
