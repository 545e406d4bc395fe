"""Images with things in them, and a box and a class for each thing."""
