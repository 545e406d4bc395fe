"""What a trained model is worth: numbers, their uncertainty, and what can be seen in it.

Plain functions, arrays in and arrays out. Nothing here knows which stage calls it, where files
lie, or that runs are tracked.
"""
