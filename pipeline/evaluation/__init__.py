"""What a trained model is worth: numbers, their uncertainty, and what can be seen in it.

Nothing here knows which stage calls it, which task it is of, or that runs are tracked.
"""
