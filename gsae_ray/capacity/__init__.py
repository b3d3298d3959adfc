"""What fits, and what it costs."""
