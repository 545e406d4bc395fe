"""Measuring a classifier on its test split, and showing what it learnt."""
