"""What is measured of a language model."""
