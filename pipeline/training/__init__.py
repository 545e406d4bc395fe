"""What trains a network, of whatever task, and what it trains with."""
